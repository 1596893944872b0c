"""The drifting field against float64 loops, autograd of log densities, and the laws it has to obey."""

from __future__ import annotations

import math
from typing import Any, get_args

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from marl_tr.agents.drifting.field import Drift, Kernel, Normalisation, drift, drift_loss, raw_field

Array = NDArray[np.float64]

TEMPERATURES = (0.02, 0.05, 0.2)
KINDS: tuple[Normalisation, ...] = get_args(Normalisation)
KERNELS: tuple[Kernel, ...] = get_args(Kernel)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def two_modes(*shape: int, seed: int) -> Tensor:
    """Points of the plane at (+-0.7, 0), deviation 0.15."""
    generator = torch.Generator().manual_seed(seed)
    points = 0.15 * torch.randn(*shape, 2, generator=generator)
    points[..., 0] += 0.7 * (2 * torch.randint(2, shape, generator=generator) - 1)
    return points


def close(a: Tensor, b: Tensor | Array, tolerance: float = 1e-10) -> bool:
    return bool((a - torch.as_tensor(b)).abs().max() <= tolerance)


# One problem by loops, written from the formulas: distances, softmaxes, then the double sum over pairs of targets.


def softmax(values: Array) -> Array:
    powers: Array = np.exp(values - values.max())
    return powers / powers.sum()


def slow_weights(distance: Array, negatives: int, temperature: float, kind: str, kernel: str) -> Array:
    reduced = distance / temperature
    logits = -reduced if kernel == "laplacian" else -(reduced**2) / 2
    if kind in ("separate", "attraction"):
        return np.array([[*softmax(row[:negatives]), *softmax(row[negatives:])] for row in logits])
    by_row = np.array([softmax(row) for row in logits])
    by_column = np.array([softmax(column) for column in logits.T]).T
    return np.sqrt(by_row * by_column) if kind == "joint" else by_row


def slow_field(weights: Array, x: Array, targets: Array, negatives: int, kind: str) -> Array:
    field = np.zeros_like(x)
    for i in range(len(x)):
        for j in range(negatives, len(targets)):
            if kind == "attraction":
                field[i] += weights[i, j] * (targets[j] - x[i])
                continue
            for k in range(negatives):
                field[i] += weights[i, j] * weights[i, k] * (targets[j] - targets[k])
    return field


def slow_drift(
    x: Array, negatives: Array, positives: Array, weights: Array, temperatures: tuple[float, ...]
) -> dict[str, Any]:
    """The released loss over ``[B, ...]``: `weights` of all targets in the order queries, negatives, positives."""
    batch, queries, width = x.shape
    targets = np.concatenate([x, negatives, positives], 1)
    count = queries + negatives.shape[1]
    distance = np.array([[[np.sqrt(sum((p - q) ** 2)) for q in targets[b]] for p in x[b]] for b in range(batch)])
    scale = (distance * weights[:, None]).mean() / weights.mean()
    unit = max(scale / math.sqrt(width), 1e-3)
    force, sizes = np.zeros_like(x), []
    for temperature in temperatures:
        one = np.zeros_like(x)
        for b in range(batch):
            masked = distance[b] / max(scale, 1e-3)
            for i in range(queries):
                masked[i, i] += 100
            shares = slow_weights(masked, count, temperature, "joint", "laplacian") * weights[b]
            one[b] = slow_field(shares, x[b] / unit, targets[b] / unit, count, "joint")
        sizes.append(math.sqrt((one**2).mean()))
        force += one / max(sizes[-1], 1e-4)
    return {"force": force, "scale": scale, "unit": unit, "rms": np.array(sizes), "loss": (force**2).mean()}


