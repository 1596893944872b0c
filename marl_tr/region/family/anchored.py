"""Policies whose law is projected onto those before it, also when they act."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from marl_tr.policy import Action, Evaluation, Parameters, PolicyBatch, Rows

__all__ = ["Anchored", "Projection"]

_RADIUS = "radius"


class Projection(Protocol):
    """Moves a law into a region around another."""

    def __call__(self, law: Any, anchor: Any, radius: Tensor | None = None) -> Any:
        """The law nearest to `law` in the region around `anchor`, with its radius times `radius` ``[R]``."""
        ...


class Anchored:
    """A policy whose law is ``P(net; P(anchor_D; ... P(anchor_2; anchor_1)))``, at every observation there is.

    ``P(law; a)`` is the projection of a law into the region around the law ``a``, and the anchors are networks that
    acted before, the oldest first. At the start all are the policy's own, and the projection changes nothing.

    Anchors and the radius of each projection are parameters that no gradient reaches: they are committed, stored and
    put in force together with the network that was trained beside them, and `evaluate` depends on nothing else.
    Whoever evaluates parameters without anchors gets the network's own law.

    Args:
        policy: With ``law``, ``judge`` and ``choose`` (see `marl_tr.agents.gaussian.agent.ExplicitPolicy`) and no
            memory; its module gets the anchors.
        projection: ``P``.
        depth: ``D``.
    """

    recurrent = False
    observes = False

    def __init__(self, policy: Any, projection: Projection, *, depth: int) -> None:
        self.policy, self.projection, self.depth = policy, projection, depth
        self.rows: Rows = policy.rows
        self.capabilities = policy.capabilities
        self.direction: str = policy.direction
        self.module: nn.Module = policy.module
        self.networks = tuple(name for name, _ in self.module.named_parameters())
        anchors = nn.ModuleList(copy.deepcopy(self.module) for _ in range(depth)).requires_grad_(False)
        device = next(self.module.parameters()).device
        self.module.add_module("anchors", anchors)
        radius = nn.Parameter(torch.ones(self.rows.learners, depth, device=device), requires_grad=False)
        self.module.register_parameter(_RADIUS, radius)

    def initial_memory(self, trajectories: int) -> Tensor | None:
        """The policy's: None, it remembers nothing."""
        memory: Tensor | None = self.policy.initial_memory(trajectories)
        return memory

    @torch.no_grad()
    def act(
        self,
        observation: Mapping[str, Tensor],
        memory: Tensor | None,
        generator: torch.Generator,
        *,
        mode: bool = False,
    ) -> Action:
        """See `marl_tr.policy.Policy`."""
        now = {leaf: x.unsqueeze(1) for leaf, x in observation.items()}
        first = next(iter(now.values()))
        true = torch.ones(first.shape[:3], dtype=torch.bool, device=first.device)
        batch = PolicyBatch(observation=now, record={}, memory=None, starts=~true, mask=true)
        law = self.law(dict(self.module.named_parameters()), batch)
        action: Action = self.policy.choose(law, None, generator, mode=mode)
        return action

    def evaluate(self, parameters: Parameters, batch: PolicyBatch) -> Evaluation:
        """See `marl_tr.policy.Policy`: of the projected law."""
        return self.judge(self.law(parameters, batch), batch)

    def judge(self, law: Any, batch: PolicyBatch) -> Evaluation:
        """What `evaluate` says of a batch where the law is this one."""
        evaluation: Evaluation = self.policy.judge(law, batch)
        return evaluation

    def law(self, parameters: Parameters, batch: PolicyBatch) -> Any:
        """The projected law."""
        if _RADIUS not in parameters:
            return self.own_law(parameters, batch)
        anchor = self.anchor_law(parameters, batch)
        return self.projection(self.own_law(parameters, batch), anchor, parameters[_RADIUS][:, -1])

    def own_law(self, parameters: Parameters, batch: PolicyBatch) -> Any:
        """The network's own."""
        return self.policy.law({name: parameters[name] for name in self.networks}, batch)

    @torch.no_grad()
    def anchor_law(self, parameters: Parameters, batch: PolicyBatch) -> Any:
        """What the network's law is projected onto."""
        law: Any = None
        for place in range(self.depth):
            own = self.policy.law({name: parameters[_anchor(place, name)] for name in self.networks}, batch)
            law = own if law is None else self.projection(own, law, parameters[_RADIUS][:, place - 1])
        return law

    def advanced(self, parameters: Parameters) -> Parameters:
        """`parameters` with their network as the newest anchor and the oldest forgotten; radius 1 around it."""
        moved = dict(parameters)
        for name in self.networks:
            for place in range(self.depth):
                newer = name if place == self.depth - 1 else _anchor(place + 1, name)
                moved[_anchor(place, name)] = parameters[newer]
        radius = parameters[_RADIUS]
        moved[_RADIUS] = torch.cat([radius[:, 1:], torch.ones_like(radius[:, :1])], 1)
        return moved

    def restarted(self, parameters: Parameters, network: Parameters) -> Parameters:
        """`parameters` with `network` as the only anchor: all others are forgotten."""
        anchors = {_anchor(place, name): network[name] for name in self.networks for place in range(self.depth)}
        return parameters | anchors | {_RADIUS: torch.ones_like(parameters[_RADIUS])}

    def with_radius(self, parameters: Parameters, radius: Tensor) -> Parameters:
        """`parameters` with another radius ``[R]`` of the network's own projection."""
        found = parameters[_RADIUS].clone()
        found[:, -1] = radius.to(found)
        return parameters | {_RADIUS: found}

    def divergence(self, anchor: Any, law: Any) -> Tensor:
        """See `marl_tr.policy.Policy`."""
        divergence: Tensor = self.policy.divergence(anchor, law)
        return divergence

    def law_parameters(self, parameters: Parameters, batch: PolicyBatch) -> tuple[Tensor, ...]:
        """See `marl_tr.policy.Policy`."""
        law = self.law(parameters, batch)
        return tuple(p.expand(*batch.mask.shape, p.shape[-1]) for p in law.parameters())

    def fisher_product(self, law: Any, tangents: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """See `marl_tr.policy.Policy`."""
        products: tuple[Tensor, ...] = self.policy.fisher_product(law, tangents)
        return products

    def observe(self, observation: Mapping[str, Tensor], mask: Tensor, *, first: bool = False) -> None:
        """Nothing: policies with statistics of inputs are not anchored."""

    def diagnostics(self) -> dict[str, float]:
        """The policy's own."""
        found: dict[str, float] = self.policy.diagnostics()
        return found

    def state_dict(self) -> dict[str, Any]:
        """Network, anchors and radii."""
        state: dict[str, Any] = self.policy.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict`."""
        self.policy.load_state_dict(state)


def _anchor(place: int, name: str) -> str:
    return f"anchors.{place}.{name}"
