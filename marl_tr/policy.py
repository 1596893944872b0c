"""What the trainer needs of a policy, and the layout in which policies learn.

Shape letters: ``T`` time, ``E`` parallel environments, ``A`` agents, ``K`` steps of the policy's own chain (1 unless
it is a flow), ``D`` features, ``L`` learners (rows of stacked parameters), ``N`` trajectories of a learner.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Protocol

import torch
from torch import Tensor, nn

__all__ = [
    "Action",
    "Capability",
    "Evaluation",
    "Parameters",
    "Policy",
    "PolicyBatch",
    "Rows",
    "executed_name",
    "in_float64",
    "masked_mean",
]

Parameters = dict[str, Tensor]
"""Stacked parameters by name, each ``[L, ...]``; a subset of rows is a slice along the first axis."""


class Capability(StrEnum):
    """What a policy can say of itself; regions and objectives require some of these."""

    LOG_PROB = "log_prob"
    KL = "kl"
    MASS = "mass"
    """Its laws are of choices: what it says of an action is a probability, no density."""
    GAUSSIAN = "gaussian"
    """Its laws are of independent Gaussians (a flow's: step by step)."""
    SAMPLE_DISTANCE = "sample_distance"


@dataclass(frozen=True)
class Rows:
    """The map between the decision layout ``[T, E, A, ...]`` and the learners' rows ``[L, T, N, ...]``.

    Attributes:
        agents: ``A``.
        shared: One learner serves all agents (``L = 1, N = E A``), or each agent is its own (``L = A, N = E``).
    """

    agents: int
    shared: bool

    @property
    def learners(self) -> int:
        """``L``."""
        return 1 if self.shared else self.agents

    def to_rows(self, x: Tensor) -> Tensor:
        """``[T, E, A, ...]`` to ``[L, T, N, ...]``."""
        if self.shared:
            return x.flatten(1, 2).unsqueeze(0)
        return x.movedim(2, 0)

    def from_rows(self, x: Tensor) -> Tensor:
        """``[L, T, N, ...]`` to ``[T, E, A, ...]``."""
        if self.shared:
            return x.squeeze(0).reshape(x.shape[1], -1, self.agents, *x.shape[3:])
        return x.movedim(0, 2)


@dataclass(frozen=True)
class Action:
    """What a policy decided for every copy of its environment at one moment.

    Attributes:
        env: ``{leaf: [L, N, ...]}`` in the action space's own units.
        record: ``{leaf: [L, N, ...]}``: the raw action before clipping or squashing; what learning needs.
        memory: The next memory ``[L, N, H]``, or None.
    """

    env: dict[str, Tensor]
    record: dict[str, Tensor]
    memory: Tensor | None


@dataclass(frozen=True)
class PolicyBatch:
    """A rollout as one set of learners sees it.

    Attributes:
        observation: ``{leaf: [L, T, N, D]}``, masks included.
        record: ``{leaf: [L, T, N, ...]}``, the raw actions.
        memory: ``[L, N, H]`` at the first step, or None.
        starts: ``[L, T, N]`` bool: an episode, or the agent's life in it, begins at this step (memory is zero there).
        mask: ``[L, T, N]`` bool: the agent was alive and to move.
        chain: ``[L, T, N, k]`` int64, which steps of the policy's own chain are scored; None: all ``K``.
    """

    observation: dict[str, Tensor]
    record: dict[str, Tensor]
    memory: Tensor | None
    starts: Tensor
    mask: Tensor
    chain: Tensor | None = None

    def rows(self, index: list[int]) -> PolicyBatch:
        """The batch of some learners only."""
        return self._map(lambda x: x[index], lambda m: m[index])

    def trajectories(self, index: Tensor) -> PolicyBatch:
        """Some trajectories of every learner, whole; `index` has shape ``[n]``."""
        return self._map(lambda x: x.index_select(2, index), lambda m: m.index_select(1, index))

    def flatten_time(self) -> PolicyBatch:
        """``[L, 1, T N, ...]``: for policies without memory, whose decisions need no order."""
        if self.memory is not None:
            raise ValueError("a recurrent policy's trajectories cannot be flattened")
        return self._map(lambda x: x.flatten(1, 2).unsqueeze(1), lambda m: m)

    def to(self, dtype: torch.dtype) -> PolicyBatch:
        """Floating point parts in `dtype`."""

        def cast(x: Tensor) -> Tensor:
            return x.to(dtype) if x.is_floating_point() else x

        return self._map(cast, cast)

    def map_rows(self, function: Callable[[Tensor], Tensor]) -> PolicyBatch:
        """`function` applied to everything of shape ``[L, T, N, ...]``."""
        return self._map(function, lambda memory: memory)

    def _map(self, on_rows: Any, on_memory: Any) -> PolicyBatch:
        return replace(
            self,
            observation={leaf: on_rows(x) for leaf, x in self.observation.items()},
            record={leaf: on_rows(x) for leaf, x in self.record.items()},
            memory=None if self.memory is None else on_memory(self.memory),
            starts=on_rows(self.starts),
            mask=on_rows(self.mask),
            chain=None if self.chain is None else on_rows(self.chain),
        )


@dataclass(frozen=True)
class Evaluation:
    """Recorded decisions under given parameters; ``k`` is ``K``, or what `PolicyBatch.chain` asked for.

    Attributes:
        log_prob: ``[L, T, N, k]``, summed over the action's dimensions; zero for steps, and for policies, without a
            likelihood.
        entropy: ``[L, T, N]``; None where the policy cannot say.
        law: The policy's own description of its decisions, opaque to the trainer but for ``law.map(function)``,
            which applies a function to each tensor it holds; `Policy.divergence` compares two.
        weight: What the objective weighs each chain step's gain by, ``[L, T, N, k]``; None: all alike.
        dimensions: Over how many dimensions `log_prob` is a sum, for ratios that are means.
    """

    log_prob: Tensor
    entropy: Tensor | None
    law: Any
    weight: Tensor | None = None
    dimensions: int = 1

    def rows(self, index: list[int]) -> Evaluation:
        """The evaluation of some learners only."""
        return replace(
            self,
            log_prob=self.log_prob[index],
            entropy=None if self.entropy is None else self.entropy[index],
            law=self.law.map(lambda x: x[index]),
            weight=None if self.weight is None else self.weight[index],
        )


class Policy(Protocol):
    """The policies of the agents of one group that learn alike.

    A registered agent kind is a factory ``(config, group: GroupSpec, *, rows: Rows, generator, device) -> Policy``.
    `observes` says whether `observe` keeps statistics of inputs, `direction` what `divergence` measures, for the audit:
    ``kl_old_new`` in nats, or ``squared_step`` of the actions of a policy without a likelihood.

    Optional hook, looked up by name: ``recall(batch) -> Evaluation``, what `evaluate` says of a batch under the
    parameters that acted, from the record alone; for policies whose networks cost much.

    Optional hooks of policies with capability `kl`, or `gaussian`: ``total_variation(anchor, law)``, of a decision and
    chain step ``[L, T, N, k]`` in [0, 1], exact or an upper bound; ``tail_mass(law, log_prob)``, the probability under
    `law` of an action less likely than the one with this log-probability, ``[L, T, N, k]``.

    Optional attribute ``scope = "joint"``: a law over everybody's actions, of which each agent executes, and records,
    its own. In batches to learn from, ``record`` then holds the raw actions of all agents, by `executed_name`, and
    who was to move, ``acting [L, T, N, A]``; and ``Evaluation.law.components(record) [L, T, N, A]`` is the
    log-probability of each agent's action.
    """

    rows: Rows
    capabilities: frozenset[Capability]
    direction: str
    recurrent: bool
    observes: bool
    module: nn.Module

    def initial_memory(self, trajectories: int) -> Tensor | None:
        """Zero memory ``[L, N, H]``, or None."""
        ...

    def act(
        self,
        observation: Mapping[str, Tensor],
        memory: Tensor | None,
        generator: torch.Generator,
        *,
        mode: bool = False,
    ) -> Action:
        """Decide for observations ``{leaf: [L, N, D]}``; `mode` takes the law's mode in place of a sample.

        Rows of who is not alive, or not to move, are decided as well, and the environment ignores them.
        """
        ...

    def evaluate(self, parameters: Parameters, batch: PolicyBatch) -> Evaluation:
        """Score a batch under `parameters` (rows as in the batch); differentiable."""
        ...

    def divergence(self, anchor: Any, law: Any) -> Tensor:
        """How far `law` is from `anchor`, two laws of `evaluate`, a decision and chain step: ``[L, T, N, k]``.

        KL(anchor || law) where there is a likelihood (capability `kl`), else the mean squared step of the action over
        its dimensions, on the recorded noise (`sample_distance`). Zero for equal laws, and a parabola nearby.
        """
        ...

    def law_parameters(self, parameters: Parameters, batch: PolicyBatch) -> tuple[Tensor, ...]:
        """The law's own parameters as tensors ``[L, T, N, D]``: what Fisher products differentiate."""
        ...

    def fisher_product(self, law: Any, tangents: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The Fisher information at `law`, in its own parameters, times `tangents`."""
        ...

    def observe(self, observation: Mapping[str, Tensor], mask: Tensor, *, first: bool = False) -> None:
        """Take a rollout's observations ``{leaf: [T, E, A, D]}`` into running statistics; the law must not change.

        Only the `first` time, before anything was learned, it may.
        """
        ...

    def diagnostics(self) -> dict[str, float]:
        """Scalars for the event stream, by tag."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Networks and statistics."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict`."""
        ...


def executed_name(agent: str, leaf: str) -> str:
    """Name of an agent's action leaf among everybody's."""
    return f"{agent}/{leaf}"


def in_float64(law: Any) -> Any:
    """The law with every float tensor that it holds in float64: differences of float32 logarithms would drown small
    divergences."""
    return law.map(lambda x: x.double() if x.is_floating_point() else x)


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over ``T`` and ``N`` where `mask`, a row: ``[L, T, N] -> [L]``. Zero for a row without a decision."""
    weight = mask.to(x.dtype)
    return (torch.where(mask, x, 0) * weight).sum((-2, -1)) / weight.sum((-2, -1)).clamp_min(1.0)
