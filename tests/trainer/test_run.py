"""A run through the command line: what it leaves on disk, in TensorBoard and on the screen."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from rich.console import Console
from running import SCENARIOS, checkpoints, contents, metrics, scalar_steps, the_run, write_scenario

from marl_tr.analysis.curves import read_scalars
from marl_tr.analysis.plots import Curve
from marl_tr.cli import main
from marl_tr.scenario import load_scenario, resolved
from marl_tr.trainer import api, showing
from marl_tr.trainer.checkpoint import load_checkpoint
from marl_tr.trainer.evaluation import Episodes
from marl_tr.trainer.run import new_run_folder

WholeRun = Callable[[str], Path]


@pytest.fixture(scope="module")
def pictured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A tiny run of the UAV environment with everything switched on, and what it printed."""
    folder = tmp_path_factory.mktemp("pictured")
    text = SCENARIOS["uav_gru"].replace("media: false, references: false", "media: true, references: true")
    path = write_scenario(folder, "", text)
    overrides = ["trainer.total_steps=128", f"trainer.runs_dir={folder / 'runs'}"]
    screen = io.StringIO()
    run = api.run(load_scenario(path, overrides), console=Console(file=screen, width=80))
    return run, screen.getvalue()


def run_here(folder: Path, *overrides: str, scenario: str = "scenario.yaml") -> Path:
    """``marl-tr run`` in this process; the new run's folder."""
    before = set(folder.glob("runs/*/*"))
    assert main(["run", str(folder / scenario), f"trainer.runs_dir={folder / 'runs'}", *overrides]) == 0
    (new,) = set(folder.glob("runs/*/*")) - before
    return new


def test_the_scenario_of_a_run_repeats_the_run(tmp_path: Path, whole_run: WholeRun) -> None:
    first = whole_run("cartpole")
    again = run_here(tmp_path, scenario=str(first / "scenario.yaml"))
    assert metrics(again) == metrics(first)
    assert checkpoints(again)[-1].read_bytes() == checkpoints(first)[-1].read_bytes()
    assert (again / "audit.jsonl").read_bytes() == (first / "audit.jsonl").read_bytes()
    settings = [load_scenario(run / "scenario.yaml", ["trainer.runs_dir=x"]) for run in (first, again)]
    assert settings[0] == settings[1]


@pytest.mark.parametrize("name", ["uav_gru", "spread"])
def test_equal_seeds_give_equal_runs_and_others_others(name: str, tmp_path: Path) -> None:
    write_scenario(tmp_path, name)
    quick = "trainer.total_steps=96"
    one, same, other = (run_here(tmp_path, quick, f"seed={seed}") for seed in (5, 5, 6))
    assert metrics(one) == metrics(same)
    assert checkpoints(one)[-1].read_bytes() == checkpoints(same)[-1].read_bytes()
    # Every iteration differs, not only the last.
    for a, b in zip(metrics(one), metrics(other), strict=True):
        assert a["scalars"] != b["scalars"]


def test_two_runs_of_one_second_have_folders_of_their_own(tmp_path: Path) -> None:
    scenario = load_scenario(write_scenario(tmp_path, "cartpole"), [f"trainer.runs_dir={tmp_path / 'runs'}"])
    folders = {new_run_folder(scenario) for _ in range(3)}
    assert len(folders) == 3
    for folder in folders:
        assert re.fullmatch(r"\d{8}T\d{6}Z-seed1(-\d)?", folder.name)
        assert load_scenario(folder / "scenario.yaml") == scenario
        first = (folder / "scenario.yaml").read_text().splitlines()[0]
        assert re.match(r"# marl-tr [\d.]+.*, Python 3.*, torch \d", first)


