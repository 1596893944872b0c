"""Games in normal form as environments, once or repeated, with their exact gaps."""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray

from marl_tr.envs.games.equilibria import Profile, best_responses, equilibrium, pure_profile, uniform_profile
from marl_tr.envs.games.game import Draw, GameVectorEnv, Played, Strategy, uniformly
from marl_tr.vector.contract import Leaves

__all__ = ["NormalForm", "NormalFormVectorEnv", "Policy"]

Array = NDArray[Any]

Policy = Callable[[str, Leaves], ArrayLike]
"""``(agent, {leaf: [N, ...]}) -> [N, n]``: probabilities of an agent's actions, from a batch of its observations."""

_DRAW = Draw.FIRST_PURPOSE


class NormalForm:
    """A game in normal form; see `marl_tr.envs.games.game.Game`.

    All players choose at once. Everybody sees the share of the rounds that is left, ``[1]``, and in a repeated game
    before it the last joint action, one-hot player by player (zeros before the first round).

    Args:
        payoffs: ``[A, n_1, ..., n_A]``.
        id: The registered name.
        group: Name of the group, and of its agents with ``_0``, ``_1``, ... behind it.
        rounds: Times that the game is played in an episode.
    """

    def __init__(self, payoffs: Array, *, id: str, group: str, rounds: int = 1) -> None:
        self.payoffs, self.id, self.group, self.horizon = payoffs, id, group, rounds
        self.counts: tuple[int, ...] = payoffs.shape[1:]
        self.agents: tuple[str, ...] = tuple(f"{group}_{i}" for i in range(len(payoffs)))
        self.actions: tuple[spaces.Discrete, ...] = tuple(spaces.Discrete(n) for n in self.counts)
        size = 1 if rounds == 1 else sum(self.counts) + 1
        self.observation: spaces.Box = spaces.Box(0.0, 1.0, (size,), np.float32)
        self.metrics: tuple[str, ...] = (*(f"payoff_{agent}" for agent in self.agents), "payoff_mean")

    @cached_property
    def equilibrium(self) -> Profile | None:
        """Of one round; see `marl_tr.envs.games.equilibria.equilibrium`."""
        return equilibrium(self.payoffs)

    def begin(self, draw: Draw) -> Leaves:
        """Nobody has acted."""
        return {"last": np.full((len(draw.copy), len(self.agents)), -1.0)}

    def see(self, place: Leaves, slot: int) -> Array:
        """The last joint action, where there are rounds to come, and the share of the rounds that is left."""
        left = np.full((len(place["last"]), 1), 1 - slot / self.horizon)
        if self.horizon == 1:
            return left
        hot = [place["last"][:, i, None] == np.arange(n) for i, n in enumerate(self.counts)]
        return np.hstack((*hot, left))

    def play(self, place: Leaves, actions: Array, draw: Draw) -> Played:
        """Pay what the table says; metrics are payoffs."""
        reward = self.payoffs[(slice(None), *actions.T)].T
        metrics = {f"payoff_{agent}": reward[:, i] for i, agent in enumerate(self.agents)}
        return Played({"last": actions.astype(np.float64)}, reward, {**metrics, "payoff_mean": reward.mean(axis=1)})

    def strategies(self) -> Mapping[str, Strategy]:
        """Chance, an equilibrium where one is known, and everybody's best response to the others' chance."""
        strategies: dict[str, Strategy] = {"uniform": uniformly(self.actions)}
        if self.equilibrium is not None:
            strategies["equilibrium"] = _drawing(self.equilibrium)
        responses = best_responses(self.payoffs, uniform_profile(self.payoffs))
        strategies["best response to uniform"] = _drawing(pure_profile(self.payoffs, responses))
        return strategies

    def exact_gaps(self, policy: Policy) -> dict[str, float]:
        """What each agent would gain in an episode by a best response, the others keeping to `policy`.

        Backward induction over rounds and last joint actions. The others see no more than those, so nothing that
        remembers more does better against them; `policy` itself must depend on nothing else. Undiscounted. Time grows
        with the rounds and with the square of the number of joint actions.

        Raises:
            ValueError: `policy` gives something else than distributions.
        """
        players, joint = len(self.agents), int(np.prod(self.counts))
        best = np.zeros((players, joint))
        kept = np.zeros((players, joint))
        for slot in reversed(range(self.horizon)):
            cells = np.stack(np.unravel_index(np.arange(joint), self.counts), axis=1).astype(np.float64)
            last = cells if slot else np.full((1, players), -1.0)
            seen = np.ascontiguousarray(self.see({"last": last}, slot), np.float32)
            mixed = [self._asked(policy, agent, seen, n) for agent, n in zip(self.agents, self.counts, strict=True)]
            best_then, kept_then = np.empty((2, players, len(last)))
            for player, own in enumerate(self.payoffs):
                to_best, to_kept = (own + then[player].reshape(self.counts) for then in (best, kept))
                best_then[player] = _values(to_best, mixed, player).max(axis=1)
                kept_then[player] = (_values(to_kept, mixed, player) * mixed[player]).sum(axis=1)
            best, kept = best_then, kept_then
        return dict(zip(self.agents, (best - kept)[:, 0].tolist(), strict=True))

    def _asked(self, policy: Policy, agent: str, seen: Array, count: int) -> Array:
        found = np.array(policy(agent, {"observation": seen}), np.float64)
        if found.shape != (len(seen), count) or not (found >= 0).all() or not np.allclose(found.sum(1), 1, atol=1e-4):
            raise ValueError(f"the policy of {agent!r} gives no distributions over {count} actions: {found}")
        # Sums of float32 probabilities are 1 up to rounding, which would count as a loss.
        found /= found.sum(axis=1, keepdims=True)
        return found


class NormalFormVectorEnv(GameVectorEnv[NormalForm]):
    """``E`` copies of a game in normal form."""

    def exact_gaps(self, policy: Policy) -> dict[str, float]:
        """See `NormalForm.exact_gaps`."""
        return self.game.exact_gaps(policy)


def _drawing(profile: Profile) -> Strategy:
    """Every player draws its action from its vector of probabilities."""
    bounds = [np.cumsum(mixed)[:-1] for mixed in profile]

    def act(place: Leaves, draw: Draw) -> Array:
        drawn = draw.step_of_copy(_DRAW, len(bounds))
        columns = [np.searchsorted(bound, drawn[:, i], side="right") for i, bound in enumerate(bounds)]
        return np.stack(columns, axis=1).astype(np.int64)

    return act


def _values(own: Array, mixed: Sequence[Array], player: int) -> Array:
    """What each action pays a player, ``[S, n]``, if the others play ``[S, n_j]``; `own` is ``[n_1, ..., n_A]``."""
    axes, some = string.ascii_lowercase[: own.ndim], string.ascii_uppercase[0]
    others = [j for j in range(own.ndim) if j != player]
    parts = []
    # Some states at a time, which bounds what a partly contracted table takes.
    for part in np.array_split(np.arange(len(mixed[0])), -(-len(mixed[0]) // 256)):
        operands = [mixed[j][part] for j in others]
        terms = ",".join([axes, *(some + axes[j] for j in others)])
        result = np.einsum(f"{terms}->{some if others else ''}{axes[player]}", own, *operands, optimize=True)
        parts.append(result if others else np.repeat(result[None], len(part), axis=0))
    return np.concatenate(parts)
