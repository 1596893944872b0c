"""Fits of a critic against closed forms, explicit matrices and torch's Adam."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from critic_examples import (
    AGENTS,
    COPIES,
    STEPS,
    LinearEncoder,
    generator,
    make_alive,
    make_inputs,
    make_spec,
)
from torch import Tensor

from marl_tr.agents.matr.config import GraphRecurrentConfig
from marl_tr.agents.matr.critic import GraphRecurrentEncoder
from marl_tr.critic.config import AdamFitConfig, MlpCriticConfig, TrustRegionFitConfig
from marl_tr.critic.critic import Encoding
from marl_tr.critic.fit import AdamFit, TrustRegionFit, _Error
from marl_tr.critic.inputs import CriticInputs
from marl_tr.critic.mlp import MlpEncoder
from marl_tr.errors import Diverged
from marl_tr.nn.stacked import StackedLinear
from marl_tr.region.natural_step import flatten, unflatten

torch.set_num_threads(1)

SCALES = torch.tensor([1.0, 1e3, 1e-3])


def graph_encoder(**settings: Any) -> GraphRecurrentEncoder:
    config = GraphRecurrentConfig(**{"width": 8, "heads": 2, **settings})
    return GraphRecurrentEncoder(config, make_spec(), generator=generator(1))


def mlp_encoder() -> MlpEncoder:
    return MlpEncoder(MlpCriticConfig(hidden=[16]), make_spec(), generator=generator(1))


ENCODERS = {
    "linear": LinearEncoder,
    "mlp": mlp_encoder,
    "graph": graph_encoder,
    "graph-without-memory": lambda: graph_encoder(recurrent=False),
}


def values(encoder: Any, inputs: CriticInputs) -> Tensor:
    with torch.no_grad():
        result: Tensor = encoder.encode(None, inputs).values
    return result


def inputs_for(encoder: Any, seed: int = 0) -> CriticInputs:
    memory = encoder.initial_memory(COPIES)
    if memory is not None:
        memory = torch.randn(memory.shape, generator=generator(50 + seed))
    return make_inputs(seed, memory=memory)


def targets(old: Tensor, seed: int = 7) -> Tensor:
    """Far from the old values, by a thousandfold more for one head than for another."""
    return old + SCALES * (1 + torch.randn(old.shape, generator=generator(seed)))


def f_and_d(new: Tensor, old: Tensor, target: Tensor, alive: Tensor) -> tuple[float, float]:
    """``F`` and ``D`` of specification 2.4 by a loop over the heads, float64."""
    fit = divergence = 0.0
    for u in range(AGENTS):
        mask = alive[:, :, u]
        n, o, t = (x[:, :, u][mask].double() for x in (new, old, target))
        variance = max(float(((o - t) ** 2).mean()), 1e-6)
        fit += float(((n - t) ** 2).sum()) / (2 * variance)
        divergence += float(((n - o) ** 2).sum()) / (2 * variance)
    return fit / int(alive.sum()), divergence / int(alive.sum())


@pytest.mark.parametrize("bound", [0.01, 0.1])
@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("name", list(ENCODERS))
def test_divergence_keeps_its_bound_for_heads_of_very_different_scale(name: str, steps: int, bound: float) -> None:
    encoder = ENCODERS[name]()
    fit = TrustRegionFit(TrustRegionFitConfig(bound=bound, steps=steps, subsample=1.0), encoder)
    alive = make_alive()
    for update in range(3):
        inputs = inputs_for(encoder, update)
        old = values(encoder, inputs)
        target = targets(old, seed=update)
        report = fit.fit(inputs, old, target, alive, generator(update))
        before, _ = f_and_d(old, old, target, alive)
        after, divergence = f_and_d(values(encoder, inputs), old, target, alive)
        assert before == pytest.approx(0.5, rel=1e-5)
        assert after < before
        assert 0 < divergence <= bound * (1 + 1e-5)
        assert report.loss_before == pytest.approx(before, rel=1e-4)
        assert report.loss_after == pytest.approx(after, rel=1e-4)
        assert report.divergence == pytest.approx(divergence, rel=1e-3)
        assert report.divergence <= bound


def test_every_head_moves_by_its_own_measure() -> None:
    encoder = LinearEncoder()
    inputs = inputs_for(encoder)
    old = values(encoder, inputs)
    target = old + SCALES * (inputs.state["position"] @ torch.ones(7, AGENTS))
    # Curvatures 1e12 apart: the solve must go on until the flattest head is solved too.
    config = TrustRegionFitConfig(bound=0.1, subsample=1.0, damping=0.0, iterations=300, tolerance=1e-28)
    TrustRegionFit(config, encoder).fit(inputs, old, target, torch.ones_like(old, dtype=torch.bool), generator())
    moved = (values(encoder, inputs) - old).abs().mean((0, 1)) / SCALES
    assert float(moved.max() / moved.min()) < 2


@pytest.mark.parametrize(("bound", "steps"), [(0.01, 1), (0.1, 1), (10.0, 1), (0.01, 5)])
def test_linear_critic_moves_by_the_closed_form(bound: float, steps: int) -> None:
    """Least squares by LAPACK, and of its change the share ``min(1, sqrt(bound / D(1)))`` (specification 2.4).

    One step spends a small bound, and a fit that may take more does not search for what is left.
    """
    encoder = LinearEncoder()
    inputs, alive = inputs_for(encoder), make_alive()
    noise = torch.randn(STEPS, COPIES, AGENTS, generator=generator(9))
    truth = torch.randn(7, AGENTS, generator=generator(8))
    target = SCALES * (inputs.state["position"] @ truth + 0.05 * noise)
    old = values(encoder, inputs)
    config = TrustRegionFitConfig(bound=bound, steps=steps, subsample=1.0, damping=0.0, iterations=300, tolerance=1e-28)
    report = TrustRegionFit(config, encoder).fit(inputs, old, target, alive, generator())
    design = np.concatenate([inputs.state["position"].numpy(), np.ones((STEPS, COPIES, 1), np.float32)], -1)
    best = old.double().clone()
    for u in range(AGENTS):
        mask = alive[:, :, u].numpy()
        weights, *_ = np.linalg.lstsq(design[mask].astype(np.float64), target[:, :, u].numpy()[mask], rcond=None)
        best[:, :, u] = torch.from_numpy(design.astype(np.float64) @ weights)
    floor, whole = f_and_d(best, old, target, alive)
    share = min(1.0, math.sqrt(bound / whole))
    # A line search that meets the bound up to rounding may shorten the step once.
    share *= 0.99**report.backtracks
    assert report.backtracks <= 1
    expected = old + share * (best - old)
    torch.testing.assert_close(
        (values(encoder, inputs) - expected.float()) / SCALES, torch.zeros_like(old), rtol=0, atol=2e-3
    )
    loss, divergence = f_and_d(expected, old, target, alive)
    assert report.divergence == pytest.approx(divergence, rel=1e-3)
    assert report.loss_after == pytest.approx(loss, rel=1e-2, abs=1e-4)
    assert loss == pytest.approx(floor + (1 - share) ** 2 * (0.5 - floor), rel=1e-3)


@pytest.mark.parametrize("name", list(ENCODERS))
def test_a_good_critic_is_not_made_worse(name: str) -> None:
    """What is left is noise: the bound would allow a long step, the full Gauss-Newton step is short."""
    encoder = ENCODERS[name]()
    inputs = inputs_for(encoder)
    old = values(encoder, inputs)
    target = old + 0.01 * torch.randn(old.shape, generator=generator(4))
    alive = torch.ones_like(old, dtype=torch.bool)
    fit = TrustRegionFit(TrustRegionFitConfig(bound=1e6, subsample=1.0), encoder)
    report = fit.fit(inputs, old, target, alive, generator())
    after, divergence = f_and_d(values(encoder, inputs), old, target, alive)
    assert after <= 0.5
    # A least-squares step leaves F + D = 1/2 where the critic is linear; without the cap D would be far above.
    assert divergence <= 0.5 + 1e-6 or report.backtracks > 0
    if name == "linear":
        assert after + divergence == pytest.approx(0.5, rel=1e-2)


def test_a_perfect_critic_stays_as_it_is() -> None:
    encoder = mlp_encoder()
    inputs = inputs_for(encoder)
    old = values(encoder, inputs)
    before = copy.deepcopy(encoder.module.state_dict())
    report = TrustRegionFit(TrustRegionFitConfig(), encoder).fit(inputs, old, old, make_alive(), generator())
    assert all(torch.equal(p, before[name]) for name, p in encoder.module.state_dict().items())
    assert report.divergence == 0
    assert report.audit_line()["outcome"] == "rejected"
    assert report.reason


def test_a_failed_line_search_leaves_parameters_bit_identical() -> None:
    encoder = graph_encoder()
    inputs = inputs_for(encoder)
    old = values(encoder, inputs)
    before = copy.deepcopy(encoder.module.state_dict())
    config = TrustRegionFitConfig(bound=1e-9, max_backtracks=0, subsample=0.01, window=1, damping=0.0)
    # The products see one window in a hundred, so that the only trial is far beyond the bound.
    report = TrustRegionFit(config, encoder).fit(inputs, old, targets(old), make_alive(), generator())
    assert "no trial" in report.reason or "product" in report.reason
    assert all(torch.equal(p, before[name]) for name, p in encoder.module.state_dict().items())


def test_divergence_is_from_the_same_old_values_over_several_steps() -> None:
    """Five steps of a share of the bound each would reach beyond it, measured from where each began."""
    encoder = graph_encoder()
    inputs, alive = inputs_for(encoder), make_alive()
    old = values(encoder, inputs)
    target = targets(old)
    config = TrustRegionFitConfig(bound=0.02, steps=5, subsample=1.0)
    report = TrustRegionFit(config, encoder).fit(inputs, old, target, alive, generator())
    _, divergence = f_and_d(values(encoder, inputs), old, target, alive)
    assert divergence <= 0.02 * (1 + 1e-5)
    assert report.divergence == pytest.approx(divergence, rel=1e-3)


def test_the_dead_do_not_matter_to_either_fit() -> None:
    alive = make_alive()
    for make in (
        lambda encoder: TrustRegionFit(TrustRegionFitConfig(subsample=0.7), encoder),
        lambda encoder: AdamFit(AdamFitConfig(), encoder),
    ):
        results = []
        for junk in (0.0, 1e8):
            encoder = graph_encoder()
            inputs = inputs_for(encoder)
            old = values(encoder, inputs)
            target = torch.where(alive, targets(old), junk)
            make(encoder).fit(inputs, torch.where(alive, old, junk), target, alive, generator())
            results.append(values(encoder, inputs))
        assert torch.equal(*results)


@pytest.mark.parametrize("name", ["graph", "graph-without-memory", "mlp"])
def test_products_are_those_of_double_backward(name: str) -> None:
    """``H v`` is the gradient of ``(grad D) . v`` at the old values (specification 2.4); one window holds all."""
    encoder = ENCODERS[name]()
    inputs, alive = inputs_for(encoder), make_alive()
    old = values(encoder, inputs)
    error = _Error.at(old, targets(old), alive)
    parameters = {k: p.detach().clone() for k, p in encoder.module.named_parameters()}
    with torch.no_grad():
        memories = encoder.encode(None, inputs).memories
    fit = TrustRegionFit(TrustRegionFitConfig(window=STEPS, subsample=1.0), encoder)
    matvec = fit._products(inputs, memories, error, parameters, generator())
    double = inputs.to(torch.float64)
    point = flatten(parameters).double().requires_grad_()
    anchor = encoder.encode(unflatten(point.detach(), parameters), double).values
    new = encoder.encode(unflatten(point, parameters), double).values
    spread = (new - anchor).square() / (2 * error.variance.double())
    divergence = spread[alive].sum() / alive.sum()
    (slope,) = torch.autograd.grad(divergence, point, create_graph=True)
    for seed in range(3):
        v = torch.randn(point.shape, generator=generator(seed), dtype=torch.float64)
        (expected,) = torch.autograd.grad(slope @ v, point, retain_graph=True)
        torch.testing.assert_close(matvec(v), expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))


@pytest.mark.parametrize("length", [1, 3, 4, 8])
def test_windows_carry_on_the_exact_recurrence(length: int) -> None:
    encoder = graph_encoder()
    inputs = inputs_for(encoder)
    with torch.no_grad():
        whole = encoder.encode(None, inputs)
        assert whole.memories is not None
        parts = encoder.encode(None, inputs.windows(length, whole.memories))
    count = STEPS // length
    assert parts.values.shape == (length, count * COPIES, AGENTS)
    for w in range(count):
        for e in range(COPIES):
            at = slice(w * length, (w + 1) * length)
            torch.testing.assert_close(parts.values[:, w * COPIES + e], whole.values[at, e])


@pytest.mark.parametrize("minibatches", [1, 3])
@pytest.mark.parametrize("name", list(ENCODERS))
def test_adam_fit_is_the_reference(name: str, minibatches: int) -> None:
    """Huber loss of the worse of value and clipped value, as HARL prints it, with torch's Adam."""
    encoder = ENCODERS[name]()
    reference = copy.deepcopy(encoder)
    inputs, alive = inputs_for(encoder), make_alive()
    old = values(encoder, inputs)
    target = old + 4 * torch.randn(old.shape, generator=generator(2))
    config = AdamFitConfig(
        learning_rate=1e-2, epochs=3, minibatches=minibatches, max_grad_norm=0.5, huber=2.0, value_clip=0.2
    )
    report = AdamFit(config, encoder).fit(inputs, old, target, alive, generator(6))
    optimizer = torch.optim.Adam(reference.module.parameters(), lr=1e-2, eps=1e-5)
    noise = generator(6)
    for _ in range(3):
        for index in torch.randperm(COPIES, generator=noise).chunk(minibatches):
            value = reference.encode(None, inputs.environments(index)).values
            clipped = old[:, index] + torch.clamp(value - old[:, index], -0.2, 0.2)
            losses = [_huber(target[:, index] - v, 2.0) for v in (value, clipped)]
            loss = torch.maximum(*losses)[alive[:, index]].mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(reference.module.parameters(), 0.5)
            optimizer.step()
    torch.testing.assert_close(values(encoder, inputs), values(reference, inputs), rtol=1e-4, atol=1e-5)
    after, divergence = f_and_d(values(encoder, inputs), old, target, alive)
    assert report.bound is None
    assert report.loss_after == pytest.approx(after, rel=1e-4)
    assert report.divergence == pytest.approx(divergence, rel=1e-4)


