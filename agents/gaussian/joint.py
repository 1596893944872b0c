"""Policies over everybody's actions, of which each agent executes its own (``scope: joint``).

What an agent thinks the others should do is part of its law, and is learned from what they did: its ratios and
divergences are of the joint action. Schedule ``consensus`` makes neighbours agree on them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from marl_tr.agents.gaussian.agent import ExplicitPolicy
from marl_tr.agents.gaussian.config import GaussianConfig
from marl_tr.agents.gaussian.network import ObservationEncoder
from marl_tr.errors import UserError
from marl_tr.nn.distributions import ProductLaw
from marl_tr.policy import Action, Evaluation, Parameters, PolicyBatch, Rows, executed_name
from marl_tr.vector.contract import EnvSpec, GroupSpec

__all__ = ["JointLaw", "JointPolicy"]


class JointLaw:
    """A law of the actions of ``A`` agents, of whom some are not to act: those count for nothing.

    Args:
        law: Over the leaves of all agents, agent after agent.
        leaves: Of each agent.
        acting: ``[L, T, N, A]`` bool.
    """

    def __init__(self, law: ProductLaw, leaves: Sequence[Sequence[str]], acting: Tensor) -> None:
        self.law, self.leaves, self.acting = law, leaves, acting

    def map(self, function: Callable[[Tensor], Tensor]) -> JointLaw:
        """`function` applied to each tensor."""
        return JointLaw(self.law.map(function), self.leaves, function(self.acting))

    def components(self, raw: Mapping[str, Tensor]) -> Tensor:
        """The log-probability of each agent's own action, ``[L, T, N, A]``; 0 of who was not to act."""
        return self._each(lambda leaf: self.law.laws[leaf].log_prob(raw[leaf]))

    def entropy(self) -> Tensor:
        """Of the actions of those who act, ``[L, T, N]``."""
        return self._each(lambda leaf: self.law.laws[leaf].entropy()).sum(-1)

    def kl(self, new: JointLaw) -> Tensor:
        """KL(self || new) of the actions of those who act, ``[L, T, N]``."""
        return self._each(lambda leaf: self.law.laws[leaf].kl(new.law.laws[leaf])).sum(-1)

    def fisher_product(self, tangents: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Block-diagonal over leaves; zero for who does not act."""
        products = iter(self.law.fisher_product(tangents))
        return tuple(
            next(products) * self.acting[..., position : position + 1].to(tangents[0])
            for position, leaves in enumerate(self.leaves)
            for leaf in leaves
            for _ in self.law.laws[leaf].parameters()
        )

    def _each(self, of_leaf: Callable[[str], Tensor]) -> Tensor:
        shape = self.acting.shape[:-1]
        parts = torch.stack(
            [torch.stack([of_leaf(leaf).expand(shape) for leaf in leaves]).sum(0) for leaves in self.leaves], -1
        )
        return torch.where(self.acting, parts, torch.zeros_like(parts))


class JointPolicy(ExplicitPolicy):
    """An explicit policy with a head for every agent of the environment, whatever its group and spaces.

    Records of acting hold each agent's own raw action, as any policy's do; batches to learn from hold everybody's
    (`marl_tr.policy.executed_name`).

    Args:
        config: Network and law.
        group: Of the agents that decide.
        spec: Of the environment.
        agents: Which agents decide, one a row.
        rows: One row an agent.
        generator: Source of the networks' start.
        device: Where the networks live.
        encoder: As of `ExplicitPolicy`.

    Raises:
        UserError: Parameters are shared, or actions have masks, which no agent sees of the others.
    """

    scope = "joint"

    def __init__(
        self,
        config: GaussianConfig,
        group: GroupSpec,
        *,
        spec: EnvSpec,
        agents: Sequence[str],
        rows: Rows,
        generator: torch.Generator,
        device: torch.device,
        encoder: Callable[..., ObservationEncoder],
    ) -> None:
        if rows.shared:
            raise UserError("agents.scope: 'joint' needs parameters of each agent's own ('sharing: none')")
        if any(each.masks for each in spec.groups):
            raise UserError(
                f"agents.scope: {spec.id!r} masks actions, and an agent with scope 'joint' does not see what the "
                "others may do; use scope 'own'"
            )
        joint = {
            executed_name(agent, leaf): space
            for each in spec.groups
            for agent in each.agents
            for leaf, space in each.action.items()
        }
        super().__init__(
            config,
            replace(group, action=joint),
            rows=rows,
            generator=generator,
            device=device,
            encoder=encoder,
        )
        self._leaves = [
            [executed_name(agent, leaf) for leaf in each.action] for each in spec.groups for agent in each.agents
        ]
        self._own = {leaf: [executed_name(agent, leaf) for agent in agents] for leaf in group.action}

    def act(
        self,
        observation: Mapping[str, Tensor],
        memory: Tensor | None,
        generator: torch.Generator,
        *,
        mode: bool = False,
    ) -> Action:
        """See `marl_tr.policy.Policy`: of a joint action each row executes, and records, its own agent's."""
        joint = super().act(observation, memory, generator, mode=mode)
        return Action(env=self._executed(joint.env), record=self._executed(joint.record), memory=joint.memory)

    def evaluate(self, parameters: Parameters, batch: PolicyBatch) -> Evaluation:
        """See `marl_tr.policy.Policy`: the likelihood of what everybody did."""
        return self.judge(JointLaw(self.law(parameters, batch), self._leaves, batch.record["acting"]), batch)

    def judge(self, law: Any, batch: PolicyBatch) -> Evaluation:
        """What `evaluate` says of a batch where the law is this one."""
        log_prob = law.components(batch.record).sum(-1, keepdim=True)
        return Evaluation(log_prob=log_prob, entropy=law.entropy(), law=law)

    def divergence(self, anchor: Any, law: Any) -> Tensor:
        """KL(anchor || law) of joint actions, ``[L, T, N, 1]``."""
        kl: Tensor = anchor.kl(law)
        return kl.unsqueeze(-1)

    def _executed(self, joint: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            leaf: torch.stack([joint[name][row] for row, name in enumerate(names)]) for leaf, names in self._own.items()
        }
