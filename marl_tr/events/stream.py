"""One stream of events; sinks subscribe to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from numpy.typing import NDArray

__all__ = ["Event", "EventStream", "Phase", "Sink"]


class Phase(StrEnum):
    """Which part of a run an event comes from."""

    ACT = "act"
    TRAIN = "train"
    EVAL = "eval"
    FINAL = "final"


@dataclass(frozen=True)
class Event:
    """What happened at one moment of a run.

    Attributes:
        step: Environment steps so far: the x-axis of everything.
        phase: Where in the run.
        scalars: ``{tag: number}``; tags keep their slashes, ``"charts/episodic_return"``.
        images: ``{tag: [H, W, 3] uint8}``.
        videos: ``{tag: [T, H, W, 3] uint8}``.
        texts: ``{tag: Markdown}``.
        chains: ``{learner: {measure: [K numbers]}}``: what an update did to each step of a policy's chain.
    """

    step: int
    phase: Phase
    scalars: Mapping[str, float] = field(default_factory=dict)
    images: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    videos: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    chains: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)


class Sink(Protocol):
    """Receives every event of a run."""

    def write(self, event: Event) -> None:
        """Take one event; must not change it."""
        ...

    def position(self) -> dict[str, int]:
        """Flush, and say where the log stands (lines by file name), for a checkpoint."""
        ...

    def close(self) -> None:
        """Flush and release files."""
        ...


class EventStream:
    """Hands each event to every sink, in order."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = tuple(sinks)

    def emit(self, event: Event) -> None:
        """Write `event` to all sinks."""
        for sink in self._sinks:
            sink.write(event)

    def position(self) -> dict[str, int]:
        """All sinks' positions together."""
        merged: dict[str, int] = {}
        for sink in self._sinks:
            merged.update(sink.position())
        return merged

    def close(self) -> None:
        """Close every sink."""
        for sink in self._sinks:
            sink.close()
