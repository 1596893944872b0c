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
    "grpo": Entry(
        target=f"{_FAMILY}.grpo:Grpo",
        config=f"{_FAMILY}.cohort_config:GrpoConfig",
        summary="clipped ratios, every trajectory alike, for cohorts (GRPO)",
    ),
    "gspo": Entry(
        target=f"{_FAMILY}.gspo:Gspo",
        config=f"{_FAMILY}.cohort_config:GspoConfig",
        summary="one clipped ratio a trajectory (GSPO)",
    ),
    "gbpo": Entry(
        target=f"{_FAMILY}.gbpo:Gbpo",
        config=f"{_FAMILY}.cohort_config:GbpoConfig",
        summary="ratios drawn to a bounded target about the cohort's median (GBPO)",
    ),
    "etr": Entry(
        target=f"{_FAMILY}.etr:Etr",
        config=f"{_FAMILY}.cohort_config:EtrConfig",
        summary="clipped ratios, intervals that grow with |A| (elastic trust regions)",
    ),
    "fiberpo": Entry(
        target=f"{_FAMILY}.fiberpo:FiberPo",
        config=f"{_FAMILY}.cohort_config:FiberPoConfig",
        summary="log-ratios with a budget for trajectory and decision, or four levels (FiberPO)",
    ),
}
