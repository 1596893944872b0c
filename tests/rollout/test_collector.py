"""Rollouts against loops played by hand on a second copy of the same environment."""

from __future__ import annotations

import copy
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from learning_examples import generator
from torch import Tensor
from vector_examples import TruncatesOne, Walkers

from marl_tr.policy import Rows
from marl_tr.registry import Entry, find
from marl_tr.rollout import Collector, Rollout, Team
from marl_tr.rollout.collector import learned_rewards
from marl_tr.vector import make_vector_env
from marl_tr.vector.contract import GroupStep, Step, VectorEnv

torch.set_num_threads(1)
CPU = torch.device("cpu")
CARTPOLE = Entry(target="gymnasium.envs.classic_control:CartPoleEnv")


class DyingWalkers(Walkers):
    """Walkers that die often and remember nothing of it."""

    def __init__(self) -> None:
        super().__init__(walkers=3, horizon=6, death=0.12)


ENVIRONMENTS: dict[str, Any] = {
    "walkers": Entry(target=DyingWalkers),
    "truncates-one": Entry(target=TruncatesOne),
    "cartpole": CARTPOLE,
    "uav/downlink-v0": None,
}


def make_env(name: str, copies: int = 4) -> VectorEnv:
    config = {"horizon": 7} if name.startswith("uav") else {}
    return make_vector_env(name, num_envs=copies, config=config, entry=ENVIRONMENTS[name])


def make_teams(env: VectorEnv, network: str, *, shared: bool, split: bool = False) -> list[Team]:
    """A team a group, or two that share the first group's agents, the odd and the even."""
    entry = find("agents", "gaussian")
    teams = []
    for group in env.spec.groups:
        everyone = tuple(range(len(group.agents)))
        for index in [everyone[::2], everyone[1::2]] if split else [everyone]:
            config = entry.load_config()(network=network, hidden=[8], head_gain=0.5)
            policy = entry.load()(
                config, group, rows=Rows(len(index), shared), generator=generator(len(teams)), device=CPU
            )
            agents = tuple(group.agents[i] for i in index)
            teams.append(Team(f"team{len(teams)}", group, index, agents, policy))
    return teams


def make_collector(name: str, network: str = "mlp", *, shared: bool = False, **more: Any) -> Collector:
    env = make_env(name)
    teams = make_teams(env, network, shared=shared, split=more.pop("split", False))
    collector = Collector(env, teams, reward=more.pop("reward", "own"), generator=generator(11), device=CPU)
    collector.reset(5)
    return collector


