"""Air-to-ground channel: 3GPP's models of aerial terminals.

Pure functions, computed in the dtype of their input; float64 meets the golden vectors.

The report describes a *ground base station* (35, 25 or 10 m high) and an *aerial terminal*. Here the UAV is the
base station and the user is on the ground. That rests on reciprocity, and on a user 1.5 m above the ground being
sheltered no more than a base station on a mast or a roof: an approximation, and an optimistic one.

Source: 3GPP TR 36.777 (release 15), annex B, tables B-1 (line of sight), B-2 (path loss), B-3 (shadowing), for
terminals above 10 m (RMa) or 22.5 m (UMa, UMi). Two terms of table B-2 are as generally known, because the
implementation that the table was taken from disagrees: ``20 log10(40 pi f / 3)`` of RMa without line of sight,
and ``log10(d)`` with f in GHz of UMi without.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from marl_tr.envs.uav.channel import SPEED_OF_LIGHT

__all__ = ["SCENARIOS", "Losses", "Tr36777", "Validity", "los_probability", "path_loss_db", "shadowing_db"]

Array = NDArray[Any]
Scenario = Literal["rma", "uma", "umi"]


@dataclass(frozen=True)
class Validity:
    """What a scenario was measured and simulated for.

    Attributes:
        lowest_m: The UAV is higher than this.
        highest_m: It is at most this high.
        horizontal_m: Largest horizontal distance. Beyond, the formulas are extrapolated.
        base_m: Height of the ground base station. For the record; no formula depends on it but through
            distances.
    """

    lowest_m: float
    highest_m: float
    horizontal_m: float
    base_m: float

    def check_heights(self, lowest: float, highest: float, scenario: str) -> None:
        """Raise ValueError unless heights from `lowest` to `highest` (in m) are inside."""
        if not (self.lowest_m < lowest and highest <= self.highest_m):
            height = f"{lowest:g} m" if lowest == highest else f"{lowest:g} to {highest:g} m"
            raise ValueError(
                f"tr36777: scenario {scenario!r} holds for heights above {self.lowest_m:g} up to "
                f"{self.highest_m:g} m, not for {height}; fly within that, or choose another scenario or channel"
            )


SCENARIOS: dict[str, Validity] = {
    "rma": Validity(10.0, 300.0, 10_000.0, 35.0),
    "uma": Validity(22.5, 300.0, 4_000.0, 25.0),
    "umi": Validity(22.5, 300.0, 4_000.0, 10.0),
}
"""Rural macro, urban macro and urban micro with aerial terminals."""


class Losses(NamedTuple):
    """Path losses in dB, with and without line of sight."""

    los: Array
    nlos: Array


def los_probability(horizontal: Array, height: Array, scenario: Scenario) -> Array:
    """``1`` up to the distance ``d1``, then ``d1/r + exp(-r/p1) (1 - d1/r)`` (table B-1).

    Args:
        horizontal: Horizontal distance r, in m, any shape.
        height: Height of the UAV, in m, broadcasts with it.
        scenario: ``"rma"``, ``"uma"`` or ``"umi"``.
    """
    lg = np.log10(height)
    always = np.zeros(lg.shape, bool)
    if scenario == "rma":
        p1, d1 = np.maximum(15021.0 * lg - 16053.0, 1000.0), np.maximum(1350.8 * lg - 1602.0, 18.0)
        always = height > 40.0
    elif scenario == "uma":
        p1, d1 = 4300.0 * lg - 3800.0, np.maximum(460.0 * lg - 700.0, 18.0)
        always = height > 100.0
    else:
        p1, d1 = 233.98 * lg - 0.95, np.maximum(294.05 * lg - 432.94, 18.0)
    near: Array = d1 / np.maximum(horizontal, 1.0)
    np.minimum(near, 1.0, out=near)
    p: Array = horizontal / -p1
    np.exp(p, out=p)
    p *= 1.0 - near
    p += near
    if always.any():
        p[np.broadcast_to(always, p.shape)] = 1.0
    return p


def path_loss_db(
    horizontal_sq: Array, height: Array, *, scenario: Scenario, carrier_hz: float, ground_height_m: float
) -> Losses:
    """Losses of both states (table B-2).

    Args:
        horizontal_sq: Squared horizontal distance, in m^2, any shape.
        height: Height of the UAV, in m, broadcasts with it.
        scenario: ``"rma"``, ``"uma"`` or ``"umi"``.
        carrier_hz: Carrier frequency, in Hz.
        ground_height_m: Height of the link's other end, in m.
    """
    f = 20.0 * math.log10(carrier_hz / 1e9)
    reference = f + 20.0 * math.log10(40.0 * math.pi / 3.0)
    lg_h = np.log10(height)
    lg_d: Array = horizontal_sq + np.square(height - ground_height_m)
    np.log10(lg_d, out=lg_d)
    lg_d *= 0.5
    if scenario == "rma":
        los = np.maximum(23.9 - 1.8 * lg_h, 20.0) * lg_d + reference
        nlos = (35.0 - 5.3 * lg_h) * lg_d + (reference - 12.0)
        return Losses(los, np.maximum(los, nlos, out=nlos))
    if scenario == "uma":
        return Losses(22.0 * lg_d + (28.0 + f), (46.0 - 7.0 * lg_h) * lg_d + (reference - 17.5))
    los = (22.25 - 0.5 * lg_h) * lg_d + (30.9 + f)
    nlos = (43.2 - 7.6 * lg_h) * lg_d + (32.4 + f)
    lg_d *= 20.0
    lg_d += 20.0 * math.log10(4 * math.pi * carrier_hz / SPEED_OF_LIGHT)
    np.maximum(los, lg_d, out=los)
    return Losses(los, np.maximum(los, nlos, out=nlos))


def shadowing_db(height: Array, scenario: Scenario) -> tuple[Array, Array]:
    """Standard deviations with and without line of sight, in dB, shaped like `height` (table B-3)."""
    if scenario == "rma":
        return 4.2 * np.exp(-0.0046 * height), np.full_like(height, 6.0)
    if scenario == "uma":
        return 4.64 * np.exp(-0.0066 * height), np.full_like(height, 6.0)
    return np.maximum(5.0 * np.exp(-0.01 * height), 2.0), np.full_like(height, 8.0)


@dataclass(frozen=True)
class Tr36777:
    """Links of a scenario; implements `marl_tr.envs.uav.links.LinkModel`.

    A height outside the scenario's range is a ValueError.
    """

    scenario: Scenario
    carrier_hz: float
    user_height_m: float = 1.5

    def los_probability(self, horizontal_sq: Array, height: Array) -> Array:
        """Probability of line of sight."""
        return los_probability(np.sqrt(horizontal_sq), self._checked(height), self.scenario)

    def gains(self, horizontal_sq: Array, height: Array) -> tuple[Array, Array]:
        """Power gains with and without line of sight, linear."""
        los, nlos = self._losses(horizontal_sq, height)
        return _linear(los), _linear(nlos)

    def mean(self, horizontal_sq: Array, height: Array, averaging: Literal["mean_gain", "mean_db"]) -> Array:
        """Gain averaged over the two states, linear."""
        p = self.los_probability(horizontal_sq, height)
        los, nlos = self._losses(horizontal_sq, height)
        if averaging == "mean_db":
            los -= nlos
            los *= p
            los += nlos
            return _linear(los)
        los, nlos = _linear(los), _linear(nlos)
        los *= p
        nlos *= 1.0 - p
        los += nlos
        return los

    def shadowing_db(self, height: Array) -> tuple[Array, Array]:
        """The scenario's standard deviations with and without line of sight."""
        return shadowing_db(self._checked(height), self.scenario)

    def _losses(self, horizontal_sq: Array, height: Array) -> Losses:
        return path_loss_db(
            horizontal_sq,
            self._checked(height),
            scenario=self.scenario,
            carrier_hz=self.carrier_hz,
            ground_height_m=self.user_height_m,
        )

    def _checked(self, height: Array) -> Array:
        if height.size:
            SCENARIOS[self.scenario].check_heights(float(height.min()), float(height.max()), self.scenario)
        return height


def _linear(loss_db: Array) -> Array:
    """Gain of a loss, in place."""
    loss_db *= -math.log(10) / 10
    return np.exp(loss_db, out=loss_db)
