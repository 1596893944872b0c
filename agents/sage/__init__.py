"""SAGE-GRPO: flow policies whose exploration, gradients and drift are controlled, and the samplers it is compared with.

`sampler` has the mathematics of one step, `scheduler` puts it into a diffusers pipeline, `equalizer` weighs the steps.
"""

from marl_tr.registry import Entry

__all__ = ["AGENTS"]

AGENTS: dict[str, Entry] = {}
