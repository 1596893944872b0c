"""Trust regions: what bounds an update."""

from marl_tr.registry import Entry

__all__ = ["REGIONS"]

REGIONS = {
    "measured": Entry(
        target="marl_tr.region.measured:Measured",
        config="marl_tr.region.config:MeasuredConfig",
        summary="gradient steps, divergence measured; with a bound, the Guard keeps it",
    ),
    "trpo": Entry(
        target="marl_tr.region.trpo:Trpo",
        config="marl_tr.region.config:TrpoConfig",
        summary="one natural step on the bound, hard (TRPO, arXiv 1502.05477)",
    ),
}
