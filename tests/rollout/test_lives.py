"""Agents that die, come back, join late and take turns: rollouts against loops over each agent's lives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from learning_examples import generator
from torch import Tensor
from turn_examples import Crowd

from marl_tr.critic.config import MlpCriticConfig
from marl_tr.critic.critic import Critic, following
from marl_tr.critic.mlp import MlpEncoder
from marl_tr.policy import PolicyBatch, Rows
from marl_tr.registry import find
from marl_tr.rollout import Collector, Rollout, Team, generalised_advantage
from marl_tr.trainer.evaluation import policy_actor
from marl_tr.trainer.loop import _team_mean
from marl_tr.trainer.seeding import make_generator
from marl_tr.vector.contract import Step

torch.set_num_threads(1)
CPU = torch.device("cpu")
LENGTH, COPIES = 17, 5


def make_teams(env: Crowd, network: str, *, shared: bool) -> list[Team]:
    """The first group is split among two policies, the second has one."""
    entry = find("agents", "gaussian")
    teams = []
    for name, g, index in (("ends", 0, (0, 2)), ("middle", 0, (1,)), ("plain", 1, (0, 1))):
        group = env.spec.groups[g]
        config = entry.load_config()(network=network, hidden=[8], head_gain=0.5)  # type: ignore[misc]
        rows = Rows(len(index), shared)
        policy = entry.load()(config, group, rows=rows, generator=generator(len(teams)), device=CPU)
        teams.append(Team(name, group, index, tuple(group.agents[i] for i in index), policy))
    return teams


class Recorded(Crowd):
    """Keeps every step."""

    steps: list[Step]

    def reset(self, seed: int) -> Step:
        self.steps = [super().reset(seed)]
        return self.steps[0]

    def step(self, actions: Any) -> Step:
        self.steps.append(super().step(actions))
        return self.steps[-1]


def collected(network: str = "mlp", *, shared: bool = True) -> tuple[Collector, Recorded, list[Rollout]]:
    env = Recorded(COPIES, horizon=11)
    collector = Collector(
        env, make_teams(env, network, shared=shared), reward="own", generator=generator(11), device=CPU
    )
    collector.reset(5)
    return collector, env, [collector.collect(LENGTH) for _ in range(2)]


def begins(env: Recorded, group: str, t: int, e: int, a: int) -> bool:
    """Whether the agent's life begins with its decision on step `t`."""
    if t == 0 or env.steps[t].done[e]:
        return True
    before, now = env.steps[t - 1].groups[group], env.steps[t].groups[group]
    if not now.alive[e, a]:
        return False
    return not before.alive[e, a] or bool(now.terminated[e, a] or now.truncated[e, a])


def test_the_example_has_all_that_it_is_for() -> None:
    _, env, _ = collected()
    seen = {"returns at once": 0, "returns later": 0, "joins late": 0, "idle": 0, "dies alone": 0, "cut alone": 0}
    for t in range(1, len(env.steps)):
        for name, part in env.steps[t].groups.items():
            alone = ~env.steps[t].done[:, None]
            ended = part.terminated | part.truncated
            lived = env.steps[t - 1].groups[name].alive
            seen["returns at once"] += int((ended & part.alive & alone).sum())
            seen["returns later"] += int((~lived & part.alive & alone).sum())
            seen["idle"] += int((part.alive & ~part.acting).sum())
            seen["dies alone"] += int((part.terminated & alone).sum())
            seen["cut alone"] += int((part.truncated & alone).sum())
            seen["joins late"] += int((~part.alive & env.steps[t].done[:, None]).sum())
    assert min(seen.values()) > 3, seen


def test_starts_and_previous_actions_are_those_of_each_life() -> None:
    _, env, rollouts = collected()
    for number, rollout in enumerate(rollouts):
        for name, group in rollout.groups.items():
            for t, e, a in np.ndindex(*group.starts.shape):
                at = number * LENGTH + t
                assert bool(group.starts[t, e, a]) == begins(env, name, at, e, a)
                previous = group.previous_action[t, e, a]
                if at == 0 or begins(env, name, at, e, a) or not env.steps[at - 1].groups[name].acting[e, a]:
                    assert not previous.any()
                elif t > 0:
                    assert torch.equal(previous, group.action[t - 1, e, a])
                else:
                    assert torch.equal(previous, rollouts[number - 1].groups[name].action[-1, e, a])


