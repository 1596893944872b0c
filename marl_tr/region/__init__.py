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
    "tram": Entry(
        target=f"{_FAMILY}.tram:Tram",
        config=f"{_FAMILY}.parameter_config:TramConfig",
        summary="gradients from the worst point nearby, a KL away (TRAM)",
    ),
    "directional": Entry(
        target=f"{_FAMILY}.directional:Directional",
        config=f"{_FAMILY}.parameter_config:DirectionalConfig",
        summary="steps within the directions of a learner's first updates (directional alignment)",
    ),
}
