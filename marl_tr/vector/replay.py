"""Exact resume of an environment that cannot be saved: its reset seed, its actions since, and digests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from marl_tr.vector.codec import GroupCodec
from marl_tr.vector.contract import Leaves

__all__ = ["ReplayLog", "pack", "unpack"]


class ReplayLog:
    """What one copy was given since its reset, and the digest of what it answered.

    Memory is one action (an array a leaf, each some 100 bytes beside its data) and a digest for each step of the
    current episode, and grows for as long as that lasts; `begin` forgets the episode before.

    Attributes:
        actions: A list over the steps of lists over the groups of ``{leaf: [A, ...]}``.
        digests: Of the reset, then of each step (see `Rows.digest`).
    """

    def __init__(self) -> None:
        self.actions: list[list[Leaves]] = []
        self.digests: list[int] = []

    def begin(self, digest: int) -> None:
        """A new episode."""
        self.actions = []
        self.digests = [digest]

    def append(self, actions: Sequence[Leaves], digest: int) -> None:
        """One step; `actions` are copied, because their owner may write into them again."""
        self.actions.append([{leaf: rows.copy() for leaf, rows in leaves.items()} for leaves in actions])
        self.digests.append(digest)


def pack(logs: Sequence[ReplayLog], groups: Sequence[GroupCodec]) -> dict[str, Any]:
    """All copies' logs in a few arrays: ``length [E]``, ``digests``, and ``{group: {leaf: actions}}``, end to end."""
    length = np.array([len(log.actions) for log in logs], dtype=np.int64)
    actions: dict[str, Leaves] = {}
    for g, group in enumerate(groups):
        actions[group.name] = {}
        for leaf in group.action.leaves:
            rows = [step[g][leaf.name] for log in logs for step in log.actions]
            empty = np.zeros((0, len(group.agents), *(leaf.space.shape or ())), dtype=leaf.space.dtype)
            actions[group.name][leaf.name] = np.stack(rows) if rows else empty
    digests = np.array([digest for log in logs for digest in log.digests], dtype=np.int64)
    return {"length": length, "digests": digests, "actions": actions}


def unpack(packed: Mapping[str, Any], groups: Sequence[GroupCodec]) -> list[ReplayLog]:
    """The logs that `pack` packed, one a copy."""
    actions = [
        {leaf.name: np.asarray(packed["actions"][group.name][leaf.name]) for leaf in group.action.leaves}
        for group in groups
    ]
    logs = []
    first = 0
    digests = np.asarray(packed["digests"])
    for copy, length in enumerate(np.asarray(packed["length"])):
        log = ReplayLog()
        steps = range(first, first + int(length))
        log.actions = [[{leaf: rows[t] for leaf, rows in leaves.items()} for leaves in actions] for t in steps]
        log.digests = [int(d) for d in digests[first + copy : first + copy + int(length) + 1]]
        logs.append(log)
        first += int(length)
    return logs
