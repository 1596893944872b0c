"""A small environment's shape, random inputs for a critic, and a critic that is linear."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.func import functional_call

from marl_tr.critic.critic import Encoding
from marl_tr.critic.inputs import CriticInputs
from marl_tr.nn.stacked import StackedLinear
from marl_tr.rollout.container import Bootstrap, EpisodeStatistics, GroupRollout, Rollout
from marl_tr.vector.contract import EnvSpec, GroupSpec

STEPS, COPIES = 8, 6
# Group, agents, observed features, actions.
GROUPS = (("scout", 2, 3, 2), ("truck", 1, 5, 4))
AGENTS = 3
EDGE_FEATURES = 2


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def box(*shape: int) -> spaces.Space[Any]:
    return spaces.Box(-np.inf, np.inf, shape)


def make_spec(*, state: bool = True) -> EnvSpec:
    groups = tuple(
        GroupSpec(
            name,
            tuple(f"{name}_{i}" for i in range(agents)),
            {"observation": box(observed)},
            {"action": spaces.Box(-1, 1, (acted,))},
        )
        for name, agents, observed, acted in GROUPS
    )
    leaves = {"position": box(7), "edges": box(AGENTS, AGENTS, EDGE_FEATURES), "adjacency": box(AGENTS, AGENTS)}
    return EnvSpec(id="test", num_envs=COPIES, groups=groups, state=leaves if state else {})


def make_inputs(seed: int = 0, *, memory: Tensor | None = None, state: bool = True) -> CriticInputs:
    noise = generator(seed)
    adjacency = (torch.rand(STEPS, COPIES, AGENTS, AGENTS, generator=noise) < 0.6).float()
    leaves = {
        "position": torch.randn(STEPS, COPIES, 7, generator=noise),
        "edges": torch.randn(STEPS, COPIES, AGENTS, AGENTS, EDGE_FEATURES, generator=noise),
        "adjacency": torch.maximum(adjacency, torch.eye(AGENTS)),
    }
    return CriticInputs(
        observation={n: torch.randn(STEPS, COPIES, a, d, generator=noise) for n, a, d, _ in GROUPS},
        previous_action={n: torch.randn(STEPS, COPIES, a, d, generator=noise) for n, a, _, d in GROUPS},
        state=leaves if state else {},
        alive=torch.ones(STEPS, COPIES, AGENTS, dtype=torch.bool),
        acting=torch.ones(STEPS, COPIES, AGENTS),
        starts=(torch.rand(STEPS, COPIES, 1, generator=noise) < 0.2).repeat(1, 1, AGENTS),
        memory=memory,
    )


def make_alive(seed: int = 3) -> Tensor:
    return torch.rand(STEPS, COPIES, AGENTS, generator=generator(seed)) < 0.8


def make_rollout(inputs: CriticInputs) -> Rollout:
    """A rollout that shows a critic `inputs`, everybody alive, cut by its own end only."""
    no = {n: torch.zeros(STEPS, COPIES, a, dtype=torch.bool) for n, a, _, _ in GROUPS}
    groups = {
        n: GroupRollout(
            observation={"observation": inputs.observation[n]},
            action=inputs.previous_action[n],
            previous_action=inputs.previous_action[n],
            reward=no[n].float(),
            terminated=no[n],
            truncated=no[n],
            alive=~no[n],
            acting=~no[n],
            starts=starts,
        )
        for (n, *_), starts in zip(GROUPS, inputs.starts.split([a for _, a, *_ in GROUPS], -1), strict=True)
    }
    return Rollout(
        groups=groups,
        records={},
        state=inputs.state,
        starts=inputs.starts.all(-1),
        done=torch.zeros(STEPS, COPIES, dtype=torch.bool),
        bootstrap=Bootstrap(
            time=torch.full((COPIES,), STEPS - 1),
            env=torch.arange(COPIES),
            agents=torch.ones(COPIES, AGENTS, dtype=torch.bool),
            living=torch.ones(COPIES, AGENTS, dtype=torch.bool),
            starts=torch.zeros(COPIES, AGENTS, dtype=torch.bool),
            acting=torch.ones(COPIES, AGENTS),
            observation={n: {"observation": inputs.observation[n][-1] + 1} for n, *_ in GROUPS},
            state={leaf: x[-1] for leaf, x in inputs.state.items()},
        ),
        episodes=EpisodeStatistics(returns=np.zeros((0, AGENTS)), lengths=np.zeros(0, np.int64), metrics={}),
    )


class LinearEncoder:
    """``V_u = w_u . position + b_u``: fits have closed forms."""

    def __init__(self, seed: int = 0) -> None:
        self.module: nn.Module = StackedLinear(1, 7, AGENTS, generator=generator(seed))
        assert isinstance(self.module, StackedLinear)
        self.value_layers: tuple[StackedLinear, ...] = (self.module,)

    def initial_memory(self, environments: int) -> Tensor | None:
        return None

    def encode(self, parameters: Mapping[str, Tensor] | None, inputs: CriticInputs) -> Encoding:
        x = inputs.state["position"].unsqueeze(0)
        values = self.module(x) if parameters is None else functional_call(self.module, dict(parameters), (x,))
        return Encoding(values=values.squeeze(0), memories=None)

    def observe(self, inputs: CriticInputs) -> None:
        """Nothing to normalise."""

    def diagnostics(self, inputs: CriticInputs) -> tuple[dict[str, float], dict[str, Tensor]]:
        return {}, {}
