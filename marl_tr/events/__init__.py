"""One event stream, several sinks.

The sinks are imported from their modules (``marl_tr.events.tensorboard`` and so on): TensorBoard's takes
seconds.
"""

from marl_tr.events.stream import Event, EventStream, Phase, Sink

__all__ = ["Event", "EventStream", "Phase", "Sink"]
