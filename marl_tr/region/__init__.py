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
    "ppo_penalty": Entry(
        target=f"{_FAMILY}.ppo_penalty:PpoPenalty",
        config=f"{_FAMILY}.core_config:PpoPenaltyConfig",
        summary="KL(old||new) penalised, its weight follows a target (PPO-penalty)",
    ),
    "mdpo": Entry(
        target=f"{_FAMILY}.mdpo:Mdpo",
        config=f"{_FAMILY}.core_config:MdpoConfig",
        summary="KL(new||old) penalised ever more (Mirror descent policy optimization)",
    ),
    "fixpo": Entry(
        target=f"{_FAMILY}.fixpo:Fixpo",
        config=f"{_FAMILY}.core_config:FixpoConfig",
        summary="largest KL of the batch kept by steps back, hard (FixPO)",
    ),
    "bpo": Entry(
        target=f"{_FAMILY}.bpo:Bpo",
        config=f"{_FAMILY}.core_config:BpoConfig",
        summary="ratios drawn to the best ones within bounds, by a median head (Bounded policy optimization)",
    ),
}
