"""Where an agent's life begins: with its episode, when it joins, and when it comes back."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from marl_tr.vector.contract import Step

__all__ = ["Starts", "beginnings", "everybody"]

Starts = dict[str, NDArray[np.bool_]]
"""``{group: [E, A]}``: whose life begins with the decision that follows. Memory is zero there, and nothing was done
before."""


def everybody(step: Step) -> Starts:
    """At a reset: everybody's."""
    return {name: np.ones_like(part.alive) for name, part in step.groups.items()}


def beginnings(before: Step, after: Step) -> Starts:
    """Between two steps: everybody's where the episode ended; else of who is alive now and was not, or has just ended.

    Args:
        before: The step that was acted on.
        after: What came of it.
    """
    return {
        name: after.done[:, None] | (part.alive & ~(before.groups[name].alive & ~part.terminated & ~part.truncated))
        for name, part in after.groups.items()
    }