def test_drift_is_the_released_estimator_by_loops() -> None:
    x, negatives, positives = normal(3, 5, 2), normal(3, 2, 2, seed=1), normal(3, 4, 2, seed=2) + 0.5
    weights, negative_weights = normal(3, 4, seed=3).abs(), torch.full((3, 2), 1.5, dtype=torch.float64)
    all_weights = torch.cat([torch.ones(3, 5, dtype=torch.float64), negative_weights, weights], -1)
    slow = slow_drift(x.numpy(), negatives.numpy(), positives.numpy(), all_weights.numpy(), TEMPERATURES)
    got = drift(x, positives, negatives, temperatures=TEMPERATURES, weights=weights, negative_weights=negative_weights)
    for name in ("force", "scale", "unit", "rms"):
        assert close(getattr(got, name), slow[name]), name
    assert close(drift_loss(x, got), slow["loss"])


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("kind", ["joint", "row", "separate", "attraction"])
def test_raw_field_is_its_double_sum_by_loops(kind: Normalisation, kernel: Kernel) -> None:
    x, negatives, positives = normal(6, 3), normal(4, 3, seed=1), normal(5, 3, seed=2)
    weights = normal(5, seed=3).abs()
    distance = torch.cdist(x, torch.cat([x, negatives, positives])).numpy()
    np.fill_diagonal(distance, 1e6)
    shares = slow_weights(distance, 10, 0.4, kind, kernel) * np.array([1.0] * 10 + weights.tolist())
    slow = slow_field(shares, x.numpy(), np.concatenate([x, negatives, positives]), 10, kind)
    got = raw_field(x, positives, negatives, temperature=0.4, kind=kind, kernel=kernel, weights=weights)
    assert close(got, slow, 1e-12)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("kind", "counts"), [(k, c) for k in KINDS[:4] for c in ((30, 30), (30, 7))])
def test_exchanging_positives_and_negatives_turns_the_field_around(
    kind: Normalisation, counts: tuple[int, int], kernel: Kernel
) -> None:
    x, p, q = normal(20, 2), normal(counts[0], 2, seed=1), normal(counts[1], 2, seed=2)
    there = raw_field(x, p, q, temperature=0.2, kind=kind, kernel=kernel, own=False)
    back = raw_field(x, q, p, temperature=0.2, kind=kind, kernel=kernel, own=False)
    assert close(there + back, torch.zeros_like(x), 1e-12)
    assert float(there.abs().max()) > 1e-2


def test_separate_field_is_the_two_sided_expectation() -> None:
    x, p, q = normal(20, 2), normal(30, 2, seed=1), normal(40, 2, seed=2)
    k_p, k_q = (torch.exp(-torch.cdist(x, y) / 0.3) for y in (p, q))
    pairs = torch.einsum("ij,ik,ijkd->id", k_p, k_q, (p[:, None] - q).expand(20, -1, -1, -1))
    expected = pairs / (k_p.sum(1) * k_q.sum(1)).unsqueeze(-1)
    assert close(raw_field(x, p, q, temperature=0.3, kind="separate", own=False), expected, 1e-12)


def log_density_ratio_gradient(x: Tensor, p: Tensor, q: Tensor, kernel: Any) -> Tensor:
    x = x.clone().requires_grad_()
    (kernel(torch.cdist(x, p)).mean(1).log() - kernel(torch.cdist(x, q)).mean(1).log()).sum().backward()
    assert x.grad is not None
    return x.grad


@pytest.mark.parametrize("h", [0.1, 0.3, 1.0])
def test_gaussian_field_is_the_score_difference_of_smoothed_laws(h: float) -> None:
    x, p, q = normal(50, 2), normal(80, 2, seed=1) + 0.3, normal(60, 2, seed=2)
    score = log_density_ratio_gradient(x, p, q, lambda r: torch.exp(-(r**2) / (2 * h**2)))
    separate = raw_field(x, p, q, temperature=h, kind="separate", kernel="gaussian", own=False)
    sharp = raw_field(x, p, q, temperature=h, kind="sharp", kernel="gaussian", own=False)
    assert close(separate, h**2 * score, 1e-12)
    assert close(sharp, score, 1e-10)


