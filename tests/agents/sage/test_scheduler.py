"""The scheduler against diffusers' own, against torch.distributions, and inside pipelines of diffusers."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLWan,
    DiTPipeline,
    DiTTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    WanTransformer3DModel,
)
from diffusers.utils import is_transformers_available
from torch import Tensor, distributions

from marl_tr.agents.sage.sampler import EtaOutOfRange, InvalidClamp, InvalidGrid, Kind, sigma_grid
from marl_tr.agents.sage.scheduler import FlowSDEScheduler, FlowSDESchedulerOutput, GeneratorMissing
from marl_tr.errors import UserError

NOISY: tuple[Kind, ...] = ("dance", "flow", "sage", "cps", "precise")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def velocity(x: Tensor, t: Tensor) -> Tensor:
    """Stands for a network: smooth, and neither linear nor the same at all times."""
    return torch.tanh(1.3 * x + 0.002 * t) - 0.4 * x.roll(1, -1)


def sample(scheduler: Any, x: Tensor, **settings: Any) -> Tensor:
    for t in scheduler.timesteps:
        x = scheduler.step(velocity(x, t), t, x, **settings).prev_sample
    return x


def uniform(steps: int) -> np.ndarray:
    return np.linspace(1, 0, steps + 1)[:-1]


def step_at(scheduler: FlowSDEScheduler, index: int, v: Tensor, x: Tensor, **settings: Any) -> FlowSDESchedulerOutput:
    scheduler.set_timesteps(scheduler.num_inference_steps)
    scheduler.set_begin_index(index)
    output = scheduler.step(v, scheduler.timesteps[index], x, **settings)
    assert isinstance(output, FlowSDESchedulerOutput)
    return output


@pytest.mark.parametrize(("steps", "shift"), [(20, 5.0), (7, 1.0), (50, 3.0)])
def test_ode_samples_are_those_of_the_euler_scheduler_of_diffusers(steps: int, shift: float) -> None:
    theirs, ours = FlowMatchEulerDiscreteScheduler(shift=shift), FlowSDEScheduler(kind="ode", shift=shift)
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(sigmas=uniform(steps))
    assert torch.allclose(ours.timesteps, theirs.timesteps, rtol=2e-7)
    assert torch.allclose(ours.sigmas, theirs.sigmas, atol=1e-7)
    x = torch.randn(4, 3, 8, generator=generator())
    assert torch.allclose(sample(ours, x), sample(theirs, x), atol=3e-6)


def test_a_number_of_steps_gives_the_grid_of_training() -> None:
    ours, theirs = FlowSDEScheduler(shift=5.0), FlowMatchEulerDiscreteScheduler(shift=5.0)
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(20)
    assert torch.equal(ours.sigmas, sigma_grid(20, 5.0).float())
    assert torch.equal(ours.timesteps, (1000 * sigma_grid(20, 5.0)[:-1]).float())
    assert float(ours.sigmas[-2]) == pytest.approx(0.20833, abs=1e-5)
    assert float(theirs.sigmas[-2]) == pytest.approx(0.0244, abs=1e-4)
    assert ours.coefficients is not None
    assert torch.equal(torch.cat([ours.coefficients.s, torch.zeros(1)]), sigma_grid(20, 5.0))


@pytest.mark.parametrize(
    ("settings", "mu"),
    [
        ({"use_dynamic_shifting": True}, 0.9),
        ({"use_dynamic_shifting": True, "time_shift_type": "linear"}, 2.5),
        ({"use_dynamic_shifting": True, "shift_terminal": 0.1}, 1.4),
        ({"shift": 3.0}, 0.9),
    ],
)
def test_shifts_that_pipelines_pass_mean_what_they_mean_in_diffusers(settings: dict[str, Any], mu: float) -> None:
    theirs, ours = FlowMatchEulerDiscreteScheduler(**settings), FlowSDEScheduler(**settings)
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(sigmas=uniform(12), mu=mu)
    assert torch.allclose(ours.sigmas, theirs.sigmas, atol=2e-7)
    assert torch.allclose(ours.timesteps, theirs.timesteps, rtol=5e-7)


def test_timesteps_are_levels_that_have_their_shift_already() -> None:
    ours, again = FlowSDEScheduler(shift=5.0), FlowSDEScheduler(shift=5.0)
    ours.set_timesteps(20)
    again.set_timesteps(timesteps=ours.timesteps)
    assert again.num_inference_steps == 20
    assert torch.allclose(again.sigmas, ours.sigmas, atol=1e-7)


@pytest.mark.parametrize("kind", NOISY)
def test_the_same_generator_gives_the_same_sample_whoever_passes_it(kind: Kind) -> None:
    scheduler = FlowSDEScheduler(kind=kind, shift=3.0)
    x = torch.randn(4, 3, 8, generator=generator())
    samples = []
    for seed in (1, 1, 2):
        scheduler.set_timesteps(6)
        samples.append(sample(scheduler, x, generator=generator(seed)))
    scheduler.set_timesteps(6)
    scheduler.set_generator(generator(1))
    samples.append(sample(scheduler, x))
    assert torch.equal(samples[0], samples[1])
    assert torch.equal(samples[0], samples[3])
    assert not torch.allclose(samples[0], samples[2])


def test_a_generator_for_each_sample_makes_it_independent_of_its_batch() -> None:
    scheduler = FlowSDEScheduler(shift=3.0)
    x = torch.randn(3, 8, generator=generator())
    scheduler.set_timesteps(6)
    together = sample(scheduler, x, generator=[generator(seed) for seed in range(3)])
    for i in range(3):
        scheduler.set_timesteps(6)
        assert torch.allclose(sample(scheduler, x[i : i + 1], generator=[generator(i)]), together[i : i + 1], atol=1e-6)


@pytest.mark.parametrize("kind", NOISY)
def test_a_step_draws_from_the_law_it_reports(kind: Kind) -> None:
    scheduler = FlowSDEScheduler(kind=kind, shift=5.0)
    scheduler.set_timesteps(20)
    assert scheduler.coefficients is not None
    x, v = (torch.randn(4, 3, 2, 8, generator=generator(seed), dtype=torch.float64) for seed in (1, 2))
    for index in (0, 1, 10, 18):
        output = step_at(scheduler, index, v, x, generator=generator(3))
        noise = torch.randn(4, 3, 2, 8, generator=generator(3), dtype=torch.float64)
        assert torch.equal(output.mean, scheduler.coefficients.mean(x, v, index))
        assert float(output.std) == float(scheduler.coefficients.std[index])
        assert torch.allclose(output.prev_sample, output.mean + output.std * noise, atol=1e-14)
        law = distributions.Independent(distributions.Normal(output.mean, output.std), 3)
        assert output.log_prob is not None
        assert torch.allclose(output.log_prob, law.log_prob(output.prev_sample), rtol=1e-12)
        assert torch.allclose(output.pred_original_sample, x - scheduler.coefficients.s[index] * v, atol=1e-14)


def test_deterministic_steps_have_no_likelihood_and_need_no_generator() -> None:
    x, v = (torch.randn(2, 8, generator=generator(seed)) for seed in (1, 2))
    for settings, index in (({"kind": "ode"}, 3), ({"kind": "cps"}, 9), ({"kind": "sage", "window": (2, 5)}, 5)):
        scheduler = FlowSDEScheduler(**settings)
        scheduler.set_timesteps(10)
        output = step_at(scheduler, index, v, x)
        assert output.log_prob is None
        assert float(output.std) == 0
        assert torch.equal(output.prev_sample, output.mean)
        scheduler.set_timesteps(10)
        scheduler.set_begin_index(index)
        assert scheduler.step(v, scheduler.timesteps[index], x, return_dict=False)[3] is None


def test_the_tuple_has_the_fields_of_the_output_in_their_order() -> None:
    scheduler = FlowSDEScheduler(window=(0, 1))
    x, v = (torch.randn(2, 8, generator=generator(seed)) for seed in (1, 2))
    scheduler.set_timesteps(4)
    output = scheduler.step(v, scheduler.timesteps[0], x, generator=generator())
    scheduler.set_timesteps(4)
    values = scheduler.step(v, scheduler.timesteps[0], x, generator=generator(), return_dict=False)
    assert isinstance(output, FlowSDESchedulerOutput)
    assert isinstance(values, tuple)
    for ours, named in zip(values, output.to_tuple(), strict=True):
        assert ours is not None
        assert torch.equal(ours, named)


def test_half_precision_keeps_its_dtype_and_reports_the_likelihood_of_what_it_kept() -> None:
    scheduler = FlowSDEScheduler(shift=5.0)
    scheduler.set_timesteps(20)
    x, v = (torch.randn(2, 64, generator=generator(seed)).bfloat16() for seed in (1, 2))
    output = step_at(scheduler, 19, v, x, generator=generator(3))
    assert output.prev_sample.dtype == torch.bfloat16
    assert output.mean.dtype == output.std.dtype == torch.float32
    assert output.log_prob is not None
    law = distributions.Independent(distributions.Normal(output.mean, output.std), 1)
    assert torch.allclose(output.log_prob, law.log_prob(output.prev_sample.float()), rtol=1e-5)


def test_the_gradient_of_the_log_prob_passes_through_the_mean_only() -> None:
    scheduler = FlowSDEScheduler(shift=5.0)
    scheduler.set_timesteps(20)
    assert scheduler.coefficients is not None
    x = torch.randn(2, 8, generator=generator(1), dtype=torch.float64)
    v = torch.randn(2, 8, generator=generator(2), dtype=torch.float64, requires_grad=True)
    output = step_at(scheduler, 7, v, x, generator=generator(3))
    assert output.log_prob is not None
    (gradient,) = torch.autograd.grad(output.log_prob.sum(), v)
    expected = scheduler.coefficients.b[7] * (output.prev_sample - output.mean) / output.std**2
    assert torch.allclose(gradient, expected, rtol=1e-10)


def test_cps_reports_its_surrogate_where_asked_to() -> None:
    scheduler = FlowSDEScheduler(kind="cps", cps_log_prob="surrogate")
    scheduler.set_timesteps(10)
    x, v = (torch.randn(2, 8, generator=generator(seed)) for seed in (1, 2))
    output = step_at(scheduler, 4, v, x, generator=generator(3))
    assert output.log_prob is not None
    assert torch.allclose(output.log_prob, -(output.prev_sample - output.mean).square().sum(-1))


def test_noising_is_that_of_diffusers() -> None:
    theirs, ours = FlowMatchEulerDiscreteScheduler(shift=3.0), FlowSDEScheduler(shift=3.0)
    x, noise = (torch.randn(5, 2, 8, generator=generator(seed)) for seed in (1, 2))
    # As a trainer uses it, before set_timesteps, and then at the steps of a chain.
    assert torch.allclose(ours.timesteps, theirs.timesteps, rtol=1e-6)
    times = theirs.timesteps[[0, 10, 400, 700, 999]]
    assert torch.allclose(ours.scale_noise(x, times, noise), theirs.scale_noise(x, times, noise), atol=1e-6)
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(sigmas=uniform(9))
    times = theirs.timesteps[[0, 2, 4, 6, 8]]
    assert torch.allclose(ours.scale_noise(x, times, noise), theirs.scale_noise(x, times, noise), atol=1e-6)


def test_a_chain_can_begin_in_the_middle() -> None:
    scheduler, begun = FlowSDEScheduler(shift=3.0), FlowSDEScheduler(shift=3.0)
    x = torch.randn(2, 8, generator=generator(1))
    for one in (scheduler, begun):
        one.set_timesteps(8)
    begun.set_begin_index(5)
    assert begun.begin_index == 5
    times = scheduler.timesteps[5:]
    samples = []
    for one in (scheduler, begun):
        state, source = x, generator(4)
        for t in times:
            state = one.step(velocity(state, t), t, state, generator=source).prev_sample
        samples.append(state)
    assert torch.equal(*samples)
    assert scheduler.step_index == begun.step_index == 8


def test_a_saved_scheduler_comes_back_as_it_was(tmp_path: Path) -> None:
    settings = {"kind": "cps", "eta": 0.7, "shift": 4.0, "window": (1, 3), "cps_log_prob": "surrogate"}
    scheduler = FlowSDEScheduler(**settings)
    scheduler.save_pretrained(tmp_path)
    again = FlowSDEScheduler.from_pretrained(tmp_path)
    assert again.sampler == scheduler.sampler
    for one in (scheduler, again):
        one.set_timesteps(6)
        one.set_generator(generator(5))
    x = torch.randn(2, 8, generator=generator(1))
    assert torch.equal(sample(scheduler, x), sample(again, x))


def test_it_takes_the_place_of_a_pipelines_scheduler_with_its_settings() -> None:
    theirs = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True, base_image_seq_len=64)
    ours = FlowSDEScheduler.from_config(theirs.config, kind="dance", eta=0.3)
    assert ours.sampler.kind == "dance"
    assert ours.sampler.eta == 0.3
    assert ours.config.use_dynamic_shifting
    assert ours.config.get("base_image_seq_len") == 64
    karras = FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True)
    with pytest.raises(UserError, match="no use_karras_sigmas"):
        FlowSDEScheduler.from_config(karras.config).set_timesteps(4)


def test_misuse_is_told_with_its_cure() -> None:
    x = torch.zeros(1, 4)
    scheduler = FlowSDEScheduler()
    with pytest.raises(InvalidGrid, match="call set_timesteps first"):
        scheduler.step(x, 1000.0, x)
    scheduler.set_timesteps(2)
    with pytest.raises(GeneratorMissing, match=r"sage sampler.*set_generator"):
        scheduler.step(x, scheduler.timesteps[0], x)
    with pytest.raises(InvalidGrid, match=r"no step begins at time 3; pass an element of scheduler\.timesteps"):
        scheduler.step(x, 3, x)
    sample(scheduler, x, generator=generator())
    with pytest.raises(InvalidGrid, match="ended after 2 steps"):
        scheduler.step(x, scheduler.timesteps[0], x, generator=generator())
    with pytest.raises(InvalidGrid, match="added here"):
        scheduler.set_timesteps(sigmas=[1.0, 0.5, 0.0])
    with pytest.raises(InvalidGrid, match="fall strictly"):
        scheduler.set_timesteps(sigmas=[0.5, 1.0])
    with pytest.raises(InvalidGrid, match="contradicts 2 given"):
        scheduler.set_timesteps(3, sigmas=[1.0, 0.5])
    with pytest.raises(InvalidGrid, match="not both"):
        scheduler.set_timesteps(sigmas=[1.0, 0.5], timesteps=[1000.0, 500.0])
    with pytest.raises(InvalidGrid, match="at least 1, not None"):
        scheduler.set_timesteps()
    with pytest.raises(InvalidGrid, match="needs mu"):
        FlowSDEScheduler(use_dynamic_shifting=True).set_timesteps(4)
    with pytest.raises(InvalidClamp, match="50 steps and shift 7"):
        FlowSDEScheduler(clamp="published", shift=7.0).set_timesteps(50)
    with pytest.raises(EtaOutOfRange, match="cps"):
        FlowSDEScheduler(kind="cps", eta=1.5)


def dit_pipeline(scheduler: FlowSDEScheduler) -> DiTPipeline:
    torch.manual_seed(0)
    transformer = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        sample_size=8,
        patch_size=2,
    )
    # Its last layer starts at zero, and the velocity of a zero network would tell nothing.
    torch.nn.init.normal_(transformer.proj_out_2.weight, std=0.3)
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4)
    pipeline = DiTPipeline(transformer.eval(), vae.eval(), scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_an_image_pipeline_of_diffusers_samples_by_it_and_is_saved_with_it(tmp_path: Path) -> None:
    pipeline = dit_pipeline(FlowSDEScheduler(kind="sage", eta=0.5, shift=3.0))
    settings = {"class_labels": [3, 7], "guidance_scale": 1.0, "num_inference_steps": 5, "output_type": "pt"}
    pipeline.scheduler.set_generator(generator(2))
    images = pipeline(**settings, generator=generator(1)).images

    c = pipeline.scheduler.coefficients
    source = generator(2)
    with torch.no_grad():
        x = torch.randn(2, 4, 8, 8, generator=generator(1))
        for i in range(5):
            v = pipeline.transformer(x, timestep=1000 * c.s[i].float().expand(2), class_labels=torch.tensor([3, 7]))
            x0, noise = x - float(c.s[i]) * v.sample, x + float(1 - c.s[i]) * v.sample
            mean = float(1 - c.s_next[i]) * x0 + float(c.c[i]) * noise
            x = mean + float(c.std[i]) * torch.randn(2, 4, 8, 8, generator=source)
        expected = (pipeline.vae.decode(x / pipeline.vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)
    assert torch.allclose(images, expected, atol=1e-5)
    assert float(images.std()) > 0.01

    pipeline.save_pretrained(tmp_path)
    again = DiTPipeline.from_pretrained(tmp_path)
    assert isinstance(again.scheduler, FlowSDEScheduler)
    assert again.scheduler.sampler == pipeline.scheduler.sampler
    again.set_progress_bar_config(disable=True)
    again.scheduler.set_generator(generator(2))
    assert torch.allclose(again(**settings, generator=generator(1)).images, images, atol=1e-6)


@pytest.mark.skipif(not is_transformers_available(), reason="diffusers' video pipelines need transformers")
@pytest.mark.parametrize("kind", ["ode", "sage", "cps"])
def test_a_video_pipeline_of_diffusers_samples_by_it(kind: Kind) -> None:
    from diffusers import WanPipeline

    torch.manual_seed(0)
    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=16, out_channels=16,
        text_dim=32, freq_dim=64, ffn_dim=32, num_layers=2, rope_max_seq_len=32,
    )  # fmt: skip
    vae = AutoencoderKLWan(base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    pipeline = WanPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=vae.eval(),
        scheduler=FlowSDEScheduler(kind=kind, shift=5.0),
        transformer=transformer.eval(),
    )
    pipeline.set_progress_bar_config(disable=True)
    prompt, latents = torch.randn(1, 4, 32, generator=generator(0)), torch.randn(1, 16, 3, 4, 4, generator=generator(1))
    settings = {
        "prompt_embeds": prompt, "negative_prompt_embeds": torch.zeros_like(prompt), "guidance_scale": 2.0,
        "height": 32, "width": 32, "num_frames": 9, "num_inference_steps": 4,
    }  # fmt: skip
    pipeline.scheduler.set_generator(generator(2))
    final = pipeline(**settings, latents=latents, output_type="latent").frames

    scheduler = copy.deepcopy(pipeline.scheduler)
    scheduler.set_timesteps(4)
    x, source = latents, generator(2)
    with torch.no_grad():
        for t in scheduler.timesteps:
            with_prompt, without = (
                transformer(x, timestep=t.expand(1), encoder_hidden_states=text).sample
                for text in (prompt, torch.zeros_like(prompt))
            )
            output = scheduler.step(without + 2.0 * (with_prompt - without), t, x, generator=source)
            assert isinstance(output, FlowSDESchedulerOutput)
            x = output.prev_sample
    assert torch.allclose(final, x, atol=1e-5)
    pipeline.scheduler.set_generator(generator(2))
    assert np.isfinite(pipeline(**settings, latents=latents).frames).all()
