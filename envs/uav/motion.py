"""What all ways in which users move have in common; without one, users stand still."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

__all__ = ["Mobility", "Moving"]

Array = NDArray[Any]


class Mobility:
    """A block of ``E`` environments with ``G`` users each, who stand still; other models extend it.

    Attributes:
        position: ``[E, G, 2]``, in m, in ``[0, area_m]``. Written in place: one array for the object's life.
        velocity: ``[E, G, 2]``, displacement in the last slot over its length, in m/s; 0 as an episode begins.
            Written in place.
    """

    def __init__(
        self, *, area_m: float, slot_s: float, num_envs: int, num_users: int, dtype: DTypeLike = np.float32
    ) -> None:
        self.area_m = area_m
        self.slot_s = slot_s
        self.dtype = np.dtype(dtype)
        self.position = np.zeros((num_envs, num_users, 2), dtype)
        self.velocity = np.zeros((num_envs, num_users, 2), dtype)

    def begin(self, rows: Array, start: Array, *, seed: int, stream: Array, episode: Array) -> None:
        """Begin an episode in some environments.

        Args:
            rows: Their indices in the block, ``[n]``.
            start: Where the layout put the users, ``[n, G, 2]`` float64, in m.
            seed: The reset's seed.
            stream: Their indices in the random streams, ``[n]``.
            episode: Episode indices, ``[n]``.
        """
        self.position[rows] = start

    def move(self, *, seed: int, stream: Array, moment: Array) -> None:
        """Move every user for one slot.

        Args:
            seed: The reset's seed.
            stream: Environments' indices in the random streams, ``[E]``.
            moment: A count that no two slots of an environment share, ``[E]`` int.
        """

    def state_dict(self) -> dict[str, Array]:
        """Everything that the next slot depends on; arrays are copies."""
        return {name: array.copy() for name, array in self._arrays().items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken.

        Raises:
            ValueError: An array is missing, or has another shape than this block's.
        """
        for name, mine in self._arrays().items():
            if name not in state:
                raise ValueError(f"users' {name} is missing; the state is of another kind of mobility")
            theirs = np.asarray(state[name])
            if mine.shape != theirs.shape:
                raise ValueError(f"users' {name}: shape {theirs.shape} does not fit {mine.shape}")
            mine[...] = theirs

    def _arrays(self) -> dict[str, Array]:
        """The arrays of the state by name: the arrays themselves, no copies."""
        return {"position": self.position}


class Moving(Mobility):
    """Users whose place is kept in float64.

    In float32 a walk of centimetres a slot across kilometres would be rounded to steps of another length.
    """

    def __init__(self, **block: Any) -> None:
        super().__init__(**block)
        self._place = np.zeros(self.position.shape)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """As `Mobility.load_state_dict`; positions follow from the places."""
        super().load_state_dict(state)
        self.position[...] = self._place

    def _arrays(self) -> dict[str, Array]:
        return {"place": self._place, "velocity": self.velocity}

    def _put(self, rows: Array, place: Array) -> None:
        self._place[rows] = place
        self.position[rows] = place
        self.velocity[rows] = 0

    def _go(self, place: Array) -> None:
        np.subtract(place, self._place, out=self.velocity, casting="same_kind")
        self.velocity *= 1.0 / self.slot_s
        self._place[...] = place
        self.position[...] = place