def test_the_scenario_sets_torchs_threads(tmp_path: Path) -> None:
    write_scenario(tmp_path, "cartpole")
    before = torch.get_num_threads()
    try:
        run_here(tmp_path, "trainer.total_steps=48", "trainer.threads=2")
        assert torch.get_num_threads() == 2
        run_here(tmp_path, "trainer.total_steps=48")
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("where", ["file", "file/below"])
def test_a_runs_folder_that_cannot_be_written_is_named_before_anything_runs(
    where: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_scenario(tmp_path, "cartpole")
    (tmp_path / "file").write_text("mine")
    before = contents(tmp_path)
    path = tmp_path / where
    assert main(["run", str(tmp_path / "scenario.yaml"), f"trainer.runs_dir={path}"]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: trainer.runs_dir: ")
    assert str(path) in said.err
    assert said.out == ""
    assert contents(tmp_path) == before


def test_old_checkpoints_are_deleted(whole_run: WholeRun) -> None:
    run = whole_run("cartpole")
    # Ten iterations of 48 steps, saved every second one; three are kept.
    assert [load_checkpoint(path)["trainer"]["iteration"] for path in checkpoints(run)] == [6, 8, 10]
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [p.name for p in checkpoints(run)]


def test_metrics_hold_every_iteration_and_evaluation_in_order(whole_run: WholeRun) -> None:
    lines = [(line["step"], line["phase"]) for line in metrics(whole_run("cartpole"))]
    expected = [(0, "eval")]
    for iteration in range(1, 11):
        expected.append((48 * iteration, "train"))
        if iteration % 3 == 0:
            expected.append((48 * iteration, "eval"))
    assert lines == [*expected, (480, "final")]


def test_the_audit_has_a_line_for_every_learner_and_the_critic(whole_run: WholeRun) -> None:
    lines = [json.loads(line) for line in (whole_run("uav_gru") / "audit.jsonl").read_text().splitlines()]
    for iteration in range(10):
        mine = [line for line in lines if line["iteration"] == iteration]
        assert {line["learner"] for line in mine} == {"uav_0", "uav_1", "critic"}
        assert {line["step"] for line in mine} == {32 * iteration}
        assert all(line["accepted"] <= line["bound"] for line in mine)


def test_tensorboard_shows_every_number_of_the_run_at_its_step(pictured: tuple[Path, str]) -> None:
    run, _ = pictured
    written: dict[str, list[int]] = {}
    for line in (json.loads(text) for text in (run / "metrics.jsonl").read_text().splitlines()):
        for tag in line["scalars"]:
            written.setdefault(tag, []).append(line["step"])
    assert scalar_steps(run) == dict(sorted(written.items()))
    promised = {
        "charts/episodic_return charts/episodic_length charts/SPS losses/policy_loss losses/value_loss losses/entropy",
        "losses/explained_variance eval/iqm eval/ci_low eval/ci_high eval/mode/mean eval/sampled/window_mean",
        "perf/env_s perf/act_s perf/learn_s perf/critic_s perf/log_s perf/evaluate_s",
        "env/throughput_mbps env/jain env/collisions attention/entropy/layer0_head0",
        *(
            f"region/{quantity}/uav_{i}"
            for i in (0, 1)
            for quantity in ("divergence", "bound", "backtracks", "accepted", "surrogate_gain", "cg_residual")
        ),
    }
    assert {tag for tags in promised for tag in tags.split()} <= set(written)


def test_tensorboard_has_pictures_settings_and_a_layout(pictured: tuple[Path, str]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    run, _ = pictured
    events = EventAccumulator(str(run), size_guidance={"images": 0, "tensors": 0})
    events.Reload()
    # Four iterations, evaluated before the first, after the third and at the end; attention when one is due.
    assert [image.step for image in events.Images("media/tracks")] == [0, 96, 128]
    assert [image.step for image in events.Images("media/flight")] == [128]
    assert [image.step for image in events.Images("attention/map/layer0")] == [96]
    for tag in ("media/tracks", "attention/map/layer0"):
        picture = imageio.imread(events.Images(tag)[-1].encoded_image_string)
        assert len(np.unique(picture.reshape(-1, picture.shape[-1]), axis=0)) > 10
    assert "custom_scalars__config__" in events.Tags()["tensors"]
    (config,) = events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val
    charts = {c.title: list(c.multiline.tag) for part in Layout.FromString(config).category for c in part.chart}
    shown = [tag for tag in scalar_steps(run) if any(re.search(pattern, tag) for pattern in charts["uav_1"])]
    assert shown == ["region/bound/uav_1", "region/divergence/uav_1"]
    start = HParamsPluginData.FromString(
        events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    ).session_start_info
    assert start.hparams["env.num_envs"].number_value == 4
    assert start.hparams["agents.0.kind"].string_value == "matr"
    assert (
        start.hparams["region.bound"].number_value == resolved(load_scenario(run / "scenario.yaml"))["region"]["bound"]
    )


def test_without_media_there_are_numbers_of_attention_and_no_pictures_before_the_end(whole_run: WholeRun) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = whole_run("uav_gru")
    assert scalar_steps(run)["attention/entropy/layer0_head0"] == [96, 192, 288]
    events = EventAccumulator(str(run), size_guidance={"images": 0})
    events.Reload()
    assert {image.step for tag in events.Tags()["images"] for image in events.Images(tag)} <= {320}


def test_the_end_names_the_return_the_references_the_folder_and_how_to_look_at_it(pictured: tuple[Path, str]) -> None:
    run, printed = pictured
    lines = printed.splitlines()
    assert "Return (mean over 2 agents, 12 steps, undiscounted; 4 held-out episodes)" in lines
    rows = {line.split(" | ")[0].removeprefix("| "): line.split(" | ") for line in lines if line.startswith("| ")}
    assert {"learned, sampled", "learned, mode", "random", "hover, full power", "k-means, full power"} <= set(rows)
    scalars = metrics(run)[-1]["scalars"]
    assert rows["learned, sampled"][1] == f"{scalars['eval/sampled/mean']:.3f}"
    assert rows["learned, mode"][1] == f"{scalars['eval/mode/mean']:.3f}"
    assert f"run          {run}" in lines
    assert f"TensorBoard  marl-tr tb {run}" in lines
    assert f"audit        marl-tr audit {run}" in lines
    figures = [Path(line.split(maxsplit=1)[1]) for line in lines if line.startswith("figure ")]
    assert {figure.name for figure in figures} == {"tracks.png", "sinr.png", "learning_curve.png"}
    for figure in figures:
        assert imageio.imread(figure).ndim == 3
    report = (run / "report.md").read_text()
    assert all(line in report for line in lines if line.startswith(("| ", "Return", "Time")))


def test_the_time_split_accounts_for_the_whole_run(pictured: tuple[Path, str]) -> None:
    _, printed = pictured
    (line,) = (line for line in printed.splitlines() if line.startswith("Time: "))
    total = float(re.match(r"Time: ([\d.]+) s in all", line).group(1))  # type: ignore[union-attr]
    parts = {name: float(seconds) for name, seconds in re.findall(r"(\w+) ([\d.]+) s \(", line)}
    named = {"act", "env", "learn", "critic", "start", "evaluate", "log", "checkpoint", "figures", "other"}
    assert set(parts) == named
    assert sum(parts.values()) == pytest.approx(total, abs=0.05 * len(parts))
    assert parts["other"] <= 0.05 * total + 0.05


def test_where_a_run_writes_and_what_its_returns_mean_is_said_at_once(pictured: tuple[Path, str]) -> None:
    run, printed = pictured
    assert printed.splitlines()[:2] == [
        f"run          {run}",
        "returns      mean over 2 agents, whole episodes, undiscounted",
    ]


def test_the_lines_of_the_references_are_the_iqms_of_the_table(
    pictured: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    drawn: dict[str, float] = {}

    def figure(curves: object, *, references: dict[str, float], **_: object) -> None:
        drawn.update(references)

    monkeypatch.setattr(showing, "learning_curve_figure", figure)
    monkeypatch.setattr(showing, "save_figure", lambda *_: None)
    returns = np.array([0.0, 1.0, 2.0, 3.0, 100.0, 4.0, 5.0, 6.0])
    episodes = Episodes(returns=returns, lengths=np.full(8, 12), window=None, metrics={}, trajectories=())
    folder, _ = pictured
    scenario = load_scenario(folder / "scenario.yaml")
    (tmp_path / "metrics.jsonl").write_bytes((folder / "metrics.jsonl").read_bytes())
    showing.write_figures(scenario, tmp_path, {"sampled": episodes}, {"hover": episodes}, agents=2, pictures={})
    assert drawn == {"hover": pytest.approx(np.mean([2.0, 3.0, 4.0, 5.0]))}


@pytest.mark.parametrize("final", [None, 99], ids=["as many", "more"])
def test_an_end_over_other_episodes_is_a_point_of_its_own(
    final: int | None, pictured: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    drawn: list[Curve] = []
    monkeypatch.setattr(showing, "learning_curve_figure", lambda curves, **_: drawn.extend(curves))
    monkeypatch.setattr(showing, "save_figure", lambda *_: None)
    folder, _ = pictured
    same = load_scenario(folder / "scenario.yaml").evaluation.episodes
    scenario = load_scenario(folder / "scenario.yaml", [f"evaluation.final_episodes={final or same}"])
    (tmp_path / "metrics.jsonl").write_bytes((folder / "metrics.jsonl").read_bytes())
    episodes = Episodes(returns=np.zeros(2), lengths=np.full(2, 12), window=None, metrics={}, trajectories=())
    showing.write_figures(scenario, tmp_path, {"sampled": episodes}, {}, agents=2, pictures={})
    steps, values = read_scalars(folder, "eval/iqm")
    assert len(steps) > 1
    assert np.concatenate([curve.values for curve in drawn]).tolist() == values.tolist()
    assert [len(curve.steps) for curve in drawn] == ([len(steps)] if final is None else [len(steps) - 1, 1])
    assert [curve.label for curve in drawn][1:] == ([] if final is None else ["the end, over 99"])


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("agents.select=[nobody]", "no entry's 'select' matches uav_0, uav_1"),
        ("agents.encoder=entities", "set env.config.observation to entities"),
    ],
)
def test_a_scenario_that_does_not_fit_its_environment_leaves_no_folder(
    override: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, runs = write_scenario(tmp_path, "uav_mlp"), tmp_path / "runs"
    assert main(["run", str(path), f"trainer.runs_dir={runs}", override]) == 2
    assert said in capsys.readouterr().err
    assert not runs.exists()


def test_a_dry_run_is_a_scenario_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_scenario(tmp_path, "uav_gru")
    before = contents(tmp_path)
    assert main(["run", str(path), f"trainer.runs_dir={tmp_path / 'runs'}", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert contents(tmp_path) == before
    again = tmp_path / "again.yaml"
    again.write_text(printed)
    assert load_scenario(again) == load_scenario(path, [f"trainer.runs_dir={tmp_path / 'runs'}"])
    assert "# 10 iterations of 32 environment steps" in printed
    assert re.search(r"# policy uav: [\d,]+ parameters in 2 learner\(s\) for uav_0, uav_1", printed)


def test_a_run_can_be_looked_at_from_a_folder_with_a_relative_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_scenario(tmp_path, "cartpole")
    monkeypatch.chdir(tmp_path)
    assert main(["run", "scenario.yaml", "trainer.total_steps=48", "--seed", "9"]) == 0
    run = the_run(tmp_path).relative_to(tmp_path)
    assert run.parts[:2] == ("runs", "tiny")
    assert run.name.endswith("-seed9")
    assert f"run          {run}" in capsys.readouterr().out
    assert main(["audit", str(run)]) == 0


@pytest.mark.parametrize("device", ["gpu", "meta", "cuda:4096"])
def test_a_device_that_cannot_be_used_is_named_and_leaves_no_folder(
    device: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs"
    assert main(["run", "uav_quick", f"trainer.device={device}", f"trainer.runs_dir={runs}"]) == 2
    assert f"trainer.device: {device!r}" in capsys.readouterr().err
    assert not runs.exists()
