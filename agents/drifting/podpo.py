"""Positive-only drifting policy optimization (after Zhang, arXiv 2604.16519), plain and balanced.

The publication's text was not available: known are the positive filter, the samples a state, the sum over
temperatures, the detached target and that a critic gives the advantages; the rest is reconstructed, and the density
exponent (`balance`) is ours. ``docs/drifting.md`` tells which is which.
"""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from marl_tr.agents.drifting.config import PodpoConfig
from marl_tr.agents.drifting.field import Drift, drift, drift_loss
from marl_tr.agents.drifting.modes import count_modes
from marl_tr.agents.drifting.policy import ACTION, DriftingPolicy
from marl_tr.policy import Capability, Evaluation, Parameters, PolicyBatch, masked_mean
from marl_tr.region.samples import Samples, packed_rows
from marl_tr.region.turn import Estimate, Measurement, Turn

__all__ = ["Podpo"]

_LOOKED_AT = 64
"""Decisions, and samples of each, from which modes and spread are told."""
_LINK = 0.25
"""Samples no farther apart, in half-ranges of a 2-D action, are of one mode; it grows as the root of the dimension."""
_MODE_SHARE = 0.05
"""Fewer of the samples are no mode."""


class Podpo:
    """Of each decision with positive advantage, fresh samples drift towards its action and away from each other.

    One pass, for a minibatch of such decisions with actions ``a``: ``G`` samples ``x = f(o, z)`` on fresh noise, the
    drifting field ``F`` of ``x`` with the one positive ``a`` (weighted by its advantage) and the samples as negatives,
    and the loss ``mean (x / c - sg(x / c + F))^2``. The loss's value says nothing of progress.
    """

    requires = frozenset({Capability.SAMPLE_DISTANCE})

    def __init__(self, config: PodpoConfig) -> None:
        self._config = config

    def samples(self, turn: Turn) -> Samples:
        """The decisions that are learned from, advantages in standard deviations of the learner's batch."""
        mask = turn.batch.mask
        scale = masked_mean(turn.advantage.square(), mask) - masked_mean(turn.advantage, mask).square()
        advantage = turn.advantage / (scale.clamp_min(0).sqrt() + 1e-8)[:, None, None]
        keep = mask & (advantage > 0) if self._config.positive_only else mask
        samples = Samples(turn.batch, turn.old.log_prob, advantage)
        if turn.learners.policy.recurrent:
            return replace(samples, batch=replace(turn.batch, mask=keep))
        return samples.flatten_time().packed(keep.flatten(1, 2).unsqueeze(1))

    def estimate(self, turn: Turn, parameters: Parameters, samples: Samples) -> Estimate:
        """Minus the drift loss a row; rows with too few positives have none, and take no step."""
        config, policy = self._config, cast(DriftingPolicy, turn.learners.policy)
        problems = _Problems.of(policy, parameters, samples)
        count = problems.mask.sum(-1)
        active = count >= config.minimum_positives
        mask = problems.mask & active.unsqueeze(-1)
        # With independent negatives half of the samples only repel.
        doubled = config.negatives == "independent"
        x = self._generate(policy, parameters, problems.features, turn.generator, (1 + doubled) * config.samples)
        fixed = x.detach()
        x, negatives = (x[..., : config.samples, :], fixed[..., config.samples :, :]) if doubled else (x, None)
        weight = self._weights(problems, x.detach(), mask, turn.progress)
        field = drift(
            x.detach(),
            problems.action.unsqueeze(-2),
            negatives,
            temperatures=config.temperatures,
            kind=config.field,
            kernel=config.kernel,
            own=not doubled,
            weights=weight.unsqueeze(-1),
            normalise=config.normalise_drift,
            mask=mask,
        )
        gain = -drift_loss(x, field)
        return Estimate(gain=gain, active=active, scalars=_scalars(field, config, active))

    def improvement(self, turn: Turn, evaluation: Evaluation) -> None:
        """Without a likelihood, what the objective gained cannot be said of an evaluation."""

    def measures(self, turn: Turn, parameters: Parameters, measured: Measurement) -> dict[str, float]:
        """Of what is in force: drift distance, positive fraction, and on some decisions modes and spread."""
        policy, mask = cast(DriftingPolicy, turn.learners.policy), turn.batch.mask
        values = {
            "drift/step": float(measured.divergence.clamp_min(0).sqrt()),
            "drift/positive_fraction": float(masked_mean((turn.advantage > 0).float(), mask)),
        }
        problems = _Problems.of(policy, parameters, _some(turn))
        if not bool(problems.mask.any()):
            return values
        with torch.no_grad():
            x = self._generate(policy, parameters, problems.features, turn.generator, _LOOKED_AT)[problems.mask]
        link = _LINK * (policy.dimensions / 2) ** 0.5
        values["drift/modes"] = float(count_modes(x, link=link, share=_MODE_SHARE).double().mean())
        values["drift/spread"] = float(x.var(1).mean().sqrt())
        values["drift/clipped_fraction"] = float((x.abs() > 1).double().mean())
        return values

    def _generate(
        self, policy: DriftingPolicy, parameters: Parameters, features: Tensor, generator: torch.Generator, count: int
    ) -> Tensor:
        """``[R, M, F]`` to samples on fresh noise ``[R, M, G, D]``."""
        # Drawn on the generator's device (CPU) so that runs repeat on any device.
        noise = torch.randn(*features.shape[:2], count, policy.latent, generator=generator)
        return policy.generate(parameters, features, noise.to(features))

    def _weights(self, problems: _Problems, x: Tensor, mask: Tensor, progress: float) -> Tensor:
        """``[R, M]``, of mean 1 a row over what `mask` counts."""
        config = self._config
        advantage = problems.advantage.clamp(max=config.weight_cap)
        match config.weights:
            case "linear":
                weight = advantage.clamp_min(0) ** config.weight_power
            case "exp":
                weight = advantage.exp()
            case "uniform":
                weight = torch.ones_like(advantage)
        balance = config.balance
        if config.final_balance is not None:
            balance += (config.final_balance - balance) * progress
        if balance:
            density = _density(x, problems.action, mask, config.density_bandwidth)
            weight = weight * (density + config.density_floor) ** -balance
        weight = _unit_mean(weight, mask)
        return weight.clamp(max=config.balance_cap) if balance else weight


