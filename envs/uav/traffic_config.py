"""Settings of the users' traffic."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from marl_tr.scenario.schema import Strict

__all__ = ["FullBufferConfig", "PoissonConfig", "TrafficConfig"]


class FullBufferConfig(Strict):
    """Every user always has more to receive than it can."""

    kind: Literal["full_buffer"] = "full_buffer"


class PoissonConfig(Strict):
    """Packets arrive for each user as a Poisson process and wait in a queue of the user's own."""

    kind: Literal["poisson"] = "poisson"
    packets_per_s: float = Field(default=25.0, gt=0, le=1e5, description="Mean arrivals of a user, in packets/s.")
    packet_bits: int = Field(default=12_000, ge=1, le=1_000_000_000, description="Size of a packet, in bits.")
    queue_bits: int | None = Field(
        default=None,
        ge=1,
        le=2**53,
        description="Longest queue of a user, in bits: packets that do not fit are dropped; empty: no limit.",
    )

    @model_validator(mode="after")
    def _check_that_a_packet_fits(self) -> Self:
        if self.queue_bits is not None and self.queue_bits < self.packet_bits:
            raise ValueError(
                f"queue_bits must hold at least one packet of packet_bits = {self.packet_bits}, not {self.queue_bits}"
            )
        return self


TrafficConfig = Annotated[FullBufferConfig | PoissonConfig, Field(discriminator="kind")]
