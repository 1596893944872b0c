"""Whatever the documentation shows works: code runs, scenarios load, commands exist, links lead somewhere."""

from __future__ import annotations

import multiprocessing
import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer
import typer.main
import yaml

from marl_tr import registry
from marl_tr.cli import COMMANDS
from marl_tr.scenario import load_scenario

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", *sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/**/*.md"))]

# What must be shown at least, so that a block whose fence is mistyped does not silently go untested.
EXPECTED = {
    "README.md": {"python", "yaml", "sh"},
    "docs/architecture.md": {"python"},
    "docs/compare.md": {"python", "sh"},
    "docs/environments.md": {"python", "yaml"},
    "docs/games.md": {"python", "yaml"},
    "docs/flow.md": {"python", "yaml", "sh"},
    "docs/nash-gap.md": {"python", "sh"},
    "docs/preferences.md": {"python"},
    "docs/trust-regions.md": {"python", "sh"},
    "docs/results.md": {"sh"},
    "docs/results-flow.md": {"sh"},
    "docs/scenarios.md": {"python", "yaml", "sh"},
    "docs/uav.md": {"python", "yaml", "sh"},
    "docs/uav-channels.md": {"python", "yaml"},
    "docs/uav-radio.md": {"python"},
    "docs/uav-references.md": {"python"},
    "docs/uav-users.md": {"python"},
    "docs/schedules.md": {"yaml"},
}
LANGUAGES = {"python", "yaml", "sh", "console", "toml", "text", ""}


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        language: After the fence.
        text: Its lines.
        line: Number of its first line, from 1.
    """

    language: str
    text: str
    line: int


def blocks(page: str) -> list[Block]:
    """Every fenced block of a page, in order."""
    found: list[Block] = []
    opened: tuple[str, int] | None = None
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        if not line.lstrip().startswith("```"):
            continue
        if opened is None:
            opened = (line.strip().removeprefix("```").strip(), number + 1)
        else:
            language, first = opened
            assert line.strip() == "```", f"{page}:{number}: a fence inside the block of line {first}"
            found.append(Block(language, "\n".join(lines[first - 1 : number - 1]) + "\n", first))
            opened = None
    assert opened is None, f"{page}: the block of line {opened and opened[1]} is never closed"
    return found


def scenarios(page: str) -> dict[str, Block]:
    """The blocks of a page that are whole scenarios, by name."""
    found = {}
    for block in blocks(page):
        if block.language == "yaml" and re.match(r"(#.*\n)*name:", block.text):
            found[str(yaml.safe_load(block.text)["name"])] = block
    return found


def commands(page: str) -> Iterator[tuple[int, list[str]]]:
    """Every shell command of a page with its line; of plain blocks, the lines that begin with a program of ours."""
    for block in blocks(page):
        for offset, line in enumerate(block.text.splitlines()):
            prompted = line.startswith("$ ")
            if block.language == "sh" or (block.language == "console" and prompted):
                shown = line.removeprefix("$ ")
            elif block.language in ("", "text") and re.match(r"(\$ )?(marl-tr|make|pip) ", line):
                # What a plain block shows of a command may be made to fail, and says so below it.
                shown = "" if prompted else line
            else:
                continue
            words = shlex.split(shown.split(" > ")[0], comments=True)
            if words:
                yield block.line + offset, words


def test_the_pages_that_are_tested_are_those_that_there_are() -> None:
    assert set(EXPECTED) <= set(PAGES)


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_of_a_kind_that_is_tested_and_none_is_missing(page: str) -> None:
    found = blocks(page)
    unknown = [(block.line, block.language) for block in found if block.language not in LANGUAGES]
    assert unknown == []
    assert EXPECTED.get(page, set()) <= {block.language for block in found}


@pytest.mark.parametrize("page", [page for page in PAGES if any(b.language == "python" for b in blocks(page))])
def test_python_blocks_run_in_order(page: str, tmp_path: Path) -> None:
    # One program a page, its lines where they are on the page, so that a traceback names them.
    program: list[str] = []
    for block in blocks(page):
        if block.language == "python":
            program += [""] * (block.line - 1 - len(program)) + block.text.splitlines()
    path = tmp_path / f"{Path(page).stem}_blocks.py"
    path.write_text("\n".join(program) + "\n")
    for name, block in scenarios(page).items():
        (tmp_path / f"{name}.yaml").write_text(block.text)
    process = _processes.Process(target=exec, args=(_AS_SCRIPT, {"folder": str(tmp_path), "name": path.name}))
    process.start()
    process.join(240)
    said = (tmp_path / "said.txt").read_text()
    assert process.exitcode == 0, f"{page}\n{said[-6000:]}"


# Forked from one process that has imported what takes seconds, of others alone: what a block forgets to import of ours
# is missing as it would be in a process of its own.
_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(
    [
        *("torch", "torch.func", "torch.utils.tensorboard", "matplotlib.figure", "gymnasium", "pettingzoo", "pydantic"),
        # What torch imports at its first gradient and at its first optimizer.
        *("torch.fx.experimental.symbolic_shapes", "torch._dynamo"),
    ]
)


# What ``python NAME`` does in a folder; all that it says goes to a file.
_AS_SCRIPT = """
import os, runpy, sys
os.chdir(folder)
file = os.open("said.txt", os.O_WRONLY | os.O_CREAT)
os.dup2(file, 1)
os.dup2(file, 2)
sys.path.insert(0, folder)
sys.argv = [name]
runpy.run_path(name, run_name="__main__")
"""


@pytest.mark.parametrize(("page", "name"), [(page, name) for page in PAGES for name in scenarios(page)])
def test_yaml_blocks_are_scenarios(page: str, name: str, tmp_path: Path) -> None:
    path = tmp_path / f"{name}.yaml"
    path.write_text(scenarios(page)[name].text)
    assert load_scenario(path).name == name


@pytest.mark.parametrize("page", PAGES)
def test_yaml_and_toml_blocks_can_be_read(page: str) -> None:
    for block in blocks(page):
        if block.language == "yaml":
            assert yaml.safe_load(block.text), f"{page}:{block.line}"
        if block.language == "toml":
            groups = tomllib.loads(block.text).get("project", {}).get("entry-points", {})
            ours = {f"marl_tr.{kind}" for kind in registry.KINDS}
            assert set(groups) <= ours, f"{page}:{block.line}: {sorted(groups)} are not all entry-point groups"


@pytest.mark.parametrize("page", PAGES)
def test_commands_exist_and_take_their_arguments(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, block in scenarios(page).items():
        (tmp_path / f"{name}.yaml").write_text(block.text)
    monkeypatch.chdir(tmp_path)
    targets = set(re.findall(r"^([a-z-]+):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for line, (program, *arguments) in commands(page):
        where = f"{page}:{line}"
        match program:
            case "marl-tr":
                check_command(arguments, where)
            case "make":
                asked = {word for word in arguments if "=" not in word}
                assert asked <= targets, f"{where}: no such target"
            case "python":
                assert (ROOT / arguments[0]).is_file(), f"{where}: {arguments[0]} does not exist"
            case "pip" | "git" | "cd":
                continue
            case _:
                pytest.fail(f"{where}: {program!r} is no program that this test knows")


def check_command(arguments: list[str], where: str) -> None:
    """The command exists and parses its arguments; a scenario that it names loads with its overrides."""
    name, *rest = arguments
    assert name in COMMANDS, f"{where}: no command {name!r}"
    app = typer.Typer()
    app.command()(COMMANDS[name].load())
    # Reads the arguments as the command would, and calls nothing.
    context = typer.main.get_command(app).make_context(name, rest)
    if name == "run":
        seed = [] if context.params["seed"] is None else [f"seed={context.params['seed']}"]
        load_scenario(context.params["scenario"], [*(context.params["overrides"] or []), *seed])


@pytest.mark.parametrize("page", PAGES)
def test_commands_in_running_text_exist(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    named = re.findall(r"`marl-tr ([a-z][a-z-]*)", text)
    assert set(named) <= set(COMMANDS)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, heading = target.partition("#")
        path = (ROOT / page).parent / file if file else ROOT / page
        if not path.exists() or (heading and heading not in headings(path)):
            broken.append(target)
    assert broken == []


def headings(path: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    lines = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", line.lower()).strip().replace(" ", "-") for line in lines}