def test_adam_moments_survive_a_save() -> None:
    runs = []
    for interrupt in (False, True):
        encoder = mlp_encoder()
        fit = AdamFit(AdamFitConfig(learning_rate=1e-2), encoder)
        for update in range(3):
            if interrupt:
                state = copy.deepcopy(fit.state_dict())
                fit = AdamFit(AdamFitConfig(learning_rate=1e-2), encoder)
                fit.load_state_dict(state)
            inputs = inputs_for(encoder, update)
            old = values(encoder, inputs)
            fit.fit(inputs, old, old + 1, make_alive(), generator(update))
        runs.append(flatten(dict(encoder.module.named_parameters())).detach())
    assert torch.equal(*runs)


def test_adam_moments_keep_their_parameters_where_one_has_no_gradient() -> None:
    """A parameter that the values do not depend on has no moments, and those after it must not move up."""

    class UnusedFirst(LinearEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.used = self.module
            unused = StackedLinear(1, 2, 3, generator=generator())
            self.module = torch.nn.ModuleDict({"unused": unused, "used": self.used})

        def encode(self, parameters: Mapping[str, Tensor] | None, inputs: CriticInputs) -> Encoding:
            return Encoding(values=self.used(inputs.state["position"].unsqueeze(0)).squeeze(0), memories=None)

    encoder, inputs = UnusedFirst(), make_inputs()
    fit, restored = AdamFit(AdamFitConfig(), encoder), AdamFit(AdamFitConfig(), UnusedFirst())
    old = encoder.encode(None, inputs).values.detach()
    fit.fit(inputs, old, old + 1, make_alive(), generator())
    restored.load_state_dict(copy.deepcopy(fit.state_dict()))
    moments = fit.state_dict()["moments"]
    assert {k: slots["exp_avg"].shape for k, slots in moments.items()} == {
        k: p.shape for k, p in enumerate(encoder.module.parameters()) if k >= 2
    }
    for k, slots in restored.state_dict()["moments"].items():
        assert torch.equal(slots["exp_avg"], moments[k]["exp_avg"])


def test_explained_variance_is_of_the_old_values() -> None:
    encoder = LinearEncoder()
    inputs, alive = inputs_for(encoder), make_alive()
    old = values(encoder, inputs)
    target = targets(old)
    report = TrustRegionFit(TrustRegionFitConfig(), encoder).fit(inputs, old, target, alive, generator())
    t, o = target[alive].double().numpy(), old[alive].double().numpy()
    assert report.explained_variance == pytest.approx(1 - np.var(t - o) / np.var(t), rel=1e-4)


@pytest.mark.parametrize("kind", ["adam", "trust_region"])
def test_a_gradient_that_is_not_finite_is_named(kind: str) -> None:
    encoder = mlp_encoder()
    inputs = inputs_for(encoder)
    old = values(encoder, inputs)
    target = old.clone()
    target[0, 0, 0] = math.nan
    everybody = torch.ones_like(old, dtype=torch.bool)
    fit = AdamFit(AdamFitConfig(), encoder) if kind == "adam" else TrustRegionFit(TrustRegionFitConfig(), encoder)
    with pytest.raises(Diverged, match="critic's gradient is not finite"):
        fit.fit(inputs, old, target, everybody, generator())


def _huber(error: Tensor, delta: float) -> Tensor:
    small = error.abs() <= delta
    return torch.where(small, 0.5 * error.square(), delta * (error.abs() - 0.5 * delta))
