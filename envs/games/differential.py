"""``games/differential-v0``: two players choose one number each; games that tell update rules apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from marl_tr.envs.games.config import DifferentialConfig
from marl_tr.envs.games.game import Draw, GameVectorEnv, Played, Strategy, native, uniformly
from marl_tr.vector.contract import Leaves

__all__ = ["Differential", "make"]

Array = NDArray[Any]


class Differential:
    """The game; see `marl_tr.envs.games.game.Game`.

    Actions in ``[-1, 1]`` are choices ``a_1, a_2`` in ``[-bound, bound]``, and nothing is seen but that there is a
    choice to make.

    - ``product``: both get ``a_1 a_2``. Players that improve at once, each as if the other stood still, get worse
      together; one after the other they do not (Kuba et al., arXiv 2109.11251). Equilibria: the origin, which is
      unstable, and both at one bound, worth ``bound^2``.
    - ``saddle``: the first gets ``a_1 a_2``, the second loses it. The only equilibrium is the origin, around which
      gradients turn.
    - ``two_hills``: both get the higher of ``-0.8 ((a_1 + 5)^2 + (a_2 + 5)^2) / 9`` and ``10 - (a_1 - 5)^2 - (a_2 -
      5)^2``. Whoever moves alone is drawn to the low wide hill at (-5, -5), worth 0; the high narrow one at (5, 5) is
      worth 10. Both tops are equilibria. After Wei et al., "Multiagent Soft Q-Learning", arXiv 1804.09817.
    """

    id = "games/differential-v0"
    group = "player"
    agents: tuple[str, ...] = ("player_0", "player_1")
    horizon = 1
    metrics: tuple[str, ...] = ("payoff_player_0", "payoff_player_1", "choice_player_0", "choice_player_1")

    def __init__(self, config: DifferentialConfig) -> None:
        self.config = config
        self.actions: tuple[spaces.Box, ...] = tuple(spaces.Box(-1.0, 1.0, (1,), np.float32) for _ in self.agents)
        self.observation: spaces.Box = spaces.Box(0.0, 1.0, (1,), np.float32)

    def begin(self, draw: Draw) -> Leaves:
        """Nothing distinguishes one episode from another but its copies."""
        return {"nothing": np.zeros((len(draw.copy), 0))}

    def see(self, place: Leaves, slot: int) -> Array:
        """The share of the episode that is left."""
        return np.full((len(place["nothing"]), 1), 1.0 - slot)

    def play(self, place: Leaves, actions: Array, draw: Draw) -> Played:
        """Metrics are payoffs and choices."""
        choice = self.config.limit * actions[..., 0]
        reward = self.payoffs(choice)
        metrics = {f"payoff_{agent}": reward[:, i] for i, agent in enumerate(self.agents)}
        metrics |= {f"choice_{agent}": choice[:, i] for i, agent in enumerate(self.agents)}
        return Played(place, reward, metrics)

    def payoffs(self, choice: Array) -> Array:
        """``[..., 2]`` of choices ``[..., 2]``."""
        if self.config.game == "two_hills":
            low = -0.8 * np.square(choice + 5).sum(axis=-1) / 9
            high = 10 - np.square(choice - 5).sum(axis=-1)
            return np.repeat(np.maximum(low, high)[..., None], 2, axis=-1)
        product = choice[..., 0] * choice[..., 1]
        return np.stack((product, -product if self.config.game == "saddle" else product), axis=-1)

    def strategies(self) -> Mapping[str, Strategy]:
        """The best equilibrium, and chance."""
        best = {"product": self.config.limit, "saddle": 0.0, "two_hills": 5.0}[self.config.game]
        return {"equilibrium": _always(best / self.config.limit), "uniform": uniformly(self.actions)}


def _always(action: float) -> Strategy:
    return lambda place, draw: np.full((len(draw.copy), 2, 1), action)


make: Callable[..., GameVectorEnv[Differential]] = native(GameVectorEnv, Differential, DifferentialConfig)
"""``games/differential-v0``, native; see `marl_tr.envs.games.game.native`."""
