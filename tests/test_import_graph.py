"""Who may know whom, and what must stay cheap to import."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"marl_tr": "marl_tr", "envs": "marl_tr.envs", "agents": "marl_tr.agents", "scenarios": "marl_tr.scenarios"}
HEAVY = ("torch", "torch_geometric", "diffusers", "tensorboard", "matplotlib", "imageio", "pettingzoo")


def modules(folder: str) -> Iterator[tuple[str, Path]]:
    for path in sorted((ROOT / folder).rglob("*.py")):
        parts = [FOLDERS[folder], *path.relative_to(ROOT / folder).with_suffix("").parts]
        yield ".".join(part for part in parts if part != "__init__"), path


def imported(path: Path, module: str) -> set[str]:
    """Every module that `path` imports, wherever in the file; relative imports resolved against `module`."""
    found: set[str] = set()
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([node.module] if node.module else [])])
            found |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return found


def inside(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def test_the_trainer_never_imports_an_environment_or_an_agent() -> None:
    wrong = {
        (module, name)
        for module, path in modules("marl_tr")
        for name in imported(path, module)
        if inside(name, ("marl_tr.envs", "marl_tr.agents"))
    }
    assert wrong == set()


def test_the_trainer_names_no_module_of_an_environment_or_an_agent_in_a_string() -> None:
    wrong = [
        (module, node.value)
        for module, path in modules("marl_tr")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and node.value.startswith(("marl_tr.envs.", "marl_tr.agents."))
    ]
    assert wrong == []


def test_environments_are_usable_without_the_trainer() -> None:
    trainer = tuple(
        f"marl_tr.{part}"
        for part in [
            "trainer",
            "agents",
            "rollout",
            "nn",
            "objective",
            "region",
            "schedule",
            "critic",
            "analysis",
            "events",
            "cli",
            "policy",
            "scenario.loader",
        ]
    )
    # Clips and mixtures are computed as tensors, and a model is a network: only what asks for one imports it.
    tensors = ("marl_tr.envs.flow",)
    networks = ("marl_tr.envs.flow.models",)
    wrong = {
        (module, name)
        for module, path in modules("envs")
        for name in imported(path, module)
        if (inside(name, trainer) and not (inside(module, networks) and inside(name, ("marl_tr.nn",))))
        or (inside(name, ("torch",)) and not inside(module, tensors))
    }
    assert wrong == set()
    importers = {
        module for module, path in modules("envs") for name in imported(path, module) if inside(name, networks)
    }
    assert importers == set()


def test_agents_know_neither_environments_nor_the_loop() -> None:
    wrong = {
        (module, name)
        for module, path in modules("agents")
        for name in imported(path, module)
        if inside(name, ("marl_tr.envs", "marl_tr.trainer", "marl_tr.cli", "marl_tr.analysis"))
    }
    assert wrong == set()


def test_nothing_imports_the_top_level_folders_by_their_bare_names() -> None:
    files = [(module, path) for folder in FOLDERS for module, path in modules(folder)]
    for folder in ("tests", "examples", "benchmarks"):
        files += [(path.stem, path) for path in (ROOT / folder).rglob("*.py")]
    wrong = {
        (module, name)
        for module, path in files
        for name in imported(path, module)
        if inside(name, ("envs", "agents", "scenarios"))
    }
    assert len(files) > 20
    assert wrong == set()


def test_every_folder_of_the_package_is_a_package() -> None:
    missing = [
        folder
        for top in FOLDERS
        for folder in [ROOT / top, *(ROOT / top).rglob("*")]
        if folder.is_dir()
        and folder.name != "__pycache__"
        and any(folder.glob("*.py"))
        and not (folder / "__init__.py").exists()
    ]
    assert missing == []


def loaded_after(code: str) -> set[str]:
    """Heavy packages that a fresh interpreter has loaded after `code`."""
    script = f"{code}\nimport sys\nprint(' '.join(m for m in {HEAVY!r} if m in sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    return set(done.stderr.split())


@pytest.mark.parametrize(
    "code",
    [
        "import marl_tr",
        "from marl_tr import registry\nfor k in registry.KINDS:\n for e in registry.names(k).values(): e.load_config()",
        "from marl_tr.scenario import load_scenario, scenario_yaml; scenario_yaml(load_scenario('uav_team'))",
        "from marl_tr.cli import main; main(['--help'])",
        "from marl_tr.cli import main; main(['run', '--help'])",
        "from marl_tr.cli import main; main(['regions', 'trpo'])",
        "from marl_tr.cli import main; main(['schema'])",
    ],
)
def test_names_settings_and_help_load_nothing_heavy(code: str) -> None:
    assert loaded_after(code) == set()
