"""The channel that a simulator asks: settings in, gains of all links out."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from marl_tr.envs.uav.channel import ENVIRONMENTS, AlHourani
from marl_tr.envs.uav.channel_config import (
    AlHouraniConfig,
    ChannelConfig,
    GainMapConfig,
    PowerLawConfig,
    Tr36777Config,
)
from marl_tr.envs.uav.gain_map import GainMap, GainMapError, load_gain_map
from marl_tr.envs.uav.links import LinkModel, geometry
from marl_tr.envs.uav.power_law import PowerLaw, free_space_beta0
from marl_tr.envs.uav.sampled import SampledChannel
from marl_tr.envs.uav.tr36777 import SCENARIOS, Tr36777

__all__ = ["Channel", "GainMapChannel", "MeanChannel", "check_coverage", "link_model", "make_channel"]

Array = NDArray[Any]


class Channel(Protocol):
    """Gains of the links of a block of ``E`` environments with ``U`` UAVs and ``G`` users."""

    def begin(self, rows: Array, *, seed: int, stream: Array, episode: Array) -> None:
        """A new episode begins.

        Args:
            rows: Indices of environments of the block, ``[n]``.
            seed: The reset's seed.
            stream: Indices of these environments in the random streams, ``[n]``.
            episode: Their episodes, ``[n]``.
        """
        ...

    def gain(self, position: Array, users: Array, *, seed: int, stream: Array, moment: Array) -> Array:
        """Power gains of one slot; once a slot, because what is drawn moves on.

        Args:
            position: UAVs, ``[E, U, 3]``, in m.
            users: ``[E, G, 2]``, in m.
            seed: The reset's seed.
            stream: Indices of the environments in the random streams, ``[E]``.
            moment: ``[E]`` int, never the same twice in an environment (modulo ``2**32``).

        Returns:
            ``[E, U, G]``, linear, C-contiguous, in the channel's dtype.
        """
        ...

    def mean_gain(self, position: Array, users: Array) -> Array:
        """Expected gains, which depend on no state and change none, of any points: for planners and heat maps.

        A UAV on the ground (height 0 or below) has gain 0, here and in `gain`.

        Args:
            position: ``[E, U, 3]``, in m; ``E`` and ``U`` may be any.
            users: ``[E, P, 2]``, or ``[1, P, 2]`` for all alike, in m.

        Returns:
            ``[E, U, P]``, linear, C-contiguous, in the channel's dtype.
        """
        ...

    def state_dict(self) -> dict[str, Array]:
        """Copies of everything drawn so far that matters later; empty where nothing is."""
        ...

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        """Go on where `state_dict` was taken.

        Raises:
            ValueError: The state is of another channel.
        """
        ...


class _Stateless(ABC):
    """What channels share in which nothing is drawn: the gain is the mean gain."""

    dtype: np.dtype[Any]

    def begin(self, rows: Array, *, seed: int, stream: Array, episode: Array) -> None:  # noqa: B027 - meant for all
        """Nothing to do."""

    def gain(self, position: Array, users: Array, *, seed: int, stream: Array, moment: Array) -> Array:
        """The same as `mean_gain`."""
        return self.mean_gain(position, users)

    @abstractmethod
    def mean_gain(self, position: Array, users: Array) -> Array:
        """See `Channel.mean_gain`."""

    def state_dict(self) -> dict[str, Array]:
        """Empty."""
        return {}

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        """Accepts an empty state alone."""
        if state:
            raise ValueError(f"channel: this one keeps no state, and cannot go on from {', '.join(state)}")


class MeanChannel(_Stateless):
    """Links that get an average over their two states."""

    def __init__(
        self, model: LinkModel, averaging: Literal["mean_gain", "mean_db"], *, dtype: DTypeLike = np.float32
    ) -> None:
        self.model = model
        self.averaging = averaging
        self.dtype = np.dtype(dtype)

    def mean_gain(self, position: Array, users: Array) -> Array:
        """The average, of gains or of decibels, as set; see `Channel.mean_gain`."""
        links = geometry(np.asarray(position, self.dtype), np.asarray(users, self.dtype))
        return links.silence_landed(self.model.mean(links.horizontal_sq, links.height, self.averaging))


class GainMapChannel(_Stateless):
    """Links that look their gains up."""

    def __init__(self, gain_map: GainMap, config: GainMapConfig, *, dtype: DTypeLike = np.float32) -> None:
        self.map = gain_map
        self.config = config
        self.dtype = np.dtype(dtype)

    def mean_gain(self, position: Array, users: Array) -> Array:
        """What the map says; see `Channel.mean_gain`.

        Raises:
            GainMapError: A UAV or user is off the map, and `outside` is ``"error"``.
        """
        flying = position[:, :, 2] > 0
        if self.config.outside == "error":
            self.map.check_covers(position[flying][None], users)
        gain = self.map.decibels(position, users, interpolation=self.config.interpolation)
        gain *= math.log(10) / 10
        np.exp(gain, out=gain)
        if self.config.outside == "silent":
            uavs, places = self.map.covered(position, users)
            gain *= (uavs & flying)[:, :, None] & places[:, None, :]
        elif not flying.all():
            gain *= flying[:, :, None]
        return np.ascontiguousarray(gain, self.dtype)


def make_channel(
    config: ChannelConfig,
    *,
    carrier_hz: float,
    num_envs: int,
    num_uavs: int,
    num_users: int,
    dtype: DTypeLike = np.float32,
) -> Channel:
    """The channel of a block of environments.

    Args:
        config: Which one.
        carrier_hz: Carrier frequency, in Hz.
        num_envs: ``E``.
        num_uavs: ``U``.
        num_users: ``G``.
        dtype: Of the computation and of the gains.

    Raises:
        GainMapError: The map's file cannot be used, or was made for another carrier.
    """
    if isinstance(config, GainMapConfig):
        return GainMapChannel(_gain_map(config, carrier_hz), config, dtype=dtype)
    model = link_model(config, carrier_hz)
    if config.averaging == "sampled":
        return SampledChannel(
            model, config.sampling, num_envs=num_envs, num_uavs=num_uavs, num_users=num_users, dtype=dtype
        )
    return MeanChannel(model, config.averaging, dtype=dtype)


def link_model(config: AlHouraniConfig | PowerLawConfig | Tr36777Config, carrier_hz: float) -> LinkModel:
    """What the settings say of single links."""
    match config:
        case AlHouraniConfig():
            return AlHourani(ENVIRONMENTS[config.environment], carrier_hz)
        case PowerLawConfig():
            beta0 = free_space_beta0(carrier_hz) if config.beta0_db is None else 10 ** (config.beta0_db / 10)
            return PowerLaw(beta0, config.alpha, config.kappa, config.los_c, config.los_d)
        case Tr36777Config():
            return Tr36777(config.scenario, carrier_hz, config.user_height_m)


def check_coverage(
    config: ChannelConfig, *, carrier_hz: float, area_m: float, lowest_m: float, highest_m: float
) -> None:
    """Find out before the first slot whether a channel holds where the UAVs may fly.

    Args:
        config: The channel.
        carrier_hz: Carrier frequency, in Hz.
        area_m: Side of the square area from ``(0, 0)``, in m.
        lowest_m: Least height of a UAV in flight, in m.
        highest_m: Greatest height.

    Raises:
        ValueError: It does not: heights outside a 3GPP scenario, or (`GainMapError`) a file that cannot be used,
            or that does not cover the area while `outside` is ``"error"``.
    """
    if isinstance(config, Tr36777Config):
        SCENARIOS[config.scenario].check_heights(lowest_m, highest_m, config.scenario)
    if isinstance(config, GainMapConfig):
        gain_map = _gain_map(config, carrier_hz)
        if config.outside == "error":
            ends = np.array([[[0.0, 0.0, lowest_m], [area_m, area_m, highest_m]]])
            gain_map.check_covers(ends, ends[:, :, :2])


def _gain_map(config: GainMapConfig, carrier_hz: float) -> GainMap:
    gain_map = load_gain_map(config.file)
    made_for = gain_map.carrier_hz
    if made_for is not None and not math.isclose(made_for, carrier_hz, rel_tol=1e-3):
        raise GainMapError(
            f"{gain_map.name}: made at {made_for / 1e9:g} GHz, and the scenario's carrier is {carrier_hz / 1e9:g} GHz; "
            "set carrier_hz to the map's, or use another map"
        )
    return gain_map
