"""What a centralized critic sees, in one shape for every encoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from marl_tr.rollout.container import Rollout

__all__ = ["CriticInputs", "bootstrap_inputs", "cut_windows", "rollout_inputs"]


@dataclass(frozen=True)
class CriticInputs:
    """A batch of sequences for a critic.

    Attributes:
        observation: ``{group: [T, E, A, D]}``, leaves side by side; zero for the dead. Without masks: what is allowed
            follows from what is seen, and an encoding of all choices would be wider than all else.
        previous_action: ``{group: [T, E, A, D]}``, encoded; zero for the dead, and for who was not to move.
        state: ``{leaf: [T, E, ...]}``.
        alive: ``[T, E, A]`` bool, agents of all groups.
        acting: ``[T, E, A]``, 1 for who is to move and 0 for who is not; see `Bootstrap.acting`.
        starts: ``[T, E, A]`` bool, whose life begins: memory is zero there.
        memory: ``[E, A, H]`` before the first step, or None.
        features: ``{network: [T, E, ...]}``, what `Encoder.prepare` made of the above, which are empty then; or None.
    """

    observation: dict[str, Tensor]
    previous_action: dict[str, Tensor]
    state: dict[str, Tensor]
    alive: Tensor
    acting: Tensor
    starts: Tensor
    memory: Tensor | None
    features: dict[str, Tensor] | None = None

    def environments(self, index: Tensor) -> CriticInputs:
        """Some environments' sequences, whole."""
        return self._map(lambda x: x.index_select(1, index), lambda m: m.index_select(0, index))

    def windows(self, length: int, memories: Tensor | None) -> CriticInputs:
        """Sequences cut into windows of `length` steps, ``[length, E (T // length), ...]``; the rest is left out.

        What a recurrent critic remembers at a window's start enters as a constant: `memories` ``[T, E, A, H]`` are
        its memories after each step.
        """

        def cut(x: Tensor) -> Tensor:
            return cut_windows(x, length)

        memory = None
        if memories is not None:
            assert self.memory is not None
            last = len(self.starts) // length * length - 1
            before = memories[length - 1 : last : length]
            memory = torch.cat([self.memory.unsqueeze(0), before]).flatten(0, 1)
        return replace(self._map(cut, lambda m: m), memory=memory)

    def to(self, dtype: torch.dtype) -> CriticInputs:
        """Floating point parts in `dtype`."""

        def cast(x: Tensor) -> Tensor:
            return x.to(dtype) if x.is_floating_point() else x

        return self._map(cast, cast)

    def _map(self, function: Callable[[Tensor], Tensor], on_memory: Callable[[Tensor], Tensor]) -> CriticInputs:
        """`function` applied to everything ``[T, E, ...]``."""
        return CriticInputs(
            observation={name: function(x) for name, x in self.observation.items()},
            previous_action={name: function(x) for name, x in self.previous_action.items()},
            state={name: function(x) for name, x in self.state.items()},
            alive=function(self.alive),
            acting=function(self.acting),
            starts=function(self.starts),
            memory=None if self.memory is None else on_memory(self.memory),
            features=None if self.features is None else {name: function(x) for name, x in self.features.items()},
        )


def rollout_inputs(rollout: Rollout, memory: Tensor | None) -> CriticInputs:
    """The critic's view of a rollout; `memory` ``[E, A, H]`` is what it remembers at the first step."""
    return CriticInputs(
        observation={name: _beside(g.features, 3) * g.alive.unsqueeze(-1) for name, g in rollout.groups.items()},
        previous_action={name: g.previous_action * g.alive.unsqueeze(-1) for name, g in rollout.groups.items()},
        state={name: x.float() for name, x in rollout.state.items()},
        alive=torch.cat([g.alive for g in rollout.groups.values()], -1),
        acting=torch.cat([g.acting for g in rollout.groups.values()], -1).float(),
        starts=torch.cat([g.starts for g in rollout.groups.values()], -1),
        memory=memory,
    )


def bootstrap_inputs(rollout: Rollout, memories: Tensor | None) -> CriticInputs:
    """The ``M`` moments that follow a cut, as a batch of one step: ``T = 1, E = M``.

    Args:
        rollout: Where the cuts are.
        memories: ``[T, E, A, H]`` after each step of the rollout, or None.
    """
    cut = rollout.bootstrap
    living = cut.living.unsqueeze(-1).split([g.alive.shape[-1] for g in rollout.groups.values()], dim=1)
    alive = dict(zip(rollout.groups, living, strict=True))
    return CriticInputs(
        observation={name: (_beside(leaves, 2) * alive[name]).unsqueeze(0) for name, leaves in cut.observation.items()},
        previous_action={
            name: (g.action[cut.time, cut.env] * alive[name]).unsqueeze(0) for name, g in rollout.groups.items()
        },
        state={name: x.float().unsqueeze(0) for name, x in cut.state.items()},
        alive=cut.living.unsqueeze(0),
        acting=cut.acting.unsqueeze(0),
        starts=cut.starts.unsqueeze(0),
        memory=None if memories is None else memories[cut.time, cut.env],
    )


def cut_windows(x: Tensor, length: int) -> Tensor:
    """``[T, E, ...]`` to ``[length, (T // length) E, ...]``: windows of `length` steps, the rest left out."""
    count = len(x) // length
    windows = x[: count * length].reshape(count, length, *x.shape[1:])
    return windows.transpose(0, 1).flatten(1, 2)


def _beside(leaves: Mapping[str, Tensor], lead: int) -> Tensor:
    """All leaves ``[T, E, A, ...]`` (or ``[M, A, ...]``) flat and side by side."""
    parts = [x.float().flatten(lead) if x.dim() > lead else x.float().unsqueeze(-1) for x in leaves.values()]
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)