@pytest.mark.parametrize("shared", [True, False])
def test_memory_takes_in_a_whole_life_and_nothing_of_another(shared: bool) -> None:
    """By hand, an agent at a time: zero where its life begins, then every observation, to move or not."""
    collector, env, rollouts = collected("gru", shared=shared)
    for team in collector.teams:
        group, rows = team.group, team.policy.rows
        parameters = {n: p.detach() for n, p in team.policy.module.named_parameters()}
        for number, rollout in enumerate(rollouts):
            part, record = rollout.groups[group.name], rollout.records[team.name]
            batch = PolicyBatch(
                observation={n: rows.to_rows(team.select(x, axis=2)) for n, x in part.observation.items()},
                record=record.record,
                memory=record.memory,
                starts=rows.to_rows(team.select(part.starts, axis=2)),
                mask=rows.to_rows(team.select(part.acting, axis=2)),
            )
            with torch.no_grad():
                found = rows.from_rows(team.policy.evaluate(parameters, batch).log_prob)[..., 0]
            if number == 0:
                assert record.memory is not None
                assert not record.memory.any()
                continue
            for position, a in enumerate(team.index):
                for e in range(2):
                    for t, log_prob in _by_hand(team, env, parameters, e, a, position, rollout, number):
                        torch.testing.assert_close(found[t, e, position], log_prob, rtol=1e-5, atol=1e-5)


def _by_hand(
    team: Team,
    env: Recorded,
    parameters: dict[str, Tensor],
    e: int,
    a: int,
    position: int,
    rollout: Rollout,
    number: int,
) -> Iterator[tuple[int, Tensor]]:
    name, rows = team.group.name, team.policy.rows
    row = 0 if rows.shared else position
    own = {n: p[row : row + 1] for n, p in parameters.items()}
    raw = {n: rows.from_rows(x) for n, x in rollout.records[team.name].record.items()}
    lone = find("agents", "gaussian")
    config = lone.load_config()(network="gru", hidden=[8], head_gain=0.5)  # type: ignore[misc]
    policy = lone.load()(config, team.group, rows=Rows(1, True), generator=generator(), device=CPU)
    policy.load_state_dict({"module": own})
    memory = policy.initial_memory(1)
    for at in range((number + 1) * LENGTH):
        if begins(env, name, at, e, a):
            memory = policy.initial_memory(1)
        seen = env.steps[at].groups[name]
        observation = {n: torch.from_numpy(x[e : e + 1, a : a + 1]) for n, x in seen.observation.items()}
        t = at - number * LENGTH
        if t >= 0 and seen.alive[e, a]:
            one = torch.ones(1, 1, 1, dtype=torch.bool)
            batch = PolicyBatch(
                {n: x[None] for n, x in observation.items()},
                {n: x[t, e, position][None, None, None] for n, x in raw.items()},
                memory,
                ~one,
                one,
            )
            with torch.no_grad():
                yield t, policy.evaluate(own, batch).log_prob.squeeze()
        with torch.no_grad():
            memory = policy.act(observation, memory, generator()).memory


def local_critic(env: Crowd) -> Critic:
    config = MlpCriticConfig(hidden=[8], activation="tanh", scope="local", normalise_value=False)
    encoder = MlpEncoder(config, env.spec, generator=generator(2))
    with torch.no_grad():
        for p in encoder.module.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=generator(4)))
    return Critic(config, encoder, environments=COPIES, generator=generator(3))


def own_value(
    critic: Critic, env: Crowd, group: str, observation: dict[str, Any], e: int, a: int, acting: float
) -> float:
    """Of what one agent sees, and whether it is to move, by the weights alone."""
    masks = {mask for spec in env.spec.groups for mask in spec.masks.values()}
    x = torch.cat([torch.from_numpy(v[e, a]).float().flatten() for n, v in observation.items() if n not in masks])
    x = torch.cat([x, torch.tensor([acting])])
    network: Any = critic.encoder.module.networks[group]  # type: ignore[index, union-attr]
    with torch.no_grad():
        return float(network(x[None, None, None, None])[0, 0, 0, 0, 0])


