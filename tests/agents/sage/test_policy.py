"""Flow policies: what they record, how likely they call it, and what bounds them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from pydantic import ValidationError
from torch import Tensor

from marl_tr.agents.sage.config import FlowConfig
from marl_tr.agents.sage.policy import FlowPolicy, make
from marl_tr.agents.sage.sampler import sigma_grid
from marl_tr.errors import UserError
from marl_tr.objective.config import ClippedRatioConfig, SurrogateConfig
from marl_tr.objective.ratio import ClippedRatio, Surrogate
from marl_tr.policy import PolicyBatch, Rows
from marl_tr.region.config import TrpoConfig
from marl_tr.region.guard import Guard
from marl_tr.region.samples import Samples
from marl_tr.region.trpo import Trpo
from marl_tr.region.turn import Learners, Turn
from marl_tr.vector.contract import GroupSpec

torch.set_num_threads(1)

FEATURES, D, STEPS = 3, 2, 5


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def group(box: spaces.Box | None = None, **observation: spaces.Box) -> GroupSpec:
    seen = observation or {"observation": spaces.Box(-np.inf, np.inf, (FEATURES,))}
    return GroupSpec("g", ("a", "b"), seen, {"action": box or spaces.Box(-np.inf, np.inf, (D,))})


def build(
    *, shared: bool = False, box: spaces.Box | None = None, of: GroupSpec | None = None, **settings: Any
) -> FlowPolicy:
    config = FlowConfig(**{"steps": STEPS, "network": {"kind": "mlp", "hidden": [16]}, **settings})
    policy = make(
        config,
        of or group(box),
        rows=Rows(agents=2, shared=shared),
        generator=generator(1),
        device=torch.device("cpu"),
    )
    noise = generator(7)
    with torch.no_grad():
        for p in policy.module.parameters():
            p += 0.3 * torch.randn(p.shape, generator=noise)
    return policy


def frozen(policy: FlowPolicy, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return {name: p.detach().clone().to(dtype) for name, p in policy.module.named_parameters()}


def play(policy: FlowPolicy, *, steps: int = 3, trajectories: int = 4) -> PolicyBatch:
    noise, rows = generator(2), policy.rows.learners
    seen = torch.randn(rows, steps, trajectories, FEATURES, generator=noise)
    with torch.no_grad():
        records = [policy.act({"observation": seen[:, t]}, None, noise).record for t in range(steps)]
    shape = (rows, steps, trajectories)
    return PolicyBatch(
        observation={"observation": seen},
        record={leaf: torch.stack([record[leaf] for record in records], 1) for leaf in records[0]},
        memory=None,
        starts=torch.zeros(shape, dtype=torch.bool),
        mask=torch.ones(shape, dtype=torch.bool),
    )


def means_by_hand(policy: FlowPolicy, batch: PolicyBatch) -> Tensor:
    """Each learner's network called decision by decision, with x0hat and ehat written out as in the literature."""
    chain, c = batch.record["chain"], policy.coefficients
    out = torch.zeros(*chain.shape[:3], STEPS, D)
    for row in range(chain.shape[0]):
        network = policy.module.row(None, row)
        for t in range(chain.shape[1]):
            for k in range(STEPS):
                s, s_next = float(policy.sigmas[k]), float(policy.sigmas[k + 1])
                x = chain[row, t, :, k]
                v = network(x, torch.full((len(x),), s), {"observation": batch.observation["observation"][row, t]})
                clean, noise = x - s * v, x + (1 - s) * v
                out[row, t, :, k] = (1 - s_next) * clean + float(c.c[k]) * noise
    return out.detach()


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("sampler", ["sage", "flow", "dance", "cps", "precise"])
def test_the_likelihood_of_a_chain_is_that_of_its_gaussian_steps(sampler: str, shared: bool) -> None:
    policy = build(sampler=sampler, shared=shared)
    batch = play(policy)
    evaluation = policy.evaluate(frozen(policy), batch)
    std = policy.coefficients.std
    expected = torch.zeros(*batch.mask.shape, STEPS, dtype=torch.float64)
    means, reached = means_by_hand(policy, batch).double(), batch.record["chain"][..., 1:, :].double()
    for k in np.flatnonzero(std.numpy() > 0):
        law = torch.distributions.Normal(means[..., k, :], std[k])
        expected[..., k] = law.log_prob(reached[..., k, :]).sum(-1)
    torch.testing.assert_close(evaluation.log_prob.double(), expected, rtol=1e-4, atol=1e-4)
    assert evaluation.dimensions == D
    last_is_deterministic = sampler in ("cps", "precise")
    assert bool((evaluation.log_prob[..., -1] == 0).all()) == last_is_deterministic
    assert evaluation.weight is not None
    assert bool((evaluation.weight[..., -1] == 0).all()) == last_is_deterministic


