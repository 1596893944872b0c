"""What a run shows: every metric by way of acting, galleries, before and after on the same noise, chains by step."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from running import SCENARIOS, Command, checkpoints, contents, metrics, the_run, write_scenario
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout

from marl_tr.analysis.curves import read_chains, read_scalars
from marl_tr.cli import main
from marl_tr.errors import UserError
from marl_tr.events.stream import Phase
from marl_tr.scenario import load_scenario
from marl_tr.trainer.build import build_env, build_players
from marl_tr.trainer.evaluation import GALLERY, evaluate_act
from marl_tr.trainer.first_evaluation import FirstEvaluation, Spread
from marl_tr.trainer.held_out import HeldOut, hacking_index
from marl_tr.trainer.loop import Trainer
from marl_tr.vector.contract import Trajectory
from marl_tr.vector.in_process import InProcessVectorEnv

MIXTURE = """
name: tiny
env: {id: flow/mixture-v0, num_envs: 8, config: {cohort: 4}}
agents: {kind: flow, sharing: all, steps: 3, network: {kind: mlp, hidden: [8]}}
advantage: {estimator: cohort}
objective: {kind: clip}
optimizer: {learning_rate: 1e-2, epochs: 2}
region: {kind: measured}
regularisers: [{kind: position, anchor: {kind: period, every: 2}, weight: 0.01}]
schedule: {kind: simultaneous}
critic: {kind: mlp, hidden: [8]}
trainer: {total_steps: 80, rollout_steps: 2, checkpoint_every: 1}
evaluation: {every: 2, episodes: 8, final_episodes: 16}
"""
CLIPS = """
name: tiny
env: {id: flow/moving_shapes-v0, num_envs: 4, config: {cohort: 2}}
agents: {kind: flow, sharing: all, steps: 2, network: {kind: mlp, hidden: [8]}}
advantage: {estimator: cohort}
objective: {kind: surrogate}
optimizer: {learning_rate: 1e-2}
region: {kind: measured}
schedule: {kind: simultaneous}
critic: {kind: mlp, hidden: [8]}
trainer: {total_steps: 8, rollout_steps: 1}
evaluation: {every: 1, episodes: 4, final_episodes: 4, references: false, ema: 0.5}
"""
POLICIES = ("sampled", "mode")


def a_run(folder: Path, text: str) -> Path:
    write_scenario(folder, "", text)
    done = Command(folder, "run", "scenario.yaml")
    assert done.wait() == 0, done.output()
    return the_run(folder)


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of five iterations, evaluated at 0, 2, 4 and the end; nobody may change it."""
    return a_run(tmp_path_factory.mktemp("mixture"), MIXTURE)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that makes clips; nobody may change it."""
    return a_run(tmp_path_factory.mktemp("clips"), CLIPS)


def test_every_metric_stands_for_each_way_of_acting(mixture: Path) -> None:
    names = ("reward", "manifold_distance", "arc", "arc_accuracy", "curve_entropy", "pairwise_distance")
    for name in (*names, "hacking_index"):
        for policy in POLICIES:
            steps, values = read_scalars(mixture, f"eval/{policy}/{name}")
            assert steps.tolist() == [0, 32, 64, 80]
            assert np.isfinite(values).all()
    report = (mixture / "report.md").read_text()
    assert "| metric | learned, sampled | learned, mode | preferred point | data as asked | noise |" in report
    for name in names:
        (row,) = (line for line in report.splitlines() if line.startswith(f"| {name} |"))
        last = [read_scalars(mixture, f"eval/{policy}/{name}", phase=Phase.FINAL)[1][0] for policy in POLICIES]
        assert [cell.strip() for cell in row.split("|")[2:4]] == [f"{value:.4g}" for value in last]
    # The samples of the SDE and of the ODE are other samples.
    assert len({read_scalars(mixture, f"eval/{p}/manifold_distance")[1][0] for p in POLICIES}) == 2
    # Rewards are the environment's: the metric of that name is the mean return.
    for policy in POLICIES:
        rewards = read_scalars(mixture, f"eval/{policy}/reward")[1]
        np.testing.assert_allclose(rewards, read_scalars(mixture, f"eval/{policy}/mean")[1], rtol=1e-6)


def test_the_hacking_index_begins_at_zero_and_is_the_gains_difference_in_deviations(mixture: Path) -> None:
    first = FirstEvaluation.load(mixture)
    assert first is not None
    for policy in POLICIES:
        index, reward, distance = (
            read_scalars(mixture, f"eval/{policy}/{name}")[1]
            for name in ("hacking_index", "reward", "manifold_distance")
        )
        spreads = first.metrics[policy]
        gained = (reward - reward[0]) / spreads["reward"].std
        better = (distance[0] - distance) / spreads["manifold_distance"].std
        np.testing.assert_allclose(index, gained - better, atol=1e-9)
        assert index[0] == 0


def test_a_reward_that_rises_while_the_distance_does_not_fall_is_hacked() -> None:
    first = {"r": Spread(mean=1.0, std=2.0), "d": Spread(mean=0.5, std=0.1), "flat": Spread(mean=3.0, std=0.0)}

    def index(reward: float, distance: float) -> float:
        now = {"r": np.array([reward - 1, reward + 1]), "d": np.array([distance])}
        return hacking_index(now, first, ("r", "d"))

    assert index(3.0, 0.4) == pytest.approx(0)
    assert index(3.0, 0.5) == pytest.approx(1)
    assert index(3.0, 0.7) == pytest.approx(3)
    assert index(1.0, 0.3) == pytest.approx(-2)
    assert hacking_index({"flat": np.array([3.5]), "d": np.array([0.5])}, first, ("flat", "d")) == pytest.approx(0.5)


def test_the_chain_of_every_update_is_in_a_log_of_its_own(mixture: Path) -> None:
    updates = read_chains(mixture)
    assert [(update.step, update.learner) for update in updates] == [(step, "point") for step in (16, 32, 48, 64, 80)]
    always = {"clip_fraction", "divergence", "kl_anchor", "log_ratio_mean", "log_ratio_std", "std", "weight"}
    for update in updates:
        measured = {"gradient_norm", "gradient_norm_weighted"} if update.step in (32, 64) else set()
        assert set(update.measures) == always | measured
        assert all(values.shape == (3,) and np.isfinite(values).all() for values in update.measures.values())
    for update in (updates[1], updates[3]):
        norms, weight = update.measures["gradient_norm"], update.measures["weight"]
        assert (norms > 0).all()
        np.testing.assert_allclose(update.measures["gradient_norm_weighted"], norms * weight, rtol=1e-6)
    # What the audit says of an update is the sum over its chain.
    lines = [json.loads(line) for line in (mixture / "audit.jsonl").read_text().splitlines()]
    accepted = [line["accepted"] for line in lines if line["kind"] == "policy"]
    np.testing.assert_allclose([u.measures["divergence"].sum() for u in updates], accepted, rtol=1e-5)


def test_tensorboard_has_the_galleries_the_chains_and_charts_of_the_metrics(mixture: Path) -> None:
    events = EventAccumulator(str(mixture), size_guidance={"images": 0, "tensors": 0})
    events.Reload()
    shown = {tag: [image.step for image in events.Images(tag)] for tag in events.Tags()["images"]}
    assert shown == {
        "media/plane": [0, 32, 64, 80],
        "media/sampled/points": [0, 32, 64, 80],
        "media/mode/points": [0, 32, 64, 80],
        "media/before_after": [80],
        "media/chain/point": [32, 64],
    }
    (config,) = events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val
    charts = {
        part.title: {chart.title: list(chart.multiline.tag) for chart in part.chart}
        for part in Layout.FromString(config).category
    }
    by_acting = charts["evaluation, by way of acting"]
    assert by_acting["manifold_distance"] == ["^eval/[^/]+/manifold_distance$"]
    assert {"reward", "hacking_index", "pairwise_distance", "iqm"} <= set(by_acting)


def test_the_figures_at_the_end_are_in_the_folder(mixture: Path, clips: Path) -> None:
    assert {path.name for path in (mixture / "media").iterdir()} == {
        *("plane.png", "sampled_points.png", "mode_points.png", "before_after.png"),
        *("chain_point.png", "learning_curve.png"),
    }
    assert {path.name for path in (clips / "media").iterdir()} == {
        *("clip.png", "sampled_clips.png", "mode_clips.png", "before_after.png", "before_after_motion.mp4"),
        *("chain_segment.png", "learning_curve.png"),
    }
    for path in [*(mixture / "media").iterdir(), *(clips / "media").glob("*.png")]:
        picture = imageio.imread(path)
        assert len(np.unique(picture[..., 0])) > 10
    film = imageio.imread(clips / "media" / "before_after_motion.mp4")
    assert film.ndim == 4
    assert (film[0] != film[1]).any()


def test_a_run_that_goes_on_still_has_its_beginning(mixture: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(mixture, tmp_path / "run"))
    (run / "report.md").unlink()
    shutil.rmtree(run / "media")
    for path in checkpoints(run)[-2:]:
        path.unlink()
    again = Command(tmp_path, "resume", "run")
    assert again.wait() == 0, again.output()
    assert (run / "chain.jsonl").read_bytes() == (mixture / "chain.jsonl").read_bytes()
    assert metrics(run) == metrics(mixture)
    assert (run / "first_evaluation.npz").read_bytes() == (mixture / "first_evaluation.npz").read_bytes()
    for path in (mixture / "media").glob("*.png"):
        np.testing.assert_array_equal(imageio.imread(run / "media" / path.name), imageio.imread(path))


def test_a_run_whose_beginning_is_lost_goes_on_without_it_and_one_that_is_spoilt_is_named(
    mixture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(mixture, tmp_path / "run"))
    (run / "report.md").unlink()
    (run / "first_evaluation.npz").write_bytes(b"nonsense")
    before = contents(run)
    assert main(["resume", str(run)]) == 2
    assert f"{run / 'first_evaluation.npz'} cannot be read" in capsys.readouterr().err
    assert contents(run) == before
    (run / "first_evaluation.npz").unlink()
    (run / "media" / "before_after.png").unlink()
    assert main(["resume", str(run)]) == 0
    assert not (run / "media" / "before_after.png").exists()
    assert "eval/mode/hacking_index" not in metrics(run)[-1]["scalars"]


@pytest.mark.parametrize("text", [MIXTURE, MIXTURE.replace("sharing: all", "sharing: none")])
def test_before_and_after_start_from_the_same_noise_whatever_the_number_of_episodes(text: str, tmp_path: Path) -> None:
    scenario = load_scenario(write_scenario(tmp_path, "", text))
    env: Any = build_env(scenario, num_envs=4)
    held_out = HeldOut(scenario, build_players(scenario, env.spec), env)
    first = FirstEvaluation.of(held_out.evaluate(8), seed=scenario.evaluation.seed)
    assert first.policy == "mode"
    asked: list[Any] = []
    env.before_after = lambda before, after: asked.append((before, after)) or {}
    for episodes in (8, 16):
        # Nothing was learned, so that equal noise gives equal samples.
        assert held_out.before_after(first, held_out.evaluate(episodes), slow=True) == ({}, {})
        before, after = asked.pop()
        assert len(before) == len(after) == 8
        for one, other in zip(before, after, strict=True):
            np.testing.assert_array_equal(one.actions["point"]["action"], other.actions["point"]["action"])
            np.testing.assert_array_equal(one.state["condition"], other.state["condition"])


def test_a_first_evaluation_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    def trajectory(length: int) -> Trajectory:
        random = np.random.default_rng(length)
        return Trajectory(
            state={"a/b": random.normal(size=(length + 1, 2)).astype(np.float32)},
            actions={"g": {"action": random.integers(0, 9, (length, 3))}},
            reward={"g": random.normal(size=(length, 3)).astype(np.float32)},
            metrics={"../m": random.normal(size=length)},
        )

    saved = FirstEvaluation(
        seed=2**62 + 1,
        count=5,
        policy="mode",
        metrics={"mode": {"x": Spread(mean=0.1, std=float("nan"))}},
        trajectories=(trajectory(3), trajectory(1)),
    )
    saved.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["first_evaluation.npz"]
    found = FirstEvaluation.load(tmp_path)
    assert found is not None
    assert (found.seed, found.count, found.policy) == (2**62 + 1, 5, "mode")
    assert found.metrics["mode"]["x"].mean == 0.1
    assert np.isnan(found.metrics["mode"]["x"].std)
    for one, other in zip(saved.trajectories, found.trajectories, strict=True):
        for name in ("state", "reward", "metrics"):
            mine, theirs = getattr(one, name), getattr(other, name)
            assert mine.keys() == theirs.keys()
            for leaf in mine:
                np.testing.assert_array_equal(mine[leaf], theirs[leaf])
                assert mine[leaf].dtype == theirs[leaf].dtype
        np.testing.assert_array_equal(one.actions["g"]["action"], other.actions["g"]["action"])
    assert FirstEvaluation.load(tmp_path / "elsewhere") is None
    (tmp_path / "first_evaluation.npz").write_bytes(b"")
    with pytest.raises(UserError, match="delete it to go on"):
        FirstEvaluation.load(tmp_path)


class Counting(gymnasium.Env[Any, Any]):
    """Episodes of 1 to 9 steps, drawn from the seed."""

    observation_space = gymnasium.spaces.Box(0, 10, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(100)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.t, self.end = 0, int(self.np_random.integers(1, 10))
        return np.array([self.t], np.float32), {}

    def step(self, action: Any) -> Any:
        self.t += 1
        return np.array([self.t], np.float32), float(action), self.t == self.end, False, {}


class Hooked(InProcessVectorEnv):
    """With hooks that show several episodes and measure all of them."""

    def gallery(self, trajectories: Any) -> dict[str, Any]:
        raise AssertionError("an evaluation draws nothing")

    def measures(self, actions: Any, cohort: Any) -> dict[str, float]:
        self.seen = actions, cohort
        return {"sum": actions["agent"]["action"].sum()}


def test_measures_get_every_episodes_last_action_and_galleries_the_first_episodes() -> None:
    steps = iter(range(100))

    def act(step: Any) -> dict[str, dict[str, Any]]:
        return {"agent": {"action": np.full((len(step.done), 1), next(steps), np.int64)}}

    env = Hooked("counting", Counting, 40)
    episodes = evaluate_act(env, act, seed=5, window=None)
    final, cohort = env.seen
    # The action is the number of the step.
    np.testing.assert_array_equal(final["agent"]["action"][:, 0], episodes.lengths - 1)
    assert episodes.measures == {"sum": float((episodes.lengths - 1).sum())}
    np.testing.assert_array_equal(cohort, np.arange(40))
    assert len(episodes.trajectories) == GALLERY
    for length, trajectory in zip(episodes.lengths, episodes.trajectories, strict=False):
        np.testing.assert_array_equal(trajectory.actions["agent"]["action"][:, 0], np.arange(length))
        np.testing.assert_array_equal(trajectory.reward["agent"][:, 0], np.arange(length))
    # Who shows one episode, keeps one.
    steps = iter(range(100))
    plain = evaluate_act(InProcessVectorEnv("counting", Counting, 40), act, seed=5, window=None)
    assert len(plain.trajectories) == 1
    assert plain.measures == {}


class Cohorts(Hooked):
    """In cohorts of five."""

    gallery_size = 6

    def reset(self, seed: int) -> Any:
        return replace(super().reset(seed), cohort=np.arange(self.spec.num_envs) // 5)


def test_galleries_show_two_of_a_cohort_before_more_of_it() -> None:
    for copies, expected in ((40, [0, 1, 5, 6, 10, 11]), (10, [0, 1, 2, 3, 5, 6]), (4, [0, 1, 2, 3])):
        env = Cohorts("counting", Counting, copies)
        numbers = {"agent": {"action": np.arange(copies)[:, None]}}
        episodes = evaluate_act(env, lambda step, numbers=numbers: numbers, seed=5, window=None)  # type: ignore[misc]
        assert [int(t.actions["agent"]["action"][0, 0]) for t in episodes.trajectories] == expected


def test_eval_draws_samples_of_the_averaged_parameters(
    clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(clips, tmp_path / "run"))
    shutil.rmtree(run / "media")
    assert main(["eval", str(run), "--video"]) == 0
    printed = capsys.readouterr().out
    names = {f"{policy}_{name}_step8" for policy in POLICIES for name in ("clips", "motion")}
    assert {path.stem for path in (run / "media").iterdir()} == names
    for path in (run / "media").iterdir():
        assert f"{'video' if path.suffix == '.mp4' else 'picture':<12} {path}" in printed
        assert "| overall |" in printed
    # The run's own pictures of its end are of the average too.
    for policy in POLICIES:
        mine = imageio.imread(run / "media" / f"{policy}_clips_step8.png")
        np.testing.assert_array_equal(mine, imageio.imread(clips / "media" / f"{policy}_clips.png"))
    motion = imageio.imread(run / "media" / "mode_motion_step8.mp4")
    assert motion.shape[0] % 8 == 0


def test_environments_without_the_hooks_have_what_they_had(tmp_path: Path) -> None:
    text = SCENARIOS["uav_mlp"].replace("media: false", "media: true").replace("total_steps: 320", "total_steps: 96")
    run = a_run(tmp_path, text)
    assert not {"chain.jsonl", "first_evaluation.npz"} & {path.name for path in run.iterdir()}
    assert {path.name for path in (run / "media").iterdir()} == {"tracks.png", "sinr.png", "learning_curve.png"}
    events = EventAccumulator(str(run), size_guidance={"images": 0})
    events.Reload()
    assert {tag for tag in events.Tags()["images"] if tag.startswith("media/")} == {
        "media/tracks",
        "media/sinr",
        "media/flight",
    }
    steps, values = read_scalars(run, "eval/mode/jain")
    assert steps.tolist() == [0, 96]
    assert ((values > 0) & (values <= 1)).all()


def test_learning_is_the_same_with_and_without_the_measured_norms(tmp_path: Path) -> None:
    states = []
    for diagnose in (False, True):
        trainer = Trainer(load_scenario(write_scenario(tmp_path, "", MIXTURE)))
        trainer.audit = lambda line: None
        trainer.start()
        done = trainer.iterate(diagnose=diagnose)
        assert ("gradient_norm" in done.chains["point"]) == diagnose
        states.append(
            {name: p.detach().clone() for name, p in trainer.players[0].team.policy.module.named_parameters()}
        )
        trainer.env.close()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
