"""What the commands print, as a user sees it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from marl_tr import __version__, registry
from marl_tr.cli import COMMANDS, main
from marl_tr.cli.check_env import _config
from marl_tr.scenario import load_scenario, shipped


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(list(arguments)) == 0
    return capsys.readouterr().out


def test_help_names_every_command_with_its_summary(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "--help")
    for name, entry in COMMANDS.items():
        assert f" {name} " in text
        assert entry.summary[1:20] in text


@pytest.mark.parametrize("name", list(COMMANDS))
def test_each_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, name, "--help")
    assert f"marl-tr {name}" in text
    assert len(text.split()) > 12


def test_the_version_is_the_installed_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys, "--version") == f"marl-tr {__version__}\n"


@pytest.mark.parametrize("kind", [kind for kind in registry.KINDS if kind != "commands"])
def test_each_kind_is_listed_with_all_its_names(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, kind).splitlines()
    assert [line.split()[0] for line in lines] == list(registry.names(kind))


@pytest.mark.parametrize(
    ("kind", "name", "setting", "default"),
    [
        ("regions", "trpo", "bound", "0.01"),
        ("envs", "uav/downlink-v0", "num_uavs", "3"),
        ("critics", "mlp", "fit.kind", "trust_region"),
        ("envs", "gymnasium/CartPole-v1", "sutton_barto_reward", "false"),
    ],
)
def test_one_name_shows_its_settings_with_defaults(
    kind: str, name: str, setting: str, default: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (line,) = [line for line in printed(capsys, kind, name).splitlines() if line.split()[0] == setting]
    assert default in line


def test_a_setting_is_shown_with_what_it_may_be(capsys: pytest.CaptureFixture[str]) -> None:
    uav = printed(capsys, "envs", "uav/downlink-v0")
    assert "suburban or urban or dense_urban or high_rise" in uav
    assert "whole number in [1, 64]" in uav
    assert "number > 0, or empty" in uav
    critic = printed(capsys, "critics", "mlp")
    assert "list of whole numbers" in critic
    assert max(map(len, critic.splitlines())) < 160


def test_settings_that_a_factory_hides_are_not_denied(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def hides(**config: object) -> None:
        """Like the factories of PettingZoo."""

    registry.register_env("cli-tests/hides-v0", hides)
    registry.register_env("cli-tests/none-v0", lambda: None)
    assert "keyword arguments that its factory does not name" in printed(capsys, "envs", "cli-tests/hides-v0")
    assert printed(capsys, "envs", "cli-tests/none-v0") == "cli-tests/none-v0 has no settings\n"


def test_scenarios_lists_what_ships(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, "scenarios").splitlines()
    assert [line.split()[0] for line in lines] == list(shipped())


def test_schema_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert json.loads(printed(capsys, "schema"))["title"] == "marl-tr scenario"


def test_settings_of_check_env_are_yaml() -> None:
    assert _config(["num_uavs=4", "rho=1e-1", "a.b=[1, x]"]) == {"num_uavs": 4, "rho": 0.1, "a": {"b": [1, "x"]}}


def test_tb_becomes_tensorboard_on_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "events.out.tfevents.1").write_bytes(b"")
    called: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda program, arguments: called.append([program, *arguments]))
    assert main(["tb", str(tmp_path), "--port", "0"]) == 0
    (arguments,) = called
    assert arguments[0] == sys.executable
    assert arguments[2:] == ["-m", "tensorboard.main", "--logdir", str(tmp_path), "--port", "0"]


def test_tb_on_a_folder_without_event_files_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tb", str(tmp_path)]) == 2
    assert "holds no TensorBoard files" in capsys.readouterr().err


def test_the_module_and_the_script_are_the_same_program() -> None:
    module = subprocess.run([sys.executable, "-m", "marl_tr", "regions"], capture_output=True, text=True, check=True)
    script = Path(sys.executable).parent / "marl-tr"
    direct = subprocess.run([str(script), "regions"], capture_output=True, text=True, check=True)
    assert module.stdout == direct.stdout
    assert "trpo" in module.stdout


@pytest.mark.parametrize("name", list(shipped()))
def test_a_dry_run_prints_a_scenario_that_loads_again_and_the_networks_sizes(
    name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = printed(capsys, "run", name, "seed=7", "--dry-run")
    path = tmp_path / "again.yaml"
    path.write_text(text, encoding="utf-8")
    assert load_scenario(path) == load_scenario(name, ["seed=7"])
    assert "parameters" in text
    assert [entry.name for entry in tmp_path.iterdir()] == ["again.yaml"]
