"""The environment that `check-env` asks, and one episode of it that most questions look at."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

from marl_tr.vector.block import probe
from marl_tr.vector.codec import GroupCodec
from marl_tr.vector.copies import SingleAgentView, as_parallel
from marl_tr.vector.recorder import Episode, play
from marl_tr.vector.turns import TurnBasedView

__all__ = ["SEED", "USE_NP_RANDOM", "Subject"]

SEED = 11
"""Of the episode that most checks look at."""

USE_NP_RANDOM = (
    "use self.np_random, not np.random or random: in reset(seed=...) call super().reset(seed=seed) "
    "(Gymnasium) or 'if seed is not None: self.np_random, _ = gymnasium.utils.seeding.np_random(seed)' "
    "(PettingZoo), and draw every random number from it"
)


class Subject:
    """The environment under test.

    Args:
        env_id: Its name.
        factory: Makes one environment as the user wrote it.
        cycles: Steps after which an episode is left.
    """

    def __init__(self, env_id: str, factory: Callable[[], Any], cycles: int) -> None:
        self.id = env_id
        self.factory = factory
        self.cycles = cycles

    def make(self) -> Any:
        """A fresh copy behind the parallel interface."""
        return as_parallel(self.factory(), env_id=self.id)

    @cached_property
    def groups(self) -> tuple[GroupCodec, ...]:
        """Agents and codecs."""
        groups, _ = probe(self.make(), self.id)
        return groups

    @cached_property
    def single(self) -> bool:
        """Whether it is a `gymnasium.Env`."""
        return isinstance(self.make(), SingleAgentView)

    @cached_property
    def turns(self) -> bool:
        """Whether it is an ``AECEnv``."""
        return isinstance(self.make(), TurnBasedView)

    @cached_property
    def masked(self) -> str | None:
        """Where its action masks are, ``"observation"`` or ``"infos"``; None without any."""
        return next((group.mask.source for group in self.groups if group.mask is not None), None)

    @cached_property
    def episode(self) -> Episode:
        """One recorded episode of a fresh copy, reset with `SEED`."""
        return self.play(SEED)

    def play(self, seed: int | None) -> Episode:
        """An episode of a fresh copy; always with the same actions."""
        return play(self.make(), self.groups, seed=seed, cycles=self.cycles)