class ByHand:
    """Steps one environment with one team, keeping every `Step` and every decision; a row of the policy at a time."""

    def __init__(self, name: str, network: str, *, shared: bool) -> None:
        self.env = make_env(name)
        (self.team,) = make_teams(self.env, network, shared=shared)
        self.noise = generator(11)
        self.steps = [self.env.reset(5)]
        self.actions: list[np.ndarray[Any, Any]] = []
        self.raw: list[Tensor] = []
        self.starts = [np.ones(self.env.spec.num_envs, bool)]
        copies, agents = self.env.spec.num_envs, len(self.team.agents)
        self.memory = self.team.policy.initial_memory(copies * agents if shared else copies)
        self.shared = shared

    @property
    def group(self) -> str:
        return self.team.group.name

    def play(self, steps: int) -> None:
        for _ in range(steps):
            step = self.steps[-1]
            x = torch.from_numpy(step.groups[self.group].observation["observation"])  # [E, A, D]
            rows = x.reshape(1, -1, *x.shape[2:]) if self.shared else x.transpose(0, 1)
            with torch.no_grad():
                action = self.team.policy.act({"observation": rows}, self.memory, self.noise)
            env_action = action.env["action"]
            if self.shared:
                env_action = env_action[0].reshape(*x.shape[:2], *env_action.shape[2:])
            else:
                env_action = env_action.transpose(0, 1)
            self.actions.append(env_action.numpy().copy())
            self.raw.append(action.record["action"])
            following = self.env.step({self.group: {"action": self.actions[-1]}})
            self.steps.append(following)
            self.starts.append(following.done)
            self.memory = action.memory
            if self.memory is not None:
                agents = x.shape[1]
                for e in np.flatnonzero(following.done):
                    if self.shared:
                        self.memory[:, e * agents : (e + 1) * agents] = 0
                    else:
                        self.memory[:, e] = 0


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "own"])
@pytest.mark.parametrize("network", ["mlp", "gru"])
@pytest.mark.parametrize("name", list(ENVIRONMENTS))
def test_two_rollouts_are_what_a_loop_by_hand_plays(name: str, network: str, shared: bool) -> None:
    hand = ByHand(name, network, shared=shared)
    collector = make_collector(name, network, shared=shared)
    for rollout_number in range(2):
        first = rollout_number * 9
        memory = None if hand.memory is None else hand.memory.clone()
        rollout = collector.collect(9)
        hand.play(9)
        group, record = rollout.groups[hand.group], rollout.records["team0"]
        before, after = hand.steps[first : first + 9], hand.steps[first + 1 : first + 10]
        assert torch.equal(record.record["action"], torch.stack(hand.raw[first : first + 9], 1))
        assert (record.memory is None) == (memory is None)
        if memory is not None:
            assert record.memory is not None
            assert torch.equal(record.memory, memory)
        for t in range(9):
            now, then = before[t].groups[hand.group], after[t].groups[hand.group]
            assert _equal(group.observation["observation"][t], now.observation["observation"])
            assert _equal(group.alive[t], now.alive)
            assert _equal(group.acting[t], now.acting)
            assert _equal(group.reward[t], then.reward)
            assert _equal(group.terminated[t], then.terminated)
            assert _equal(group.truncated[t], then.truncated)
            assert _equal(rollout.starts[t], hand.starts[first + t])
            assert _equal(rollout.done[t], after[t].done)
            previous = torch.zeros_like(group.action[t])
            if first + t > 0:
                going_on = ~hand.starts[first + t]
                encoded = _encode(hand.team, hand.actions[first + t - 1])
                acted = torch.from_numpy(hand.steps[first + t - 1].groups[hand.group].acting).unsqueeze(-1)
                previous[going_on] = (encoded * acted)[going_on]
            assert torch.equal(group.previous_action[t], previous)
            assert torch.equal(
                group.action[t], _encode(hand.team, hand.actions[first + t]) * group.acting[t, ..., None]
            )
            for leaf, x in rollout.state.items():
                assert _equal(x[t], before[t].state[leaf])
    assert any(step.done.any() for step in hand.steps) or name == "cartpole"


@pytest.mark.parametrize("name", list(ENVIRONMENTS))
def test_bootstrap_holds_what_followed_every_cut_once_for_every_agent(name: str) -> None:
    """Every agent whose trajectory is cut has one entry, with the observation that it would have acted on next."""
    length = 4 if name == "truncates-one" else 9  # walker_0 is cut alone in the very last step
    hand = ByHand(name, "mlp", shared=True)
    rollout = make_collector(name, shared=True).collect(length)
    hand.play(length)
    cut = rollout.bootstrap
    expected: dict[tuple[int, int, int], np.ndarray[Any, Any]] = {}
    for t in range(length):
        step: Step = hand.steps[t + 1]
        part: GroupStep = step.groups[hand.group]
        lived = hand.steps[t].groups[hand.group].alive
        for e, a in np.argwhere(lived & ~part.terminated):
            if part.truncated[e, a] or step.done[e]:
                assert part.final_observation is not None
                expected[t, e, a] = part.final_observation["observation"][e, a]
            elif t == length - 1:
                expected[t, e, a] = part.observation["observation"][e, a]
    found: dict[tuple[int, int, int], np.ndarray[Any, Any]] = {}
    for m, (t, e) in enumerate(zip(cut.time.tolist(), cut.env.tolist(), strict=True)):
        for a in torch.nonzero(cut.agents[m]).flatten().tolist():
            assert (t, e, a) not in found, "two entries would contradict each other"
            found[t, e, a] = cut.observation[hand.group]["observation"][m, a].numpy()
    assert expected
    for key, observation in expected.items():
        assert np.array_equal(found[key], observation)


