"""The second stage of ERPD: a teacher's log-ratio to the base policy as advantage of the policy's own decisions."""

from __future__ import annotations

import torch
from torch import Tensor

from marl_tr.objective.ratio import likelihood_ratio
from marl_tr.preference.config import ErpdConfig
from marl_tr.preference.data import BadPreferences, Candidates, LossValue

__all__ = ["Erpd", "erpd_advantage"]

_SPREAD = 1e-6


def erpd_advantage(
    teacher: Tensor, base: Tensor, mask: Tensor, *, normalise: bool = True, outcome: Tensor | None = None
) -> Tensor:
    """``rho = log pi_T(a) - log pi_b(a)`` of each decision and chain step, ``[R, T, N, k]``.

    The maximum of ``E_pi[rho] - lam KL(pi || pi_b)`` is the geometric mixture ``pi_b (pi_T / pi_b)^(1 / lam)``: 1 is
    the teacher, more shrinks to the base. Normalising divides rho by its deviation s over the batch, so that the
    mixture's exponent becomes ``1 / (lam s)``; the mean that is taken off is a baseline and changes nothing there.

    Args:
        teacher: ``[R, T, N, k]``, log-probabilities of the frozen teacher.
        base: Of the frozen base policy.
        mask: ``[R, T, N]`` bool; the rest is zero.
        normalise: To mean 0 and deviation 1 over each row.
        outcome: ``[R, T, N]``; kept is only where the sign of rho is the outcome's, and then nothing is taken off when
            it is normalised, so that what is left out stays zero.

    Source: arXiv 2605.25582, reconstructed from its abstract; sign consistency and the normalisation are our reading.
    """
    counted = mask.unsqueeze(-1)
    rho = torch.where(counted, teacher - base, 0)
    if outcome is not None:
        rho = torch.where(rho.sign() == outcome.sign().unsqueeze(-1), rho, 0)
    if not normalise:
        return rho
    count = (counted.expand_as(rho).sum((1, 2, 3), keepdim=True)).clamp_min(1)
    if outcome is None:
        rho = torch.where(counted, rho - rho.sum((1, 2, 3), keepdim=True) / count, 0)
    deviation = (rho.square().sum((1, 2, 3), keepdim=True) / count).sqrt()
    return rho / deviation.clamp_min(_SPREAD)


class Erpd:
    """``-min(w A, clip(w) A)`` with `erpd_advantage`, over decisions of the policy itself.

    The base is the settings' ``anchor``, which is to be frozen at the start of the stage; its weight is ``lam`` of
    ``lam KL(pi || pi_b)``, in closed form. Data must be fresh from the policy: on old data the ratios correct nothing.
    """

    def __init__(self, config: ErpdConfig) -> None:
        self._config = config

    def labels(self, candidates: Candidates) -> dict[str, Tensor]:
        """``advantage`` of the whole batch, ``[R, T, N, k]``."""
        teacher = candidates.labels.get("teacher")
        if teacher is None:
            raise BadPreferences("loss 'erpd' learns from a teacher: give the trainer its parameters (teacher=)")
        outcome = _outcome(candidates) if self._config.consistent else None
        advantage = erpd_advantage(
            teacher, candidates.reference, candidates.mask, normalise=self._config.normalise, outcome=outcome
        )
        return {"advantage": advantage}

    def __call__(self, candidates: Candidates) -> LossValue:
        """See the class."""
        e, a = self._config.clip, candidates.labels["advantage"]
        w = likelihood_ratio(candidates.log_prob, candidates.old)
        loss, count = candidates.mean(-torch.minimum(w * a, w.clamp(1 - e, 1 + e) * a))
        return LossValue(loss, count)


def _outcome(candidates: Candidates) -> Tensor:
    """Score less the mean of the group, ``[R, T, N]``."""
    if not {"group", "score"} <= candidates.labels.keys():
        raise BadPreferences("'consistent' compares with outcomes: the data needs group and score")
    groups, score = candidates.groups, candidates.of_candidate("score")
    mean = groups.gather(score).sum(-1) / groups.valid.sum(-1).clamp_min(1)
    known = groups.index[groups.valid]
    centred = torch.zeros_like(score).flatten()
    centred[known] = score.flatten()[known] - mean.unsqueeze(-1).expand_as(groups.valid)[groups.valid]
    return centred.reshape(score.shape).unsqueeze(1).expand(candidates.mask.shape)
