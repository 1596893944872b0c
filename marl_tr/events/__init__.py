"""One event stream, several sinks."""

from marl_tr.events.stream import Event, EventStream, Phase, Sink

__all__ = ["Event", "EventStream", "Phase", "Sink"]
