"""Policies with an explicit density: one law an action leaf, with its log-probabilities and divergences."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor
from torch.func import functional_call

from marl_tr.agents.gaussian.config import GaussianConfig
from marl_tr.agents.gaussian.network import ActorNetwork, FlatEncoder, ObservationEncoder
from marl_tr.errors import UserError
from marl_tr.nn.distributions import ProductLaw
from marl_tr.nn.heads import ProductHead, make_head
from marl_tr.policy import Action, Capability, Evaluation, Parameters, PolicyBatch, Rows
from marl_tr.vector.contract import EnvSpec, GroupSpec

__all__ = ["ExplicitPolicy", "make"]


class ExplicitPolicy:
    """Decentralised actors of one team, each seeing its own observation only.

    Masks (`GroupSpec.masks`) are no inputs of the network: they make the law, in which a forbidden choice has
    probability 0, when it acts and whenever it is evaluated.

    Args:
        config: Network and law.
        group: The agents' spaces.
        rows: How agents share parameters.
        generator: Source of the networks' start.
        device: Where the networks live.
        encoder: Makes the network's `ObservationEncoder`, called as `FlatEncoder` is.

    Raises:
        UserError: A mask does not fit the choices that it is of.
    """

    direction = "kl_old_new"

    def __init__(
        self,
        config: GaussianConfig,
        group: GroupSpec,
        *,
        rows: Rows,
        generator: torch.Generator,
        device: torch.device,
        encoder: Callable[..., ObservationEncoder] = FlatEncoder,
    ) -> None:
        self.rows = rows
        self.head = ProductHead(
            {
                leaf: make_head(space, config.law, components=config.components, spread=config.initial_spread)
                for leaf, space in group.action.items()
            }
        )
        self.capabilities = frozenset({Capability.LOG_PROB, Capability.KL}) | _kinds(group, config)
        self._masks = dict(group.masks)
        _check_masks(group, self.head)
        self.recurrent = config.network == "gru"
        self.observes = config.normalise_observation
        self.module = ActorNetwork(
            config,
            encoder(config, group, rows=rows.learners, generator=generator),
            rows=rows.learners,
            head=self.head,
            generator=generator,
        )
        with torch.no_grad():
            self.module.head.bias.add_(self.head.initial_outputs(rows.learners, generator=generator))
        self.module.to(device)
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
        now = {leaf: x.unsqueeze(1) for leaf, x in observation.items()}
        first = next(iter(now.values()))
        starts = torch.zeros(first.shape[:3], dtype=torch.bool, device=first.device)
        outputs, extra, memory = self.module(now, memory, starts)
        return self.choose(self.head.law(outputs, extra, self._allowed(now)), memory, generator, mode=mode)

    def choose(
        self, law: ProductLaw, memory: Tensor | None, generator: torch.Generator, *, mode: bool = False
    ) -> Action:
        """What `act` returns where the law of its one step, ``[L, 1, N, ...]``, is this one."""
        raw = law.mode() if mode else law.sample(generator)
        record = {leaf: x[:, 0] for leaf, x in raw.items()}
        return Action(env=self.head.env_action(record), record=record, memory=memory)

    def evaluate(self, parameters: Parameters, batch: PolicyBatch) -> Evaluation:
        """See `marl_tr.policy.Policy`; ``K = 1``."""
        return self.judge(self.law(parameters, batch), batch)

    def judge(self, law: Any, batch: PolicyBatch) -> Evaluation:
        """What `evaluate` says of a batch where the law is this one."""
        return Evaluation(log_prob=law.log_prob(batch.record).unsqueeze(-1), entropy=law.entropy(), law=law)

    def law(self, parameters: Parameters, batch: PolicyBatch) -> ProductLaw:
        """The law of each decision of a batch, whatever its record."""
        arguments = (batch.observation, batch.memory, batch.starts)
        outputs, extra, _ = functional_call(self.module, parameters, arguments)
        return self.head.law(outputs, extra, self._allowed(batch.observation))

    def divergence(self, anchor: ProductLaw, law: ProductLaw) -> Tensor:
        """KL(anchor || law), ``[L, T, N, 1]``: exact, of a mixture an upper bound."""
        return anchor.kl(law).unsqueeze(-1)

    def total_variation(self, anchor: ProductLaw, law: ProductLaw) -> Tensor:
        """Half the L1 distance of the laws, ``[L, T, N, 1]``: exact of one choice, else perhaps an upper bound."""
        return anchor.total_variation(law).unsqueeze(-1)

    def tail_mass(self, law: ProductLaw, log_prob: Tensor) -> Tensor:
        """See `marl_tr.policy.Policy`."""
        return law.tail_mass(log_prob.squeeze(-1)).unsqueeze(-1)

    def law_parameters(self, parameters: Parameters, batch: PolicyBatch) -> tuple[Tensor, ...]:
        """The laws' own parameters, each broadcast to ``[L, T, N, D]``."""
        law = self.law(parameters, batch)
        return tuple(p.expand(*batch.mask.shape, p.shape[-1]) for p in law.parameters())

    def fisher_product(self, law: ProductLaw, tangents: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """See `marl_tr.policy.Policy`."""
        return law.fisher_product(tangents)

    def observe(self, observation: Mapping[str, Tensor], mask: Tensor, *, first: bool = False) -> None:
        """Move the input statistics and rewrite the first layers so that the law stays (but for the `first` time)."""
        self.module.encoder.observe(observation, mask, first=first)

    def diagnostics(self) -> dict[str, float]:
        """Mean standard deviation of the Gaussian and mixture leaves, where there are any."""
        if self.module.extra is None:
            return {}
        return {"losses/mean_std": float(self.module.extra.detach().exp().mean())}

    def state_dict(self) -> dict[str, Any]:
        """Networks and input statistics."""
        return {"module": dict(self.module.state_dict())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict`."""
        self.module.load_state_dict(state["module"])

    def _allowed(self, observation: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Which choices each masked action leaf has, ``[L, T, N, choices]`` bool."""
        return {leaf: observation[seen] != 0 for leaf, seen in self._masks.items()}


def _kinds(group: GroupSpec, config: GaussianConfig) -> frozenset[Capability]:
    """What can be said of laws that are all of one kind."""
    if all(isinstance(space, spaces.Discrete | spaces.MultiDiscrete) for space in group.action.values()):
        return frozenset({Capability.MASS})
    boxes = all(isinstance(space, spaces.Box) for space in group.action.values())
    return frozenset({Capability.GAUSSIAN}) if boxes and config.law == "gaussian" else frozenset()


def _check_masks(group: GroupSpec, head: ProductHead) -> None:
    for leaf, seen in group.masks.items():
        if leaf not in group.action or seen not in group.observation:
            raise UserError(f"group {group.name!r}: masks name {leaf!r}: {seen!r}, and no such leaves are there")
        space, choices = group.action[leaf], head.heads[leaf].size
        if not isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
            raise UserError(f"group {group.name!r}: a mask forbids choices, and action {leaf!r} is {space}")
        if group.observation[seen].shape != (choices,):
            raise UserError(
                f"group {group.name!r}: action {leaf!r} has {choices} choices, and its mask {seen!r} the shape "
                f"{group.observation[seen].shape}"
            )
    if not group.features:
        raise UserError(f"group {group.name!r}: it observes masks alone; policies need something else to decide by")


def make(
    config: GaussianConfig,
    group: GroupSpec,
    *,
    rows: Rows,
    generator: torch.Generator,
    device: torch.device,
    spec: EnvSpec | None = None,
    agents: Sequence[str] = (),
    encoder: Callable[..., ObservationEncoder] = FlatEncoder,
) -> ExplicitPolicy:
    """The registered factory of agent kind ``gaussian``; `spec` and `agents` where ``scope: joint`` asks for them."""
    if config.scope == "own":
        return ExplicitPolicy(config, group, rows=rows, generator=generator, device=device, encoder=encoder)
    from marl_tr.agents.gaussian.joint import JointPolicy

    if spec is None:
        raise ValueError("a policy over everybody's actions needs to know everybody: spec and agents")
    return JointPolicy(
        config, group, spec=spec, agents=agents, rows=rows, generator=generator, device=device, encoder=encoder
    )
