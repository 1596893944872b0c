"""Small real policies, batches and turns, and divergences from torch.distributions to compare with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, distributions
from torch.distributions import Distribution, Independent

from marl_tr.objective.config import SurrogateConfig
from marl_tr.objective.ratio import Surrogate
from marl_tr.policy import Parameters, Policy, PolicyBatch, Rows
from marl_tr.region.turn import Learners, Turn
from marl_tr.registry import find
from marl_tr.scenario.schema import OptimizerSection
from marl_tr.vector.contract import GroupSpec

LAWS = ("gaussian", "beta", "categorical", "multidiscrete")
BRANCHES = (3, 4)
FEATURES = 4
SPACES: dict[str, spaces.Space[Any]] = {
    "gaussian": spaces.Box(np.float32([-1, -2]), np.float32([1, 3])),
    "beta": spaces.Box(np.float32([-1, -2]), np.float32([1, 3])),
    "categorical": spaces.Discrete(5),
    "multidiscrete": spaces.MultiDiscrete(BRANCHES),
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_policy(
    law: str = "gaussian",
    network: str = "mlp",
    *,
    shared: bool = False,
    agents: int = 3,
    kind: str = "gaussian",
    seed: int = 0,
    **settings: Any,
) -> Policy:
    """A policy of a registered kind, small, with a head that is not at its start of almost zero."""
    entry = find("agents", kind)
    group = GroupSpec(
        name="group",
        agents=tuple(f"agent_{i}" for i in range(agents)),
        observation={"observation": spaces.Box(-np.inf, np.inf, (FEATURES,))},
        action={"action": SPACES[law]},
    )
    config = entry.load_config()(
        network=network,
        law="beta" if law == "beta" else "gaussian",
        **{"hidden": [8], "head_gain": 0.5, **settings},
    )
    rows = Rows(agents=agents, shared=shared)
    policy: Policy = entry.load()(config, group, rows=rows, generator=generator(seed), device=torch.device("cpu"))
    return policy


def make_flow(*, shared: bool = True, agents: int = 2, steps: int = 4, seed: int = 0, **settings: Any) -> Policy:
    """A small flow policy whose velocity is not at its start of zero."""
    entry = find("agents", "flow")
    group = GroupSpec(
        name="group",
        agents=tuple(f"agent_{i}" for i in range(agents)),
        observation={"observation": spaces.Box(-np.inf, np.inf, (FEATURES,))},
        action={"action": spaces.Box(-np.inf, np.inf, (2,))},
    )
    config = entry.load_config()(**{"steps": steps, "network": {"kind": "mlp", "hidden": [8, 8]}, **settings})
    rows = Rows(agents=agents, shared=shared)
    policy: Policy = entry.load()(config, group, rows=rows, generator=generator(seed), device=torch.device("cpu"))
    noise = generator(seed + 50)
    with torch.no_grad():
        for p in policy.module.parameters():
            p += 0.3 * torch.randn(p.shape, generator=noise)
    return policy


def play(policy: Policy, *, steps: int = 6, environments: int = 8, seed: int = 1) -> PolicyBatch:
    """Act on random observations with random episode starts and absences; as the collector lays it out."""
    noise = generator(seed)
    rows = policy.rows
    shape = (steps, environments, rows.agents)
    observation = rows.to_rows(torch.randn(*shape, FEATURES, generator=noise))
    starts = torch.rand(steps, environments, generator=noise) < 0.2
    starts = rows.to_rows(starts.unsqueeze(-1).expand(shape))
    mask = rows.to_rows(torch.rand(shape, generator=noise) < 0.8)
    memory = policy.initial_memory(observation.shape[2])
    if memory is not None:
        memory = torch.randn(memory.shape, generator=noise)
    first, records = memory, []
    for t in range(steps):
        if memory is not None:
            memory = torch.where(starts[:, t, :, None], 0, memory)
        with torch.no_grad():
            action = policy.act({"observation": observation[:, t]}, memory, noise)
        memory = action.memory
        records.append(action.record)
    return PolicyBatch(
        observation={"observation": observation},
        record={leaf: torch.stack([record[leaf] for record in records], 1) for leaf in records[0]},
        memory=first,
        starts=starts,
        mask=mask,
    )


def make_turn(
    policy: Policy,
    batch: PolicyBatch,
    *,
    advantage: Tensor | None = None,
    objective: Any = None,
    learners: Learners | None = None,
    rows: Sequence[int] | None = None,
    seed: int = 2,
    progress: float = 0.0,
) -> Turn:
    """The turn of some rows of `batch` (all by default), with random advantages unless given."""
    learners = learners or make_learners(policy)
    index = list(range(policy.rows.learners) if rows is None else rows)
    part = batch.rows(index)
    if advantage is None:
        advantage = torch.randn(batch.mask.shape, generator=generator(seed + 100))
    with torch.no_grad():
        old = policy.evaluate(learners.parameters(index), part)
    return Turn(
        learners=learners,
        rows=tuple(index),
        batch=part,
        advantage=advantage[index],
        objective=objective or Surrogate(SurrogateConfig()),
        old=old,
        generator=generator(seed),
        progress=progress,
        terms=learners.regularisers.terms(index, progress),
    )


def make_learners(policy: Policy, *regularisers: Any, average: float | None = None) -> Learners:
    return Learners(policy, [f"learner_{i}" for i in range(policy.rows.learners)], regularisers, average=average)


def make_region(name: str, *, optimizer: OptimizerSection | None = None, **settings: Any) -> Any:
    """A registered region; with an optimizer section where it does not take a step of its own."""
    entry = find("regions", name)
    config = entry.load_config()
    assert config is not None
    if not getattr(config, "takes_own_step", False):
        optimizer = optimizer or OptimizerSection()
    return entry.load()(config(**settings), optimizer)


def frozen(policy: Policy) -> Parameters:
    return {name: p.detach().clone() for name, p in policy.module.named_parameters()}


def torch_law(law: str, parameters: tuple[Tensor, ...]) -> Distribution:
    """torch.distributions' law at a policy's law parameters, in float64."""
    first, *rest = (p.double() for p in parameters)
    if law == "gaussian":
        return Independent(distributions.Normal(first, rest[0].exp()), 1)
    if law == "beta":
        return Independent(distributions.Beta(first, rest[0]), 1)
    return distributions.Categorical(logits=first)


def torch_kl(law: str, policy: Policy, old: Parameters, new: Parameters, batch: PolicyBatch) -> Tensor:
    """KL(old || new) of each decision by torch.distributions, ``[L, T, N]`` float64."""
    with torch.no_grad():
        before = policy.law_parameters(old, batch)
        after = policy.law_parameters(new, batch)
    if law != "multidiscrete":
        return distributions.kl_divergence(torch_law(law, before), torch_law(law, after))
    parts = zip(before[0].split(BRANCHES, -1), after[0].split(BRANCHES, -1), strict=True)
    return torch.stack([distributions.kl_divergence(torch_law(law, (a,)), torch_law(law, (b,))) for a, b in parts]).sum(
        0
    )


def torch_log_prob(law: str, parameters: tuple[Tensor, ...], raw: Tensor) -> Tensor:
    """Log-probability of raw actions by torch.distributions, float64."""
    if law != "multidiscrete":
        return torch_law(law, parameters).log_prob(raw if law == "categorical" else raw.double())
    parts = zip(parameters[0].split(BRANCHES, -1), raw.unbind(-1), strict=True)
    return torch.stack([torch_law(law, (logits,)).log_prob(choice) for logits, choice in parts]).sum(0)


def mean_over(x: Tensor, mask: Tensor) -> list[float]:
    """Mean of each row over its decisions, by a loop."""
    return [float(x[row][mask[row]].mean()) for row in range(len(x))]
