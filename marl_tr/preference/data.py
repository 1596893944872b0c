"""What is learned from: candidates, what is known of them, and a minibatch of them under the policy that learns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from marl_tr.errors import UserError
from marl_tr.policy import PolicyBatch
from marl_tr.preference.groups import Groups
from marl_tr.region.needs import blocks_of

__all__ = ["BadPreferences", "Candidates", "LossValue", "PreferenceData", "best_as_expert", "levels", "paired"]

FIELDS = ("group", "score", "level", "expert")


class BadPreferences(UserError):
    """Preference data that does not fit itself, the loss or the policy; the message says what is missing or wrong."""


@dataclass(frozen=True)
class PreferenceData:
    """Candidates: what was decided, and how good it was.

    A candidate is one trajectory of `batch`: one decision, or a whole episode of ``T`` of them, of which the mask says
    which count. A pair is a group of two with unlike scores.

    Attributes:
        batch: ``[R, T, N, ...]``: ``N`` candidates of each learner, with observations and raw actions.
        group: ``[R, N]`` int64, at least 0: who is compared with each other, numbered within a row.
        score: ``[R, N]``, higher is better; or the probability that a teacher gives.
        level: ``[R, N]`` int64, 1 is best.
        expert: ``[R, T, N]`` bool, which decisions are demonstrations; None: all.
    """

    batch: PolicyBatch
    group: Tensor | None = None
    score: Tensor | None = None
    level: Tensor | None = None
    expert: Tensor | None = None

    def __post_init__(self) -> None:
        shape = self.batch.mask.shape
        for name in FIELDS:
            x = getattr(self, name)
            wanted = shape if name == "expert" else (shape[0], shape[2])
            if x is not None and x.shape != wanted:
                raise BadPreferences(f"{name} has shape {tuple(x.shape)}, candidates have {tuple(wanted)}")
        if self.group is not None and bool((self.group < 0).any()):
            raise BadPreferences("groups are numbered from 0")
        if self.score is not None and not bool(torch.isfinite(self.score).all()):
            raise BadPreferences(
                "a score is not finite; give such candidates any other and leave them out (batch.mask)"
            )

    @cached_property
    def blocks(self) -> Tensor:
        """``[N]`` int64, numbered from 0: which candidates stay together, in every row."""
        group = self.group
        if group is None:
            return torch.arange(self.batch.mask.shape[2], device=self.batch.mask.device)
        if bool((group == group[:1]).all()):
            numbered: Tensor = group[0].unique(return_inverse=True)[1]
            return numbered
        return blocks_of(group.unsqueeze(1))

    def part(self, index: Tensor) -> PreferenceData:
        """Some candidates of every row, ``[n]``."""
        own = {name: getattr(self, name) for name in FIELDS}
        chosen = {name: x if x is None else x[..., index] for name, x in own.items()}
        return PreferenceData(self.batch.trajectories(index), **chosen)

    def labels(self) -> dict[str, Tensor]:
        """What is known of the decisions, ``[R, T, N]`` each, and ``block``."""
        shape = self.batch.mask.shape
        found = {name: getattr(self, name) for name in FIELDS if getattr(self, name) is not None}
        wide = {name: x if x.ndim == 3 else x.unsqueeze(1).expand(shape) for name, x in found.items()}
        return wide | {"block": self.blocks.expand(shape)}

    @staticmethod
    def joined(parts: Sequence[PreferenceData]) -> PreferenceData:
        """Side by side; groups of unlike parts are unlike. All must know the same, and be equally long."""
        merged: dict[str, Tensor | None] = {}
        for name in FIELDS:
            own = [getattr(part, name) for part in parts]
            known = [x for x in own if x is not None]
            if known and len(known) < len(own):
                raise BadPreferences(f"some parts have {name}, others do not")
            if name == "group" and known:
                sizes = torch.tensor([0, *(int(x.max()) + 1 for x in known)]).cumsum(0).tolist()
                known = [x + offset for x, offset in zip(known, sizes, strict=False)]
            merged[name] = torch.cat(known, -1) if known else None
        batches = [part.batch for part in parts]
        memories = [b.memory for b in batches if b.memory is not None]
        batch = PolicyBatch(
            observation={leaf: torch.cat([b.observation[leaf] for b in batches], 2) for leaf in batches[0].observation},
            record={leaf: torch.cat([b.record[leaf] for b in batches], 2) for leaf in batches[0].record},
            memory=torch.cat(memories, 1) if memories else None,
            starts=torch.cat([b.starts for b in batches], 2),
            mask=torch.cat([b.mask for b in batches], 2),
        )
        return PreferenceData(batch, **merged)


def paired(chosen: PolicyBatch, rejected: PolicyBatch) -> PreferenceData:
    """Pairs: candidate ``n`` of `chosen` is preferred to candidate ``n`` of `rejected`."""
    if chosen.mask.shape != rejected.mask.shape:
        raise BadPreferences(f"{tuple(chosen.mask.shape)} chosen and {tuple(rejected.mask.shape)} rejected ones")
    rows, _, count = chosen.mask.shape
    group = torch.arange(count, device=chosen.mask.device).expand(rows, count)
    score = torch.ones(rows, count, device=chosen.mask.device)
    parts = [PreferenceData(chosen, group=group, score=score), PreferenceData(rejected, group=group, score=score - 1)]
    joined = PreferenceData.joined(parts)
    return replace(joined, group=torch.cat([group, group], -1))


def levels(score: Tensor, edges: Sequence[float]) -> Tensor:
    """Level of each score, int64: 1 from the highest of the `edges` on, one more for every edge that it is below."""
    limits = torch.tensor(sorted(edges), dtype=score.dtype, device=score.device)
    return 1 + (score.unsqueeze(-1) < limits).sum(-1)


def best_as_expert(data: PreferenceData) -> PreferenceData:
    """The same with each group's best candidates as demonstrations (all of them, where scores tie)."""
    if data.group is None or data.score is None:
        raise BadPreferences("the best of a group can be said of scored groups only")
    present = data.batch.mask.any(1)
    groups = Groups.of(data.group, present)
    score = torch.where(groups.valid, groups.gather(data.score), -torch.inf)
    best = groups.valid & (score == score.amax(-1, keepdim=True))
    expert = torch.zeros_like(present).flatten()
    expert[groups.index[best]] = True
    return replace(data, expert=expert.reshape(present.shape).unsqueeze(1) & data.batch.mask)


