"""Policies with an explicit density: one law an action leaf, exact log-probabilities and divergences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from marl_tr.agents.gaussian.config import GaussianConfig
from marl_tr.agents.gaussian.network import ActorNetwork
from marl_tr.nn.distributions import ProductLaw
from marl_tr.nn.heads import ProductHead, make_head
from marl_tr.policy import Action, Capability, Evaluation, Parameters, PolicyBatch, Rows
from marl_tr.vector.contract import GroupSpec

__all__ = ["ExplicitPolicy", "make"]


class ExplicitPolicy:
    """Decentralised actors of one team, each seeing its own observation only.

    Args:
        config: Network and law.
        group: The agents' spaces.
        rows: How agents share parameters.
        generator: Source of the networks' start.
        device: Where the networks live.
    """

    capabilities = frozenset({Capability.LOG_PROB, Capability.KL})

    def __init__(
        self,
        config: GaussianConfig,
        group: GroupSpec,
        *,
        rows: Rows,
        generator: torch.Generator,
        device: torch.device,
    ) -> None:
        self.rows = rows
        self.head = ProductHead({leaf: make_head(space, config.law) for leaf, space in group.action.items()})
        self.recurrent = config.network == "gru"
        self._leaves = tuple(group.observation)
        features = sum(int(np.prod(space.shape or ())) for space in group.observation.values())
        self.module = ActorNetwork(
            config, rows=rows.learners, features=features, head=self.head, generator=generator
        ).to(device)
        self._device = device

    def initial_memory(self, trajectories: int) -> Tensor | None:
        """See `marl_tr.policy.Policy`."""
        if self.module.cell is None:
            return None
        return torch.zeros(self.rows.learners, trajectories, self.module.cell.hidden, device=self._device)

    def act(
        self,
        observation: Mapping[str, Tensor],
        memory: Tensor | None,
        generator: torch.Generator,
        *,
        mode: bool = False,
    ) -> Action:
        """See `marl_tr.policy.Policy`; the caller has already zeroed the memory of new episodes."""
        features = self._features(observation).unsqueeze(1)
        starts = torch.zeros(features.shape[:-1], dtype=torch.bool, device=features.device)
        outputs, extra, memory = self.module(features, memory, starts)
        law = self.head.law(outputs, extra)
        raw = law.mode() if mode else law.sample(generator)
        record = {leaf: x[:, 0] for leaf, x in raw.items()}
        return Action(env=self.head.env_action(record), record=record, memory=memory)

    def evaluate(self, parameters: Parameters, batch: PolicyBatch) -> Evaluation:
        """See `marl_tr.policy.Policy`; ``K = 1``."""
        law = self._law(parameters, batch)
        return Evaluation(log_prob=law.log_prob(batch.record).unsqueeze(-1), entropy=law.entropy(), law=law)

    def divergence(self, anchor: ProductLaw, law: ProductLaw) -> Tensor:
        """KL(anchor || law), exact, ``[L, T, N, 1]``."""
        return anchor.kl(law).unsqueeze(-1)

    def law_parameters(self, parameters: Parameters, batch: PolicyBatch) -> tuple[Tensor, ...]:
        """The laws' own parameters, each broadcast to ``[L, T, N, D]``."""
        law = self._law(parameters, batch)
        return tuple(p.expand(*batch.mask.shape, p.shape[-1]) for p in law.parameters())

    def fisher_product(self, law: ProductLaw, tangents: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """See `marl_tr.policy.Policy`."""
        return law.fisher_product(tangents)

    def observe(self, observation: Mapping[str, Tensor], mask: Tensor) -> None:
        """Move the input statistics and rewrite the first layer so that the law stays."""
        normaliser = self.module.normaliser
        if normaliser is not None:
            normaliser.update(self._features(observation), mask)
            normaliser.apply_update(self.module.body.first)

    def diagnostics(self) -> dict[str, float]:
        """Mean standard deviation of the Gaussian leaves, where there are any."""
        if self.module.extra is None:
            return {}
        return {"losses/mean_std": float(self.module.extra.detach().exp().mean())}

    def state_dict(self) -> dict[str, Any]:
        """Networks and input statistics."""
        return {"module": dict(self.module.state_dict())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict`."""
        self.module.load_state_dict(state["module"])

    def _features(self, observation: Mapping[str, Tensor]) -> Tensor:
        parts = [observation[leaf] for leaf in self._leaves]
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)

    def _law(self, parameters: Parameters, batch: PolicyBatch) -> ProductLaw:
        features = self._features(batch.observation)
        outputs, extra, _ = functional_call(self.module, parameters, (features, batch.memory, batch.starts))
        return self.head.law(outputs, extra)


def make(
    config: GaussianConfig, group: GroupSpec, *, rows: Rows, generator: torch.Generator, device: torch.device
) -> ExplicitPolicy:
    """The registered factory of agent kind ``gaussian``."""
    return ExplicitPolicy(config, group, rows=rows, generator=generator, device=device)