@pytest.mark.parametrize("name", ["walkers", "truncates-one"])
def test_bootstrap_names_who_takes_part_in_what_followed(name: str) -> None:
    hand = ByHand(name, "mlp", shared=True)
    rollout = make_collector(name, shared=True).collect(9)
    hand.play(9)
    cut = rollout.bootstrap
    missing = 0
    for m, (t, e) in enumerate(zip(cut.time.tolist(), cut.env.tolist(), strict=True)):
        part = hand.steps[t + 1].groups[hand.group]
        for a, living in enumerate(cut.living[m].tolist()):
            lived = hand.steps[t].groups[hand.group].alive[e, a]
            left = part.truncated[e, a] and not hand.steps[t + 1].done[e] and not bool(cut.agents[m, a])
            assert living == (lived and not part.terminated[e, a] and not left)
            missing += not living
    assert missing


def test_agents_truncated_alone_have_an_entry_beside_those_that_go_on() -> None:
    rollout = make_collector("truncates-one").collect(4)
    cut = rollout.bootstrap
    at_the_end = cut.time == 3
    alone = cut.agents[at_the_end].tolist()
    assert alone.count([True, False, False]) == 4
    assert alone.count([False, True, True]) == 4


def test_rewards_that_are_learned_from() -> None:
    before = _step(alive=[[[True, True], [True, False]], [[True], [True]]])
    after = _step(reward=[[[1.0, 2.0], [3.0, 0.0]], [[5.0], [7.0]]])
    assert _listed(learned_rewards(before, after, "own")) == [[[1, 2], [3, 0]], [[5], [7]]]
    assert _listed(learned_rewards(before, after, "sum")) == [[[8, 8], [10, 0]], [[8], [10]]]
    third = 8 / 3
    mean = learned_rewards(before, after, "mean")
    assert mean["a"].tolist()[0] == pytest.approx([third, third])
    assert mean["a"].tolist()[1] == [5, 0]
    assert mean["b"].dtype == np.float32
    assert mean["b"][:, 0].tolist() == pytest.approx([third, 5])


def test_rewards_of_nobody_are_zero() -> None:
    nobody = _step(alive=[[[False, False], [False, False]], [[False], [False]]])
    none = _step(reward=[[[0.0, 0.0], [0.0, 0.0]], [[0.0], [0.0]]])
    for mode in ("own", "mean", "sum"):
        assert not any(x.any() for x in learned_rewards(nobody, none, mode).values())  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["mean", "sum"])
def test_rollouts_pay_shared_rewards_to_the_living(mode: str) -> None:
    own = make_collector("walkers").collect(9).groups["walker"]
    shared = make_collector("walkers", reward=mode).collect(9).groups["walker"]
    alive = own.alive.float()
    assert not bool(own.alive.all())
    total = own.reward.sum(-1, keepdim=True)
    expected = total * alive if mode == "sum" else total / alive.sum(-1, keepdim=True).clamp_min(1) * alive
    torch.testing.assert_close(shared.reward, expected)


@pytest.mark.parametrize("network", ["mlp", "gru"])
def test_teams_that_split_a_group_act_for_their_agents_only(network: str) -> None:
    collector = make_collector("walkers", network, split=True)
    rollout = collector.collect(9)
    group = rollout.groups["walker"]
    for team, index in zip(collector.teams, ([0, 2], [1]), strict=True):
        assert list(team.index) == index
        raw = rollout.records[team.name].record["action"]  # [L, T, E, 1]
        acted = raw.clamp(-1, 1).movedim(0, 2)
        torch.testing.assert_close(group.action[:, :, index], acted * group.acting[:, :, index, None])
        observation = torch.zeros(9, 4, 3)
        assert torch.equal(team.select(observation, axis=2), observation[:, :, index])