def test_noise_has_the_deviation_that_the_likelihood_says() -> None:
    policy = build(sampler="sage", shared=True)
    batch = play(policy, steps=1, trajectories=4000)
    law = policy.evaluate(frozen(policy), batch).law
    residual = (batch.record["chain"][..., 1:, :] - law.mean) / law.std.unsqueeze(-1)
    assert residual.mean().abs() < 0.02
    assert (residual.std((0, 1, 2, 4)) - 1).abs().max() < 0.03


@pytest.mark.parametrize("shared", [True, False])
def test_some_steps_of_a_chain_say_what_they_say_in_the_whole(shared: bool) -> None:
    policy = build(shared=shared)
    batch, parameters = play(policy), frozen(policy)
    whole = policy.evaluate(parameters, batch)
    order = torch.stack([torch.randperm(STEPS, generator=generator(i))[:3] for i in range(batch.mask.numel())])
    chain = order.reshape(*batch.mask.shape, 3)
    some = policy.evaluate(parameters, PolicyBatch(**{**vars(batch), "chain": chain}))
    torch.testing.assert_close(some.log_prob, whole.log_prob.gather(-1, chain), rtol=1e-5, atol=1e-5)
    assert whole.weight is not None
    assert some.weight is not None
    torch.testing.assert_close(some.weight, whole.weight.gather(-1, chain))
    torch.testing.assert_close(some.law.std, whole.law.std.gather(-1, chain))


@pytest.mark.parametrize("shared", [True, False])
def test_what_acted_is_recalled_from_the_record(shared: bool) -> None:
    policy = build(shared=shared)
    batch = play(policy)
    for chain in (None, torch.tensor([3, 0]).expand(*batch.mask.shape, 2)):
        part = PolicyBatch(**{**vars(batch), "chain": chain})
        recalled, evaluated = policy.recall(part), policy.evaluate(frozen(policy), part)
        torch.testing.assert_close(recalled.log_prob, evaluated.log_prob, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(recalled.law.mean, evaluated.law.mean, rtol=1e-5, atol=1e-5)
        assert float(policy.divergence(recalled.law, evaluated.law).max()) < 1e-8


def test_learners_act_with_networks_of_their_own_and_evaluate_alone_as_together() -> None:
    policy = build()
    batch, parameters = play(policy), frozen(policy)
    whole = policy.evaluate(parameters, batch)
    assert not torch.allclose(whole.log_prob[0], whole.log_prob[1])
    for row in range(2):
        alone = policy.evaluate({name: p[[row]] for name, p in parameters.items()}, batch.rows([row]))
        torch.testing.assert_close(alone.log_prob[0], whole.log_prob[row], rtol=1e-5, atol=1e-5)


def test_divergence_is_the_sum_of_torchs_over_dimensions() -> None:
    policy = build(sampler="cps")
    batch, old = play(policy), frozen(policy)
    new = {name: p + 0.1 * torch.randn(p.shape, generator=generator(3)) for name, p in old.items()}
    a, b = (policy.evaluate(p, batch).law for p in (old, new))
    found = policy.divergence(a, b)
    std = a.std[..., :-1, None].expand(*a.std.shape[:-1], STEPS - 1, D)
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(a.mean[..., :-1, :], std), normal(b.mean[..., :-1, :], std))
    torch.testing.assert_close(found[..., :-1], expected.sum(-1), rtol=1e-4, atol=1e-6)
    assert (found[..., -1] == 0).all()


