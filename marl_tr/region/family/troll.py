"""TROLL: the loss sees choices projected onto a KL ball around the old ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from marl_tr.errors import UserError
from marl_tr.nn.discrete import Categorical, MultiCategorical
from marl_tr.nn.distributions import ProductLaw
from marl_tr.policy import Capability, Parameters, Policy, in_float64
from marl_tr.region.family.projected import Projected, ProjectedGain
from marl_tr.region.family.projection_config import TrollConfig
from marl_tr.region.family.projections import choices_kl, project_choices
from marl_tr.region.gradient import Update
from marl_tr.region.samples import Samples
from marl_tr.region.turn import Measurement, Reach, Turn
from marl_tr.scenario.optimizer import OptimizerSection

__all__ = ["Troll", "kept_choices", "sparse_new", "sparse_old"]

_DEFAULT_LOG_P = -27.631021115928547
"""``ln 1e-12``, what the old law gives each choice that is not kept apart."""


class Troll(ProjectedGain):
    """``A p~(a) / q(a) - alpha KL(p || sg(p~))`` with ``p~`` the law nearest to ``p`` in ``KL(p~ || q) <= epsilon``.

    ``p`` is the network's law and acts; ``q`` the old one. All branches of an action share one multiplier, for the
    bound is on the joint choice. The penalty is a mean over all decisions, of which those inside add nothing.

    With ``top`` both laws are cut off to their likeliest choices, as published. A law with more in its tail than that
    is then far from itself, so that it is off by default.

    Source: arXiv 2510.03817, numbers by an account of the official code.
    """

    own_guarantee: str = "soft"
    requires = frozenset({Capability.LOG_PROB, Capability.KL, Capability.MASS})

    def __init__(self, config: TrollConfig, optimizer: OptimizerSection) -> None:
        super().__init__(config, optimizer)
        self.alpha = config.alpha
        self._epsilon, self._top = config.epsilon, config.top

    def deployed(self, policy: Policy) -> Policy:
        """The policy itself: its own law acts.

        Raises:
            UserError: Its law is over everybody's choices.
        """
        if getattr(policy, "scope", "own") == "joint":
            raise UserError("region 'troll' cannot serve agents with scope 'joint'; use scope 'own'")
        return policy

    def project(self, update: Update, parameters: Parameters, samples: Samples) -> Projected:
        """See the class."""
        acting = update.turn.learners.policy.evaluate(parameters, samples.batch)
        new, taken = _branches(acting.law), _taken(acting.law, samples.batch.record)
        old = _branches(samples.law)
        allowed = [choice.allowed for choice in new]
        log_p = [choice.log_probabilities for choice in new]
        log_q = [choice.log_probabilities.detach() for choice in old]
        if self._top is not None:
            sparse = [
                _sparse(p, q, a, may, top=self._top) for p, q, a, may in zip(log_p, log_q, taken, allowed, strict=True)
            ]
            log_p, log_q = [p for p, _ in sparse], [q for _, q in sparse]
        found = project_choices(log_p, log_q, allowed, bound=self._epsilon)
        of_taken = [p.gather(-1, a.unsqueeze(-1)).squeeze(-1) for p, a in zip(found.log_p, taken, strict=True)]
        log_prob = torch.stack(of_taken).sum(0).unsqueeze(-1)
        pull = choices_kl(log_p, [p.detach() for p in found.log_p], allowed)
        # By itself 0 where nothing was moved, up to a rounding.
        pull = torch.where(found.active, pull, 0).unsqueeze(-1)
        return Projected(replace(acting, log_prob=log_prob), pull, acting)

    def reach(self, turn: Turn, measured: Measurement) -> Reach:
        """The largest KL(new || old) of a decision of the batch, of the law that acts."""
        kl = turn.learners.policy.divergence(in_float64(measured.evaluation.law), in_float64(turn.old.law)).sum(-1)
        far = torch.where(turn.batch.mask, kl, 0).flatten(1).amax(-1)
        return Reach("largest KL(new||old)", far, self._epsilon)


def kept_choices(log_p: Tensor, log_q: Tensor, taken: Tensor, *, top: int) -> Tensor:
    """``[..., C]`` bool: the `top` likeliest of each law, and the one `taken` ``[...]``."""
    count = min(top, log_p.shape[-1])
    kept = one_hot(taken.long(), log_p.shape[-1]).bool()
    for law in (log_p, log_q):
        kept = kept.scatter(-1, law.topk(count, -1).indices, True)
    return kept


def sparse_old(log_q: Tensor, kept: Tensor, allowed: Tensor | None) -> Tensor:
    """The old law with one default probability for what is not `kept`, normalised anew."""
    log_q = torch.where(kept, log_q.double(), _DEFAULT_LOG_P)
    if allowed is not None:
        log_q = log_q.masked_fill(~allowed, -torch.inf)
    return torch.log_softmax(log_q, -1)


def sparse_new(log_p: Tensor, kept: Tensor, allowed: Tensor | None) -> Tensor:
    """The new law with what is not `kept` shared out evenly among it.

    The gradient goes through that rest: without it, a penalty would push probability where it is not seen.
    """
    rest = ~kept if allowed is None else ~kept & allowed
    tail = log_p.double().masked_fill(~rest, -torch.inf)
    empty = ~rest.any(-1, keepdim=True)
    mass = torch.logsumexp(tail.masked_fill(empty, 0), -1, keepdim=True)
    return torch.where(rest, mass - rest.sum(-1, keepdim=True).clamp_min(1).log(), log_p.double())


def _sparse(log_p: Tensor, log_q: Tensor, taken: Tensor, allowed: Tensor | None, *, top: int) -> tuple[Tensor, Tensor]:
    if top >= log_p.shape[-1]:
        return log_p, log_q
    kept = kept_choices(log_p.detach(), log_q, taken, top=top)
    low = torch.finfo(log_p.dtype).min
    new = sparse_new(log_p, kept, allowed).to(log_p.dtype)
    old = sparse_old(log_q, kept, allowed).clamp_min(low).to(log_p.dtype)
    return new, old


def _branches(law: Any) -> list[Categorical]:
    """The choices of all leaves."""
    if not isinstance(law, ProductLaw):
        raise TypeError("only laws of choices, a leaf each, are projected by their probabilities")
    found: list[Categorical] = []
    for leaf in law.laws.values():
        if isinstance(leaf, MultiCategorical):
            found += leaf.choices
        elif isinstance(leaf, Categorical):
            found.append(leaf)
        else:
            raise TypeError(f"{type(leaf).__name__} is no law of choices")
    return found


def _taken(law: ProductLaw, record: Mapping[str, Tensor]) -> list[Tensor]:
    """What was chosen, ``[R, T, N]`` int64 each, in the order of `_branches`."""
    found: list[Tensor] = []
    for name, leaf in law.laws.items():
        raw = record[name].long()
        found += list(raw.unbind(-1)) if isinstance(leaf, MultiCategorical) else [raw]
    return found