def test_advantages_are_those_of_each_life_alone() -> None:
    """A life is a list of rewards with a value before each, and perhaps one beyond: nothing else enters."""
    gamma, lam = 0.9, 0.8
    _, env, (_, rollout) = collected()
    critic = local_critic(env)
    values = critic.evaluate(rollout)

    def beside(name: str) -> Tensor:
        return torch.cat([getattr(group, name) for group in rollout.groups.values()], -1)

    found = generalised_advantage(
        reward=beside("reward"),
        value=values.value,
        next_value=values.next_value,
        terminated=beside("terminated"),
        truncated=beside("truncated"),
        alive=beside("alive"),
        gamma=gamma,
        lam=lam,
    )
    expected = torch.zeros_like(found.raw)
    lives = offset = 0
    for spec in env.spec.groups:
        for e, a in np.ndindex(COPIES, len(spec.agents)):
            for first, last, ending in _lives(env, spec.name, e, a):
                lives += 1
                parts = [env.steps[LENGTH + t].groups[spec.name] for t in range(first, last + 2)]
                v = [own_value(critic, env, spec.name, p.observation, e, a, float(p.acting[e, a])) for p in parts[:-1]]
                end = parts[-1]
                if ending == "terminated":
                    v.append(0.0)
                else:
                    beyond = end.observation if ending == "goes on" else end.final_observation
                    assert beyond is not None
                    to_move = float(end.acting[e, a])
                    if ending == "truncated":
                        to_move = 1 / _living_at_a_cut(env, LENGTH + last + 1, e)
                    v.append(own_value(critic, env, spec.name, beyond, e, a, to_move))
                rewards = [float(part.reward[e, a]) for part in parts[1:]]
                delta = [r + gamma * v[k + 1] - v[k] for k, r in enumerate(rewards)]
                for k in range(len(delta)):
                    weights = (gamma * lam) ** np.arange(len(delta) - k)
                    expected[first + k, e, offset + a] = float(np.dot(weights, delta[k:]))
        offset += len(spec.agents)
    assert lives > 60
    torch.testing.assert_close(found.raw, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.target, expected + torch.where(beside("alive"), values.value, 0))


def _living_at_a_cut(env: Recorded, at: int, e: int) -> int:
    """Who took part in what would have followed step `at`: after an end who lived and was not terminated."""
    count = 0
    for name, part in env.steps[at].groups.items():
        lived = env.steps[at - 1].groups[name].alive[e] & ~part.terminated[e]
        count += int((lived if env.steps[at].done[e] else part.alive[e] | part.truncated[e]).sum())
    return count


def _lives(env: Recorded, group: str, e: int, a: int) -> Iterator[tuple[int, int, str]]:
    """``(first, last, how it ended)`` of each life in the second rollout, in its own steps."""
    first = None
    for t in range(LENGTH):
        now, after = env.steps[LENGTH + t].groups[group], env.steps[LENGTH + t + 1].groups[group]
        if not now.alive[e, a]:
            continue
        first = t if first is None else first
        ended = "terminated" if after.terminated[e, a] else "truncated" if after.truncated[e, a] else ""
        if ended or t == LENGTH - 1:
            yield first, t, ended or "goes on"
            first = None


def test_the_joint_value_that_follows_is_over_who_lives_then() -> None:
    _, env, (rollout, _) = collected()
    critic = local_critic(env)
    values = critic.evaluate(rollout)
    alive = torch.cat([group.alive for group in rollout.groups.values()], -1)
    joint = _team_mean(values.value, alive)
    found = following(joint, _team_mean(values.beyond, rollout.bootstrap.living), rollout.bootstrap)
    joined = 0
    for t, e in np.ndindex(LENGTH, COPIES):
        after = env.steps[t + 1]
        own: dict[tuple[str, int], float] = {}
        for name, part in after.groups.items():
            for a in np.flatnonzero(part.alive[e]):
                own[name, int(a)] = own_value(critic, env, name, part.observation, e, int(a), float(part.acting[e, a]))
        column = 0
        for spec in env.spec.groups:
            part, before = after.groups[spec.name], env.steps[t].groups[spec.name]
            for a in range(len(spec.agents)):
                ends = part.terminated[e, a] or part.truncated[e, a] or after.done[e]
                if before.alive[e, a] and not ends:
                    expected = np.mean(list(own.values()))
                    assert float(found[t, e, column]) == pytest.approx(expected, rel=1e-4, abs=1e-5)
                    joined += any(not env.steps[t].groups[name].alive[e, other] for name, other in own)
                column += 1
    assert joined > 20


