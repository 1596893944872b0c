"""Learning from preference data: every update proposed by gradient steps, measured and committed by the Guard."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from marl_tr.errors import UserError
from marl_tr.policy import Capability, Evaluation, Parameters, Policy
from marl_tr.preference import LOSSES
from marl_tr.preference.config import PreferenceSettings
from marl_tr.preference.data import BadPreferences, Candidates, LossValue, PreferenceData
from marl_tr.region.config import MeasuredConfig
from marl_tr.region.guard import Guard, UpdateReport
from marl_tr.region.measured import Measured
from marl_tr.region.samples import Samples
from marl_tr.region.turn import Estimate, Learners, Turn

__all__ = ["PreferenceLoss", "PreferenceObjective", "PreferenceTrainer", "train_preferences"]


class PreferenceLoss(Protocol):
    """What is learned: a loss over candidates. Made by an entry of `marl_tr.preference.LOSSES` from its settings."""

    def labels(self, candidates: Candidates) -> dict[str, Tensor]:
        """What it wants to know of the whole data of an update, under its old policy; ``[R, T, N, ...]`` each."""
        ...

    def __call__(self, candidates: Candidates) -> LossValue:
        """The loss of a minibatch."""
        ...


class PreferenceObjective:
    """A preference loss as what a region maximises; see `marl_tr.region.turn.Objective`."""

    requires = frozenset({Capability.LOG_PROB})

    def __init__(self, loss: PreferenceLoss) -> None:
        self.loss = loss

    def samples(self, turn: Turn) -> Samples:
        """Whole candidates, whole groups."""
        block = turn.labels["block"][0, 0]
        return Samples(turn.batch, turn.old.log_prob, turn.advantage, labels=turn.labels, blocks=block)

    def estimate(self, turn: Turn, parameters: Parameters, samples: Samples) -> Estimate:
        """The loss with its sign turned."""
        evaluation = turn.learners.policy.evaluate(parameters, samples.batch)
        value = self.loss(
            Candidates(evaluation.log_prob, samples.old_log_prob, samples.batch.mask, samples.labels or turn.labels)
        )
        return Estimate(-value.loss, evaluation=evaluation, active=value.count > 0, scalars=value.scalars)

    def improvement(self, turn: Turn, evaluation: Evaluation) -> Tensor:
        """How much lower the loss on all data of the update is."""
        old = turn.old.log_prob
        before, after = (
            self.loss(Candidates(log_prob, old, turn.batch.mask, turn.labels)).loss
            for log_prob in (old, evaluation.log_prob)
        )
        return before - after


class PreferenceTrainer:
    """Learns a policy from preference data.

    The trust region is that of reinforcement learning: whatever the loss proposes, the Guard measures it on the
    update's data, keeps ``settings.bound`` and the anchor's bound, commits, and writes a line of the audit.

    Args:
        policy: Moved in place.
        settings: Loss, anchor, bound, steps.
        names: Of the learners, for reports; numbered where they are not given.
        teacher: Parameters ``[R, ...]`` of a frozen teacher, for losses that learn from one.
        audit: Receives the line of each learner and update.

    Attributes:
        learners: Parameters, moments, anchors.
        losses: Scalars of the newest update, by tag.
        updates: Done.

    Raises:
        UserError: The policy cannot say what the loss requires.
    """

    def __init__(
        self,
        policy: Policy,
        settings: PreferenceSettings,
        *,
        names: Sequence[str] | None = None,
        teacher: Parameters | None = None,
        audit: Callable[[Mapping[str, Any]], None] = lambda line: None,
    ) -> None:
        _check(policy, settings)
        names = names or [f"learner_{row}" for row in range(policy.rows.learners)]
        self.settings = settings
        self.learners = Learners(policy, names, [settings.anchor, *settings.regularisers])
        self.losses: dict[str, float] = {}
        self.updates = 0
        loss = LOSSES[settings.loss.kind].load()(settings.loss)
        self._objective = PreferenceObjective(cast(PreferenceLoss, loss))
        self._region = Measured(MeasuredConfig(bound=settings.bound), settings.optimizer)
        self._audit = audit
        self._guard = Guard(lambda line: self._audit({"update": self.updates, **line}))
        self._teacher = None if teacher is None else {name: p.detach().clone() for name, p in teacher.items()}
        self._generator = torch.Generator().manual_seed(settings.seed)

    def update(self, data: PreferenceData, *, progress: float = 0.0) -> list[UpdateReport]:
        """One proposal on all of `data`; a report a learner.

        Args:
            data: Of all learners.
            progress: Share of the training that is done, for schedules of rates and weights.

        Raises:
            BadPreferences: The data lacks what the loss needs.
            Diverged: A gradient is not finite; nothing was committed.
        """
        turn = self._turn(data, progress)
        candidate = self._region.propose(turn)
        self.losses = candidate.losses
        reports = self._guard.accept(self._region, turn, candidate)
        self.updates += 1
        return reports

    def train(self, data: PreferenceData) -> list[UpdateReport]:
        """``settings.updates`` updates, each on the next groups of `data` in random order; the reports of all."""
        reports: list[UpdateReport] = []
        batches = self._batches(data)
        for done in range(self.settings.updates):
            reports += self.update(next(batches), progress=done / self.settings.updates)
        return reports

    @torch.no_grad()
    def loss(self, data: PreferenceData) -> Tensor:
        """The loss of the policy as it is on `data`, ``[R]``."""
        turn = self._turn(data, 0.0)
        return self._objective.loss(Candidates(turn.old.log_prob, turn.old.log_prob, turn.batch.mask, turn.labels)).loss

    def state_dict(self) -> dict[str, Any]:
        """Everything that a later update depends on, but for the data and the teacher."""
        return {
            "learners": self.learners.state_dict(),
            "updates": self.updates,
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken; `train` begins a new order of the data."""
        self.learners.load_state_dict(state["learners"])
        self.updates = int(state["updates"])
        self._generator.set_state(state["generator"])

    @torch.no_grad()
    def _turn(self, data: PreferenceData, progress: float) -> Turn:
        missing = [name for name in sorted(self.settings.loss.uses) if getattr(data, name) is None]
        if missing:
            raise BadPreferences(f"loss {self.settings.loss.kind!r} needs data with {', '.join(missing)}")
        policy, batch = self.learners.policy, data.batch
        rows = tuple(range(policy.rows.learners))
        if batch.mask.shape[0] != len(rows):
            raise BadPreferences(f"data of {batch.mask.shape[0]} learners for a policy of {len(rows)}")
        terms = self.learners.regularisers.terms(rows, progress)
        old = policy.evaluate(self.learners.parameters(rows), batch)
        reference = terms[0].reference
        assert reference is not None  # the settings' anchor is the first term
        labels = data.labels() | {"reference": policy.evaluate(reference, batch).log_prob}
        if self._teacher is not None:
            labels["teacher"] = policy.evaluate(self._teacher, batch).log_prob
        labels |= self._objective.loss.labels(Candidates(old.log_prob, old.log_prob, batch.mask, labels))
        return Turn(
            learners=self.learners,
            rows=rows,
            batch=batch,
            advantage=torch.zeros_like(batch.mask, dtype=old.log_prob.dtype),
            objective=self._objective,
            old=old,
            generator=self._generator,
            progress=progress,
            terms=terms,
            labels=labels,
        )

    def _batches(self, data: PreferenceData) -> Iterator[PreferenceData]:
        size, blocks = self.settings.batch, data.blocks
        count = int(blocks.max()) + 1
        if size is None or size >= count:
            while True:
                yield data
        if size < count:
            while True:
                order = torch.randperm(count, generator=self._generator).to(blocks.device)
                # What is left over at the end of an order has its turn in the next one.
                for start in range(0, count - size + 1, size):
                    chosen = torch.zeros(count, dtype=torch.bool, device=blocks.device)
                    chosen[order[start : start + size]] = True
                    yield data.part(chosen[blocks].nonzero().flatten())


def train_preferences(
    policy: Policy, data: PreferenceData, settings: PreferenceSettings, **keywords: Any
) -> list[UpdateReport]:
    """Train `policy` in place; keywords as of `PreferenceTrainer`."""
    return PreferenceTrainer(policy, settings, **keywords).train(data)


def _check(policy: Policy, settings: PreferenceSettings) -> None:
    loss, optimizer = settings.loss, settings.optimizer
    required = set(loss.requires)
    if loss.kind == "trsft" and loss.of == "probability":
        required.add(Capability.MASS)
    missing = required - policy.capabilities
    if missing:
        cure = "; 'of: quantile' takes densities" if missing == {Capability.MASS} else ""
        raise UserError(f"loss {loss.kind!r}: this policy cannot say {', '.join(sorted(missing))}{cure}")
    if getattr(policy, "scope", "own") == "joint":
        raise UserError("preferences are learned by policies of an agent's own actions, not by joint ones")
    if optimizer.chain_batch is not None or optimizer.chain_fraction != 1:
        raise UserError("optimizer: a candidate is scored by its whole chain; leave chain_batch and chain_fraction out")