class _Problems:
    """The decisions of a minibatch as problems of the field, a row of learners each.

    Attributes:
        features: ``[R, M, F]``.
        action: ``[R, M, D]``, the one positive of each.
        advantage: ``[R, M]``.
        mask: ``[R, M]``.
    """

    def __init__(self, features: Tensor, action: Tensor, advantage: Tensor, mask: Tensor) -> None:
        self.features, self.action, self.advantage, self.mask = features, action, advantage, mask

    @classmethod
    def of(cls, policy: DriftingPolicy, parameters: Parameters, samples: Samples) -> _Problems:
        """Of trajectories ``[R, T, N]`` only what counts goes on from the features."""
        batch, mask = samples.batch, samples.batch.mask.flatten(1, 2)
        parts = (policy.features(parameters, batch), batch.record[ACTION], samples.advantage, batch.mask)
        flat = [part.flatten(1, 2) for part in parts]
        # Without memory the decisions were packed before the features were made.
        return cls(*(flat if not policy.recurrent else [packed_rows(part, mask) for part in flat]))


def _density(x: Tensor, action: Tensor, mask: Tensor, bandwidth: float) -> Tensor:
    """Mean Laplacian kernel of each action over the samples of its problem, ``[R, M]`` in (0, 1].

    The unit of the bandwidth is the mean distance of two samples, a row.
    """
    count = x.shape[-2]
    pair = torch.cdist(x, x).sum((-2, -1)) / (count * (count - 1))
    unit = (pair * mask).sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp_min(1)
    distance = (x - action.unsqueeze(-2)).norm(dim=-1)
    return torch.exp(-distance / (bandwidth * unit.unsqueeze(-1)).clamp_min(1e-8)).mean(-1)


def _unit_mean(weight: Tensor, mask: Tensor) -> Tensor:
    weight = torch.where(mask, weight, 0)
    mean = weight.sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp_min(1)
    return torch.where(mask, weight / mean.clamp_min(1e-8), 0)


def _scalars(field: Drift, config: PodpoConfig, active: Tensor) -> dict[str, Tensor]:
    """``[R]`` each; rows that took no step have nothing to say but that."""
    found = {f"drift/field_norm_{t:g}": rms for t, rms in zip(config.temperatures, field.rms.unbind(-1), strict=True)}
    found |= {"drift/scale": field.scale, "drift/signal": field.signal}
    told = {tag: torch.where(active, x.to(torch.float64), torch.nan) for tag, x in found.items()}
    return told | {"drift/skipped": (~active).double()}


def _some(turn: Turn) -> Samples:
    """Decisions spread over the batch; of a recurrent policy those of a few trajectories."""
    samples = Samples(turn.batch, turn.old.log_prob, turn.advantage)
    if turn.learners.policy.recurrent:
        few = max(1, _LOOKED_AT // turn.batch.mask.shape[1])
        index = torch.arange(min(few, turn.batch.mask.shape[2]), device=turn.batch.mask.device)
    else:
        samples = samples.flatten_time().packed(turn.batch.mask.flatten(1, 2).unsqueeze(1))
        last = samples.batch.mask.shape[2] - 1
        index = torch.linspace(0, last, min(_LOOKED_AT, last + 1)).round().long().to(turn.batch.mask.device)
    batch: PolicyBatch = samples.batch.trajectories(index)
    return Samples(batch, samples.old_log_prob[:, :, index], samples.advantage[:, :, index])