def test_what_follows_names_who_came_back_as_one_who_lives_and_begins() -> None:
    _, env, (rollout, _) = collected()
    cut, back = rollout.bootstrap, 0
    for m, (t, e) in enumerate(zip(cut.time.tolist(), cut.env.tolist(), strict=True)):
        column = 0
        for spec in env.spec.groups:
            part, before = env.steps[t + 1].groups[spec.name], env.steps[t].groups[spec.name]
            for a in range(len(spec.agents)):
                begun, own_cut = begins(env, spec.name, t + 1, e, a), bool(part.truncated[e, a])
                if env.steps[t + 1].done[e]:
                    assert bool(cut.living[m, column]) == bool(before.alive[e, a] and not part.terminated[e, a])
                    assert not cut.starts[m, column]
                elif not own_cut:
                    assert bool(cut.living[m, column]) == bool(part.alive[e, a])
                    assert bool(cut.starts[m, column]) == begun
                    back += begun
                column += 1
    assert back > 5


def test_a_critic_with_a_memory_values_each_life_alone() -> None:
    """Without a graph a node's value is of its own life: that of a critic that was shown this life alone."""
    _, env, (_, rollout) = collected()
    entry = find("critics", "graph_recurrent")
    config = entry.load_config()(width=8, graph=False, normalise_value=False)  # type: ignore[misc]
    critics = [
        Critic(
            config, entry.load()(config, env.spec, generator=generator(1)), environments=COPIES, generator=generator()
        )
        for _ in range(2)
    ]
    found = critics[0].evaluate(rollout)
    first = {name: [life for life in _lives(env, name, 0, 1) if life[0] > 0][-1] for name in ("mixed", "plain")}
    for column, name in ((1, "mixed"), (4, "plain")):
        start, last, _ = first[name]
        part = slice(start, last + 1)
        # From here on, with a memory of zeros.
        inputs = found.inputs
        alone = replace(
            inputs,
            observation={n: x[part] for n, x in inputs.observation.items()},
            previous_action={n: x[part] for n, x in inputs.previous_action.items()},
            state={n: x[part] for n, x in inputs.state.items()},
            alive=inputs.alive[part],
            acting=inputs.acting[part],
            starts=torch.zeros_like(inputs.starts[part]),
            memory=critics[1].encoder.initial_memory(COPIES),
        )
        with torch.no_grad():
            expected = critics[1].encoder.encode(None, alone).values
        torch.testing.assert_close(found.value[part, 0, column], expected[:, 0, column], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("network", ["mlp", "gru"])
def test_a_restored_collector_goes_on_with_every_life(network: str) -> None:
    collector, _, _ = collected(network)
    state = collector.state_dict()
    expected = collector.collect(LENGTH)
    other, _, _ = collected(network)
    other.reset(99)
    other.collect(3)
    other.load_state_dict(state)
    again = other.collect(LENGTH)
    for name, group in expected.groups.items():
        for field in ("reward", "alive", "acting", "starts", "previous_action", "action"):
            assert torch.equal(getattr(group, field), getattr(again.groups[name], field)), field
    for name, record in expected.records.items():
        for leaf, x in record.record.items():
            assert torch.equal(x, again.records[name].record[leaf])


@pytest.mark.parametrize("shared", [True, False])
def test_evaluations_play_as_the_collector_does_bit_for_bit(shared: bool) -> None:
    played, again = Recorded(COPIES), Recorded(COPIES)
    noise = make_generator(7, "evaluation/act", CPU)
    collector = Collector(played, make_teams(played, "gru", shared=shared), reward="own", generator=noise, device=CPU)
    collector.reset(5)
    collector.collect(LENGTH)
    act = policy_actor(make_teams(again, "gru", shared=shared), again, mode=False, seed=7, device=CPU)
    step = again.reset(5)
    for _ in range(LENGTH):
        step = again.step(act(step))
    for first, second in zip(played.steps, again.steps, strict=True):
        for name, part in first.groups.items():
            assert np.array_equal(part.reward, second.groups[name].reward)
            for leaf, x in part.observation.items():
                # The first group is shown what it did last.
                assert np.array_equal(x, second.groups[name].observation[leaf])