@dataclass(frozen=True)
class LossValue:
    """What a loss says of a minibatch.

    Attributes:
        loss: ``[R]``, to be minimised; differentiable.
        count: ``[R]``, of how many pairs, groups or decisions it is the mean; a row with 0 takes no step.
        scalars: ``[R]`` each, for the log.
    """

    loss: Tensor
    count: Tensor
    scalars: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Candidates:
    """A minibatch of candidates under the parameters that learn.

    ``k`` is the length of the policy's own chain (1 unless it is a flow); a step of it counts as a decision.

    Attributes:
        log_prob: ``[R, T, N, k]``, differentiable.
        old: ``[R, T, N, k]``, of the policy before the update.
        mask: ``[R, T, N]`` bool.
        labels: ``[R, T, N, ...]`` each: `PreferenceData.labels`, ``reference`` (log-probabilities ``[R, T, N, k]`` of
            the anchor), and what the loss itself or a teacher added.
    """

    log_prob: Tensor
    old: Tensor
    mask: Tensor
    labels: dict[str, Tensor]

    @property
    def reference(self) -> Tensor:
        """``[R, T, N, k]``, of the anchor."""
        return self.labels["reference"]

    @cached_property
    def groups(self) -> Groups:
        """Who is compared with whom; candidates without a decision are left out."""
        return Groups.of(self.of_candidate("group"), self.mask.any(1))

    def of_candidate(self, name: str) -> Tensor:
        """A label of whole candidates, ``[R, N]``."""
        return self.labels[name][:, 0]

    def total(self, x: Tensor) -> Tensor:
        """Sum over each candidate's decisions and their chains: ``[R, T, N, k]`` to ``[R, N]``."""
        return torch.where(self.mask, x.sum(-1), 0).sum(1)

    def average(self, x: Tensor) -> Tensor:
        """The mean of the same."""
        return self.total(x) / (self.mask.sum(1) * x.shape[-1]).clamp_min(1)

    def mean(self, x: Tensor, counted: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean over all decisions and chain steps of a row that are `counted` ``[R, T, N]``, and their number."""
        chosen = self.mask if counted is None else self.mask & counted
        count = chosen.sum((1, 2)).to(x.dtype) * x.shape[-1]
        return torch.where(chosen.unsqueeze(-1), x, 0).sum((1, 2, 3)) / count.clamp_min(1), count

    @property
    def demonstrated(self) -> Tensor:
        """``[R, T, N]`` bool: which decisions are demonstrations."""
        return self.labels.get("expert", self.mask)
