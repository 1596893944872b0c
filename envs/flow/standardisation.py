"""Constants that bring the reward's components to mean 0 and standard deviation 1 over the pretrained model's samples.

They play the part of VideoAlign's normalised scores. Measured once and then fixed: a reward that is standardised anew
with each policy would hide that policy's gain.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["COMPONENTS", "STANDARDISATION", "Standardisation"]

COMPONENTS = ("vq", "mq", "ta")
"""Visual quality, motion quality, text alignment."""


@dataclass(frozen=True)
class Standardisation:
    """Of one component: ``(raw - mean) / std``."""

    mean: float
    std: float


STANDARDISATION: Mapping[str, Mapping[str, Standardisation]] = {
    # benchmarks/flow_standardisation.py: 480 ODE samples (10 steps, shift 3) of the model that ships.
    "plain": {
        "vq": Standardisation(mean=-0.0772, std=0.02171),
        "mq": Standardisation(mean=-0.111, std=0.2407),
        "ta": Standardisation(mean=-0.263, std=0.6495),
    },
    # Not measured: no model of this level ships.
    "hard": {
        "vq": Standardisation(mean=-0.15, std=0.05),
        "mq": Standardisation(mean=-0.4, std=0.3),
        "ta": Standardisation(mean=-1.5, std=3.0),
    },
}
"""``{level: {component: constants}}``; for `tau` at its default."""
