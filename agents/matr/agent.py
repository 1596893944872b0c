"""GA-MATR-style actors.

Decentralised (each sees its own observation history), with parameters of their own, a GRU cell and a Beta law by
default (specification 2.2, assumed). What makes them graph-attention trust-region agents stands beside them: the
critic of `marl_tr.agents.matr.critic`, region ``trpo`` and a schedule. Feng et al., arXiv 2401.17880; a
reconstruction, since the paper's body was not available.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from marl_tr.agents.gaussian import agent as gaussian
from marl_tr.agents.gaussian.agent import ExplicitPolicy
from marl_tr.agents.gaussian.network import FlatEncoder
from marl_tr.agents.matr.config import MatrConfig
from marl_tr.agents.matr.encoder import EntityEncoder
from marl_tr.policy import Rows
from marl_tr.vector.contract import EnvSpec, GroupSpec

__all__ = ["make"]


def make(
    config: MatrConfig,
    group: GroupSpec,
    *,
    rows: Rows,
    generator: torch.Generator,
    device: torch.device,
    spec: EnvSpec | None = None,
    agents: Sequence[str] = (),
) -> ExplicitPolicy:
    """The registered factory of agent kind ``matr``; `spec` and `agents` where ``scope: joint`` asks for them."""
    encoder = EntityEncoder if config.encoder == "entities" else FlatEncoder
    return gaussian.make(
        config, group, rows=rows, generator=generator, device=device, spec=spec, agents=agents, encoder=encoder
    )
