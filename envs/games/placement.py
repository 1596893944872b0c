"""``games/uav_placement-v0``: UAVs choose a place and a power, once: a downlink's game that is exactly solvable."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from marl_tr.envs.games.config import PlacementConfig
from marl_tr.envs.games.game import native
from marl_tr.envs.games.normal_form import NormalForm, NormalFormVectorEnv
from marl_tr.envs.uav.channel import ENVIRONMENTS, power_gain
from marl_tr.envs.uav.radio import serve

__all__ = ["choices", "make", "placement_payoffs"]

Array = NDArray[Any]

ALTITUDE_M = 100.0
BANDWIDTH_HZ = 1e6
CARRIER_HZ = 2e9
NOISE_W = 10 ** ((-167.0 - 30) / 10) * BANDWIDTH_HZ
"""-174 dBm/Hz and a noise figure of 7 dB: the downlink's defaults, as the others."""


def choices(config: PlacementConfig) -> Array:
    """What an action means: ``[n, 2]``, place in m and power in W; powers vary fastest."""
    places, powers = np.meshgrid(config.places, config.powers, indexing="ij")
    return np.stack((places.ravel(), powers.ravel()), axis=1)


def placement_payoffs(config: PlacementConfig) -> Array:
    """``[U, n, ..., n]`` float64: the reward of ``uav/downlink-v0`` for hovering UAVs, by all joint actions.

    ::

        own_u  = R_u / ((G / U) R_ref) - lambda_sigma sigma / R_ref - c_collision [another UAV at the same place]
        reward = (1 - rho) own_u + rho mean(own),    R_ref = (U B / G) log2(1 + 10)

    with the urban channel's mean gain, and every user served by the UAV that it receives best, on equal shares of a
    band that all UAVs use.
    """
    uavs, users = config.num_uavs, np.array(config.users, np.float64)
    menu = choices(config)
    joint = np.stack(np.meshgrid(*[np.arange(len(menu))] * uavs, indexing="ij"), axis=-1).reshape(-1, uavs)
    rewards = np.empty((len(joint), uavs))
    # In parts: a part's gains are [E, U, G].
    for part in np.array_split(np.arange(len(joint)), max(1, joint.size * len(users) // 1_000_000)):
        rewards[part] = _rewards(menu[joint[part]], users, config)
    return np.ascontiguousarray(rewards.T).reshape(uavs, *(len(menu),) * uavs)


def _rewards(chosen: Array, users: Array, config: PlacementConfig) -> Array:
    """``[E, U]`` of chosen places and powers ``[E, U, 2]``."""
    place, power = chosen[..., 0], chosen[..., 1]
    uavs = place.shape[1]
    gain = power_gain(
        np.square(place[:, :, None] - users),
        ALTITUDE_M,
        constants=ENVIRONMENTS["urban"],
        carrier_hz=CARRIER_HZ,
        averaging="mean_gain",
    )
    links = serve(gain, power, noise_w=NOISE_W, bandwidth_hz=BANDWIDTH_HZ, resources="equal_share")
    reference = uavs * BANDWIDTH_HZ / len(users) * math.log2(11)
    collided = (place[:, :, None] == place[:, None, :]).sum(axis=2) > 1
    own = links.uav_rates / (len(users) / uavs * reference) - config.c_collision * collided
    own -= config.lambda_sigma * links.rates.std(axis=1, keepdims=True) / reference
    mixed: Array = (1 - config.rho) * own + config.rho * own.mean(axis=1, keepdims=True)
    return mixed


def _game(config: PlacementConfig) -> NormalForm:
    return NormalForm(placement_payoffs(config), id="games/uav_placement-v0", group="uav")


make = native(NormalFormVectorEnv, _game, PlacementConfig)
"""``games/uav_placement-v0``, native; see `marl_tr.envs.games.game.native`."""
