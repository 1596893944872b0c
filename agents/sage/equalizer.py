"""The gradient norm equalizer: weights that make every step of a chain pull on the velocity equally hard.

The gradient of a step's log-density in the velocity ``v`` is ``J (x' - mean) / std^2``, whose root mean square a
dimension is ``N = |J| / std``: with many steps at high noise it differs a hundredfold between the steps of one chain.
SAGE-GRPO (arXiv 2603.21872) multiplies the policy loss of step ``i`` (not its KL terms) by ``S_i = median(N) / N_i``.
All of it is known from the sampler and the grid; nothing is measured. The mean of ``S`` is not 1, so that switching it
on changes the scale of the loss too.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from marl_tr.agents.sage.sampler import Coefficients
from marl_tr.errors import UserError

__all__ = ["equalizer_weights", "gradient_norms"]


def gradient_norms(coefficients: Coefficients, *, surrogate: bool = False) -> Tensor:
    """Root mean square of a step's score in the velocity, a dimension.

    Args:
        coefficients: Of ``n`` steps.
        surrogate: The loss has Flow-CPS's ``-|x' - mean|^2`` for a log-density; its gradient is ``2 std |J|``.

    Returns:
        ``N``, ``[n]`` float64: ``|J| / std``; 0 where the step is deterministic and has no gradient at all.
    """
    stochastic, std = coefficients.stochastic, coefficients.std
    scale = 2 * std if surrogate else 1 / torch.where(stochastic, std, 1)
    return torch.where(stochastic, coefficients.jacobian.abs() * scale, 0)


def equalizer_weights(coefficients: Coefficients, *, surrogate: bool = False, published: bool = False) -> Tensor:
    """``S_i = median(N) / N_i`` over the stochastic steps; the lower median, as in `torch.median`.

    Look weights up by the step's own index: steps that a trainer permutes keep their weights.

    Args:
        coefficients: Of one grid, ``n`` steps.
        surrogate: As in `gradient_norms`.
        published: Take the median over all steps, a deterministic one counting as infinitely large, as the published
            code does. It differs only where there are deterministic steps.

    Returns:
        ``S``, ``[n]`` float64; 0 at deterministic steps.

    Raises:
        UserError: `published`, and so many steps are deterministic that the median is one of them.
    """
    norms, stochastic = gradient_norms(coefficients, surrogate=surrogate), coefficients.stochastic
    if not bool(stochastic.any()):
        return torch.zeros_like(norms)
    pool = torch.where(stochastic, norms, math.inf) if published else norms[stochastic]
    median = pool.median()
    if not bool(median.isfinite()):
        raise UserError(
            f"the published equalizer takes its median over all {len(norms)} steps, and only {int(stochastic.sum())} "
            "of them are stochastic, so that it is infinite; use published=False, or a wider window"
        )
    return torch.where(stochastic, median / torch.where(stochastic, norms, 1), 0)
