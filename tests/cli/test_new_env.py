"""``marl-tr new-env``: every kind of package installs, is found, and passes the test that it comes with."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from marl_tr.cli import main
from marl_tr.cli.new_env import Kind, write_package

KINDS = list(Kind)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """One folder with a package of each kind, and where all of them are installed."""
    work = tmp_path_factory.mktemp("new")
    folders = [write_package(f"lab_{kind}", kind=kind, into=work) for kind in KINDS]
    command = ["pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target", str(work / "site")]
    done = subprocess.run(
        [sys.executable, "-m", *command, *map(str, folders)], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    return work, work / "site"


def test_new_packages_pass_the_tests_that_they_come_with(site: tuple[Path, Path]) -> None:
    # One process for all kinds: most of the time goes into imports.
    work, installed = site
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *(f"lab_{kind}" for kind in KINDS)],
        cwd=work,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout
    assert f"{2 * len(KINDS)} passed" in done.stdout


@pytest.mark.parametrize("kind", list(Kind))
def test_nothing_of_the_template_is_left_and_the_parts_agree(kind: Kind, tmp_path: Path) -> None:
    folder = write_package("harbour_pilots", kind=kind, into=tmp_path / "deep")
    files = {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}
    assert set(files) == {
        "pyproject.toml",
        "README.md",
        "harbour_pilots.yaml",
        "src/harbour_pilots/__init__.py",
        "src/harbour_pilots/environment.py",
        "tests/test_harbour_pilots.py",
    }
    assert not any("new_environment" in text or "NewEnvironment" in text for text in files.values())
    points = tomllib.loads(files["pyproject.toml"])["project"]["entry-points"]["marl_tr.envs"]
    assert points == {"harbour_pilots": "harbour_pilots:ENVIRONMENTS"}
    assert '"harbour_pilots.environment:HarbourPilots"' in files["src/harbour_pilots/__init__.py"]
    assert "class HarbourPilots" in files["src/harbour_pilots/environment.py"]
    assert (f"native={kind is Kind.native}") in files["src/harbour_pilots/__init__.py"]


def test_the_command_says_what_to_do_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["new-env", "patrol", "--kind", "gymnasium"]) == 0
    head, *commands = capsys.readouterr().out.splitlines()
    assert head == "patrol: a Gymnasium Env: one agent, registered as patrol/patrol-v0. Next:"
    assert [command.strip() for command in commands] == [
        "pip install -e patrol",
        "marl-tr check-env patrol/patrol-v0",
        "marl-tr run patrol/patrol.yaml",
    ]


def test_a_folder_that_is_there_is_left_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "patrol").mkdir()
    (tmp_path / "patrol" / "mine.txt").write_text("mine")
    assert main(["new-env", "patrol", "--into", str(tmp_path)]) == 2
    assert "exists already and is left as it is" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "patrol").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("name", "reason", "better"),
    [
        ("MyEnv", "lower-case letters", "my_env"),
        ("my-env", "lower-case letters", "my_env"),
        ("UAVGame2", "lower-case letters", "uav_game2"),
        ("3d", "lower-case letters", "d"),
        ("_hidden", "lower-case letters", "hidden"),
        ("", "lower-case letters", "my_env"),
        ("a/b", "lower-case letters", "a_b"),
        ("class", "a word of Python's", "class_env"),
        ("json", "a module of Python's own", "json_env"),
        ("numpy", "importable already", "numpy_env"),
    ],
)
def test_a_name_that_cannot_work_is_answered_with_one_that_would(
    name: str, reason: str, better: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["new-env", name, "--into", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert reason in told
    assert f"{better!r} would work" in told
    assert list(tmp_path.iterdir()) == []
    write_package(better, kind=Kind.parallel, into=tmp_path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["new-env", "patrol", "--into", str(tmp_path / "file")]) == 2
    assert f"{tmp_path / 'file' / 'patrol'} cannot be written" in capsys.readouterr().err
