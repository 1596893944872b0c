"""A pool of joint policies against each other: what an agent of one is paid among the agents of another.

Row ``a``, column ``b`` of an agent's table is ``U_i(a_i, b_-i)``. Against the deviations in the pool alone the regret
of profile ``b`` is known, but for the noise of the episodes: ``sum_i max_a U_i(a_i, b_-i) - U_i(b)``. It is a lower
bound of NashConv, for the pool is a part of all policies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from marl_tr.equilibrium.episodes import crossed_returns
from marl_tr.equilibrium.game import Game
from marl_tr.equilibrium.plays import Subject
from marl_tr.equilibrium.settings import AuditSettings
from marl_tr.errors import Interrupted
from marl_tr.trainer.seeding import derive_seed

__all__ = ["CrossPlay", "cross_play"]


@dataclass(frozen=True)
class CrossPlay:
    """A pool's tables.

    Attributes:
        pool: Names of the joint policies.
        tables: ``{agent: [P, P]}``: row: whose policy the agent has; column: whose all others have.
        errors: Standard errors of the same.
        regret: ``[P]``: what the agents together would gain, each by its best policy of the pool.
    """

    pool: tuple[str, ...]
    tables: Mapping[str, NDArray[np.float64]]
    errors: Mapping[str, NDArray[np.float64]]

    @property
    def regret(self) -> NDArray[np.float64]:
        """See the class."""
        gains: NDArray[np.float64] = np.sum([u.max(0) - np.diag(u) for u in self.tables.values()], axis=0)
        return gains

    @property
    def equilibria(self) -> tuple[str, ...]:
        """The joint policies of the pool from which no agent gains by another of the pool."""
        return tuple(name for name, regret in zip(self.pool, self.regret, strict=True) if regret <= 0)


def cross_play(
    game: Game,
    pool: Sequence[Subject],
    agents: Sequence[str],
    settings: AuditSettings,
    *,
    stop: Callable[[], bool] = lambda: False,
) -> CrossPlay:
    """Play every pair of `pool` on the audit's test episodes.

    Raises:
        Interrupted: `stop` said so between two pairs.
    """
    tables = {agent: np.zeros((len(pool), len(pool))) for agent in agents}
    errors = {agent: np.zeros((len(pool), len(pool))) for agent in agents}
    for agent in agents:
        for row, own in enumerate(pool):
            for column, others in enumerate(pool):
                returns = crossed_returns(
                    game.make,
                    others,
                    own,
                    agent,
                    episodes=settings.episodes,
                    seed=derive_seed(settings.seed, "nash_gap/test"),
                    payoff=game.payoff,
                )
                tables[agent][row, column] = returns.mean()
                errors[agent][row, column] = returns.std(ddof=1) / np.sqrt(len(returns))
                if stop():
                    raise Interrupted("saved")
    return CrossPlay(tuple(subject.name for subject in pool), tables, errors)
