"""The samplers as one diffusers scheduler, for a training rollout or a pipeline of somebody else's.

pipeline.scheduler = FlowSDEScheduler.from_config(pipeline.scheduler.config, kind="sage", eta=0.5)
pipeline.scheduler.set_generator(torch.Generator().manual_seed(1))
video = pipeline(prompt="a disc moving to the left", num_inference_steps=20)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils.outputs import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from marl_tr.agents.sage.sampler import Coefficients, InvalidGrid, Kind, Sampler, shift_sigmas
from marl_tr.errors import UserError

__all__ = ["FlowSDEScheduler", "FlowSDESchedulerOutput", "GeneratorMissing"]

Levels = Sequence[float] | np.ndarray | Tensor
Generators = torch.Generator | list[torch.Generator]


class GeneratorMissing(UserError):
    """A stochastic step without a source of random numbers."""


@dataclass
class FlowSDESchedulerOutput(BaseOutput):
    """One step.

    Attributes:
        prev_sample: The next state ``[B, ...]``, in the dtype of the sample.
        mean: Of its law, ``[B, ...]``, at least float32.
        std: Of its law, a scalar; 0 where the step is deterministic.
        log_prob: Of `prev_sample` as it was returned, summed over a sample's dimensions, ``[B]``; None where the
            step is deterministic and has no density.
        pred_original_sample: ``x0hat = x - s v``, ``[B, ...]``.
    """

    prev_sample: Tensor
    mean: Tensor
    std: Tensor
    log_prob: Tensor | None
    pred_original_sample: Tensor


class FlowSDEScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """Flow matching from noise to data by the ODE or a stochastic sampler, with the log-probability of each step.

    The model is one for `FlowMatchEulerDiscreteScheduler`: it predicts ``e - x0`` at times
    ``num_train_timesteps * sigma``. With ``kind="ode"`` the samples are that scheduler's. One thing differs:
    ``set_timesteps(n)`` makes the shifted levels of ``linspace(1, 0, n + 1)``, as training assumes; there, the same
    call shifts the last level twice, and only ``sigmas=`` gives this grid.

    Args:
        kind: A `Sampler.kind`.
        eta: Noise scale.
        shift: Of the grid; 1 spaces the levels evenly.
        num_train_timesteps: Time of the model at ``sigma = 1``.
        clamp: A `Sampler.clamp`.
        clamp_eps: Of the clamp.
        cps_log_prob: A `Sampler.cps_log_prob`.
        window: ``[start, stop)`` of the stochastic steps, or None for all.
        use_dynamic_shifting: The pipeline passes ``mu``, and ``exp(mu)`` is the shift.
        time_shift_type: ``"exponential"``, or ``"linear"``: ``mu`` itself is the shift.
        shift_terminal: Stretch the shifted levels so that the last before 0 is this one (LTX), or None.

    Raises:
        UserError: From `Sampler`.
    """

    _compatibles = ["FlowMatchEulerDiscreteScheduler"]  # noqa: RUF012 (diffusers declares it so)
    order = 1
    init_noise_sigma = 1.0

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        kind: Kind = "sage",
        eta: float = 0.5,
        shift: float = 1.0,
        num_train_timesteps: int = 1000,
        clamp: Literal["safe", "published"] = "safe",
        clamp_eps: float = 3e-3,
        cps_log_prob: Literal["gaussian", "surrogate"] = "gaussian",
        window: tuple[int, int] | None = None,
        use_dynamic_shifting: bool = False,
        time_shift_type: Literal["exponential", "linear"] = "exponential",
        shift_terminal: float | None = None,
    ) -> None:
        # A saved configuration has a list for the tuple.
        noisy = None if window is None else (window[0], window[1])
        self.sampler = Sampler(kind, eta, clamp, clamp_eps, cps_log_prob, noisy)
        self.coefficients: Coefficients | None = None
        self.num_inference_steps: int | None = None
        self._generator: Generators | None = None
        self._step_index: int | None = None
        self._begin_index: int | None = None
        # What a trainer draws its times from, as in FlowMatchEulerDiscreteScheduler, until `set_timesteps`.
        levels = torch.arange(num_train_timesteps, 0, -1, dtype=torch.float64) / num_train_timesteps
        if not use_dynamic_shifting:
            levels = shift_sigmas(levels, shift)
        self._publish(levels, device=None)

    @property
    def step_index(self) -> int | None:
        """Index of the next step, or None before the first."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """Index of the first step, where a pipeline has set one."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Start at this step, whatever timestep the first call names."""
        self._begin_index = begin_index

    def set_generator(self, generator: Generators | None) -> None:
        """Draw from this generator where a step is given none: few pipelines pass theirs to their scheduler."""
        self._generator = generator

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: Levels | None = None,
        mu: float | None = None,
        timesteps: Levels | None = None,
    ) -> None:
        """Lay out the levels of a chain.

        Args:
            num_inference_steps: ``n``; may be left out where `sigmas` or `timesteps` are given.
            device: Of `self.timesteps` and `self.sigmas`.
            sigmas: Levels before the shift, without the final 0, as ``np.linspace(1, 0, n + 1)[:-1]``.
            mu: The shift of this call, where the scheduler was made with ``use_dynamic_shifting``; ignored elsewhere.
            timesteps: Times of the model in place of `sigmas`; they have the shift in them already.

        Raises:
            InvalidGrid: The levels do not fall strictly, or the arguments contradict each other.
            InvalidClamp: From `Sampler.coefficients`.
            UserError: The configuration asks for another scheduler's way of spacing levels.
        """
        self._refuse_other_spacings()
        levels = self._levels(num_inference_steps, sigmas, mu, timesteps)
        grid = torch.cat([levels, levels.new_zeros(1)])
        self.coefficients = self.sampler.coefficients(grid)
        self.num_inference_steps = len(levels)
        self._step_index = self._begin_index = None
        self._publish(levels, device)

    def scale_model_input(self, sample: Tensor, timestep: float | Tensor | None = None) -> Tensor:
        """The sample as it is: flow models take their states unscaled."""
        return sample

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """``(1 - s) sample + s noise`` at times ``[B]`` or ``[1]`` of the model; shapes ``[B, ...]``."""
        model_time = float(self.config["num_train_timesteps"])
        s = (timestep.to(sample.device, torch.float32) / model_time).to(sample.dtype)
        s = s.reshape(-1, *(1,) * (sample.ndim - 1))
        return (1 - s) * sample + s * noise

    def index_for_timestep(self, timestep: float | Tensor, schedule_timesteps: Tensor | None = None) -> int:
        """Which step begins at this time.

        Raises:
            InvalidGrid: None of this chain's does.
        """
        times = self.timesteps if schedule_timesteps is None else schedule_timesteps
        found = (times == (timestep.to(times.device) if isinstance(timestep, Tensor) else timestep)).nonzero()
        if len(found) == 0:
            raise InvalidGrid(
                f"no step begins at time {float(timestep):.6g}; pass an element of scheduler.timesteps, not its index"
            )
        return int(found[0])

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: Generators | None = None,
        return_dict: bool = True,
    ) -> FlowSDESchedulerOutput | tuple[Tensor | None, ...]:
        """One step towards the data. Computed in float32, or float64 where the sample is.

        Args:
            model_output: Velocity ``[B, ...]``.
            timestep: An element of `self.timesteps`; only the first call of a chain looks at it.
            sample: State ``[B, ...]``.
            generator: Source of the noise, or a list with one for each sample; default is `set_generator`'s.
            return_dict: False for a tuple with the output's fields in their order.

        Raises:
            InvalidGrid: There are no timesteps yet, the chain is at its end, or `timestep` is none of its.
            GeneratorMissing: The step is stochastic and nobody passed a generator.
        """
        index, coefficients = self._next_step(timestep)
        dtype = torch.promote_types(sample.dtype, torch.float32)
        x, v = sample.to(dtype), model_output.to(dtype)
        mean = coefficients.mean(x, v, index)
        std = torch.tensor(float(coefficients.std[index]), dtype=dtype, device=x.device)
        state, log_prob = mean, None
        if bool(coefficients.stochastic[index]):
            state = torch.add(mean, self._noise(x, generator), alpha=float(coefficients.std[index]))
        previous = state.to(sample.dtype)
        if bool(coefficients.stochastic[index]):
            # Of the state as it is kept: a trainer will find bfloat16's rounding in it, and a rounding of 1/256 is not
            # small against a late step's std. The state is data here; only the mean has a gradient.
            log_prob = self.sampler.log_prob(previous.detach().to(dtype), mean, std)
        x0 = torch.add(x, v, alpha=-float(coefficients.s[index]))
        self._step_index = index + 1
        output = FlowSDESchedulerOutput(
            prev_sample=previous, mean=mean, std=std, log_prob=log_prob, pred_original_sample=x0
        )
        return output if return_dict else (previous, mean, std, log_prob, x0)

    def __len__(self) -> int:
        return int(self.config["num_train_timesteps"])

    def _publish(self, levels: Tensor, device: str | torch.device | None) -> None:
        """`self.sigmas` (with the final 0) and `self.timesteps`, float32, as pipelines read them."""
        self.timesteps = (levels * self.config["num_train_timesteps"]).to(device=device, dtype=torch.float32)
        self.sigmas = torch.cat([levels, levels.new_zeros(1)]).to(device=device, dtype=torch.float32)

    def _levels(self, steps: int | None, sigmas: Levels | None, mu: float | None, timesteps: Levels | None) -> Tensor:
        """Shifted levels without the final 0, ``[n]`` float64."""
        if sigmas is not None and timesteps is not None:
            raise InvalidGrid("pass sigmas or timesteps, not both: each says the levels of all steps")
        given = sigmas if timesteps is None else timesteps
        if given is None:
            if steps is None or steps < 1:
                raise InvalidGrid(f"num_inference_steps must be at least 1, not {steps}")
            levels = torch.linspace(1, 0, steps + 1, dtype=torch.float64)[:-1]
        else:
            levels = torch.as_tensor(given, dtype=torch.float64, device="cpu")
            if steps not in (None, len(levels)):
                raise InvalidGrid(f"num_inference_steps = {steps} contradicts {len(levels)} given levels")
        if timesteps is not None:
            return levels / float(self.config["num_train_timesteps"])
        if given is not None and len(levels) > 0 and float(levels[-1]) == 0:
            raise InvalidGrid("sigmas end with 0, which is added here; pass np.linspace(1, 0, n + 1)[:-1]")
        return self._stretched(shift_sigmas(levels, self._shift(mu)))

    def _shift(self, mu: float | None) -> float:
        if not self.config["use_dynamic_shifting"]:
            return float(self.config["shift"])
        if mu is None:
            raise InvalidGrid("with use_dynamic_shifting, set_timesteps needs mu, the shift's logarithm")
        return math.exp(mu) if self.config["time_shift_type"] == "exponential" else float(mu)

    def _stretched(self, levels: Tensor) -> Tensor:
        """The levels with ``shift_terminal`` for the last of them, by a scale of ``1 - s``."""
        terminal: float | None = self.config["shift_terminal"]
        if not terminal or len(levels) < 2:
            return levels
        return 1 - (1 - levels) * ((1 - terminal) / (1 - levels[-1]))

    def _refuse_other_spacings(self) -> None:
        """A configuration taken over from another scheduler may hold more than this one knows."""
        others = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "invert_sigmas")
        for name in others:
            if self.config.get(name):
                raise UserError(
                    f"FlowSDEScheduler has no {name}; make it with {name}=False, or pass sigmas of your own"
                )

    def _next_step(self, timestep: float | Tensor) -> tuple[int, Coefficients]:
        if self.coefficients is None or self.num_inference_steps is None:
            raise InvalidGrid("the scheduler has no timesteps yet; call set_timesteps first")
        index = self._step_index
        if index is None:
            index = self.index_for_timestep(timestep) if self._begin_index is None else self._begin_index
        if index >= self.num_inference_steps:
            raise InvalidGrid(f"the chain ended after {self.num_inference_steps} steps; call set_timesteps for another")
        return index, self.coefficients

    def _noise(self, like: Tensor, generator: Generators | None) -> Tensor:
        source = self._generator if generator is None else generator
        if source is None:
            raise GeneratorMissing(
                f"the {self.sampler.kind} sampler draws noise; pass generator= to step, or, for a pipeline that does "
                "not, call scheduler.set_generator(torch.Generator().manual_seed(...)) before it"
            )
        noise: Tensor = randn_tensor(like.shape, generator=source, device=like.device, dtype=like.dtype)
        return noise