def test_fisher_products_are_the_curvature_of_the_divergence() -> None:
    policy = build(sampler="precise", shared=True)
    batch, old = play(policy).to(torch.float64), frozen(policy, torch.float64)
    direction = {name: torch.randn(p.shape, generator=generator(5), dtype=torch.float64) for name, p in old.items()}
    law = policy.evaluate(old, batch).law

    def moved(size: float) -> dict[str, Tensor]:
        return {name: p + size * direction[name] for name, p in old.items()}

    _, tangent = torch.func.jvp(lambda p: policy.law_parameters(p, batch), (old,), (direction,))
    product = policy.fisher_product(law, tangent)
    quadratic = sum((a * b).sum() for a, b in zip(tangent, product, strict=True))
    size = 1e-4
    divergence = policy.divergence(law, policy.evaluate(moved(size), batch).law).sum()
    torch.testing.assert_close(2 * divergence / size**2, quadratic, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("equalizer", [True, False])
def test_the_gradient_of_both_objectives_at_the_old_parameters_is_the_weighted_score(equalizer: bool) -> None:
    policy = build(shared=True, equalizer=equalizer)
    batch = play(policy)
    advantage = torch.randn(batch.mask.shape, generator=generator(4))
    leaves = {name: p.requires_grad_() for name, p in frozen(policy).items()}
    for objective in (Surrogate(SurrogateConfig()), ClippedRatio(ClippedRatioConfig(entropy=0))):
        turn = _turn(policy, batch, advantage, objective)
        gain = objective.estimate(turn, leaves, Samples(batch, turn.old.log_prob, advantage)).gain.sum()
        found = torch.autograd.grad(gain, list(leaves.values()))
        evaluation = policy.evaluate(leaves, batch)
        assert evaluation.weight is not None
        score = (evaluation.log_prob * evaluation.weight).sum(-1) * advantage
        expected = torch.autograd.grad(score.mean(), list(leaves.values()))
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_means_in_place_of_sums_divide_the_log_ratio_by_the_dimensions() -> None:
    policy = build(shared=True)
    batch, parameters = play(policy), frozen(policy)
    moved = {name: p + 0.01 * torch.randn(p.shape, generator=generator(6)) for name, p in parameters.items()}
    advantage = torch.randn(batch.mask.shape, generator=generator(4))
    turn = _turn(policy, batch, advantage, Surrogate(SurrogateConfig(reduction="mean")))
    evaluation = policy.evaluate(moved, batch)
    assert evaluation.weight is not None
    found = turn.objective.estimate(turn, moved, Samples(batch, turn.old.log_prob, advantage)).gain
    root = ((evaluation.log_prob - turn.old.log_prob) / D).exp()
    expected = (root * evaluation.weight).mean(-1) * advantage
    torch.testing.assert_close(found[0], expected.mean(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("sampler", ["sage", "cps"])
def test_trpo_moves_a_flow_within_its_bound(sampler: str) -> None:
    policy = build(shared=True, sampler=sampler)
    batch = play(policy, steps=1, trajectories=64)
    # Wanted: the chain's end near (1, 1).
    advantage = -(batch.record["chain"][..., -1, :] - 1).square().sum(-1)
    advantage = (advantage - advantage.mean()) / advantage.std()
    learners = Learners(policy, ["g"])
    turn = _turn(policy, batch, advantage, Surrogate(SurrogateConfig()), learners)
    region = Trpo(TrpoConfig(bound=0.05))
    lines: list[Any] = []
    report = Guard(lines.append).accept(region, turn, region.propose(turn))[0]
    assert report.outcome == "accepted"
    assert 0.005 < report.accepted <= 0.05
    assert report.surrogate_gain > 0
    new = policy.evaluate(learners.parameters([0]), batch)
    divergence = policy.divergence(turn.old.law, new.law).sum(-1).mean()
    assert float(divergence) == pytest.approx(report.accepted, rel=1e-3)


def _turn(
    policy: FlowPolicy, batch: PolicyBatch, advantage: Tensor, objective: Any, learners: Learners | None = None
) -> Turn:
    with torch.no_grad():
        old = policy.evaluate(frozen(policy), batch)
    return Turn(
        learners=learners or Learners(policy, [str(row) for row in range(policy.rows.learners)]),
        rows=tuple(range(policy.rows.learners)),
        batch=batch,
        advantage=advantage,
        objective=objective,
        old=old,
        generator=generator(9),
    )


def test_the_mode_is_the_ode_from_the_same_noise_and_zero_noise_repeats() -> None:
    policy = build(shared=True, sampler="sage")
    seen = {"observation": torch.randn(1, 6, FEATURES, generator=generator(1))}
    with torch.no_grad():
        sampled, mode = (policy.act(seen, None, generator(3), mode=m).record["chain"] for m in (False, True))
        assert torch.equal(sampled[:, :, 0], mode[:, :, 0])
        x, network = mode[0, :, 0], policy.module.row(None, 0)
        for k in range(STEPS):
            s, s_next = float(policy.sigmas[k]), float(policy.sigmas[k + 1])
            x = x + (s_next - s) * network(x, torch.full((6,), s), {"observation": seen["observation"][0]})
        torch.testing.assert_close(mode[0, :, -1], x, rtol=1e-4, atol=1e-5)
        zero = build(shared=True, mode_noise="zero", mode_steps=9)
        a, b = (zero.act(seen, None, generator(i), mode=True) for i in (1, 2))
    assert torch.equal(a.env["action"], b.env["action"])
    assert a.record["chain"].shape[2] == 10


def test_decoding_the_clean_estimate_leaves_the_chain_as_it_is() -> None:
    latent, clean = build(shared=True), build(shared=True, decode="clean")
    seen = {"observation": torch.randn(1, 6, FEATURES, generator=generator(1))}
    with torch.no_grad():
        a, b = (policy.act(seen, None, generator(3)) for policy in (latent, clean))
        assert torch.equal(a.record["chain"], b.record["chain"])
        assert torch.equal(a.env["action"], a.record["chain"][:, :, -1])
        x, s = b.record["chain"][0, :, -2], float(latent.sigmas[-2])
        expected = x - s * latent.module.row(None, 0)(x, torch.full((6,), s), {"observation": seen["observation"][0]})
    torch.testing.assert_close(b.env["action"][0], expected, rtol=1e-4, atol=1e-5)


def test_bounded_actions_fill_their_bounds_and_never_leave_them() -> None:
    box = spaces.Box(np.array([-2.0, 10.0], np.float32), np.array([2.0, 11.0], np.float32))
    policy = build(shared=True, box=box)
    with torch.no_grad():
        action = policy.act({"observation": torch.zeros(1, 500, FEATURES)}, None, generator(3))
    raw, env = action.record["chain"][0, :, -1], action.env["action"][0]
    assert all(box.contains(row) for row in env.numpy())
    torch.testing.assert_close(env, torch.stack([2 * raw[:, 0].clamp(-1, 1), 10.5 + 0.5 * raw[:, 1].clamp(-1, 1)], -1))


def test_guidance_extrapolates_from_no_condition_in_acting_and_scoring_alike() -> None:
    guided, plain = build(shared=True, guidance=3.0), build(shared=True)
    x, s = torch.randn(6, D, generator=generator(2)), torch.full((6,), 0.7)
    seen = torch.randn(6, FEATURES, generator=generator(1))
    network = plain.module.row(None, 0)
    with torch.no_grad():
        with_condition = network(x, s, {"observation": seen})
        without = network(x, s, {"observation": torch.zeros_like(seen)})
        found = guided._velocity(None, x[None], s[None], {"observation": seen[None]})
        batch = play(guided)
        evaluation = guided.evaluate(frozen(guided), batch)
    torch.testing.assert_close(found[0], without + 3 * (with_condition - without), rtol=1e-4, atol=1e-5)
    residual = (batch.record["chain"][..., 1:, :] - evaluation.law.mean) / evaluation.law.std.unsqueeze(-1)
    assert 0.5 < float(residual.std()) < 1.5


def test_steps_outside_the_window_have_no_noise_and_no_likelihood() -> None:
    policy = build(shared=True, sde_window=(1, 3))
    batch = play(policy)
    evaluation = policy.evaluate(frozen(policy), batch)
    outside = torch.tensor([True, False, False, True, True])
    assert evaluation.weight is not None
    assert (evaluation.log_prob[..., outside] == 0).all()
    assert (evaluation.weight[..., outside] == 0).all()
    assert (evaluation.log_prob[..., ~outside] != 0).all()
    torch.testing.assert_close(
        batch.record["chain"][..., 1:, :][..., outside, :], evaluation.law.mean[..., outside, :], rtol=1e-4, atol=1e-5
    )


def denoising_group() -> GroupSpec:
    inf = np.inf
    return group(
        None,
        latent=spaces.Box(-inf, inf, (D,)),
        sigma=spaces.Box(0, 1, (2,)),
        observation=spaces.Box(-inf, inf, (FEATURES,)),
    )


def test_in_an_environment_that_denoises_each_step_is_a_decision() -> None:
    """The same network plays its own chain, and the same chain as the environment's steps."""
    own = build(shared=True)
    step = build(shared=True, chain="environment", of=denoising_group())
    step.module.load_state_dict(own.module.state_dict())
    batch = play(own, steps=1, trajectories=6)
    whole = own.evaluate(frozen(own), batch)
    chain, seen = batch.record["chain"][:, 0], batch.observation["observation"][:, 0]
    sigmas = own.sigmas.float()
    levels = torch.stack([sigmas[:-1], sigmas[1:]], -1)[None, :, None].expand(1, -1, 6, -1)
    unrolled = PolicyBatch(
        observation={
            "latent": chain[:, :, :-1].transpose(1, 2),
            "sigma": levels,
            "observation": seen[:, None].expand(-1, STEPS, -1, -1),
        },
        record={
            "next": chain[:, :, 1:].transpose(1, 2),
            "mean": batch.record["mean"][:, 0].transpose(1, 2),
        },
        memory=None,
        starts=torch.zeros(1, STEPS, 6, dtype=torch.bool),
        mask=torch.ones(1, STEPS, 6, dtype=torch.bool),
    )
    evaluation = step.evaluate(frozen(step), unrolled)
    assert evaluation.weight is not None
    assert whole.weight is not None
    torch.testing.assert_close(evaluation.log_prob[0, :, :, 0], whole.log_prob[0, 0].T, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(evaluation.weight[0, :, :, 0], whole.weight[0, 0].T)
    torch.testing.assert_close(step.recall(unrolled).log_prob, evaluation.log_prob, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        now = {leaf: x[:, 2] for leaf, x in unrolled.observation.items()}
        action = step.act(now, None, generator(1), mode=True)
        x, s, s_next = chain[0, :, 2], float(sigmas[2]), float(sigmas[3])
        v = own.module.row(None, 0)(x, torch.full((6,), s), {"observation": seen[0]})
    torch.testing.assert_close(action.env["action"][0], x + (s_next - s) * v, rtol=1e-4, atol=1e-5)


def test_another_grid_than_the_environments_is_refused() -> None:
    policy = build(shared=True, chain="environment", of=denoising_group(), steps=4)
    seen = {
        "latent": torch.zeros(1, 2, D),
        "sigma": torch.tensor([0.45, 0.4]).expand(1, 2, 2),
        "observation": torch.zeros(1, 2, FEATURES),
    }
    with pytest.raises(UserError, match=r"level 0\.4500.* 4 steps with shift 3; give agents and env\.config the same"):
        policy.act(seen, None, generator())
    # A grid of half as many steps has only levels that the policy's has too, and other steps.
    coarse = sigma_grid(2, 3.0)[:2].float()
    with pytest.raises(UserError, match=r"from level 1\.0000 to 0\.7500"):
        policy.act({**seen, "sigma": coarse.expand(1, 2, 2)}, None, generator())


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"sampler": "precise", "steps": 1}, r"its 1 step "),
        ({"sampler": "cps", "sde_window": (STEPS - 1, STEPS)}, r"the steps \[4, 5\] of sde_window"),
    ],
)
def test_a_chain_without_a_stochastic_step_is_refused(settings: dict[str, Any], where: str) -> None:
    with pytest.raises(UserError, match=rf"draws no noise in {where}.*no likelihood to learn from"):
        build(**settings)
    build(**{**settings, "sampler": "sage"})


def test_a_frozen_model_is_recognised_by_its_values_however_they_are_summed() -> None:
    of = group(condition=spaces.Box(0, 1, (4,)))
    circle = {"kind": "residual", "base": "mixture_circle", "hidden": [8]}
    policy, other = build(of=of, network=circle), build(of=of, network={**circle, "base": "mixture_moons"})
    state = policy.state_dict()
    # The same values in another order have the same sum and are another model.
    swapped = build(of=of, network=circle)
    means = swapped.module.frozen["base.means"]
    means.copy_(means.flip(0).clone())
    for stranger in (other, swapped):
        with pytest.raises(UserError, match="is not the one this checkpoint was made with"):
            stranger.load_state_dict(state)
    build(of=of, network=circle).load_state_dict(state)


def test_spaces_that_do_not_suit_are_refused_with_the_reason() -> None:
    discrete = GroupSpec("g", ("a", "b"), group().observation, {"action": spaces.Discrete(3)})
    with pytest.raises(UserError, match="one continuous action, and group 'g' has action: Discrete"):
        build(of=discrete)
    with pytest.raises(UserError, match=r"leaves 'latent' of the action's shape \(2,\) and 'sigma'"):
        build(chain="environment")
    with pytest.raises(UserError, match=r"denoises by itself, one step at a time; set agents\.chain"):
        build(of=denoising_group())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"sampler": "cps", "eta": 1.2}, "at most 1, not 1.2"),
        ({"eta": -0.1}, "greater than 0"),
        ({"sde_window": (2, 6)}, "start < stop <= steps = 5"),
        ({"chain": "environment", "mode_steps": 3}, "mode_steps is for chain 'own'"),
        ({"chain": "environment", "mode_noise": "zero"}, "mode_noise is for chain 'own'"),
        ({"sampler": "ode"}, "sage"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        FlowConfig(**{"steps": STEPS, **settings})


def test_the_published_clamp_is_refused_on_a_grid_where_it_is_invalid() -> None:
    with pytest.raises(UserError, match="clamp='safe'"):
        build(steps=50, shift=7, clamp="published")
    assert bool((build(steps=50, shift=7).coefficients.variance > 0).all())
