"""Trust regions: what bounds an update."""

from marl_tr.registry import Entry

__all__ = ["REGIONS"]

_FAMILY = "marl_tr.region.family"

REGIONS = {
    "measured": Entry(
        target="marl_tr.region.measured:Measured",
        config="marl_tr.region.config:MeasuredConfig",
        summary="gradient steps, divergence measured; with a bound, the Guard keeps it",
    ),
    "trpo": Entry(
        target="marl_tr.region.trpo:Trpo",
        config="marl_tr.region.config:TrpoConfig",
        summary="one natural step on the bound, hard (TRPO)",
    ),
    "ppo_clip": Entry(
        target=f"{_FAMILY}.ppo_clip:PpoClip",
        config=f"{_FAMILY}.core_config:PpoClipConfig",
        summary="clipped ratios; nothing pulls back (PPO)",
    ),
    "spo": Entry(
        target=f"{_FAMILY}.spo:Spo",
        config=f"{_FAMILY}.core_config:SpoConfig",
        summary="ratios drawn to 1 + epsilon sign(A) (Simple policy optimization)",
    ),
    "trpl": Entry(
        target=f"{_FAMILY}.trpl:Trpl",
        config=f"{_FAMILY}.projection_config:TrplConfig",
        summary="the law that acts is projected onto the old one, each decision (projection layers)",
    ),
    "troll": Entry(
        target=f"{_FAMILY}.troll:Troll",
        config=f"{_FAMILY}.projection_config:TrollConfig",
        summary="choices projected onto the old ones in the loss (TROLL)",
    ),
}
