"""Fresh episodes of policies that are not in force, and runs whose schedule asks for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from marl_tr.scenario import load_scenario
from marl_tr.trainer.checkpoint import save_checkpoint
from marl_tr.trainer.loop import Trainer

torch.set_num_threads(1)


def trainer(**schedule: Any) -> Trainer:
    made = Trainer(
        load_scenario(
            {
                "name": "trials",
                "env": {
                    "id": "uav/downlink-v0",
                    "num_envs": 3,
                    "config": {"num_uavs": 3, "num_users": 6, "horizon": 12},
                },
                "agents": {"kind": "matr", "hidden": [8], "normalise_observation": True},
                "objective": {"kind": "surrogate"},
                "region": {"kind": "trpo", "subsample": 1.0, "iterations": 3},
                "schedule": schedule,
                "critic": {"kind": "mlp", "hidden": [8]},
                "trainer": {"total_steps": 144, "rollout_steps": 12},
            }
        )
    )
    made.audit = lambda line: None
    made.start()
    return made


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, torch.Tensor | np.ndarray):
        return bool(np.array_equal(np.asarray(a), np.asarray(b)))
    return bool(a == b)


def copied(x: Any) -> Any:
    if isinstance(x, dict):
        return {key: copied(value) for key, value in x.items()}
    if isinstance(x, list | tuple):
        return [copied(value) for value in x]
    return x.numpy().copy() if isinstance(x, torch.Tensor) else np.array(x) if isinstance(x, np.ndarray) else x


def test_trials_are_paired_and_leave_everything_as_it_is() -> None:
    run = trainer(kind="simultaneous")
    (player,) = run.players
    before = copied(run.state_dict())
    other = {name: p + 2.0 for name, p in player.learners.parameters([1]).items()}
    same = {"uav_2": player.learners.parameters([2])}
    plain, moved, again, kept = run._trials.returns([{}, {"uav_1": other}, {}, same], episodes=4, seed=5)
    assert set(plain) == {"uav_0", "uav_1", "uav_2"}
    assert all(returns.shape == (4,) for returns in plain.values())
    for name, returns in plain.items():
        np.testing.assert_array_equal(returns, again[name])
        np.testing.assert_array_equal(returns, kept[name])
    assert not np.array_equal(plain["uav_1"], moved["uav_1"])
    (elsewhere,) = run._trials.returns([{}], episodes=4, seed=6)
    assert not np.array_equal(plain["uav_0"], elsewhere["uav_0"])
    assert equal(before, copied(run.state_dict()))


def test_returns_are_those_of_the_reward_that_is_learned_from() -> None:
    """With the mean reward everybody's return is the mean of the own returns."""
    own, shared = trainer(kind="simultaneous"), trainer(kind="simultaneous")
    shared._trials._reward = "mean"
    (private,), (joint,) = (each._trials.returns([{}], episodes=3, seed=5) for each in (own, shared))
    mean = np.mean([private[name] for name in private], axis=0)
    for returns in joint.values():
        np.testing.assert_allclose(returns, mean, rtol=1e-5)


@pytest.mark.parametrize("payoffs", ["ratios", "rollouts"])
def test_a_run_with_a_meta_game_goes_on_from_a_checkpoint_to_the_byte(payoffs: str, tmp_path: Path) -> None:
    whole, first, second = (trainer(kind="meta_game", payoffs=payoffs, episodes=2) for _ in range(3))
    for _ in range(4):
        iteration = whole.iterate()
    assert {f"meta/move/{name}" for name in whole.learners} <= iteration.scalars.keys()
    for _ in range(2):
        first.iterate()
    second.load_state_dict(first.state_dict())
    for _ in range(2):
        second.iterate()
    for name, run in (("whole", whole), ("resumed", second)):
        save_checkpoint(tmp_path / name, run.state_dict())
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "resumed").read_bytes()


def test_payoffs_of_fresh_episodes_move_policies_without_a_likelihood() -> None:
    run = Trainer(
        load_scenario(
            {
                "name": "mute",
                "env": {"id": "games/meeting-v0", "num_envs": 32},
                "agents": {"kind": "drifting"},
                "objective": {"kind": "podpo"},
                "region": {"kind": "measured", "bound": 0.05},
                "schedule": {"kind": "meta_game", "payoffs": "rollouts", "episodes": 8},
                "critic": {"kind": "mlp", "hidden": [8]},
                "optimizer": {"epochs": 1},
                "trainer": {"total_steps": 64, "rollout_steps": 1},
            }
        )
    )
    lines: list[Any] = []
    run.audit = lines.append
    run.start()
    scalars = run.iterate().scalars
    assert "meta/effective_sample_share" not in scalars
    assert scalars["meta/regret"] == pytest.approx(0, abs=1e-6)
    policies = [line for line in lines if line["kind"] == "policy"]
    assert len(policies) == len(run.learners)
    assert all(line["accepted"] <= 0.05 for line in policies)
