"""Gradient steps whose divergence is measured, and kept by the Guard where a bound is given."""

from __future__ import annotations

from marl_tr.region.gradient import GradientRegion

__all__ = ["Measured"]


class Measured(GradientRegion):
    """The objective's own steps and nothing else; see `GradientRegion`."""
