"""A median of the advantage given the observation, learned beside the policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from marl_tr.nn.stacked import StackedMLP
from marl_tr.policy import PolicyBatch, masked_mean
from marl_tr.region.optimizer import RowOptimizer
from marl_tr.region.samples import Samples
from marl_tr.scenario.optimizer import OptimizerSection

__all__ = ["MedianHead", "median_loss"]

_LEAST_STD = 1e-2
"""No feature is divided by less, as in `marl_tr.nn.normaliser.InputNormaliser`."""


def median_loss(x: Tensor, *, temperature: float, share: float = 0.5) -> Tensor:
    """``temperature softplus(x / temperature) - share x``, a sample; shapes as given.

    With ``x = y - m`` its mean is least where ``E sigmoid((y - m) / temperature) = share``: a smoothed quantile of
    ``y``, for ``share = 1/2`` its median. ``temperature = 1`` and ``share = 1/2`` make ``log 2 cosh(x / 2)``.

    Source: arXiv 2604.18578 (``temperature = 1`` in the official code; the rest is what its target asks for).
    """
    return temperature * torch.nn.functional.softplus(x / temperature) - share * x


class MedianHead:
    """An MLP a learner, from the observation's features to a smoothed quantile of the raw advantage.

    At the start of a run it says 0. Features are shifted and scaled, and outputs scaled, by the statistics of the
    learner's first rollout.

    Args:
        memory: What was kept of each row's head (`state`), empty at the start.
        names: The learners'.
        samples: A rollout, for the widths and the first statistics; label ``raw_advantage``.
        hidden: Widths between input and output.
        settings: Of Adam.
        generator: For the start.
    """

    def __init__(
        self,
        memory: Sequence[Mapping[str, Any]],
        names: Sequence[str],
        samples: Samples,
        *,
        hidden: Sequence[int],
        settings: OptimizerSection,
        generator: torch.Generator,
    ) -> None:
        features = _features(samples.batch)
        device = features.device
        self._network = StackedMLP(1, [features.shape[-1], *hidden, 1], "tanh", generator=generator, last_gain=0.0).to(
            device
        )
        begun = [dict(kept) or self._start(samples, features, row) for row, kept in enumerate(memory)]

        def of_all(name: str) -> Tensor:
            return torch.stack([kept[name].to(device) for kept in begun])

        self._shift, self._scale, self._unit = (of_all(name) for name in ("shift", "scale", "unit"))
        self._rows = [
            RowOptimizer(
                f"{name} (median head)",
                {key: p.detach().to(device, copy=True) for key, p in kept["parameters"].items()},
                kept["moments"],
                settings,
            )
            for name, kept in zip(names, begun, strict=True)
        ]

    def __call__(self, batch: PolicyBatch) -> Tensor:
        """``[R, T, N]``, in the units of the raw advantage; differentiable in the head."""
        parameters = {key: torch.cat([row.parameters[key] for row in self._rows]) for key in self._rows[0].parameters}
        shift, scale = (x[:, None, None] for x in (self._shift, self._scale))
        output: Tensor = functional_call(self._network, parameters, ((_features(batch) - shift) / scale,))
        return output.squeeze(-1) * self._unit[:, None, None]

    def step(self, seen: Sequence[Samples], *, temperature: float, share: float) -> None:
        """One step of Adam, each row its own, on the decisions of some minibatches; rows without any stand still."""
        counts = torch.stack([part.batch.mask.sum((1, 2)) for part in seen])
        total = counts.sum(0)
        for part, count in zip(seen, counts, strict=True):
            raw = part.labels["raw_advantage"]
            # In units of the output, or the step would depend on the scale of rewards through Adam's epsilon.
            loss = median_loss(raw - self(part.batch), temperature=temperature, share=share) / self._unit[:, None, None]
            (masked_mean(loss, part.batch.mask) * count / total.clamp_min(1)).sum().backward()
        for row, found in zip(self._rows, (total > 0).tolist(), strict=True):
            row.step(None) if found else row.skip()

    def state(self) -> list[dict[str, Any]]:
        """What is to be remembered of each row."""
        return [
            {
                "parameters": {key: p.detach().clone() for key, p in row.parameters.items()},
                "moments": row.moments(),
                "shift": self._shift[k].clone(),
                "scale": self._scale[k].clone(),
                "unit": self._unit[k].clone(),
            }
            for k, row in enumerate(self._rows)
        ]

    def _start(self, samples: Samples, features: Tensor, row: int) -> dict[str, Any]:
        mask = samples.batch.mask[row]
        seen, raw = features[row][mask], samples.labels["raw_advantage"][row][mask]
        std = seen.std(0, correction=0) if len(seen) else torch.zeros_like(features[0, 0, 0])
        unit = raw.std(correction=0) if len(raw) else raw.new_zeros(())
        return {
            "parameters": dict(self._network.named_parameters()),
            "moments": {},
            "shift": seen.mean(0) if len(seen) else torch.zeros_like(std),
            "scale": torch.where(std > 0, std.clamp_min(_LEAST_STD), 1),
            "unit": torch.where(unit > 0, unit, 1),
        }


def _features(batch: PolicyBatch) -> Tensor:
    """All leaves of the observation side by side, ``[R, T, N, F]``."""
    leaves = [batch.observation[name].flatten(3) for name in sorted(batch.observation)]
    return torch.cat([leaf.to(torch.float32) for leaf in leaves], -1)