@pytest.mark.parametrize("tau", [0.1, 0.3, 1.0])
def test_sharp_laplacian_field_is_the_score_difference_under_its_sharp_kernel(tau: float) -> None:
    x, p, q = normal(50, 2), normal(80, 2, seed=1) + 0.3, normal(60, 2, seed=2)
    score = log_density_ratio_gradient(x, p, q, lambda r: tau * (r + tau) * torch.exp(-r / tau))
    assert close(raw_field(x, p, q, temperature=tau, kind="sharp", own=False), score, 1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_field_moves_with_its_points_and_scales_with_them(kind: Normalisation) -> None:
    x, positives = normal(4, 8, 3), normal(4, 2, 3, seed=1)
    options: dict[str, Any] = {"temperatures": TEMPERATURES, "kind": kind}
    plain = drift(x, positives, **options)
    moved = drift(x + 5, positives + 5, **options)
    scaled = drift(10 * x, 10 * positives, **options)
    assert close(moved.force, plain.force, 1e-9)
    assert close(scaled.force, plain.force, 1e-9)
    assert close(scaled.displacement, 10 * plain.displacement, 1e-8)
    assert close(drift_loss(10 * x, scaled), drift_loss(x, plain))


def null_bias(kind: Normalisation, queries: int, own: bool) -> tuple[float, float]:
    """Mean drift along the axis of the modes (outward) and within a mode (outward), as shares of its RMS."""
    x, positives = two_modes(20_000, queries, seed=1), two_modes(20_000, 1, seed=2)
    negatives = None if own else two_modes(20_000, queries, seed=3)
    field = raw_field(x, positives, negatives, temperature=0.3, kind=kind, own=own)
    rms = field.square().mean().sqrt()
    side = x[..., 0].sign()
    within = torch.stack([x[..., 0] - 0.7 * side, x[..., 1]], -1)
    radial = (field * within / within.norm(dim=-1, keepdim=True)).sum(-1)
    return float((field[..., 0] * side).mean() / rms), float(radial.mean() / rms)


@pytest.mark.parametrize(("queries", "own"), [(8, True), (16, True), (4, False), (8, False)])
def test_one_positive_of_the_same_law_causes_no_joint_drift(queries: int, own: bool) -> None:
    between, within = null_bias("joint", queries, own)
    assert abs(between) < 0.02
    assert abs(within) < 0.02


@pytest.mark.parametrize("kind", ["separate", "attraction"])
def test_one_positive_of_the_same_law_draws_the_separate_field_to_the_mean(kind: Normalisation) -> None:
    assert null_bias(kind, 8, own=True)[0] < -0.8


@pytest.mark.parametrize(("kind", "zero"), [("joint", True), ("row", True), ("separate", False)])
def test_joint_field_sums_to_zero_over_who_is_the_positive(kind: Normalisation, zero: bool) -> None:
    """So it has no bias for any law, count or temperature: i.i.d. targets are equally likely in every role."""
    x, targets = normal(4, 2), normal(6, 2, seed=1)
    total = torch.zeros_like(x)
    for role in range(6):
        others = torch.cat([targets[:role], targets[role + 1 :]])
        total += raw_field(x, targets[role : role + 1], others, temperature=0.1, kind=kind, own=False)
    assert close(total, torch.zeros_like(x), 1e-14) is zero


def test_gradient_is_minus_two_forces_over_count_and_unit() -> None:
    x, positives = normal(3, 6, 2).requires_grad_(), normal(3, 2, 2, seed=1)
    drifted = drift(x, positives, temperatures=TEMPERATURES)
    drift_loss(x, drifted).backward()
    assert x.grad is not None
    assert not drifted.force.requires_grad
    assert close(x.grad, -2 * drifted.force / (x.numel() * drifted.unit))
    assert float(x.grad.abs().max()) > 0


def test_loss_stays_between_count_and_squared_count_of_temperatures_while_rms_falls() -> None:
    x, positives = normal(1, 128, 2) * 0.3 + 1, two_modes(1, 128, seed=1).double()
    losses, sizes = [], []
    for _ in range(120):
        drifted = drift(x, positives, temperatures=TEMPERATURES)
        losses.append(float(drift_loss(x, drifted)))
        sizes.append(drifted.rms)
        x = x + 0.02 * drifted.displacement
    assert all(len(TEMPERATURES) <= loss <= len(TEMPERATURES) ** 2 for loss in losses)
    assert losses[-1] > 0.5 * losses[0]
    assert float(sizes[-1][-1]) < 0.2 * float(sizes[0][-1])


def test_without_normalisation_forces_are_those_of_the_raw_field() -> None:
    x, positives = normal(4, 8, 2), normal(4, 3, 2, seed=1)
    got = drift(x, positives, temperatures=(0.1, 0.5), normalise=False)
    raw = [raw_field(x, positives, temperature=r * float(got.scale)) / got.unit for r in (0.1, 0.5)]
    assert close(got.force, raw[0] + raw[1])
    assert close(got.rms, torch.stack([r.square().mean().sqrt() for r in raw]))


def test_rows_of_learners_do_not_influence_each_other() -> None:
    x, positives = normal(3, 4, 8, 2), normal(3, 4, 1, 2, seed=1)
    x[1] *= 50
    mask = torch.ones(3, 4, dtype=torch.bool)
    mask[2, 1] = False
    together = drift(x, positives, temperatures=TEMPERATURES, mask=mask)
    losses = drift_loss(x, together)
    assert losses.shape == (3,)
    for row in range(3):
        alone = drift(x[row], positives[row], temperatures=TEMPERATURES, mask=mask[row])
        for name in ("force", "scale", "unit", "rms", "signal"):
            assert close(getattr(together, name)[row], getattr(alone, name), 1e-12), name
        assert close(losses[row], drift_loss(x[row], alone))


def test_masked_problems_are_as_if_they_were_not_there_whatever_they_hold() -> None:
    x, positives, weights = normal(5, 6, 2), normal(5, 1, 2, seed=1), normal(5, 1, seed=2).abs()
    mask = torch.tensor([True, False, True, True, False])
    kept = drift(x[mask], positives[mask], temperatures=TEMPERATURES, weights=weights[mask])
    x[1], positives[4], weights[4] = torch.nan, torch.inf, torch.nan
    x.requires_grad_()
    padded = drift(x, positives, temperatures=TEMPERATURES, weights=weights, mask=mask)
    assert close(padded.force[mask], kept.force)
    assert bool((padded.force[~mask] == 0).all())
    for name in ("scale", "rms", "signal"):
        assert close(getattr(padded, name), getattr(kept, name)), name
    loss = drift_loss(x, padded)
    assert close(loss.detach(), drift_loss(x.detach()[mask], kept))
    loss.backward()
    assert x.grad is not None
    assert bool((x.grad[~mask] == 0).all())
    assert bool((x.grad[mask] != 0).any())


def test_no_problem_at_all_is_no_force_and_no_loss() -> None:
    x = normal(3, 4, 2).requires_grad_()
    got = drift(x, normal(3, 1, 2, seed=1), temperatures=(0.1,), mask=torch.zeros(3, dtype=torch.bool))
    loss = drift_loss(x, got)
    loss.backward()
    assert float(loss.detach()) == 0
    assert x.grad is not None
    for value in (got.force, x.grad, got.rms, got.signal):
        assert bool((value == 0).all())


@pytest.mark.parametrize("kind", KINDS)
def test_weight_of_a_single_positive_multiplies_the_force_of_its_problem(kind: Normalisation) -> None:
    x, positives = normal(4, 8, 2), normal(4, 1, 2, seed=1)
    weights = torch.tensor([[0.5], [1.0], [3.0], [0.0]], dtype=torch.float64)
    plain = raw_field(x, positives, temperature=0.5, kind=kind)
    weighted = raw_field(x, positives, temperature=0.5, kind=kind, weights=weights)
    assert close(weighted, weights.unsqueeze(-1) * plain, 1e-12)
    normalised = drift(x, positives, temperatures=(0.5,), kind=kind, weights=weights)
    assert bool(normalised.force.isfinite().all())
    assert bool((normalised.force[3] == 0).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_tiny_temperature_moves_a_start_concentrated_far_from_every_positive(
    kind: Normalisation, dtype: torch.dtype
) -> None:
    x = 1e-3 * normal(1, 64, 2, dtype=dtype)
    positives = two_modes(1, 256, seed=1).to(dtype) + torch.tensor([3.0, 0.0])
    assert bool(raw_field(x, positives, temperature=1e-3, kind=kind).isfinite().all())
    got = drift(x, positives, temperatures=(1e-3,), kind=kind)
    assert math.isclose(float(got.force.square().mean()), 1, rel_tol=1e-4)
    if kind != "sharp":  # its repulsion, 1 / tau^2 at distance tau, exceeds any attraction from afar
        assert float(got.force[..., 0].mean()) > 0


def test_half_precision_is_lifted_to_float32_also_under_autocast() -> None:
    x, positives = normal(4, 8, 2, dtype=torch.float32), normal(4, 1, 2, seed=1, dtype=torch.float32)
    plain = drift(x, positives, temperatures=TEMPERATURES)
    plain_loss = drift_loss(x, plain)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = drift(x, positives, temperatures=TEMPERATURES)
        loss = drift_loss(x, cast)
        raw = raw_field(x, positives, temperature=0.3)
    assert torch.equal(cast.force, plain.force)
    assert torch.equal(loss, plain_loss)
    assert torch.equal(raw, raw_field(x, positives, temperature=0.3))
    half = drift(x.bfloat16(), positives, temperatures=TEMPERATURES)
    assert half.force.dtype == torch.float32
    assert close(half.force, drift(x.bfloat16().float(), positives, temperatures=TEMPERATURES).force, 0)


def test_float32_agrees_with_float64_far_from_the_origin() -> None:
    x, positives = normal(4, 8, 2).float() + 100, normal(4, 1, 2, seed=1).float() + 100
    exact = drift(x.double(), positives.double(), temperatures=TEMPERATURES)
    assert exact.force.dtype == torch.float64
    assert close(drift(x, positives, temperatures=TEMPERATURES).force, exact.force, 1e-3)


def test_identical_points_cause_no_force() -> None:
    got = drift(torch.ones(2, 4, 3), torch.ones(2, 1, 3), temperatures=TEMPERATURES)
    assert bool((got.force == 0).all())
    assert close(got.unit, torch.tensor(1e-3), 1e-9)


def test_signal_is_the_share_of_the_force_that_all_queries_have_in_common() -> None:
    pulled = drift(0.01 * normal(64, 8, 2), torch.full((64, 1, 2), 9.0), temperatures=(1.0,), kind="attraction")
    assert float(pulled.signal) > 0.99
    x = normal(4000, 8, 2)
    noise = drift(x, normal(4000, 1, 2, seed=1), temperatures=(0.02,))
    mean = noise.force.mean(1).square().mean().sqrt() / noise.force.square().mean().sqrt()
    assert close(noise.signal, mean)
    assert float(noise.signal) < 0.5


def particles_after_noise(kind: Normalisation, temperatures: tuple[float, ...]) -> Tensor:
    """Samples whose positives are samples of the same law, as when advantages are pure noise; 120 small steps."""
    generator = torch.Generator().manual_seed(0)
    points = two_modes(9 * 400, seed=5)
    for _ in range(120):
        points = points[torch.randperm(len(points), generator=generator)]
        groups = points.view(400, 9, 2)
        queries = groups[:, 1:]
        step = drift(queries, groups[:, :1], temperatures=temperatures, kind=kind).displacement
        points = torch.cat([groups[:, :1], queries + 0.02 * step], 1).flatten(0, 1)
    return points


def test_pure_noise_leaves_two_modes_where_they_are_under_the_joint_field_alone() -> None:
    joint, separate = (particles_after_noise(kind, (0.1, 0.3)) for kind in ("joint", "separate"))
    assert 0.65 < float(joint[:, 0].abs().mean()) < 0.8
    assert float((joint[:, 0] > 0).float().mean()) == pytest.approx(0.5, abs=0.1)
    assert float(separate[:, 0].abs().mean()) < 0.35


GOOD = {"x": torch.zeros(2, 4, 3), "positives": torch.zeros(2, 1, 3), "temperatures": (0.1,)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 1, 3)}, "two or more"),
        ({"x": torch.zeros(4, 3)}, "batch of problems"),
        ({"positives": torch.zeros(2, 1, 4)}, "positives are"),
        ({"positives": torch.zeros(2, 0, 3)}, "positives are"),
        ({"positives": torch.zeros(3, 1, 3)}, "not of the problems"),
        ({"negatives": torch.zeros(3, 1, 3)}, "not of the problems"),
        ({"temperatures": ()}, "at least one temperature"),
        ({"temperatures": (0.1, 0.0)}, "positive numbers"),
        ({"temperatures": (math.nan,)}, "positive numbers"),
        ({"kind": "double"}, "no normalisation 'double'; there are joint"),
        ({"kernel": "cauchy"}, "no kernel 'cauchy'"),
        ({"own": False}, "needs negatives"),
        ({"weights": torch.ones(2, 3)}, "do not fit positives"),
        ({"weights": -torch.ones(2, 1)}, "must not be negative"),
        ({"negative_weights": torch.ones(2, 1)}, "without negatives"),
        ({"mask": torch.ones(3, dtype=torch.bool)}, "a mask of queries"),
        ({"mask": torch.ones(2)}, "a mask of queries"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = GOOD | change
    with pytest.raises(ValueError, match=message):
        drift(**arguments)


def test_loss_of_other_queries_is_refused() -> None:
    got: Drift = drift(torch.zeros(2, 4, 3), torch.ones(2, 1, 3), temperatures=(0.1,))
    with pytest.raises(ValueError, match="not those of a force"):
        drift_loss(torch.zeros(2, 5, 3), got)


def test_own_false_needs_only_one_query_and_attraction_needs_no_negatives() -> None:
    x, positives = torch.zeros(1, 1, 2), torch.ones(1, 1, 2)
    pull = raw_field(x, positives, temperature=1.0, kind="attraction", own=False)
    assert close(pull, positives - x, 1e-7)
    both = raw_field(x, positives, -positives, temperature=1.0, own=False)
    assert float(both.sum()) > 0
