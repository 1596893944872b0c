"""What a slot is worth to each UAV: several objectives, and the one number that learners get.

Every objective is the better the higher it is; `objective_weights` times `Objectives`, summed, is a UAV's own reward,
of which `rho` mixes in the mean over the team (specification 1.9). `Objectives` come unweighted, for methods that
choose weights themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from marl_tr.envs.uav.config import DownlinkConfig
from marl_tr.envs.uav.energy import HOVER_POWER_W
from marl_tr.envs.uav.radio import Links, with_rates
from marl_tr.envs.uav.reward_config import RateUtility
from marl_tr.envs.uav.utility import alpha_fair_worth

__all__ = ["Objectives", "objective_weights", "reward", "utility"]

Array = NDArray[Any]


@dataclass(frozen=True)
class Objectives:
    """The parts of a slot's reward, unweighted.

    Attributes:
        utility: ``[E, U]``, of the UAV's users, over what an even share at 10 dB would give them.
        deviation: ``[E]``, how unequal rates are; ``fairness`` is its negative, the same for all UAVs.
        collision: ``[E, U]`` bool.
        out: ``[E, U]`` bool.
        propulsion_w: ``[E, U]``; ``energy`` is its negative over the hover power.
    """

    utility: Array
    deviation: Array
    collision: Array
    out: Array
    propulsion_w: Array

    def arrays(self) -> dict[str, Array]:
        """``{name: [E, U]}`` of ``utility``, ``fairness``, ``collision``, ``out`` and ``energy``."""
        dtype = self.utility.dtype
        return {
            "utility": self.utility,
            "fairness": np.repeat(-self.deviation[:, None], self.utility.shape[1], axis=1),
            "collision": -self.collision.astype(dtype),
            "out": -self.out.astype(dtype),
            "energy": self.propulsion_w * dtype.type(-1 / HOVER_POWER_W),
        }

    def means(self, collisions: Array, outs: Array, *, flying: Array | None) -> dict[str, Array]:
        """Means over the UAVs that fly.

        Args:
            collisions: ``[E]``, how many collided.
            outs: ``[E]``, how many were stopped by the border.
            flying: ``[E, U]`` bool; None: all.

        Returns:
            ``{name: [E]}``; 0 where nobody flies.
        """
        dtype, uavs = self.utility.dtype, self.utility.shape[1]
        over = dtype.type(1 / uavs) if flying is None else 1 / np.maximum(flying.sum(axis=1), 1).astype(dtype)
        return {
            "utility": np.add.reduce(self.utility, axis=1) * over,
            "fairness": -self.deviation,
            "collision": collisions * -over,
            "out": outs * -over,
            "energy": np.add.reduce(self.propulsion_w, axis=1) * (over * dtype.type(-1 / HOVER_POWER_W)),
        }


def utility(config: DownlinkConfig, links: Links) -> Array:
    """What its users are worth to each UAV, ``[E, U]``; an even share at 10 dB for each of G / U users is worth 1.

    ``R_u / ((G / U) R_ref)``, or the alpha-fair worth of the users' rates over that of no service, in units of what a
    rate of ``R_ref`` is worth over it, summed and divided by ``G / U``: with alpha 0 the same, and never negative, so
    that no UAV gains by leaving a user unserved.
    """
    kind, per_uav = config.utility, config.num_users / config.num_uavs
    if isinstance(kind, RateUtility):
        share: Array = links.uav_rates / (per_uav * config.rate_ref)
        return share
    ends = np.array([0.0 if kind.alpha < 1 else kind.floor, 1.0])
    least, unit = alpha_fair_worth(ends, alpha=kind.alpha, floor=kind.floor).tolist()
    worth = alpha_fair_worth(links.rates * (1 / config.rate_ref), alpha=kind.alpha, floor=kind.floor)
    worth = np.where(links.serving >= 0, worth - least, 0)
    total: Array = with_rates(links, worth).uav_rates * (1 / (per_uav * (unit - least)))
    return total


def objective_weights(config: DownlinkConfig) -> dict[str, float]:
    """What each objective counts in a UAV's own reward."""
    return {
        "utility": 1.0,
        "fairness": config.lambda_sigma,
        "collision": config.c_collision,
        "out": config.c_out,
        "energy": config.w_energy,
    }


def reward(config: DownlinkConfig, parts: Objectives, *, flying: Array | None = None) -> Array:
    """``(1 - rho) own + rho mean(own)``, the mean over the UAVs that fly.

    Args:
        config: Weights.
        parts: The slot's objectives; of UAVs that do not fly 0.
        flying: ``[E, U]`` bool; None: all.

    Returns:
        ``[E, U]``; 0 for UAVs that do not fly.
    """
    dtype = parts.utility.dtype
    own = parts.utility - (config.lambda_sigma * parts.deviation)[:, None]
    own -= parts.collision * dtype.type(config.c_collision)
    own -= parts.out * dtype.type(config.c_out)
    if config.w_energy:
        own -= config.w_energy / HOVER_POWER_W * parts.propulsion_w
    if flying is not None:
        own *= flying
    if config.rho:
        if flying is None:
            mean = own.mean(axis=1, keepdims=True)
        else:
            mean = own.sum(axis=1, keepdims=True) / np.maximum(flying.sum(axis=1, keepdims=True), 1).astype(dtype)
        own = (1 - config.rho) * own + config.rho * mean
        if flying is not None:
            own *= flying
    return own
