"""Trust region projection layers: the law of each decision is projected into a region around the old one's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from marl_tr.errors import UserError
from marl_tr.policy import Capability, Parameters, Policy, masked_mean
from marl_tr.region.family.anchored import Anchored
from marl_tr.region.family.gaussian_projection import GaussianProjection
from marl_tr.region.family.projected import Projected, ProjectedGain
from marl_tr.region.family.projection_config import TrplConfig
from marl_tr.region.gradient import Update
from marl_tr.region.samples import Samples
from marl_tr.region.turn import Measurement, Reach, Turn
from marl_tr.scenario.optimizer import OptimizerSection

__all__ = ["Trpl"]

_FORGETTING = 0.25
"""What forgetting may use up of a bound; a distance is a square: half of the radius is left to move in."""
_FITTED = 0.05
"""Of a bound: nearer, fitting an anchor stops."""
_FIT_RATE = 3e-3
_TOLERANCE = 5e-6
"""Of the reach: laws are stored in float32. Below what the Guard allows."""
_SEARCH = 12


class Trpl(ProjectedGain):
    """``w~ A - alpha d(law, sg(law~))`` with ``law~ = P(law; old law)``, and ``law~`` acts.

    ``P`` holds mean and covariance to bounds of their own, decision by decision (`GaussianProjection`). What acts is a
    chain of projections onto earlier networks (`Anchored`). Before the epochs the network that acted becomes the newest
    anchor and the oldest is forgotten; that alone moves the law, which is why it is part of what is proposed:

    - where it moves a decision of the batch by more than a quarter of its bound, a network fitted to the law that acted
      is the only anchor instead; where that moves it too far as well, the anchors stay, and the step is shortened;
    - after the epochs the radius of the last projection shrinks until no decision of the batch is farther than its
      bound from the law that acted, forgetting included.

    Hence two statements. Of every observation, seen or not: the acting law is within the bounds of the law of its
    anchors. Of the batch: it is within the bounds of the law that acted. With a ``bound`` on the mean divergence, or a
    bounded position term, the Guard may interpolate; anchors then are interpolated as well, the first statement holds
    of them, and the second one is among what the Guard keeps.

    A flow's steps are projected (their means) in the loss only, and its own law acts; the Guard shortens a step that
    takes it beyond a bound.

    Source: Otto et al., arXiv 2101.09207. Its chain of anchors, which there is cut off after one network without
    a measure, the fitted anchor and the smaller radius are ours.
    """

    own_guarantee: str = "hard"
    requires = frozenset({Capability.LOG_PROB, Capability.KL, Capability.GAUSSIAN})

    def __init__(self, config: TrplConfig, optimizer: OptimizerSection) -> None:
        super().__init__(config, optimizer)
        self.alpha = config.alpha
        self._depth, self._fit_steps = config.depth, config.fit_steps
        self.projection = GaussianProjection(
            config.projection, mean_bound=config.mean_bound, cov_bound=config.cov_bound
        )

    def deployed(self, policy: Policy) -> Policy:
        """The policy that acts.

        Raises:
            UserError: Its law cannot be projected when it acts.
        """
        if not hasattr(policy, "head"):
            # A flow acts by its own law, which the Guard holds to the limit.
            return policy
        # The same as the settings' `refuses_settings`, for policies that no scenario describes.
        for wrong, setting in (
            (policy.recurrent, "agents.network"),
            (policy.observes, "agents.normalise_observation"),
            (self.optimizer.kind == "muon", "optimizer.kind"),
        ):
            if wrong:
                value, reason = TrplConfig.refuses_settings[setting]
                raise UserError(f"region 'trpl' cannot work with {setting} {value!r}: {reason}")
        if getattr(policy, "scope", "own") == "joint":
            raise UserError("region 'trpl' cannot serve agents with scope 'joint'; use scope 'own'")
        return Anchored(policy, self.projection, depth=self._depth)

    def prepare(self, update: Update) -> None:
        """Move the anchors on."""
        super().prepare(update)
        turn, policy = update.turn, update.turn.learners.policy
        if not isinstance(policy, Anchored):
            return
        held = turn.learners.parameters(turn.rows)
        chosen, moved = held, torch.full((len(turn.rows),), torch.inf, dtype=torch.float64)
        kept = torch.ones(len(turn.rows), dtype=torch.bool)
        for candidate_of in (policy.advanced, lambda old: policy.restarted(old, self._fitted(turn, policy, old))):
            if not bool(kept.any()):
                break
            candidate = candidate_of(held)
            shift = self._reach(turn, policy.anchor_law(candidate, turn.batch)).cpu()
            fits = kept & (shift <= _FORGETTING)
            chosen = _where(fits, candidate, chosen)
            moved, kept = torch.where(fits, shift, moved), kept & ~fits
        update.remember("held", kept.double().tolist())
        update.remember("forgotten", torch.where(kept, 0, moved).tolist())
        _write(update, chosen)

    def project(self, update: Update, parameters: Parameters, samples: Samples) -> Projected:
        """Onto the anchors; for policies that have none, onto the law that acted."""
        policy: Any = update.turn.learners.policy
        if isinstance(policy, Anchored):
            own = policy.own_law(parameters, samples.batch)
            law = self.projection(own, policy.anchor_law(parameters, samples.batch), parameters["radius"][:, -1])
            evaluation = acting = policy.judge(law, samples.batch)
        else:
            acting = policy.evaluate(parameters, samples.batch)
            own = acting.law
            evaluation = policy.judge(self.projection(own, samples.law), samples.batch)
        return Projected(evaluation, self.projection.distance(own, evaluation.law), acting)

    @torch.no_grad()
    def finish(self, update: Update) -> None:
        """Keep every decision of the batch within its bound of the law that acted; let the deviations be projected."""
        turn, policy = update.turn, update.turn.learners.policy
        if not isinstance(policy, Anchored):
            return
        batch, new = turn.batch, {name: p.detach() for name, p in update.parameters.items()}
        old = turn.learners.parameters(turn.rows)
        held = torch.tensor(update.remembered("held", 0.0), device=batch.mask.device) > 0
        if bool(held.any()):

            def shortened(share: Tensor) -> Parameters:
                return new | {name: _lerp(old[name], new[name], share) for name in policy.networks}

            share = self._largest(turn, lambda s: policy.law(shortened(s), batch))
            new = _where(held, shortened(share), new)
        own, anchor = policy.own_law(new, batch), policy.anchor_law(new, batch)
        radius = self._largest(turn, lambda r: self.projection(own, anchor, r))
        new = _where(~held, policy.with_radius(new, radius), new)
        law = policy.law(new, batch)
        if "extra" in new:
            # The deviations depend on no observation: their projection is the same everywhere, and can be stored.
            spread = torch.cat([leaf.log_std[:, 0, 0] for leaf in law.laws.values()], -1)
            new = new | {"extra": spread}
        _write(update, new)

    def reach(self, turn: Turn, measured: Measurement) -> Reach:
        """The farthest decision of the batch from the law that acted, in bounds."""
        return Reach("largest distance / bound", self._reach(turn, measured.evaluation.law), 1.0)

    @torch.no_grad()
    def _reach(self, turn: Turn, law: Any) -> Tensor:
        far = self.projection.reach(law, turn.old.law).amax(-1)
        return torch.where(turn.batch.mask, far, 0).flatten(1).amax(-1)

    def _fitted(self, turn: Turn, policy: Anchored, parameters: Parameters) -> Parameters:
        """Networks whose own laws are about the law that acted, fitted to it on the whole batch, from their own."""
        with torch.enable_grad():
            leaves = {name: parameters[name].clone().requires_grad_() for name in policy.networks}
            adam = torch.optim.Adam(leaves.values(), lr=_FIT_RATE)
            for step in range(self._fit_steps):
                adam.zero_grad()
                far = self.projection.reach(policy.own_law(leaves, turn.batch), turn.old.law).sum(-1)
                if step % 10 == 0 and float(torch.where(turn.batch.mask, far.detach(), 0).max()) <= _FITTED:
                    break
                # The square for the farthest, which are what counts.
                masked_mean(far + far.square(), turn.batch.mask).sum().backward()
                adam.step()
        return {name: p.detach() for name, p in leaves.items()}

    def _largest(self, turn: Turn, law_at: Callable[[Tensor], Any]) -> Tensor:
        """The largest share ``[R]`` in ``(0, 1]`` that keeps the reach within 1, by bisection."""
        rows, device = len(turn.rows), turn.batch.mask.device
        one = torch.ones(rows, dtype=torch.float64, device=device)
        low, high = torch.full_like(one, 1e-6), one
        inside = self._reach(turn, law_at(one)) <= 1 + _TOLERANCE
        if bool(inside.all()):
            return one
        for _ in range(_SEARCH):
            middle = (low + high) / 2
            kept = self._reach(turn, law_at(middle)) <= 1
            low, high = torch.where(kept, middle, low), torch.where(kept, high, middle)
        return torch.where(inside, one, low)


def _where(rows: Tensor, this: Parameters, other: Parameters) -> Parameters:
    """`this` in some rows, `other` elsewhere."""
    return {
        name: torch.where(rows.to(p.device).reshape(-1, *(1,) * (p.ndim - 1)), this[name], p)
        for name, p in other.items()
    }


def _lerp(old: Tensor, new: Tensor, share: Tensor) -> Tensor:
    return torch.lerp(old, new, share.to(old).reshape(-1, *(1,) * (old.ndim - 1)))


def _write(update: Update, parameters: Parameters) -> None:
    with torch.no_grad():
        for position, row in enumerate(update.rows):
            for name, p in row.parameters.items():
                p.copy_(parameters[name][position : position + 1])
