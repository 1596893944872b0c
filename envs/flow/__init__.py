"""Flow-generation environments: clips of moving shapes, and mixtures on known curves."""

from marl_tr.registry import Entry

__all__ = ["ENVIRONMENTS", "MODELS"]

ENVIRONMENTS: dict[str, Entry] = {}

MODELS: dict[str, Entry] = {}
