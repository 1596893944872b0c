"""Flow policies trained by SAGE-GRPO and its baselines (arXiv 2603.21872, reconstructed)."""

from marl_tr.registry import Entry

__all__ = ["AGENTS"]

AGENTS = {
    "flow": Entry(
        target="marl_tr.agents.sage.policy:make",
        config="marl_tr.agents.sage.config:FlowConfig",
        summary="flow-matching policies sampled by an SDE (sage, flow, dance, cps, precise)",
    ),
}
