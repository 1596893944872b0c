"""FixPO: the largest divergence of a batch is kept, by steps back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from marl_tr.policy import Capability, Parameters, in_float64, masked_mean
from marl_tr.region.family.core_config import FixpoConfig
from marl_tr.region.gradient import Update
from marl_tr.region.needs import Need
from marl_tr.region.reshaped import Decisions, ReshapedGain, largest
from marl_tr.region.samples import Pass, Samples
from marl_tr.region.turn import Candidate, Measurement, Reach, Turn
from marl_tr.scenario.optimizer import OptimizerSection

__all__ = ["Fixpo", "Multiplier", "largest_divergence", "longest_within"]

_HALVINGS = 20


class Multiplier(NamedTuple):
    """A penalty's weight a learner, and Adam's moments of it; ``[R]`` float64 each."""

    value: Tensor
    first: Tensor
    second: Tensor
    steps: Tensor

    def stepped(self, gradient: Tensor, rate: float, rows: Tensor) -> Multiplier:
        """One step of Adam (Kingma and Ba, arXiv 1412.6980, with its default rates) down `gradient`, not below 0.

        Args:
            gradient: ``[R]``.
            rate: Step size.
            rows: ``[R]`` bool; the others stay.
        """
        steps = self.steps + 1
        first = 0.9 * self.first + 0.1 * gradient
        second = 0.999 * self.second + 0.001 * gradient.square()
        scaled = (first / (1 - 0.9**steps)) / ((second / (1 - 0.999**steps)).sqrt() + 1e-8)
        moved = Multiplier((self.value - rate * scaled).clamp_min(0), first, second, steps)
        return Multiplier(*(torch.where(rows, new, old) for new, old in zip(moved, self, strict=True)))


class Fixpo(ReshapedGain):
    """``E[w A] - beta E[KL]``, KL(old || new) of each decision's whole law, with three parts that keep ``max KL``.

    1. After every optimizer step, ``beta`` takes a step of Adam down ``beta (epsilon - caution max KL)``, the maximum
       over the minibatch just used: the epochs aim at ``epsilon / caution``.
    2. Steps back (fixup): passes over the whole batch in chunks; on a chunk where any KL exceeds `epsilon` one
       optimizer step on ``-beta E[KL]`` alone, and one of beta; until a pass finds none.
    3. Ours: after `max_fixup_steps` the step is shortened instead, by bisection towards the old parameters. The last
       word has the divergence that the Guard measures, in float64 and of each learner alone.

    Beta and its moments are remembered of each learner.

    Source: Zentner et al., arXiv 2312.05405, by the official code.
    """

    own_guarantee: str = "hard"
    requires = frozenset({Capability.LOG_PROB, Capability.KL})
    needs = frozenset({Need.OLD_LAW})

    def __init__(self, config: FixpoConfig, optimizer: OptimizerSection) -> None:
        super().__init__(config, optimizer)
        self._settings = config

    def prepare(self, update: Update) -> None:
        """No step back so far."""
        super().prepare(update)
        update.scalars["region/fixup_steps"] = torch.zeros(len(update.rows))

    def penalty(self, decisions: Decisions, update: Update) -> Tensor:
        """``beta`` times the mean KL; what moves beta is noted on the way."""
        kl = decisions.whole_chain(decisions.kl, update.turn).sum(-1)
        update.scratch.setdefault("seen", []).append(self._statistic(kl.detach(), decisions.mask))
        return self._multiplier(update).value.to(kl) * decisions.mean(kl)

    def after_step(self, update: Update, seen: Sequence[Samples]) -> None:
        """Beta's own step."""
        found = torch.stack(update.scratch.pop("seen"))
        whole = found.nanmean(0) if self._settings.statistic == "mean" else found.nan_to_num(-torch.inf).amax(0)
        stepped = torch.tensor([not row.stopped for row in update.rows])
        self._move_beta(update, whole, stepped & ~found.isnan().all(0))

    def after_epoch(self, update: Update) -> None:
        """Steps back, where they are wanted after every epoch."""
        if self._settings.fixup == "epoch":
            self._fix(update)

    def finish(self, update: Update) -> None:
        """Steps back, where they are wanted only now."""
        if self._settings.fixup == "end":
            self._fix(update)
        update.scalars["region/beta"] = self._multiplier(update).value

    def propose(self, turn: Turn) -> Candidate:
        """The epochs, and shorter steps for the rows whose steps back were not enough."""
        candidate = super().propose(turn)
        for k in range(len(turn.rows)):
            candidate = self._shortened(turn.only(k), candidate, k)
        return candidate

    def reach(self, turn: Turn, measured: Measurement) -> Reach:
        """The largest KL(old || new) of a decision of the batch."""
        return Reach("largest KL(old||new)", largest_divergence(turn, measured), self._settings.epsilon)

    def _fix(self, update: Update) -> None:
        """Passes over the whole batch until one finds nothing to do; see the class, 2."""
        rows, taken = update.rows, update.scalars["region/fixup_steps"]
        ended = [row.stopped for row in rows]
        for row in rows:
            # Who has ended its epochs still has to come back.
            row.stopped = False
        found = True
        while found:
            found = False
            for part in self._chunks(update.samples):
                kl = self._divergence(update, part)
                mask = part.batch.mask
                beyond = (torch.where(mask, kl.detach(), 0) > self._settings.epsilon).flatten(1).any(1).cpu()
                moving = beyond & (taken < self._settings.max_fixup_steps)
                if not bool(moving.any()):
                    continue
                found = True
                weight = (self._multiplier(update).value * moving).to(kl)
                (weight * masked_mean(kl, mask)).sum().backward()
                for row, moves in zip(rows, moving.tolist(), strict=True):
                    row.step(self.optimizer.max_grad_norm) if moves else row.skip()
                taken += moving
                self._move_beta(update, self._statistic(kl.detach(), mask), moving)
        for row, stopped in zip(rows, ended, strict=True):
            row.stopped = stopped

    def _divergence(self, update: Update, part: Samples) -> Tensor:
        """KL(old || new) of each decision, ``[R, T, N]`` float64; differentiable."""
        policy = update.turn.learners.policy
        new = in_float64(policy.evaluate(update.parameters, part.batch).law)
        return policy.divergence(in_float64(part.law), new).sum(-1)

    def _chunks(self, samples: Samples) -> Iterator[Samples]:
        steps, count = samples.advantage.shape[1:]
        index = torch.arange(count, device=samples.advantage.device)
        for part in index.split(max(1, self._settings.fixup_batch // steps)):
            yield samples.part(Pass(part, None))

    def _statistic(self, kl: Tensor, mask: Tensor) -> Tensor:
        """What moves beta, ``[R]`` float64 on the CPU; nan for a row without a decision."""
        if self._settings.statistic == "mean":
            value = masked_mean(kl.double(), mask)
        else:
            value = torch.where(mask, kl.double(), 0).flatten(1).amax(1)
        return torch.where(mask.flatten(1).any(1), value, torch.nan).cpu()

    def _multiplier(self, update: Update) -> Multiplier:
        start = {"beta": self._settings.beta, "beta_first": 0.0, "beta_second": 0.0, "beta_steps": 0.0}
        return Multiplier(*(torch.tensor(update.remembered(n, x), dtype=torch.float64) for n, x in start.items()))

    def _move_beta(self, update: Update, statistic: Tensor, rows: Tensor) -> None:
        gradient = self._settings.epsilon - self._settings.caution * statistic
        moved = self._multiplier(update).stepped(gradient, self._settings.beta_learning_rate, rows)
        for name, values in zip(("beta", "beta_first", "beta_second", "beta_steps"), moved, strict=True):
            update.remember(name, values.tolist())

    def _shortened(self, turn: Turn, candidate: Candidate, k: int) -> Candidate:
        """`candidate` with its row `k`, the only one of `turn`, within the limit."""
        old = turn.learners.parameters(turn.rows)
        new = {name: p[k : k + 1] for name, p in candidate.parameters.items()}

        def within(share: float) -> bool:
            measured = turn.measure(_between(old, new, share))
            return bool(largest_divergence(turn, measured) <= self._settings.epsilon)

        if within(1.0):
            return candidate
        share, tries = longest_within(within)
        kept = _between(old, new, share)
        reason = candidate.reasons[k] or "" if share else "a decision's KL exceeds epsilon however short the step"
        before = candidate.before
        return replace(
            candidate,
            parameters={name: _with_row(p, k, kept[name]) for name, p in candidate.parameters.items()},
            # They belong to a step that was not taken.
            moments=_with_item(candidate.moments, k, {}),
            before=None if before is None else {name: _with_row(p, k, old[name]) for name, p in before.items()},
            backtracks=_with_item(candidate.backtracks, k, tries),
            reasons=_with_item(candidate.reasons, k, reason),
        )


def longest_within(within: Callable[[float], bool], *, halvings: int = _HALVINGS) -> tuple[float, int]:
    """A share of a step that is within its limit, by bisection between 0, which is, and 1, which is not.

    Every share returned but 0 has been tried itself, so that the limit holds whether or not what is limited grows
    steadily along the step.

    Returns:
        The share, 0 where none was found, and how many were tried.
    """
    low, high = 0.0, 1.0
    for _ in range(halvings):
        middle = (low + high) / 2
        low, high = (middle, high) if within(middle) else (low, middle)
    return low, halvings


@torch.no_grad()
def largest_divergence(turn: Turn, measured: Measurement) -> Tensor:
    """The largest KL(old || new) of a decision of the whole batch, summed over its chain: ``[R]`` float64."""
    old, new = in_float64(turn.old.law), in_float64(measured.evaluation.law)
    return largest(turn.learners.policy.divergence(old, new).sum(-1, keepdim=True), turn.batch.mask)


def _between(old: Parameters, new: Parameters, share: float) -> Parameters:
    # Exactly the proposal at 1: rounding must not part what is checked from what is proposed.
    return new if share == 1 else {name: torch.lerp(p, new[name], share) for name, p in old.items()}


def _with_row(x: Tensor, k: int, row: Tensor) -> Tensor:
    return torch.cat([x[:k], row, x[k + 1 :]])


def _with_item(items: list[Any], k: int, item: Any) -> list[Any]:
    return [*items[:k], item, *items[k + 1 :]]
