"""Drifting policies: one forward pass from noise to action, learned from positive advantages without a likelihood."""

from marl_tr.registry import Entry

__all__ = ["AGENTS", "OBJECTIVES"]

AGENTS = {
    "drifting": Entry(
        target="marl_tr.agents.drifting.policy:make",
        config="marl_tr.agents.drifting.config:DriftingConfig",
        summary="a generator of actions from noise: multimodal, one forward pass, no likelihood",
    ),
}

OBJECTIVES = {
    "podpo": Entry(
        target="marl_tr.agents.drifting.podpo:Podpo",
        config="marl_tr.agents.drifting.config:PodpoConfig",
        summary="positive-only drift: samples move towards actions of positive advantage (after arXiv 2604.16519)",
    ),
    "podpo_balanced": Entry(
        target="marl_tr.agents.drifting.podpo:Podpo",
        config="marl_tr.agents.drifting.config:BalancedPodpoConfig",
        summary="the same with rare actions weighed up, so that equally good modes all stay (ours)",
    ),
}
