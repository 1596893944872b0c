"""What is not finite ends a run with exit code 3, a dump, the last good checkpoint and the likely cause."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from running import SCENARIOS, checkpoints, contents, the_run, write_scenario

from marl_tr.cli import main
from marl_tr.errors import Diverged
from marl_tr.scenario import load_scenario
from marl_tr.trainer.checkpoint import load_checkpoint
from marl_tr.trainer.loop import Trainer
from marl_tr.trainer.run import Run, new_run_folder

# Right until step 5 of the fourth episode of any copy, or in `when: 0` from the first observation.
BREAKING = """
import gymnasium
import numpy as np


class Breaking(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, field="reward", value="nan", episode=4, t=5):
        self.field, self.value, self.moment = field, float(value), (episode, t)
        self.episodes = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episodes += 1
        self.t = 0
        return self._observation(), {}

    def step(self, action):
        self.t += 1
        reward = self.value if self.field == "reward" and self._now() else 1.0
        return self._observation(), reward, self.t == 9, False, {}

    def _now(self):
        return (self.episodes, self.t) == self.moment

    def _observation(self):
        observation = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        if self.field == "observation" and self._now():
            observation[1] = self.value
        return observation
"""


def refuse_constant(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


def dump_of(run: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((run / "diverged.json").read_text(), parse_constant=refuse_constant)
    return loaded


def breaking(folder: Path, config: str, critic: str = "") -> None:
    (folder / "breaking.py").write_text(BREAKING)
    text = SCENARIOS["cartpole"].replace(
        "{id: gymnasium/CartPole-v1, num_envs: 3}", f"{{id: 'breaking:Breaking', num_envs: 3, config: {config}}}"
    )
    write_scenario(folder, "", text + critic)


@pytest.mark.parametrize(
    ("field", "value"), [("reward", "nan"), ("reward", "-inf"), ("observation", "nan"), ("observation", "1e60")]
)
def test_an_environment_that_pays_or_shows_what_is_not_finite_ends_the_run(
    field: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    breaking(tmp_path, f"{{field: {field}, value: '{value}'}}")
    monkeypatch.chdir(tmp_path)
    assert main(["run", "scenario.yaml"]) == 3
    run = the_run(tmp_path)
    said = capsys.readouterr().err
    # The fourth episode begins at step 27, in the second iteration of 16 steps; its break is at step 27 + 5 = 32.
    cause = f"environment 'breaking:Breaking', copy 0, agent 'agent_0', step 5: {field} is not finite"
    assert said.startswith(f"diverged: step 48: {cause}")
    assert f"last good checkpoint: {checkpoints(run)[-1].relative_to(tmp_path)}" in said
    dump = dump_of(run)
    assert dump["cause"].startswith(cause)
    assert (dump["iteration"], dump["step"]) == (1, 48)
    assert dump["non_finite_parameters"] == {"agent": [], "critic": []}
    assert load_checkpoint(checkpoints(run)[-1])["trainer"]["iteration"] == 0
    assert "report.md" not in contents(run)


def test_a_run_that_breaks_at_its_first_observation_has_no_good_checkpoint_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    breaking(tmp_path, "{field: observation, episode: 2, t: 0}")
    monkeypatch.chdir(tmp_path)
    assert main(["run", "scenario.yaml"]) == 3
    assert "last good checkpoint: none yet" in capsys.readouterr().err
    assert dump_of(the_run(tmp_path))["last_good_checkpoint"] is None


def test_a_reward_beyond_what_float32_can_square_is_a_divergence_of_the_critic(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    breaking(tmp_path, "{field: reward, value: '3e38'}")
    monkeypatch.chdir(tmp_path)
    assert main(["run", "scenario.yaml"]) == 3
    assert "the critic's loss is not finite; likely cause: rewards of a scale" in capsys.readouterr().err
    run = the_run(tmp_path)
    for path in checkpoints(run):
        module = load_checkpoint(path)["trainer"]["critic"]["module"]
        assert all(bool(torch.isfinite(x).all()) for x in module.values())


def test_a_huge_learning_rate_without_a_bound_ends_the_run_before_anything_broken_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_scenario(
        tmp_path,
        "",
        """
name: hot
env: {id: gymnasium/Pendulum-v1, num_envs: 3}
agents: {kind: gaussian, hidden: [16]}
objective: {kind: surrogate}
region: {kind: measured}
schedule: {kind: simultaneous}
critic: {kind: mlp, fit: {kind: adam, learning_rate: 1.0}}
optimizer: {learning_rate: 1.0, epochs: 30, max_grad_norm: 1e9}
advantage: {normalise: false}
trainer: {total_steps: 48000, rollout_steps: 16, checkpoint_every: 2}
evaluation: {every: 0, episodes: 1, final_episodes: 1, media: false, references: false}
""",
    )
    monkeypatch.chdir(tmp_path)
    assert main(["run", "scenario.yaml"]) == 3
    said = capsys.readouterr().err
    assert "gradient is not finite; likely causes: " in said
    assert "learning rate that is too high" in said
    run = the_run(tmp_path)
    saved = load_checkpoint(checkpoints(run)[-1])["trainer"]
    modules = [saved["critic"]["module"], *(p["learners"]["policy"]["module"] for p in saved["players"].values())]
    assert all(bool(torch.isfinite(x).all()) for module in modules for x in module.values())
    assert dump_of(run)["last_good_checkpoint"] == checkpoints(run)[-1].name


@pytest.mark.parametrize(
    ("owner", "said"),
    [("agent", "policy 'agent': its network's output is not finite"), ("critic", "the critic's values are not finite")],
)
def test_the_dump_names_the_parameters_that_are_not_finite(
    owner: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenario = load_scenario(write_scenario(tmp_path, "cartpole"))
    monkeypatch.chdir(tmp_path)
    folder = new_run_folder(scenario)
    run = Run(scenario, folder, trainer=Trainer(scenario), console=Console(quiet=True), stop=threading.Event())
    module = run.trainer.players[0].team.policy.module if owner == "agent" else run.trainer.critic.encoder.module
    name, parameter = list(module.named_parameters())[-1]
    with torch.no_grad():
        parameter.view(-1)[0] = float("nan")
    with pytest.raises(Diverged, match=said):
        run.start()
    dump = dump_of(folder)
    assert dump["non_finite_parameters"] == {"agent": [], "critic": []} | {owner: [name]}


def test_evaluating_a_run_in_a_broken_environment_is_an_error_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    breaking(tmp_path, "{}")
    monkeypatch.chdir(tmp_path)
    assert main(["run", "scenario.yaml"]) == 3
    run = the_run(tmp_path)
    settings = run / "scenario.yaml"
    settings.write_text(settings.read_text().replace("config: {}", "config: {episode: 1}"))
    capsys.readouterr()
    assert main(["eval", str(run)]) == 2
    assert "reward is not finite" in capsys.readouterr().err
