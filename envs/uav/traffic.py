"""What users ask for: always more than they can get, or packets that arrive and wait."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from marl_tr.envs.uav.poisson import poisson, poisson_table
from marl_tr.envs.uav.traffic_config import FullBufferConfig, PoissonConfig

__all__ = ["FullBuffer", "PoissonTraffic", "Served", "Traffic", "make_traffic"]

Array = NDArray[Any]

# What a draw is for; part of the random streams' coordinates, so a number here never changes its meaning.
_BEFORE, _ARRIVALS = 40, 41

_BOOKS = ("backlog", "arrived", "served", "dropped", "waited")


@dataclass(frozen=True)
class Served:
    """What users got in one slot.

    Attributes:
        rates: ``[E, G]``, bits served over the slot's length, in b/s; never above what the radio offered.
        backlog: ``[E, G]``, bits that wait at the slot's end; 0 with full buffers, where nothing is counted.
        metrics: Named ``[E]`` arrays.
    """

    rates: Array
    backlog: Array
    metrics: dict[str, Array]


class Traffic(Protocol):
    """The users' demand in a block of ``E`` environments.

    Attributes:
        backlog: ``[E, G]``, bits that wait now; 0 with full buffers, where nothing is counted.
    """

    backlog: Array

    def begin(self, rows: Array, *, seed: int, stream: Array, episode: Array) -> None:
        """Begin an episode in the environments with the indices `rows`.

        Args:
            rows: ``[N]`` int.
            seed: The reset's seed.
            stream: The streams of these environments, ``[N]``.
            episode: Their episodes' indices, ``[N]``.
        """
        ...

    def serve(self, rates: Array, *, seed: int, stream: Array, moment: Array) -> Served:
        """Serve one slot at `rates`, then let in what arrived meanwhile.

        Args:
            rates: What the radio offers, ``[E, G]``, in b/s.
            seed: The reset's seed.
            stream: ``[E]``.
            moment: ``[E]`` int64, ``episode (horizon + 1) + slot``.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next slot depends on; arrays are copies."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken.

        Raises:
            ValueError: The state is of other traffic or of another number of environments or users.
        """
        ...


class FullBuffer:
    """Whatever the radio offers is used; there are no metrics."""

    def __init__(self, *, num_envs: int, num_users: int, dtype: DTypeLike) -> None:
        self.backlog: Array = np.zeros((num_envs, num_users), dtype)

    def begin(self, rows: Array, *, seed: int, stream: Array, episode: Array) -> None:
        """Nothing waits and nothing is drawn."""

    def serve(self, rates: Array, *, seed: int, stream: Array, moment: Array) -> Served:
        """The rates as they are."""
        return Served(rates, self.backlog, {})

    def state_dict(self) -> dict[str, Any]:
        """There is no state."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """There is no state.

        Raises:
            ValueError: The state has something in it.
        """
        if state:
            raise ValueError(f"full buffers have no state, but this one has {sorted(state)}")


class PoissonTraffic:
    """Packets arrive as a Poisson process, independently for each user, and wait in a queue of the user's own.

    In a slot a user is served ``min(backlog, rate x slot)``, in whole bits; what arrives during the slot can be
    served from the next slot on. An episode begins with the arrivals of one slot, so that the first is not
    idle. A packet that does not fit into what the queue has left is dropped whole. Queues count whole bits in
    int64: nothing is lost to rounding, and ``arrived = served + backlog + dropped`` holds exactly.

    Metrics, one number an environment:

    - ``served_mbps``, ``arrived_mbps``: sum over users of what was served, and of what arrived, in this slot;
    - ``backlog_mbit``: what waits at the slot's end;
    - ``dropped_mbit``: what was dropped in this slot;
    - ``delay_s``: by Little's law, the backlog summed over the episode's slots so far over the bits let in. It is
      the mean time that a bit has spent here, where one that still waits counts with its time so far: with
      queues that grow without end it grows with the episode.

    Attributes:
        backlog: ``[E, G]`` int64, in bits. The others have its shape and count since the episode began.
        arrived: What came, dropped packets included.
        served: What went to the user.
        dropped: What found no room.
        waited: Sum over slots of the bits that waited in them, float64.
    """

    def __init__(
        self, config: PoissonConfig, *, num_envs: int, num_users: int, slot_s: float, horizon: int, dtype: DTypeLike
    ) -> None:
        self._config = config
        self._slot_s = slot_s
        self._horizon = horizon
        self._dtype = np.dtype(dtype)
        self._arrivals = poisson_table(config.packets_per_s * slot_s)
        most = (self._arrivals.first + len(self._arrivals.cumulative)) * config.packet_bits
        # Up to there float64, in which bits meet rates, is exact too.
        if most * (horizon + 1) * num_users > 2**53:
            raise ValueError(
                f"{config.packets_per_s:g} packets/s of {config.packet_bits} bits in {horizon} slots of {slot_s:g} s "
                f"are more bits than can be counted: lower packet_bits, packets_per_s or horizon"
            )
        shape = (num_envs, num_users)
        self.backlog: Array = np.zeros(shape, np.int64)
        self.arrived: Array = np.zeros(shape, np.int64)
        self.served: Array = np.zeros(shape, np.int64)
        self.dropped: Array = np.zeros(shape, np.int64)
        self.waited: Array = np.zeros(shape, np.float64)

    def begin(self, rows: Array, *, seed: int, stream: Array, episode: Array) -> None:
        """See `Traffic.begin`."""
        for name in _BOOKS:
            getattr(self, name)[rows] = 0
        arrived = self._draw(_BEFORE, seed, stream, episode * (self._horizon + 1))
        dropped = self._without_room(arrived, self.backlog[rows])
        self.arrived[rows], self.dropped[rows], self.backlog[rows] = arrived, dropped, arrived - dropped

    def serve(self, rates: Array, *, seed: int, stream: Array, moment: Array) -> Served:
        """See `Traffic.serve`."""
        self.waited += self.backlog
        # The product in float64, which float32 would round to a multiple of many bits.
        offered = np.floor(rates.astype(np.float64) * self._slot_s)
        served = np.minimum(offered, self.backlog).astype(np.int64)
        self.served += served
        self.backlog -= served
        arrived = self._draw(_ARRIVALS, seed, stream, moment)
        dropped = self._without_room(arrived, self.backlog)
        self.arrived += arrived
        self.dropped += dropped
        self.backlog += arrived - dropped

        # Up to the slot's beginning: what came since has not waited yet.
        let_in = (self.backlog + self.served - (arrived - dropped)).sum(axis=1)
        per_slot = 1e-6 / self._slot_s
        metrics = {
            "served_mbps": per_slot * served.sum(axis=1),
            "arrived_mbps": per_slot * arrived.sum(axis=1),
            "backlog_mbit": 1e-6 * self.backlog.sum(axis=1),
            "dropped_mbit": 1e-6 * dropped.sum(axis=1),
            "delay_s": self._slot_s * self.waited.sum(axis=1) / np.maximum(let_in, 1),
        }
        return Served(
            rates=(served / self._slot_s).astype(self._dtype),
            backlog=self.backlog.astype(self._dtype),
            metrics={name: value.astype(self._dtype) for name, value in metrics.items()},
        )

    def state_dict(self) -> dict[str, Any]:
        """See `Traffic.state_dict`."""
        return {name: getattr(self, name).copy() for name in _BOOKS}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Traffic.load_state_dict`."""
        if set(state) != set(_BOOKS):
            raise ValueError(f"the state of Poisson traffic has {sorted(_BOOKS)}, this one has {sorted(state)}")
        for name in _BOOKS:
            mine, theirs = getattr(self, name), np.asarray(state[name])
            if mine.shape != theirs.shape:
                raise ValueError(f"{name}: shape {theirs.shape} does not fit traffic with {mine.shape}")
            setattr(self, name, theirs.astype(mine.dtype))

    def _draw(self, purpose: int, seed: int, stream: Array, moment: Array) -> Array:
        """Bits that arrive at these moments, ``[N, G]``."""
        step = np.asarray(moment, np.int64) % 2**32
        users = self.backlog.shape[1]
        packets = poisson(seed, stream, purpose=purpose, step=step, count=users, table=self._arrivals)
        return packets * self._config.packet_bits

    def _without_room(self, arrived: Array, backlog: Array) -> Array:
        """Bits of the packets among `arrived` that do not fit."""
        if self._config.queue_bits is None:
            return np.zeros_like(arrived)
        size = self._config.packet_bits
        room = (self._config.queue_bits - backlog) // size * size
        excess: Array = np.maximum(arrived - room, 0)
        return excess


def make_traffic(
    config: FullBufferConfig | PoissonConfig,
    *,
    num_envs: int,
    num_users: int,
    slot_s: float,
    horizon: int,
    dtype: DTypeLike = np.float32,
) -> Traffic:
    """The traffic of a block of environments.

    Args:
        config: Its settings.
        num_envs: Environments ``E``.
        num_users: Users ``G`` of each.
        slot_s: Length of a slot, in s.
        horizon: Slots of an episode.
        dtype: Of rates, backlog and metrics; the queues themselves count in int64.

    Raises:
        ValueError: An episode may have more bits than can be counted exactly.
    """
    if isinstance(config, FullBufferConfig):
        return FullBuffer(num_envs=num_envs, num_users=num_users, dtype=dtype)
    return PoissonTraffic(config, num_envs=num_envs, num_users=num_users, slot_s=slot_s, horizon=horizon, dtype=dtype)
