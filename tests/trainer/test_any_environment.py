"""Everything that learns, on environments with masks, turns, lives, several leaves and mixed actions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from turn_examples import make_crowd, make_nim

from marl_tr import registry
from marl_tr.region.trpo import _subsample
from marl_tr.scenario import load_scenario
from marl_tr.trainer.checkpoint import load_checkpoint, save_checkpoint
from marl_tr.trainer.held_out import HeldOut
from marl_tr.trainer.loop import Trainer

torch.set_num_threads(1)


registry.register_env("trainer-tests/crowd-v0", make_crowd, native=True)
registry.register_env("trainer-tests/nim-v0", make_nim, native=True)

MLP = {"kind": "mlp", "hidden": [8]}
LOCAL = {"kind": "mlp", "hidden": [8], "scope": "local", "normalise_observation": True}
GRAPH = {"kind": "graph_recurrent", "width": 8, "layers": 1, "fit": {"kind": "trust_region", "subsample": 0.5}}
FLAT = {"kind": "gaussian", "hidden": [8], "normalise_observation": True}
ENTITIES = [
    {"kind": "matr", "select": ["m*"], "encoder": "entities", "entity_width": 4, "entity_heads": 2, "hidden": [8]},
    {"kind": "gaussian", "hidden": [8], "network": "gru"},
]
COMBINATIONS: dict[str, dict[str, Any]] = {
    "trpo-sequential-gru": {
        "preset": "hatrpo",
        "agents": FLAT | {"network": "gru"},
        "critic": GRAPH,
        "env": {"reward": "mean"},
    },
    "trpo-simultaneous-entities": {
        "preset": "hatrpo",
        "agents": ENTITIES,
        "schedule": {"kind": "simultaneous"},
        "critic": GRAPH,
    },
    "trpo-shared": {
        "preset": "hatrpo",
        "agents": FLAT | {"sharing": "all"},
        "schedule": {"kind": "simultaneous"},
        "critic": LOCAL | {"fit": {"kind": "trust_region", "subsample": 0.3}},
    },
    "measured-shared": {
        "preset": "mappo",
        "agents": FLAT,
        "region": {"kind": "measured", "bound": 0.02},
        "optimizer": {"epochs": 2, "minibatches": 3},
        "critic": MLP,
        "env": {"reward": "sum"},
    },
    "measured-sequential-gru-entities": {
        "preset": "happo",
        "agents": ENTITIES,
        "optimizer": {"epochs": 2, "minibatches": 2},
        "critic": LOCAL,
    },
}


def trainer(name: str, audit: list[Any]) -> Trainer:
    given = dict(COMBINATIONS[name])
    env = {"id": "trainer-tests/crowd-v0", "num_envs": 6, **given.pop("env", {})}
    scenario = {"name": "crowd", "env": env, "trainer": {"total_steps": 300, "rollout_steps": 10}, **given}
    made = Trainer(load_scenario(scenario))
    made.audit = audit.append
    made.start()
    return made


@pytest.mark.parametrize("name", COMBINATIONS)
def test_everything_learns_within_its_bounds_and_resumes_to_the_byte(name: str, tmp_path: Path) -> None:
    """The environment raises where a forbidden choice reaches it."""
    lines: list[Any] = []
    whole = trainer(name, lines)
    for _ in range(2):
        done = whole.iterate()
    assert all(value == value for value in done.scalars.values())
    save_checkpoint(tmp_path / "middle", whole.state_dict())
    whole.iterate()
    policies = [line for line in lines if line["kind"] == "policy"]
    accepted = [line for line in policies if line["outcome"] != "rejected"]
    assert len(accepted) >= 0.75 * len(policies), [line["reason"] for line in policies]
    assert all(line["accepted"] <= line["bound"] for line in policies if line["bound"] is not None)
    resumed = trainer(name, [])
    resumed.load_state_dict(load_checkpoint(tmp_path / "middle"))
    resumed.iterate()
    for which, made in (("whole", whole), ("resumed", resumed)):
        save_checkpoint(tmp_path / which, made.state_dict())
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "resumed").read_bytes()
    assert (tmp_path / "whole").read_bytes() != (tmp_path / "middle").read_bytes()


def test_policies_learn_from_who_was_to_move_and_the_critic_from_who_lived() -> None:
    made = trainer("trpo-shared", [])
    rollout = made.collector.collect(10)
    values = made.critic.evaluate(rollout)
    advantage = made._advantage(rollout, values)
    first = made._assignment(made.players[0], rollout, advantage.raw, {}, 0)
    group = rollout.groups["mixed"]
    rows = made.players[0].team.policy.rows
    assert torch.equal(first.batch.mask, rows.to_rows(group.acting))
    assert torch.equal(first.batch.starts, rows.to_rows(group.starts))
    assert bool((group.alive & ~group.acting).any())
    turn = first.turn((0,), weight=None, generator=torch.Generator(), progress=0.0)
    decided = turn.advantage[turn.batch.mask].double()
    assert abs(float(decided.mean())) < 1e-5
    assert float(decided.std(correction=0)) == pytest.approx(1, abs=1e-4)
    assert not turn.advantage[~turn.batch.mask].any()
    # Idle agents' advantages are there, for they are what flows back to their last decision.
    assert advantage.raw[..., :3][group.alive & ~group.acting].ne(0).all()


def test_fisher_products_see_their_share_of_the_decisions_not_of_the_rows() -> None:
    made = trainer("trpo-shared", [])
    rollout = made.collector.collect(10)
    advantage = made._advantage(rollout, made.critic.evaluate(rollout))
    batch = made._assignment(made.players[0], rollout, advantage.raw, {}, 0).batch
    decisions = int(batch.mask.sum())
    assert decisions < 0.6 * batch.mask.numel()
    part = _subsample(batch, 0.5, torch.Generator().manual_seed(1), flat=True)
    assert bool(part.mask.all())
    assert part.mask.numel() == round(0.5 * decisions)


def test_self_play_learns_a_zero_sum_game_of_turns() -> None:
    """Nim: who leaves a multiple of four wins. Each side learns from what it is paid on the other's move."""
    scenario = load_scenario(
        {
            "name": "nim",
            "preset": "mappo",
            "env": {"id": "trainer-tests/nim-v0", "num_envs": 48},
            "agents": {"kind": "gaussian", "hidden": [32]},
            "critic": {"kind": "mlp", "hidden": [32], "scope": "local"},
            "optimizer": {"learning_rate": 0.01, "epochs": 4, "minibatches": 2},
            "trainer": {"total_steps": 48 * 16 * 30, "rollout_steps": 16},
            "evaluation": {"opponents": ["random"], "policies": ["mode"]},
        }
    )
    made = Trainer(scenario)
    made.audit = lambda line: None
    made.start()
    held_out = HeldOut(scenario, made.players, made.env)
    before = {match.seat: match.won.mean() for match in held_out.matches(300)}
    for _ in range(30):
        made.iterate()
    after = {match.seat: match.won.mean() for match in held_out.matches(300)}
    assert list(after) == ["player_0", "player_1"]
    # Heaps are 7, 6 and 5: the first player can always win, and the second wherever the first errs once.
    assert after["player_0"] == 1, (before, after)
    assert after["player_1"] > 0.6 > before["player_1"], (before, after)
    # All there is to know: take what leaves four, or the rest.
    heaps = torch.tensor([1, 2, 3, 5, 6, 7])
    allowed = torch.arange(1, 4) <= heaps[:, None]
    observation = {"heap": torch.eye(8)[heaps][None], "allowed": allowed[None]}
    (player,) = made.players
    chosen = player.team.policy.act(observation, None, torch.Generator(), mode=True).env["take"]
    assert chosen.tolist() == [[1, 2, 3, 1, 2, 3]]
