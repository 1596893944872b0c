"""Learners: what an update changes, and what goes along with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from marl_tr.policy import Parameters, Policy
from marl_tr.region.regulariser import Regularisers
from marl_tr.scenario.regularisers import RegulariserConfig

__all__ = ["Learners"]


class Learners:
    """A policy's learners: current parameters and optimizer moments, changed by the Guard alone.

    Args:
        policy: Their policy, as it starts the run.
        names: One a row.
        regularisers: Of the scenario.
        average: Decay of the average of committed parameters; None: none is kept.

    Attributes:
        policy: Their policy.
        names: One a row.
        moments: One optimizer state a row (empty where the region has no optimizer).
        memory: What the region remembers of each row: multipliers, radii; numbers and tensors by name.
        regularisers: With their anchors and weights.
    """

    def __init__(
        self,
        policy: Policy,
        names: Sequence[str],
        regularisers: Sequence[RegulariserConfig] = (),
        *,
        average: float | None = None,
    ) -> None:
        if len(names) != policy.rows.learners:
            raise ValueError(f"{policy.rows.learners} learners need as many names, got {list(names)}")
        self.policy = policy
        self.names = tuple(names)
        self.moments: list[dict[str, Any]] = [{} for _ in names]
        self.memory: list[dict[str, Any]] = [{} for _ in names]
        everyone = self.parameters(range(len(names)))
        self.regularisers = Regularisers(regularisers, everyone)
        self._decay = average
        self._average: Parameters | None = None if average is None else everyone

    def parameters(self, rows: Sequence[int]) -> Parameters:
        """A copy of some rows, detached."""
        index = list(rows)
        return {name: p.detach()[index].clone() for name, p in self.policy.module.named_parameters()}

    def commit(
        self,
        row: int,
        parameters: Parameters,
        moments: dict[str, Any],
        *,
        before: Parameters,
        measured: Mapping[str, float],
        memory: Mapping[str, Any] | None = None,
    ) -> None:
        """Write one row, ``[1, ...]`` each; no other row is touched.

        Args:
            row: Which.
            parameters: What is now in force.
            moments: Of the optimizer.
            before: The parameters before the last optimizer step, for `Regularisers.commit`.
            measured: Value of each regulariser, for the same.
            memory: Of the region; None: it stays.
        """
        with torch.no_grad():
            for name, p in self.policy.module.named_parameters():
                p[row] = parameters[name][0]
            self.moments[row] = moments
            if memory is not None:
                self.memory[row] = dict(memory)
            self.regularisers.commit(row, parameters, before, measured)
            if self._average is not None and self._decay is not None:
                for name, average in self._average.items():
                    average[row].lerp_(parameters[name][0], 1 - self._decay)

    def observe(self, observation: Mapping[str, Tensor], mask: Tensor, *, first: bool = False) -> None:
        """`Policy.observe`, for the policy and for every stored copy of it.

        Where statistics of inputs move, a policy rewrites its parameters so that its law stays. Anchors and averages
        must be rewritten alike, or they would be other policies from then on.
        """
        copies = [*self.regularisers.copies(), *([] if self._average is None else [self._average])]
        module = self.policy.module
        if not copies or not self.policy.observes:
            self.policy.observe(observation, mask, first=first)
            return
        before = _snapshot(module)
        self.policy.observe(observation, mask, first=first)
        after = _snapshot(module)
        try:
            for stored in copies:
                module.load_state_dict(before | stored)
                self.policy.observe(observation, mask, first=first)
                for name, p in module.named_parameters():
                    stored[name].copy_(p.detach())
        finally:
            module.load_state_dict(after)

    @contextmanager
    def acting(self, parameters: Mapping[int, Parameters]) -> Iterator[None]:
        """Inside, the policy acts by `parameters` ``[1, ...]`` of some rows in place of its own; nothing is
        committed."""
        own = self.parameters(range(len(self.names)))
        try:
            with torch.no_grad():
                for row, new in parameters.items():
                    for name, p in self.policy.module.named_parameters():
                        p[row] = new[name][0]
            yield
        finally:
            self._install(own)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the policy acts by the average of its committed parameters, where one is kept."""
        if self._average is None:
            yield
            return
        own = self.parameters(range(len(self.names)))
        try:
            self._install(self._average)
            yield
        finally:
            self._install(own)

    def state_dict(self) -> dict[str, Any]:
        """The policy, the optimizer moments, and what is remembered beside them."""
        return {
            "policy": self.policy.state_dict(),
            "moments": self.moments,
            "memory": self.memory,
            "regularisers": self.regularisers.state_dict(),
            "average": self._average,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict`; an average that the state does not hold begins at its parameters."""
        self.policy.load_state_dict(state["policy"])
        self.moments = [dict(m) for m in state["moments"]]
        self.memory = [dict(m) for m in state.get("memory", [{} for _ in self.names])]
        self.regularisers.load_state_dict(state["regularisers"])
        if self._average is not None:
            saved = state["average"] or self.parameters(range(len(self.names)))
            for name, p in self._average.items():
                p.copy_(saved[name])

    def _install(self, parameters: Parameters) -> None:
        with torch.no_grad():
            for name, p in self.policy.module.named_parameters():
                p.copy_(parameters[name])


def _snapshot(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}
