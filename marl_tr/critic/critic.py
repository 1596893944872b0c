"""The centralized critic: values of a rollout before the policies move, and a fit after they have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from marl_tr.critic.config import CriticConfig
from marl_tr.critic.fit import FitReport, make_fit
from marl_tr.critic.inputs import CriticInputs, bootstrap_inputs, rollout_inputs
from marl_tr.nn.normaliser import ValueNormaliser
from marl_tr.nn.stacked import StackedLinear
from marl_tr.rollout.container import Bootstrap, Rollout

__all__ = ["VALUE_GAIN", "Critic", "Encoder", "Encoding", "Values", "following"]

VALUE_GAIN = 0.01
"""Orthogonal gain of value heads at the start: values begin near zero whatever the rewards' unit. (From gain 1,
changes of unit preserve start values of order one, which small rewards then take hundreds of fits to unlearn.)"""


@dataclass(frozen=True)
class Encoding:
    """What an encoder returns.

    Attributes:
        values: ``[T, E, A]``, in the critic's own (normalised) units.
        memories: ``[T, E, A, H]`` after each step, or None.
    """

    values: Tensor
    memories: Tensor | None


class Encoder(Protocol):
    """The network of a critic; a registered critic kind is ``(config, spec: EnvSpec, *, generator) -> Encoder``.

    Optional hook, looked up by name: ``prepare(inputs) -> CriticInputs``, what `encode` gives the same values for and
    many passes take less time over.

    Attributes:
        value_layers: Linear layers that give the values, rescaled when the value units move.
        observes: Whether `observe` keeps statistics of inputs.
    """

    module: nn.Module
    value_layers: tuple[StackedLinear, ...]
    observes: bool

    def initial_memory(self, environments: int) -> Tensor | None:
        """Zero memory ``[E, A, H]``, or None."""
        ...

    def encode(self, parameters: Mapping[str, Tensor] | None, inputs: CriticInputs) -> Encoding:
        """Values under `parameters` (by name), or under the module's own where None; differentiable."""
        ...

    def observe(self, inputs: CriticInputs, *, first: bool = False) -> None:
        """Take inputs into running statistics; values must not change, but for the `first` time."""
        ...

    def diagnostics(self, inputs: CriticInputs) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Scalars, and maps ``[H, W]`` in [0, 1] to be shown as pictures, by tag."""
        ...


@dataclass(frozen=True)
class Values:
    """Values of a rollout under the critic as it was.

    Attributes:
        value: ``[T, E, A]``, in reward units, of the observation before each decision.
        next_value: ``[T, E, A]``, of what followed, final observations included.
        beyond: ``[M, A]``, of what followed the cuts of the rollout's bootstrap.
        inputs: What the critic saw, for the fit.
    """

    value: Tensor
    next_value: Tensor
    beyond: Tensor
    inputs: CriticInputs


def following(value: Tensor, beyond: Tensor, cut: Bootstrap) -> Tensor:
    """The values ``[T, E, A]`` of what followed each step: those of the next, and beyond cuts those of `cut`.

    Args:
        value: ``[T, E, A]``, before each decision.
        beyond: ``[M, A]``, at the moments of `cut`.
        cut: Where trajectories were cut. Agent by agent: one moment of an environment can have an entry for who was
            cut and one for who goes on.
    """
    after = torch.cat([value[1:], torch.zeros_like(value[:1])])
    moment, agent = cut.agents.nonzero(as_tuple=True)
    after[cut.time[moment], cut.env[moment], agent] = beyond[moment, agent]
    return after


class Critic:
    """One value an agent, fitted by Adam or inside a trust region.

    Args:
        config: Fit and value normalisation.
        encoder: The network.
        environments: ``E``.
        generator: For minibatches and subsamples.
    """

    def __init__(
        self, config: CriticConfig, encoder: Encoder, *, environments: int, generator: torch.Generator
    ) -> None:
        self.encoder = encoder
        self.generator = generator
        self._fit = make_fit(config.fit, encoder)
        device = encoder.value_layers[0].weight.device
        self._normaliser = ValueNormaliser(1).to(device) if config.normalise_value else None
        self._memory = encoder.initial_memory(environments)

    @torch.no_grad()
    def evaluate(self, rollout: Rollout) -> Values:
        """Value a rollout; a recurrent critic remembers across rollouts until an episode ends."""
        inputs = rollout_inputs(rollout, self._memory)
        encoding = self.encoder.encode(None, inputs)
        value = self._denormalise(encoding.values)
        beyond = self._denormalise(self.encoder.encode(None, bootstrap_inputs(rollout, encoding.memories)).values[0])
        if encoding.memories is not None:
            ended = rollout.done[-1][:, None, None]
            self._memory = torch.where(ended, 0, encoding.memories[-1])
        next_value = following(value, beyond, rollout.bootstrap)
        return Values(value=value, next_value=next_value, beyond=beyond, inputs=inputs)

    def fit(self, values: Values, target: Tensor, alive: Tensor) -> FitReport:
        """Fit to `target` ``[T, E, A]`` (reward units) where `alive`; value units move afterwards, values stay.

        The very first targets set the units before they are fitted: there are no learned values to keep yet.
        """
        first = self._normaliser is not None and self._normaliser.fresh
        if first:
            assert self._normaliser is not None
            self._normaliser.update(target[alive])
            self._normaliser.adopt()
            with torch.no_grad():
                old = self.encoder.encode(None, values.inputs).values
        else:
            old = self._normalise(values.value)
        prepare = getattr(self.encoder, "prepare", None)
        inputs = values.inputs if prepare is None else prepare(values.inputs)
        report = self._fit.fit(inputs, old, self._normalise(target), alive, self.generator)
        if self._normaliser is not None and not first:
            self._normaliser.update(target[alive])
            self._normaliser.rescale(*self.encoder.value_layers)
        self.encoder.observe(values.inputs)
        return report

    def warm_up(self, rollout: Rollout) -> None:
        """Take the scale of the inputs from a rollout before anything is learned."""
        self.encoder.observe(rollout_inputs(rollout, self._memory), first=True)

    def state_dict(self) -> dict[str, Any]:
        """Network, statistics, fit state, memory and generator."""
        return {
            "module": dict(self.encoder.module.state_dict()),
            "fit": self._fit.state_dict(),
            "normaliser": None if self._normaliser is None else dict(self._normaliser.state_dict()),
            "memory": self._memory,
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict`."""
        self.encoder.module.load_state_dict(state["module"])
        self._fit.load_state_dict(state["fit"])
        if self._normaliser is not None:
            self._normaliser.load_state_dict(state["normaliser"])
        memory = state["memory"]
        self._memory = None if memory is None else memory.to(self.encoder.value_layers[0].weight.device)
        self.generator.set_state(state["generator"])

    def _normalise(self, x: Tensor) -> Tensor:
        return x if self._normaliser is None else self._normaliser.normalise(x)

    def _denormalise(self, x: Tensor) -> Tensor:
        return x if self._normaliser is None else self._normaliser.denormalise(x)
