"""Settings of the air-to-ground channel: which model, and what of it is averaged or drawn."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from marl_tr.scenario.schema import Strict

__all__ = [
    "AlHouraniConfig",
    "ChannelConfig",
    "GainMapConfig",
    "PowerLawConfig",
    "SamplingConfig",
    "Tr36777Config",
]

Averaging = Literal["mean_gain", "mean_db", "sampled"]
_AVERAGING = (
    "What a link gets of its two states: 'mean_gain': expected gain; 'mean_db': gain at the expected loss in dB; "
    "'sampled': one state, drawn, with shadowing and fading."
)


class SamplingConfig(Strict):
    """What is drawn where `averaging` is ``sampled``; nothing of it matters elsewhere."""

    decorrelation_m: float = Field(
        default=50.0,
        gt=0,
        le=1e5,
        description="A link keeps its state until either end is this far from where it was drawn, in m; also the "
        "distance over which the correlation of shadowing falls to 1/e.",
    )
    shadowing: bool = Field(default=True, description="Whether there is log-normal shadowing.")
    shadowing_los_db: float | None = Field(
        default=None,
        ge=0,
        le=40,
        description="Its standard deviation with line of sight, in dB; empty: the model's own (0 where it has none).",
    )
    shadowing_nlos_db: float | None = Field(
        default=None, ge=0, le=40, description="The same without line of sight, in dB."
    )
    fading: bool = Field(
        default=True, description="Whether there is fading, new each slot: Rician with line of sight, Rayleigh without."
    )
    rician_k_db: float = Field(default=15.0, ge=-40, le=60, description="Rician K factor, in dB.")


class AlHouraniConfig(Strict):
    """Probabilistic line of sight by elevation, and a loss beyond free space in each state."""

    kind: Literal["al_hourani"] = "al_hourani"
    environment: Literal["suburban", "urban", "dense_urban", "high_rise"] = Field(
        default="urban", description="Al-Hourani's constants, fitted at 2 GHz."
    )
    averaging: Averaging = Field(default="mean_gain", description=_AVERAGING)
    sampling: SamplingConfig = Field(default=SamplingConfig(), description="What is drawn where averaging is sampled.")


class PowerLawConfig(Strict):
    """``beta0 d^-alpha``, times ``kappa`` without line of sight."""

    kind: Literal["power_law"] = "power_law"
    beta0_db: float | None = Field(
        default=None, ge=-200, le=0, description="Gain at 1 m, in dB; empty: of free space at the carrier."
    )
    alpha: float = Field(default=2.3, ge=1, le=8, description="Path-loss exponent.")
    kappa: float = Field(default=0.2, gt=0, le=1, description="Further factor of the gain without line of sight.")
    los_c: float = Field(default=10.0, gt=0, le=90, description="Constant C of the line-of-sight sigmoid, in degrees.")
    los_d: float = Field(default=0.6, gt=0, le=10, description="Its slope D, per degree.")
    averaging: Averaging = Field(default="mean_gain", description=_AVERAGING)
    sampling: SamplingConfig = Field(default=SamplingConfig(), description="What is drawn where averaging is sampled.")


class Tr36777Config(Strict):
    """3GPP TR 36.777 between an aerial terminal and a ground base station, read the other way round."""

    kind: Literal["tr36777"] = "tr36777"
    scenario: Literal["rma", "uma", "umi"] = Field(
        default="uma",
        description="'rma': rural macro, heights above 10 m; 'uma', 'umi': urban macro and micro, above 22.5 m. "
        "All up to 300 m.",
    )
    user_height_m: float = Field(
        default=1.5, ge=0, le=10, description="Height of the users, from which distances are measured, in m."
    )
    averaging: Averaging = Field(default="mean_gain", description=_AVERAGING)
    sampling: SamplingConfig = Field(default=SamplingConfig(), description="What is drawn where averaging is sampled.")


class GainMapConfig(Strict):
    """Gains from a file, for instance of a ray tracer."""

    kind: Literal["gain_map"] = "gain_map"
    file: str = Field(min_length=1, description="The map, an .npz file; a path from the current folder.")
    interpolation: Literal["nearest", "linear"] = Field(
        default="linear", description="Between grid points: the nearest one, or linear in dB along every axis."
    )
    outside: Literal["error", "edge", "silent"] = Field(
        default="error",
        description="Where an end of a link is off the grid: 'error': stop; 'edge': take the nearest border point; "
        "'silent': no gain at all.",
    )


ChannelConfig = Annotated[
    AlHouraniConfig | PowerLawConfig | Tr36777Config | GainMapConfig,
    Field(discriminator="kind"),
]
"""One of the channels, told apart by `kind`."""
