"""The exact velocity of a flow to a Gaussian mixture along a curve: a flow model without a network.

With ``x_s = (1 - s) x0 + s e`` and data ``x0 ~ sum_m w_m N(mu_m, tau^2 I)``, component ``m`` has at level ``s`` the law
``N((1 - s) mu_m, V I)`` with ``V = (1 - s)^2 tau^2 + s^2``, and given it everything is linear:

    E[x0 | x, m] = mu_m + (1 - s) tau^2 / V (x - (1 - s) mu_m)
    E[e  | x, m] = s / V (x - (1 - s) mu_m)
    v(x, s) = E[e - x0 | x] = sum_m p(m | x) (E[e | x, m] - E[x0 | x, m]).

Source: flow matching's conditional expectation (Lipman et al., arXiv 2210.02747, theorem 1) for a Gaussian mixture.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from marl_tr.envs.flow.curves import CURVES
from marl_tr.errors import UserError
from marl_tr.vector.contract import GroupSpec

__all__ = [
    "COMPONENTS",
    "CONDITION",
    "WIDTH",
    "MixtureVelocity",
    "NoCondition",
    "circle_velocity",
    "component_arcs",
    "component_means",
    "moons_velocity",
    "spiral_velocity",
]

COMPONENTS = 256
WIDTH = 0.05
"""Standard deviation ``tau`` of a component, each axis; neighbours are nearer to each other than that."""
CONDITION = "condition"
"""The observation leaf ``[C]``: which arc, one-hot; all zero asks for the whole curve."""


class NoCondition(UserError):
    """A group that gets a mixture's velocity does not observe a mixture's condition."""


def component_means(curve: str) -> Tensor:
    """Centres ``[M, 2]`` float64, at equal steps of the arc parameter."""
    return torch.from_numpy(CURVES[curve].point((np.arange(COMPONENTS) + 0.5) / COMPONENTS))


def component_arcs(arcs: int) -> Tensor:
    """The arc ``[M]`` int64 of `arcs` equal ones that each component lies in."""
    return (2 * torch.arange(COMPONENTS) + 1) * arcs // (2 * COMPONENTS)


class MixtureVelocity(nn.Module):
    """``v(x, s | c)`` in closed form; implements `marl_tr.nn.velocity.Velocity`. It has no parameters.

    Args:
        curve: Name in `CURVES`.
        arcs: ``C``.
    """

    means: Tensor
    members: Tensor

    def __init__(self, curve: str, arcs: int) -> None:
        super().__init__()
        self.register_buffer("means", component_means(curve), persistent=False)
        members = torch.nn.functional.one_hot(component_arcs(arcs), arcs).T.double()
        self.register_buffer("members", members, persistent=False)

    def forward(self, x: Tensor, sigma: Tensor, observation: Mapping[str, Tensor]) -> Tensor:
        """Velocities ``[B, 2]`` in the dtype of `x`; computed in float64.

        Args:
            x: ``[B, 2]``.
            sigma: Noise levels ``[B]`` in [0, 1].
            observation: Its leaf ``condition`` ``[B, C]``.
        """
        s, at = sigma.double()[:, None], x.double()
        share = self._log_joint(at, s, observation[CONDITION]).softmax(1)
        # Linear in the component's mean, so the mean over components is that of their means.
        mean = share @ self.means.double()
        away = (at - (1 - s) * mean) / _variance(s)
        return (s * away - mean - (1 - s) * WIDTH**2 * away).to(x.dtype)

    def log_density(self, x: Tensor, sigma: Tensor, observation: Mapping[str, Tensor]) -> Tensor:
        """``log p_s(x | c)``, ``[B]`` float64; arguments as in `forward`."""
        s, at = sigma.double()[:, None], x.double()
        variance = _variance(s)
        common = at.square().sum(1, keepdim=True) / (2 * variance) + torch.log(2 * torch.pi * variance)
        return self._log_joint(at, s, observation[CONDITION]).logsumexp(1) - common.squeeze(1)

    def _log_joint(self, x: Tensor, s: Tensor, condition: Tensor) -> Tensor:
        """``log w_m - |x - (1 - s) mu_m|^2 / (2 V)`` but for what all components share, ``[B, M]``."""
        asked, means = condition.double(), self.means.double()
        nothing = (asked == 0).all(1, keepdim=True)
        weight = torch.where(nothing, torch.ones_like(asked), asked) @ self.members.double()
        weight = weight / weight.sum(1, keepdim=True)
        near = (1 - s) * (x @ means.T) - (1 - s).square() * means.square().sum(1) / 2
        return weight.log() + near / _variance(s)


def _variance(s: Tensor) -> Tensor:
    """``V`` of every component at level `s`."""
    return (1 - s).square() * WIDTH**2 + s.square()


def circle_velocity(group: GroupSpec) -> MixtureVelocity:
    """Of ``curve: circle``, for a group that observes ``condition``."""
    return _for_group("circle", group)


def moons_velocity(group: GroupSpec) -> MixtureVelocity:
    """Of ``curve: moons``, for a group that observes ``condition``."""
    return _for_group("moons", group)


def spiral_velocity(group: GroupSpec) -> MixtureVelocity:
    """Of ``curve: spiral``, for a group that observes ``condition``."""
    return _for_group("spiral", group)


def _for_group(curve: str, group: GroupSpec) -> MixtureVelocity:
    """As many arcs as the group's condition has entries."""
    space = group.observation.get(CONDITION)
    if space is None or space.shape is None or len(space.shape) != 1:
        raise NoCondition(
            f"model 'mixture_{curve}' needs the observation leaf {CONDITION!r} [C] of flow/mixture-v0; group "
            f"{group.name!r} observes {', '.join(map(repr, group.observation))}"
        )
    return MixtureVelocity(curve, space.shape[0])
