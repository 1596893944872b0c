"""Gaussian laws of policies, projected: every leaf of an action is part of one Gaussian, each chain step one law."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from marl_tr.nn.distributions import Gaussian, ProductLaw
from marl_tr.region.family.projections import (
    Geometry,
    anchored_mean_distance,
    anchored_spread_distance,
    project_mean,
    project_spread,
)

__all__ = ["GaussianProjection"]


class GaussianProjection:
    """Holds mean and covariance, apart, to bounds around an anchor's.

    Laws are `ProductLaw` of `Gaussian` leaves, whose dimensions are taken together, or a flow's chain of steps with
    fixed deviations, whose means alone are projected.

    Args:
        geometry: How distances are measured.
        mean_bound: Of the mean.
        cov_bound: Of the covariance.
    """

    def __init__(self, geometry: Geometry, *, mean_bound: float, cov_bound: float) -> None:
        self._geometry: Geometry = geometry
        self._mean_bound, self._cov_bound = mean_bound, cov_bound

    def __call__(self, law: Any, anchor: Any, radius: Tensor | None = None) -> Any:
        """The law nearest to `law` within the region around `anchor`; differentiable in `law`.

        Args:
            law: To be projected.
            anchor: Around what; held fixed.
            radius: ``[R]``, factor of the region's radius (distances are squares: bounds get its square); None: 1.
        """
        mean, log_std = _moments(law)
        centre, scale = (x.detach() for x in _moments(anchor))
        factor = torch.ones((), dtype=torch.float64, device=mean.device)
        if radius is not None:
            factor = radius.detach().double().square().reshape(-1, *(1,) * (mean.ndim - 2))
        bound = self._mean_bound * factor
        moved = project_mean(mean, centre, scale, bound=bound, geometry=self._geometry)
        if not isinstance(law, ProductLaw):
            return replace(law, mean=torch.where(law.stochastic.unsqueeze(-1), moved, law.mean))
        spread = project_spread(log_std, scale, bound=self._cov_bound * factor, geometry=self._geometry)
        sizes = [part.mean.shape[-1] for part in _leaves(law)]
        parts = zip(law.laws, moved.split(sizes, -1), spread.split(sizes, -1), strict=True)
        return ProductLaw({leaf: Gaussian(m, s) for leaf, m, s in parts})

    def reach(self, law: Any, anchor: Any) -> Tensor:
        """The larger of both distances from `anchor`, each over its bound: ``[R, T, N, k]`` float64."""
        (mean, log_std), (centre, scale) = _moments(law), _moments(anchor)
        of_mean = anchored_mean_distance(mean, centre, scale, geometry=self._geometry) / self._mean_bound
        if not isinstance(law, ProductLaw):
            return torch.where(law.stochastic, of_mean, 0)
        of_spread = anchored_spread_distance(log_std, scale, geometry=self._geometry) / self._cov_bound
        return torch.maximum(of_mean, of_spread).unsqueeze(-1)

    def distance(self, law: Any, target: Any) -> Tensor:
        """From `law` to `target`, which is held fixed: the sum of both parts, ``[R, T, N, k]``.

        For ``frobenius`` the covariance's part is the mean square of the difference of standard deviations.

        Source: the official code of arXiv 2101.09207.
        """
        (mean, log_std), (centre, scale) = _moments(law), (x.detach() for x in _moments(target))
        of_mean = anchored_mean_distance(mean, centre, scale, geometry=self._geometry)
        if not isinstance(law, ProductLaw):
            return torch.where(law.stochastic, of_mean, 0)
        if self._geometry == "frobenius":
            of_spread = (log_std.double().exp() - scale.double().exp()).square().mean(-1)
        else:
            of_spread = anchored_spread_distance(log_std, scale, geometry=self._geometry)
        return (of_mean + of_spread).unsqueeze(-1)


def _leaves(law: ProductLaw) -> list[Gaussian]:
    leaves = list(law.laws.values())
    if not all(isinstance(leaf, Gaussian) for leaf in leaves):
        raise TypeError("only Gaussian laws are projected by mean and covariance")
    return leaves  # type: ignore[return-value]


def _moments(law: Any) -> tuple[Tensor, Tensor]:
    """Mean and log standard deviation, ``[..., D]``."""
    if isinstance(law, ProductLaw):
        leaves = _leaves(law)
        return torch.cat([leaf.mean for leaf in leaves], -1), torch.cat([leaf.log_std for leaf in leaves], -1)
    # Steps without noise have no density; the value that stands in is masked afterwards.
    scale = torch.where(law.stochastic, law.std, 1).log()
    return law.mean, scale.unsqueeze(-1).expand_as(law.mean)
