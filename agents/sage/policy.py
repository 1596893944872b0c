"""Flow policies: actions from a chain of Gaussian steps, whose likelihood and divergence are exact."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from marl_tr.agents.sage.config import FlowConfig
from marl_tr.agents.sage.equalizer import equalizer_weights
from marl_tr.agents.sage.law import ChainLaw
from marl_tr.agents.sage.sampler import Coefficients, Sampler, sigma_grid
from marl_tr.agents.sage.stacked import StackedNetworks
from marl_tr.errors import UserError
from marl_tr.nn.box import single_box, to_box
from marl_tr.nn.velocity import build_velocity
from marl_tr.policy import Action, Capability, Evaluation, Parameters, PolicyBatch, Rows
from marl_tr.vector.contract import GroupSpec

__all__ = ["FlowPolicy", "make"]

LATENT, SIGMA = "latent", "sigma"
"""Leaves of an environment whose own steps denoise: the present state, and its noise level with the next one."""

_FORWARD_ELEMENTS = 2**21
"""Numbers that enter the network at once where no gradient is kept: bounds the memory of large batches."""


class FlowPolicy:
    """Decentralised flow-matching policies of one team.

    The chain's transitions are policies in the sense of DDPO (Black et al., arXiv 2305.13301): step ``k`` decides
    ``x_{k+1} ~ N(a_k x_k + b_k v(x_k, s_k | o), std_k^2 I)`` with the sampler's coefficients.

    Args:
        config: Network, sampler and grid.
        group: The agents' spaces; one Box action.
        rows: How agents share parameters.
        generator: Source of the networks' start.
        device: Where the networks live.

    Raises:
        UserError: The action space is not one Box; or no step of the chain is stochastic; or the environment's steps
            are no denoising steps although the chain is to be the environment's, or the other way round.
    """

    capabilities = frozenset({Capability.LOG_PROB, Capability.KL, Capability.GAUSSIAN})
    direction = "kl_old_new"
    recurrent = False
    observes = False

    def __init__(
        self, config: FlowConfig, group: GroupSpec, *, rows: Rows, generator: torch.Generator, device: torch.device
    ) -> None:
        self.rows = rows
        self._config, self._device = config, device
        self._leaf, self._box = single_box(group, "a flow policy")
        self._own = config.chain == "own"
        _check_chain(config, group, self._box)
        self._condition = tuple(leaf for leaf in group.observation if self._own or leaf not in (LATENT, SIGMA))
        seen = replace(group, observation={leaf: group.observation[leaf] for leaf in self._condition})
        networks = [build_velocity(config.network, seen, generator) for _ in range(rows.learners)]
        self.module = StackedNetworks(networks).to(device)
        self.sampler = Sampler(
            kind=config.sampler,
            eta=config.eta,
            clamp=config.clamp,
            clamp_eps=config.clamp_eps,
            cps_log_prob=config.cps_log_prob,
            window=config.sde_window,
        )
        self.sigmas = sigma_grid(config.steps, config.shift)
        self.coefficients = self.sampler.coefficients(self.sigmas)
        if not bool(self.coefficients.stochastic.any()):
            raise UserError(_no_likelihood(config))
        self._surrogate = config.sampler == "cps" and config.cps_log_prob == "surrogate"
        self._std = self.coefficients.std.float().to(device)
        self._levels = self.coefficients.s.float().to(device)
        self._pairs = torch.stack([self.coefficients.s, self.coefficients.s_next], -1).float().to(device)
        self.weights = self._chain_weights().float().to(device)

    @property
    def dimensions(self) -> int:
        """``D`` of an action."""
        return int(np.prod(self._box.shape))

    def initial_memory(self, trajectories: int) -> Tensor | None:
        """None: it remembers nothing."""
        return None

    def act(
        self,
        observation: Mapping[str, Tensor],
        memory: Tensor | None,
        generator: torch.Generator,
        *,
        mode: bool = False,
    ) -> Action:
        """See `marl_tr.policy.Policy`; `mode` integrates the ODE. The record holds the chain's states."""
        if not self._own:
            return self._denoise_once(observation, generator, mode=mode)
        lead = next(iter(observation.values())).shape[:2]
        x = torch.randn(*lead, self.dimensions, generator=generator, device=self._device)
        steps, coefficients = self._chain_of(mode)
        if mode and self._config.mode_noise == "zero":
            x = torch.zeros_like(x)
        states, means, clean = [x], [], x
        for k in range(steps):
            velocity = self._velocity(None, x, coefficients.s[k].to(x).expand(lead), observation)
            clean = x - float(coefficients.s[k]) * velocity
            x = coefficients.mean(x, velocity, k)
            means.append(x)
            if coefficients.std[k] > 0:
                noise = torch.randn(x.shape, generator=generator, device=self._device)
                x = torch.add(x, noise, alpha=float(coefficients.std[k]))
            states.append(x)
        decoded = clean if self._config.decode == "clean" else x
        record = {"chain": torch.stack(states, 2), "mean": torch.stack(means, 2)}
        return Action(env={self._leaf: to_box(decoded, self._box)}, record=record, memory=None)

    def evaluate(self, parameters: Parameters, batch: PolicyBatch) -> Evaluation:
        """See `marl_tr.policy.Policy`; in an environment that denoises, ``K = 1``."""
        x, x_next, step = self._transitions(batch)
        return self._evaluation(self._means(parameters, x, step, batch), x_next, step)

    def recall(self, batch: PolicyBatch) -> Evaluation:
        """What `evaluate` says under the parameters that acted, from the record: no network runs."""
        _, x_next, step = self._transitions(batch)
        mean = batch.record["mean"]
        if not self._own:
            mean = mean.unsqueeze(3)
        elif batch.chain is not None:
            mean = mean.gather(3, batch.chain.unsqueeze(-1).expand(*batch.chain.shape, mean.shape[-1]))
        return self._evaluation(mean, x_next, step)

    def judge(self, law: ChainLaw, batch: PolicyBatch) -> Evaluation:
        """What `evaluate` says of a batch where the law is this one."""
        _, x_next, step = self._transitions(batch)
        return self._evaluation(law.mean, x_next, step)

    def _evaluation(self, mean: Tensor, x_next: Tensor, step: Tensor) -> Evaluation:
        law = ChainLaw(mean=mean, std=self._std.to(mean.dtype)[step])
        log_prob = law.surrogate(x_next) if self._surrogate else law.log_prob(x_next)
        return Evaluation(
            log_prob=log_prob,
            entropy=law.entropy(),
            law=law,
            weight=self.weights.to(mean.dtype)[step],
            dimensions=self.dimensions,
        )

    def divergence(self, anchor: ChainLaw, law: ChainLaw) -> Tensor:
        """KL(anchor || law), exact, ``[L, T, N, k]``; zero at deterministic steps, which no density measures."""
        return anchor.kl(law)

    def total_variation(self, anchor: ChainLaw, law: ChainLaw) -> Tensor:
        """Half the L1 distance of each step's laws, ``[L, T, N, k]``."""
        return anchor.total_variation(law)

    def tail_mass(self, law: ChainLaw, log_prob: Tensor) -> Tensor:
        """See `marl_tr.policy.Policy`."""
        return law.tail_mass(log_prob, surrogate=self._surrogate)

    def law_parameters(self, parameters: Parameters, batch: PolicyBatch) -> tuple[Tensor, ...]:
        """The means of the chain's steps side by side, ``[L, T, N, k D]``."""
        x, _, step = self._transitions(batch)
        return (self._means(parameters, x, step, batch).flatten(-2),)

    def fisher_product(self, law: ChainLaw, tangents: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The Fisher information of the means is ``1 / std^2``; deterministic steps carry none."""
        tangent = tangents[0].unflatten(-1, law.mean.shape[-2:])
        precision = torch.where(law.stochastic, law.std, torch.inf).pow(-2).unsqueeze(-1)
        return ((tangent * precision).flatten(-2),)

    def observe(self, observation: Mapping[str, Tensor], mask: Tensor, *, first: bool = False) -> None:
        """Nothing: no statistics are kept."""

    def diagnostics(self) -> dict[str, float]:
        """Least deviation of a stochastic step, and the mean of the equalizer's weights (both fixed by the grid)."""
        stochastic = self.coefficients.stochastic
        return {
            "flow/sde_std_min": float(self.coefficients.std[stochastic].min()),
            "flow/equalizer_scale": float(self.weights.mean()),
        }

    def state_dict(self) -> dict[str, Any]:
        """The trained parameters, and hashes of what is not trained, by which another model is recognised."""
        return {"module": dict(self.module.state_dict()), "frozen": self._fingerprint()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict`.

        Raises:
            UserError: The frozen part of the network is another one than it was.
        """
        if state["frozen"] != self._fingerprint():
            raise UserError(
                "the part of the flow's network that is not trained (agents.network.pretrained, or base) is not the "
                "one this checkpoint was made with; put the old one back, or go on with the version of the package "
                "that wrote it"
            )
        self.module.load_state_dict(state["module"])

    def _chain_weights(self) -> Tensor:
        if self._config.equalizer:
            return equalizer_weights(self.coefficients, surrogate=self._surrogate)
        return self.coefficients.stochastic.double()

    def _chain_of(self, mode: bool) -> tuple[int, Coefficients]:
        if not mode:
            return self._config.steps, self.coefficients
        steps = self._config.mode_steps or self._config.steps
        return steps, Sampler(kind="ode").coefficients(sigma_grid(steps, self._config.shift))

    def _denoise_once(self, observation: Mapping[str, Tensor], generator: torch.Generator, *, mode: bool) -> Action:
        """One step of the environment's chain, ``[L, N]`` agents that may be at different levels."""
        x, step = observation[LATENT].flatten(2), self._step_of(observation[SIGMA])
        coefficients = self._chain_of(True)[1] if mode else self.coefficients
        level = self._levels[step]
        velocity = self._velocity(None, x, level, observation)
        mean = coefficients.mean(x, velocity, step)
        std = coefficients.std.to(x)[step].unsqueeze(-1)
        noise = torch.randn(x.shape, generator=generator, device=self._device)
        x_next = mean + std * noise
        decoded = x_next
        if self._config.decode == "clean":
            last = (step == self._config.steps - 1).unsqueeze(-1)
            decoded = torch.where(last, x - level.unsqueeze(-1) * velocity, x_next)
        return Action(env={self._leaf: to_box(decoded, self._box)}, record={"next": x_next, "mean": mean}, memory=None)

    def _step_of(self, sigma: Tensor) -> Tensor:
        """Which step of the grid leads from the noise level ``sigma[..., 0]`` to ``sigma[..., 1]``.

        Raises:
            UserError: None does: the environment's grid is another.
        """
        # Both levels: a grid of half as many steps has every other of ours.
        gap = (sigma.unsqueeze(-2) - self._pairs.to(sigma.dtype)).abs().amax(-1)
        nearest = gap.min(-1)
        wrong = nearest.values > 1e-5
        if bool(wrong.any()):
            level, following = sigma[wrong][0].tolist()
            raise UserError(
                f"the environment denoises from level {level:.4f} to {following:.4f}, which is none of the policy's "
                f"{self._config.steps} steps with shift {self._config.shift:g}; give agents and env.config "
                "the same 'steps' and 'shift'"
            )
        return nearest.indices

    def _transitions(self, batch: PolicyBatch) -> tuple[Tensor, Tensor, Tensor]:
        """States before and after the scored steps ``[L, T, N, k, D]``, and the steps ``[L, T, N, k]``."""
        if not self._own:
            x = batch.observation[LATENT].flatten(3).unsqueeze(3)
            return x, batch.record["next"].unsqueeze(3), self._step_of(batch.observation[SIGMA]).unsqueeze(-1)
        chain = batch.record["chain"]
        if batch.chain is None:
            step = torch.arange(self._config.steps, device=chain.device).expand(*chain.shape[:3], -1)
            return chain[..., :-1, :], chain[..., 1:, :], step
        index = batch.chain.unsqueeze(-1).expand(*batch.chain.shape, chain.shape[-1])
        return chain.gather(3, index), chain.gather(3, index + 1), batch.chain

    def _means(self, parameters: Parameters, x: Tensor, step: Tensor, batch: PolicyBatch) -> Tensor:
        level = self._levels.to(x.dtype)[step]
        condition = {
            leaf: batch.observation[leaf].unsqueeze(3).expand(*step.shape, *batch.observation[leaf].shape[3:])
            for leaf in self._condition
        }
        return self.coefficients.mean(x, self._velocity(parameters, x, level, condition), step)

    def _velocity(
        self, parameters: Parameters | None, x: Tensor, level: Tensor, observation: Mapping[str, Tensor]
    ) -> Tensor:
        """``[L, ..., D]`` velocities at states ``[L, ..., D]`` and levels ``[L, ...]``."""
        rows = [
            self._row_velocity(
                self.module.row(parameters, row),
                x[row].reshape(-1, *self._box.shape),
                level[row].reshape(-1),
                {leaf: observation[leaf][row].flatten(0, level.ndim - 2) for leaf in self._condition},
            )
            for row in range(len(x))
        ]
        return torch.stack(rows).reshape(x.shape)

    def _row_velocity(self, network: Any, x: Tensor, level: Tensor, observation: Mapping[str, Tensor]) -> Tensor:
        size = len(x) if torch.is_grad_enabled() else max(1, _FORWARD_ELEMENTS // self.dimensions)
        parts = []
        for start in range(0, len(x), size):
            part = slice(start, start + size)
            parts.append(self._guided(network, x[part], level[part], {k: v[part] for k, v in observation.items()}))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _guided(self, network: Any, x: Tensor, level: Tensor, observation: Mapping[str, Tensor]) -> Tensor:
        """Classifier-free guidance (Ho and Salimans, arXiv 2207.12598); no condition is all zeros."""
        w = self._config.guidance
        if w is None:
            velocity: Tensor = network(x, level, observation)
            return velocity
        nothing = {leaf: torch.zeros_like(value) for leaf, value in observation.items()}
        both = network(
            torch.cat([x, x]),
            torch.cat([level, level]),
            {leaf: torch.cat([value, nothing[leaf]]) for leaf, value in observation.items()},
        )
        with_condition, without = both.chunk(2)
        return torch.lerp(without, with_condition, w)

    def _fingerprint(self) -> dict[str, str]:
        # Of the bytes: sums depend on the device and on the number of threads that made them.
        return {name: _sha256(value) for name, value in self.module.frozen.items()}


def make(
    config: FlowConfig, group: GroupSpec, *, rows: Rows, generator: torch.Generator, device: torch.device
) -> FlowPolicy:
    """The registered factory of agent kind ``flow``."""
    return FlowPolicy(config, group, rows=rows, generator=generator, device=device)


def _sha256(value: Tensor) -> str:
    flat = value.detach().cpu().contiguous().flatten()
    return hashlib.sha256(flat.view(torch.uint8).numpy().tobytes()).hexdigest()


def _no_likelihood(config: FlowConfig) -> str:
    where = f"its {config.steps} step{'s' if config.steps > 1 else ''}"
    if config.sde_window is not None:
        where = f"the steps {list(config.sde_window)} of sde_window"
    return (
        f"the {config.sampler!r} sampler draws no noise in {where} (its last step is deterministic), so that there is "
        "no likelihood to learn from; use more steps, an earlier window, or sampler 'sage'"
    )


def _check_chain(config: FlowConfig, group: GroupSpec, box: spaces.Box) -> None:
    """That whoever is to run the chain does.

    Raises:
        UserError: The environment's steps are no denoising steps although they are to be, or the other way round.
    """
    latent, sigma = group.observation.get(LATENT), group.observation.get(SIGMA)
    denoises = latent is not None and latent.shape == box.shape and sigma is not None and sigma.shape == (2,)
    if config.chain == "own" and denoises:
        raise UserError(
            f"group {group.name!r} shows {LATENT!r} and {SIGMA!r}: its environment denoises by itself, one step at a "
            "time; set agents.chain: environment, or the environment's view to whole samples"
        )
    if config.chain == "environment" and not denoises:
        shown = ", ".join(f"{leaf} {space.shape}" for leaf, space in group.observation.items())
        raise UserError(
            f"chain: environment needs observation leaves {LATENT!r} of the action's shape {box.shape} and {SIGMA!r} "
            f"of shape (2,); group {group.name!r} has {shown}"
        )
