"""The command line ends with a code that a script can act on, and says why in one place."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from marl_tr import registry
from marl_tr.cli import main
from marl_tr.errors import Diverged, Interrupted, UserError
from marl_tr.registry import Entry

Install = Callable[[type[BaseException] | None], None]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Registers a command ``probe`` that raises what it is given."""

    def install(error: type[BaseException] | None) -> None:
        def probe() -> None:
            """Raises."""
            if error is not None:
                raise error("the [reason]")

        monkeypatch.setitem(registry._registered["commands"], "probe", Entry(probe, "raises"))

    return install


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (None, 0, ""),
        (UserError, 2, "error: the [reason]"),
        (Diverged, 3, "diverged: the [reason]"),
        (Interrupted, 130, "interrupted: the [reason]"),
        (KeyboardInterrupt, 130, "interrupted: stopped by the keyboard"),
    ],
)
def test_each_end_has_its_code(
    command: Install,
    capsys: pytest.CaptureFixture[str],
    error: type[BaseException] | None,
    code: int,
    said: str,
) -> None:
    command(error)
    assert main(["probe"]) == code
    assert capsys.readouterr().err.strip() == said


def test_a_crash_keeps_its_traceback(command: Install) -> None:
    command(ZeroDivisionError)
    with pytest.raises(ZeroDivisionError):
        main(["probe"])


def test_a_crash_in_a_process_exits_with_1_and_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "boom.py").write_text("def make():\n    pass\nraise RuntimeError('their own fault')\n")
    (tmp_path / "s.yaml").write_text(
        "name: s\npreset: mappo\nenv: {id: 'boom:make'}\nagents: {kind: gaussian}\ntrainer: {total_steps: 1}\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "marl_tr", "run", "s.yaml"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "boom.py" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["runn"], "run"),
        (["run"], "SCENARIO"),
        (["run", "uav_quik"], "did you mean 'uav_quick'?"),
        (["run", "uav_quick", "sead=1"], "override 1: sead: unknown key 'sead'; did you mean 'seed'?"),
        (["run", "uav_quick", "--seed", "-1"], "seed: must be greater than or equal to 0"),
        (["run", "uav_quick", "--seed", "x"], "--seed"),
        (["run", "uav_quick", "--sed", "1"], "--sed"),
        (["resume", "nowhere"], "nowhere does not exist"),
        (["eval", "nowhere"], "nowhere does not exist"),
        (["audit", "nowhere"], "nowhere does not exist"),
        (["tb", "nowhere"], "nowhere does not exist"),
        (["regions", "trop"], "did you mean 'trpo'?"),
        (["check-env", "uav/downlink-v0", "num_uavs"], "not of the form key=value"),
    ],
)
def test_bad_arguments_exit_with_2_and_name_the_cure(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert said in printed.err
    assert printed.out == ""


def test_every_problem_of_a_scenario_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("name: bad\npreset: mapo\nseed: x\nenv: {id: nothing}\nagents: {kind: x}\ntrainer: {}\n")
    assert main(["run", str(path)]) == 2
    printed = capsys.readouterr().err
    for line, path_ in ((2, "preset"), (3, "seed"), (4, "env.id"), (5, "agents.kind"), (6, "trainer.total_steps")):
        assert f"bad.yaml:{line}:" in printed
        assert f" {path_}: " in printed


def test_a_folder_of_runs_is_not_a_run_and_the_runs_in_it_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "uav_quick" / "2026-seed1"
    run.mkdir(parents=True)
    (run / "scenario.yaml").write_text("name: x\n")
    for command in ("resume", "eval", "audit"):
        assert main([command, str(tmp_path)]) == 2
        assert str(run) in capsys.readouterr().err


def test_a_reader_that_stops_early_is_no_error() -> None:
    code = "from marl_tr.cli import main; import sys; sys.exit(main(['schema']))"
    shell = f'"{sys.executable}" -c "{code}" | head -n 1; exit ${{PIPESTATUS[0]}}'
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "{\n"
