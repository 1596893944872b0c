"""Held-out episodes: equal seeds give equal numbers, and training never notices that it is looked at."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from running import SCENARIOS, checkpoints, contents, the_run, write_scenario
from scipy.stats import trim_mean

from marl_tr.analysis.curves import read_scalars
from marl_tr.cli import main
from marl_tr.events.stream import Phase
from marl_tr.rollout.team import Team
from marl_tr.scenario import load_scenario
from marl_tr.trainer.build import build_env, build_players
from marl_tr.trainer.checkpoint import load_checkpoint
from marl_tr.trainer.evaluation import Episodes, evaluate_act, evaluate_policies, summarise
from marl_tr.vector import VectorEnv, make_vector_env
from marl_tr.vector.in_process import InProcessVectorEnv

WholeRun = Callable[[str], Path]
CPU = torch.device("cpu")


class Counting(gymnasium.Env[Any, Any]):
    """Episodes of 1 to 9 steps, drawn from the seed; step t pays t."""

    observation_space = gymnasium.spaces.Box(0, 10, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.t, self.end = 0, int(self.np_random.integers(1, 10))
        return np.array([self.t], np.float32), {}

    def step(self, action: Any) -> Any:
        self.t += 1
        return np.array([self.t], np.float32), float(self.t), self.t == self.end, False, {}


def stand(step: Any) -> dict[str, dict[str, Any]]:
    copies = len(step.done)
    return {"agent": {"action": np.zeros((copies, 1), np.int64)}}


def test_episodes_of_different_lengths_are_each_counted_to_their_own_end() -> None:
    window = 4
    episodes = evaluate_act(InProcessVectorEnv("counting", Counting, 40), stand, seed=5, window=window)
    lengths = episodes.lengths
    assert set(range(1, 10)) - set(lengths.tolist()) == set()
    np.testing.assert_array_equal(episodes.returns, lengths * (lengths + 1) / 2)
    # The mean of the last `window` of 1, 2, ..., n, or of all where there are fewer.
    expected = [np.mean(np.arange(1, n + 1)[-window:]) for n in lengths]
    np.testing.assert_allclose(episodes.window, expected)
    assert episodes.trajectory.reward["agent"].shape == (lengths[0], 1)
    np.testing.assert_array_equal(episodes.trajectory.reward["agent"][:, 0], np.arange(1, lengths[0] + 1))


def test_an_episode_without_end_is_an_error_that_names_the_environment() -> None:
    with pytest.raises(ValueError, match="'counting': an episode did not end within 3 steps"):
        evaluate_act(InProcessVectorEnv("counting", Counting, 40), stand, seed=5, window=None, max_steps=3)


def teams_of(name: str, folder: Path) -> tuple[list[Team], Callable[[int], VectorEnv]]:
    scenario = load_scenario(write_scenario(folder, name))
    env = build_env(scenario, num_envs=1)
    teams = [player.team for player in build_players(scenario, env.spec)]
    env.close()
    return teams, lambda copies: build_env(scenario, num_envs=copies)


def play(teams: list[Team], make: Callable[[int], VectorEnv], episodes: int, seed: int, *, mode: bool) -> Episodes:
    return evaluate_policies(teams, make, episodes=episodes, seed=seed, mode=mode, window=4, device=CPU)


@pytest.mark.parametrize("name", ["uav_gru", "spread"])
@pytest.mark.parametrize("mode", [True, False])
def test_equal_seeds_give_equal_episodes_and_others_others(name: str, mode: bool, tmp_path: Path) -> None:
    teams, make = teams_of(name, tmp_path)
    first, again = (play(teams, make, 5, 11, mode=mode) for _ in range(2))
    np.testing.assert_array_equal(first.returns, again.returns)
    for metric, values in first.metrics.items():
        np.testing.assert_array_equal(values, again.metrics[metric])
    other = play(teams, make, 5, 12, mode=mode)
    assert (first.returns != other.returns).all()


@pytest.mark.parametrize("name", ["uav_mlp", "uav_gru", "cartpole"])
def test_an_episode_does_not_depend_on_how_many_are_played_beside_it(name: str, tmp_path: Path) -> None:
    teams, make = teams_of(name, tmp_path)
    few, many = (play(teams, make, episodes, 11, mode=True) for episodes in (3, 65))
    np.testing.assert_array_equal(few.lengths, many.lengths[:3])
    # Networks round differently in batches of another size.
    np.testing.assert_allclose(few.returns, many.returns[:3], rtol=1e-4)


def test_reference_policies_do_not_depend_on_how_many_episodes_are_played(tmp_path: Path) -> None:
    results = []
    for copies in (3, 65):
        env: Any = make_vector_env("uav/downlink-v0", num_envs=copies, config={"num_uavs": 2, "horizon": 6})
        results.append({r.name: evaluate_act(env, r.act, seed=9, window=None).returns[:3] for r in env.references()})
    assert len(results[0]) >= 3
    for name, returns in results[0].items():
        if name != "random":
            np.testing.assert_allclose(returns, results[1][name], rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("name", ["uav_gru", "spread"])
def test_training_is_the_same_with_and_without_evaluations(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = []
    for every in (0, 1):
        folder = tmp_path / str(every)
        folder.mkdir()
        write_scenario(folder, name)
        monkeypatch.chdir(folder)
        assert main(["run", "scenario.yaml", f"evaluation.every={every}", "trainer.total_steps=96"]) == 0
        newest = checkpoints(the_run(folder))[-1]
        state = load_checkpoint(newest)
        states.append((state["trainer"], state["audit"]))
        assert state["logs"]["metrics.jsonl"] >= state["trainer"]["iteration"]
    same(states[0], states[1], "")


def same(a: Any, b: Any, path: str) -> None:
    """Equal, value for value."""
    assert type(a) is type(b), path
    if isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            same(a[key], b[key], f"{path}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), path
        for index, (x, y) in enumerate(zip(a, b, strict=True)):
            same(x, y, f"{path}.{index}")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    elif isinstance(a, np.ndarray):
        np.testing.assert_array_equal(a, b, err_msg=path)
    else:
        assert a == b, path


def test_the_headline_is_the_interquartile_mean_and_its_interval_holds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_scenario(tmp_path, "uav_mlp")
    monkeypatch.chdir(tmp_path)
    quick = ["trainer.total_steps=32", "evaluation.final_episodes=8", "evaluation.policies=[mode, sampled]"]
    assert main(["run", "scenario.yaml", *quick]) == 0
    run = the_run(tmp_path)
    scenario = load_scenario(run / "scenario.yaml")
    env = build_env(scenario, num_envs=1)
    players = build_players(scenario, env.spec)
    saved = load_checkpoint(checkpoints(run)[-1])["trainer"]["players"]
    for player in players:
        player.learners.load_state_dict(saved[player.team.name]["learners"])
    seed = scenario.evaluation.seed
    make = lambda copies: build_env(scenario, num_envs=copies)  # noqa: E731
    for mode, name in ((True, "mode"), (False, "sampled")):
        episodes = play([player.team for player in players], make, 8, seed, mode=mode)
        # A quarter is cut off at each end, two episodes of eight.
        expected = {"iqm": trim_mean(episodes.returns, 0.25), "mean": episodes.returns.mean()}
        assert episodes.window is not None
        expected["window_mean"] = episodes.window.mean()
        for tag, value in expected.items():
            _, found = read_scalars(run, f"eval/{name}/{tag}", phase=Phase.FINAL)
            np.testing.assert_allclose(found, [value], rtol=1e-12)
    ends = [read_scalars(run, f"eval/{tag}", phase=Phase.FINAL)[1][0] for tag in ("ci_low", "iqm", "ci_high")]
    assert ends == sorted(ends)
    # The first way of acting is the headline.
    assert ends[1] == read_scalars(run, "eval/mode/iqm", phase=Phase.FINAL)[1][0]


def test_a_summary_of_equal_scores_is_that_score() -> None:
    summary = summarise(np.full(7, 2.5))
    assert (summary.iqm, summary.mean, summary.ci_low, summary.ci_high) == pytest.approx((2.5, 2.5, 2.5, 2.5))
    assert summary.count == 7


def test_eval_prints_what_the_run_printed_and_changes_nothing(
    tmp_path: Path, whole_run: WholeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(whole_run("uav_gru"), tmp_path / "run"))
    before = contents(run)
    assert main(["eval", str(run)]) == 0
    printed = capsys.readouterr().out
    assert f"{run}: step 320" in printed
    # The same policies on the same episodes as at the end of training.
    rows = [line for line in (run / "report.md").read_text().splitlines() if line.startswith("| learned")]
    assert len(rows) == 2
    for row in rows:
        assert row in printed
    assert contents(run) == before


def test_eval_shows_the_reference_policies_beside_ours(
    tmp_path: Path, whole_run: WholeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(whole_run("uav_mlp"), tmp_path / "run"))
    settings = run / "scenario.yaml"
    settings.write_text(settings.read_text().replace("references: false", "references: true"))
    assert main(["eval", str(run), "--episodes", "2"]) == 0
    printed = capsys.readouterr().out
    assert "2 held-out episodes" in printed
    for reference in ("random", "hover, full power", "k-means, full power"):
        assert f"| {reference} |" in printed


@pytest.mark.parametrize(("name", "frames"), [("uav_mlp", 12), ("cartpole", None)])
def test_eval_films_an_episode(
    name: str, frames: int | None, tmp_path: Path, whole_run: WholeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(whole_run(name), tmp_path / "run"))
    assert main(["eval", str(run), "--episodes", "1", "--video"]) == 0
    printed = capsys.readouterr().out
    (video,) = (run / "media").glob("*.mp4")
    assert f"video        {video}" in printed
    film = imageio.imread(video)
    # Cartpole's episode is as long as the table says.
    length = frames or int(re.findall(r"(\d+) steps, undiscounted", printed)[0])
    assert film.shape[0] == length
    assert film.shape[3] == 3
    assert len(np.unique(film[0].reshape(-1, 3), axis=0)) > 2
    assert (film[0] != film[-1]).any()


def test_eval_of_a_run_without_checkpoints_says_so(
    tmp_path: Path, whole_run: WholeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(whole_run("cartpole"), tmp_path / "run"))
    shutil.rmtree(run / "checkpoints")
    assert main(["eval", str(run)]) == 2
    assert f"{run / 'checkpoints'} holds no checkpoint; there is nothing to evaluate" in capsys.readouterr().err


def test_eval_of_other_networks_says_so(
    tmp_path: Path, whole_run: WholeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(whole_run("cartpole"), tmp_path / "run"))
    settings = run / "scenario.yaml"
    settings.write_text(settings.read_text().replace("hidden:\n  - 16", "hidden:\n  - 24"))
    assert main(["eval", str(run)]) == 2
    printed = capsys.readouterr().err
    assert str(checkpoints(run)[-1]) in printed
    assert "the checkpoint's networks are not those of the scenario" in printed


def test_a_film_that_cannot_be_written_is_a_user_error(
    tmp_path: Path, whole_run: WholeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(whole_run("uav_gru"), tmp_path / "run")
    shutil.rmtree(run / "media")
    (run / "media").write_text("in the way")
    assert main(["eval", str(run), "--episodes", "1", "--video"]) == 2
    assert f"cannot write {run / 'media' / 'episode_step320.mp4'}: " in capsys.readouterr().err


def test_an_environment_that_draws_nothing_is_not_filmed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "plain.py").write_text(
        "import gymnasium\nimport numpy as np\n\n\n"
        "class Plain(gymnasium.Env):\n"
        "    observation_space = gymnasium.spaces.Box(-1, 1, (1,))\n"
        "    action_space = gymnasium.spaces.Discrete(2)\n\n"
        "    def reset(self, *, seed=None, options=None):\n"
        "        super().reset(seed=seed)\n"
        "        self.t = 0\n"
        "        return np.zeros(1, np.float32), {}\n\n"
        "    def step(self, action):\n"
        "        self.t += 1\n"
        "        return np.zeros(1, np.float32), 1.0, self.t == 5, False, {}\n"
    )
    write_scenario(tmp_path, "", SCENARIOS["cartpole"].replace("gymnasium/CartPole-v1", "'plain:Plain'"))
    monkeypatch.chdir(tmp_path)
    assert main(["run", "scenario.yaml", "trainer.total_steps=48"]) == 0
    run = the_run(tmp_path)
    capsys.readouterr()
    assert main(["eval", str(run), "--video"]) == 2
    assert (
        "'plain:Plain': its factory takes no render_mode, without which it cannot be filmed" in capsys.readouterr().err
    )
    assert not list((run / "media").glob("*.mp4"))
