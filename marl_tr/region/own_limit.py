"""What a mechanism's own hard limit is called in the audit, and what it may be exceeded by."""

from __future__ import annotations

__all__ = ["OWN", "OWN_TOLERANCE", "own_slack"]

OWN = "own"
"""Kind of the audit's lines about a region's own hard limit."""
OWN_TOLERANCE = 1e-5
"""Of the limit: what is measured is of single decisions, whose laws are float32."""
_ROUNDING = 1e-9
"""And no less than this, so that a limit near zero can be kept at all: float32 laws that agree differ by about this."""


def own_slack(limit: float) -> float:
    """What a region's own measure may exceed its `limit` by, in the limit's unit."""
    return max(OWN_TOLERANCE * limit, _ROUNDING)
