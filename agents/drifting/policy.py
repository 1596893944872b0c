"""Drifting policies: samples without a density, whose step on fixed noise is the divergence."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from marl_tr.agents.drifting.config import DriftingConfig
from marl_tr.agents.drifting.generator import Generator
from marl_tr.errors import UserError
from marl_tr.nn.box import single_box, to_box
from marl_tr.policy import Action, Capability, Evaluation, Parameters, PolicyBatch, Rows
from marl_tr.vector.contract import GroupSpec

__all__ = ["DriftingPolicy", "SampleLaw", "densest", "make", "medoid"]

ACTION, LATENT = "action", "latent"


@dataclass(frozen=True)
class SampleLaw:
    """What a generator makes of recorded noise.

    Attributes:
        action: ``[L, T, N, D]``, raw.
    """

    action: Tensor

    def map(self, function: Callable[[Tensor], Tensor]) -> SampleLaw:
        """`function` applied to every tensor."""
        return SampleLaw(function(self.action))


class DriftingPolicy:
    """Decentralised one-step generators of one team: ``a = f(o, z)`` (Deng et al., arXiv 2602.04770).

    It has no likelihood. Its divergence is the mean squared step of the action on fixed observation and noise, the
    noise being the recorded one; its root is the *drift distance*. Raw actions have the range [-1, 1] where the space
    is bounded, and are in its own units where not.

    Args:
        config: Networks, noise and ways of acting.
        group: The agents' spaces; one Box action.
        rows: How agents share parameters.
        generator: Source of the networks' start.
        device: Where the networks live.

    Raises:
        UserError: The action space is not one Box, or the noise has fewer dimensions than the action.
    """

    capabilities = frozenset({Capability.SAMPLE_DISTANCE})
    direction = "squared_step"

    def __init__(
        self, config: DriftingConfig, group: GroupSpec, *, rows: Rows, generator: torch.Generator, device: torch.device
    ) -> None:
        self.rows = rows
        self.recurrent = config.network == "gru"
        self.observes = config.normalise_observation
        self._config, self._device = config, device
        self._leaf, self._box = single_box(group, "a drifting policy")
        self.dimensions = int(np.prod(self._box.shape))
        self.latent = config.latent or self.dimensions
        if self.latent < self.dimensions:
            raise UserError(
                f"agents.latent: {self.latent} dimensions of noise cannot fill an action of {self.dimensions} (group "
                f"{group.name!r}); use {self.dimensions} or more, or leave it out"
            )
        self.module = Generator(
            config, group, latent=self.latent, action=self.dimensions, rows=rows.learners, generator=generator
        ).to(device)

    def initial_memory(self, trajectories: int) -> Tensor | None:
        """See `marl_tr.policy.Policy`."""
        if not self.recurrent:
            return None
        return torch.zeros(self.rows.learners, trajectories, self.module.observation.width, device=self._device)

    def act(
        self,
        observation: Mapping[str, Tensor],
        memory: Tensor | None,
        generator: torch.Generator,
        *,
        mode: bool = False,
    ) -> Action:
        """See `marl_tr.policy.Policy`; samples get exploration noise, modes do not.

        The record holds the raw action with its exploration, within `reach` of a bounded box, and the noise.
        """
        now = {leaf: x.unsqueeze(1) for leaf, x in observation.items()}
        first = next(iter(now.values()))
        starts = torch.zeros(first.shape[:3], dtype=torch.bool, device=first.device)
        features, memory = self.module.observation(now, memory, starts)
        features = features[:, 0]
        noise = self._noise(features.shape[:2], generator, mode=mode)
        action = self.module.head(features, noise)
        if mode and self._config.mode in _CHOICES:
            index = _CHOICES[self._config.mode](action)
            noise, action = _chosen(noise, index), _chosen(action, index)
        else:
            noise, action = noise.squeeze(2), action.squeeze(2)
        if not mode and self._config.exploration:
            own = torch.randn(action.shape, generator=generator, device=self._device)
            action = torch.add(action, own, alpha=self._config.exploration)
        if self._box.is_bounded():
            action = action.clamp(-self._config.reach, self._config.reach)
        return Action(
            env={self._leaf: to_box(action, self._box)}, record={ACTION: action, LATENT: noise}, memory=memory
        )

    def features(self, parameters: Parameters, batch: PolicyBatch) -> Tensor:
        """What is made of the observations of a batch: ``[L, T, N, F]``; differentiable."""
        own = _part(parameters, "observation.")
        arguments = (batch.observation, batch.memory, batch.starts)
        features: Tensor = functional_call(self.module.observation, own, arguments)[0]
        return features

    def generate(self, parameters: Parameters, features: Tensor, noise: Tensor) -> Tensor:
        """Raw actions ``[L, ..., G, D]`` of features ``[L, ..., F]`` and noise ``[L, ..., G, Z]``; differentiable."""
        action: Tensor = functional_call(self.module.head, _part(parameters, "head."), (features, noise))
        return action

    def evaluate(self, parameters: Parameters, batch: PolicyBatch) -> Evaluation:
        """The actions of the recorded noise, without exploration; ``K = 1``, no likelihood, no entropy."""
        features = self.features(parameters, batch)
        action = self.generate(parameters, features, batch.record[LATENT].unsqueeze(-2)).squeeze(-2)
        return Evaluation(log_prob=torch.zeros_like(action[..., :1]), entropy=None, law=SampleLaw(action))

    def divergence(self, anchor: SampleLaw, law: SampleLaw) -> Tensor:
        """Mean over an action's dimensions of the squared step, ``[L, T, N, 1]``."""
        return (law.action - anchor.action).square().mean(-1, keepdim=True)

    def law_parameters(self, parameters: Parameters, batch: PolicyBatch) -> tuple[Tensor, ...]:
        """The actions of the recorded noise, ``[L, T, N, D]``."""
        return (self.evaluate(parameters, batch).law.action,)

    def fisher_product(self, law: SampleLaw, tangents: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The Hessian of the divergence in the actions, ``2 / D``: it takes the place of the Fisher information."""
        return (tangents[0] * (2 / law.action.shape[-1]),)

    def observe(self, observation: Mapping[str, Tensor], mask: Tensor, *, first: bool = False) -> None:
        """Move the input statistics and rewrite the first layers; the generator stays (but for the `first` time)."""
        self.module.observation.encoder.observe(observation, mask, first=first)

    def diagnostics(self) -> dict[str, float]:
        """Nothing beside what the objective logs."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Networks and input statistics."""
        return {"module": dict(self.module.state_dict())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict`."""
        self.module.load_state_dict(state["module"])

    def _noise(self, shape: torch.Size, generator: torch.Generator, *, mode: bool) -> Tensor:
        """``[L, N, G, Z]``."""
        rule = self._config.mode if mode else "sample"
        count = self._config.medoid_samples if rule in _CHOICES else 1
        if rule == "zero":
            return torch.zeros(*shape, count, self.latent, device=self._device)
        return torch.randn(*shape, count, self.latent, generator=generator, device=self._device)


def medoid(samples: Tensor) -> Tensor:
    """Which of ``[..., G, D]`` samples has the smallest summed distance to the others: ``[...]``.

    Of one mode it lies in the middle. Of several it is the sample nearest to all of them: at the inner side of one, or
    a stray between them. See `densest`.
    """
    return torch.cdist(samples, samples).sum(-1).argmin(-1)


def densest(samples: Tensor, *, bandwidth: float = 0.1) -> Tensor:
    """Which of ``[..., G, D]`` samples has the largest Laplacian kernel density of them all: ``[...]``.

    The bandwidth is in units of the samples' mean distance, so that of several modes it is the middle of the heaviest.
    """
    distance = torch.cdist(samples, samples)
    count = samples.shape[-2]
    unit = distance.sum((-2, -1), keepdim=True) / (count * (count - 1))
    return torch.exp(-distance / (bandwidth * unit).clamp_min(1e-12)).sum(-1).argmax(-1)


_CHOICES: dict[str, Callable[[Tensor], Tensor]] = {"medoid": medoid, "densest": densest}
"""Rules that choose one of several samples."""


def make(
    config: DriftingConfig, group: GroupSpec, *, rows: Rows, generator: torch.Generator, device: torch.device
) -> DriftingPolicy:
    """The registered factory of agent kind ``drifting``."""
    return DriftingPolicy(config, group, rows=rows, generator=generator, device=device)


def _part(parameters: Parameters, prefix: str) -> Parameters:
    return {name.removeprefix(prefix): p for name, p in parameters.items() if name.startswith(prefix)}


def _chosen(x: Tensor, index: Tensor) -> Tensor:
    """``[L, N, G, D]`` at ``[L, N]``."""
    return x.gather(2, index[..., None, None].expand(*index.shape, 1, x.shape[-1])).squeeze(2)
