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
        summary="KL from the old policy penalised, its weight follows a target (PPO-penalty)",
    ),
    "mdpo": Entry(
        target=f"{_FAMILY}.mdpo:Mdpo",
        config=f"{_FAMILY}.core_config:MdpoConfig",
        summary="KL to the old policy penalised ever more (Mirror descent policy optimization)",
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
    "dppo": Entry(
        target=f"{_FAMILY}.dppo:Dppo",
        config=f"{_FAMILY}.shaping_config:DppoConfig",
        summary="what moved too far is masked out (Divergence proximal policy optimization)",
    ),
    "bandpo": Entry(
        target=f"{_FAMILY}.bandpo:Bandpo",
        config=f"{_FAMILY}.shaping_config:BandpoConfig",
        summary="clips as wide as the action's probability allows (BandPO)",
    ),
    "maspo": Entry(
        target=f"{_FAMILY}.maspo:Maspo",
        config=f"{_FAMILY}.shaping_config:MaspoConfig",
        summary="a soft gate on overshooting ratios, by the action's probability (MASPO)",
    ),
    "r2vpo": Entry(
        target=f"{_FAMILY}.r2vpo:R2vpo",
        config=f"{_FAMILY}.shaping_config:R2vpoConfig",
        summary="a multiplier holds the variance of the ratio (R2VPO)",
    ),
    "pspo": Entry(
        target=f"{_FAMILY}.pspo:Pspo",
        config=f"{_FAMILY}.shaping_config:PspoConfig",
        summary="ratios smoothed toward the old policy; a smaller rate (PSPO)",
    ),
    "dispo": Entry(
        target=f"{_FAMILY}.dispo:Dispo",
        config=f"{_FAMILY}.shaping_config:DispoConfig",
        summary="clipped weights, apart for good and bad actions (DISPO)",
    ),
    "apo": Entry(
        target=f"{_FAMILY}.apo:Apo",
        config=f"{_FAMILY}.shaping_config:ApoConfig",
        summary="what bad actions lose goes to likely choices (Anchored policy optimization)",
    ),
    "a3po": Entry(
        target=f"{_FAMILY}.a3po:A3po",
        config=f"{_FAMILY}.shaping_config:A3poConfig",
        summary="clipped ratios to an anchor that goes along with the policy (A-3PO)",
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
        summary="clipped ratios, intervals that grow with the advantage's size (elastic trust regions)",
    ),
    "fiberpo": Entry(
        target=f"{_FAMILY}.fiberpo:FiberPo",
        config=f"{_FAMILY}.cohort_config:FiberPoConfig",
        summary="log-ratios with a budget for trajectory and decision, or four levels (FiberPO)",
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
