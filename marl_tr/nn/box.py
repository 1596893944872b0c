"""One continuous action: its space, and the way from [-1, 1] to its units."""

from __future__ import annotations

import torch
from gymnasium import spaces
from torch import Tensor

from marl_tr.errors import UserError
from marl_tr.vector.contract import GroupSpec

__all__ = ["single_box", "to_box"]


def single_box(group: GroupSpec, who: str) -> tuple[str, spaces.Box]:
    """The leaf and space of a group whose action is one Box.

    Raises:
        UserError: It is not, which `who` (a kind of policy, with its article) cannot serve.
    """
    leaf, space = next(iter(group.action.items()))
    if len(group.action) > 1 or not isinstance(space, spaces.Box):
        raise UserError(
            f"{who} draws one continuous action, and group {group.name!r} has "
            + ", ".join(f"{name}: {each}" for name, each in group.action.items())
            + "; use agents of kind 'gaussian'"
        )
    return leaf, space


def to_box(x: Tensor, box: spaces.Box) -> Tensor:
    """``[..., D]`` in the units of `box`, float32 ``[..., *box.shape]``.

    Where the box is bounded, [-1, 1] is stretched over it and whatever lies outside is clipped; else numbers are taken
    as they are, and clipped by the bounds that there are.
    """
    low = torch.as_tensor(box.low.reshape(-1), device=x.device)
    high = torch.as_tensor(box.high.reshape(-1), device=x.device)
    if box.is_bounded():
        # Halved first: the width of a box that is bounded by the largest floats is none of them.
        x = low / 2 + high / 2 + x.clamp(-1, 1) * (high / 2 - low / 2)
    else:
        x = x.to(torch.float32).clamp(low, high)
    return x.reshape(*x.shape[:-1], *box.shape).to(torch.float32)