def test_returns_and_lengths_are_of_whole_episodes_across_rollouts() -> None:
    hand = ByHand("walkers", "mlp", shared=False)
    collector = make_collector("walkers", reward="sum")
    episodes = [collector.collect(5).episodes for _ in range(6)]
    hand.play(30)
    returns, lengths = [], []
    running, count = np.zeros((4, 3)), np.zeros(4, int)
    for step in hand.steps[1:]:
        running += step.groups[hand.group].reward
        count += 1
        for e in np.flatnonzero(step.done):
            returns.append(running[e].copy())
            lengths.append(int(count[e]))
            running[e], count[e] = 0, 0
    assert len(lengths) > 10
    np.testing.assert_allclose(np.concatenate([part.returns for part in episodes]), returns)
    assert np.concatenate([part.lengths for part in episodes]).tolist() == lengths


@pytest.mark.parametrize("network", ["mlp", "gru"])
@pytest.mark.parametrize("name", ["cartpole", "uav/downlink-v0"])
def test_a_restored_collector_plays_on_bit_for_bit(name: str, network: str) -> None:
    collector = make_collector(name, network)
    collector.collect(10)
    state = collector.state_dict()
    expected = [collector.collect(13) for _ in range(2)]
    other = make_collector(name, network)
    other.reset(99)
    other.collect(3)
    other.load_state_dict(state)
    for rollout in expected:
        assert _same(rollout, other.collect(13))


def test_a_saved_state_does_not_move_with_the_collector() -> None:
    collector = make_collector("cartpole")
    collector.collect(5)
    state = collector.state_dict()
    frozen = copy.deepcopy(state)
    collector.collect(30)
    assert _same(state, frozen)


def test_collecting_before_a_reset_is_refused() -> None:
    env = make_env("cartpole")
    teams = make_teams(env, "mlp", shared=True)
    collector = Collector(env, teams, reward="own", generator=generator(), device=CPU)
    with pytest.raises(RuntimeError, match="reset the collector"):
        collector.collect(1)
    with pytest.raises(RuntimeError, match="before the first reset"):
        collector.state_dict()


def test_cartpole_arrays_are_gymnasiums() -> None:
    """One copy beside gymnasium itself, given the recorded actions; the seed is the adapter's business."""
    rollout: Rollout = make_collector("cartpole").collect(40)
    ((_, group),) = rollout.groups.items()
    env = gymnasium.make("CartPole-v1").unwrapped
    env.reset(seed=0)
    for e in range(4):
        for t in range(39):
            if rollout.done[t, e]:
                continue
            env.state = group.observation["observation"][t, e, 0].numpy().astype(np.float64)  # type: ignore[attr-defined]
            env.steps_beyond_terminated = None  # type: ignore[attr-defined]
            observation, reward, terminated, _, _ = env.step(int(group.action[t, e, 0].argmax()))
            np.testing.assert_allclose(group.observation["observation"][t + 1, e, 0], observation, atol=1e-6)
            assert float(group.reward[t, e, 0]) == reward
            assert bool(group.terminated[t, e, 0]) == terminated


def _encode(team: Team, action: np.ndarray[Any, Any]) -> Tensor:
    """Features of actions, by hand: one-hot, or in units where the bounds are -1 and 1."""
    space = team.group.action["action"]
    if isinstance(space, gymnasium.spaces.Discrete):
        return torch.eye(int(space.n))[torch.from_numpy(action)]
    middle, half = (space.low + space.high) / 2, (space.high - space.low) / 2  # type: ignore[attr-defined]
    return torch.from_numpy(((action - middle) / half).astype(np.float32))


def _step(**fields: Any) -> Step:
    groups = {}
    for g, name in enumerate("ab"):
        alive = np.array(fields["alive"][g]) if "alive" in fields else np.ones((2, 2 - g), bool)
        reward = np.array(fields["reward"][g], np.float32) if "reward" in fields else np.zeros((2, 2 - g), np.float32)
        no = np.zeros_like(alive)
        groups[name] = GroupStep({}, reward, no, no, alive, alive)
    return Step(groups=groups, done=np.zeros(2, bool))


def _listed(rewards: dict[str, Any]) -> list[Any]:
    return [x.tolist() for x in rewards.values()]


def _equal(tensor: Tensor, array: Any) -> bool:
    return bool(torch.equal(tensor, torch.from_numpy(np.asarray(array))))


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    if hasattr(a, "__dataclass_fields__"):
        return all(_same(getattr(a, name), getattr(b, name)) for name in a.__dataclass_fields__)
    return bool(a == b)
