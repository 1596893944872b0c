"""The wheel holds what the source tree holds, and works away from it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"marl_tr": "marl_tr", "envs": "marl_tr/envs", "agents": "marl_tr/agents", "scenarios": "marl_tr/scenarios"}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the source: building writes beside it, and would reuse what an earlier build left there."""
    tree = tmp_path_factory.mktemp("source")
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, tree / folder, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    return tree


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    code = f"import setuptools.build_meta as b; b.build_wheel({str(out)!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def unzipped(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(place)
    return place


def outside(unzipped: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python away from the repository, with the unzipped wheel before everything that is installed."""
    environment = {**os.environ, "PYTHONPATH": str(unzipped), "PYTHONSAFEPATH": "1"}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=unzipped.parent,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_wheel_holds_every_file_of_the_source_and_no_other(source: Path, wheel: Path) -> None:
    expected = {
        f"{target}/{path.relative_to(source / folder).as_posix()}"
        for folder, target in FOLDERS.items()
        for path in (source / folder).rglob("*")
        if path.is_file()
    }
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert packed == expected
    data = (
        "py.typed",
        "scenarios/uav_quick.yaml",
        "scenarios/schema.json",
        "envs/flow/pretrained/moving_shapes.safetensors",
    )
    assert {f"marl_tr/{name}" for name in data} <= packed


def test_the_wheel_installs_no_top_level_name_but_marl_tr(unzipped: Path) -> None:
    names = {path.name for path in unzipped.iterdir() if not path.name.endswith(".dist-info")}
    assert names == {"marl_tr"}


def test_shipped_scenarios_are_listed_and_loaded_from_the_wheel(unzipped: Path) -> None:
    listed = outside(unzipped, "-m", "marl_tr", "scenarios")
    assert listed.returncode == 0, listed.stderr
    assert "uav_quick" in listed.stdout
    code = (
        "import marl_tr.envs, marl_tr.scenario.loader as l;"
        "print(l.__file__, marl_tr.envs.__file__, l.shipped()['uav_quick'], sep='\\n');"
        "print(l.load_scenario('uav_quick').env.settings.num_uavs)"
    )
    shown = outside(unzipped, "-c", code)
    assert shown.returncode == 0, shown.stderr
    *files, uavs = shown.stdout.split()
    assert all(Path(file).is_relative_to(unzipped) for file in files)
    assert uavs == "3"


def test_the_entry_points_of_the_wheel_lead_somewhere(unzipped: Path) -> None:
    code = (
        "from importlib.metadata import entry_points\n"
        "from marl_tr.registry import KINDS\n"
        "for kind in KINDS:\n"
        "    for point in entry_points(group='marl_tr.' + kind): print(kind, len(point.load()))\n"
    )
    done = outside(unzipped, "-c", code)
    assert done.returncode == 0, done.stderr
    kinds = {line.split()[0] for line in done.stdout.splitlines()}
    assert kinds == {"envs", "agents", "critics", "models", "objectives", "regions", "schedules", "commands"}
