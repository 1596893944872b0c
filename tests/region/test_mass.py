"""How probable an action was: exactly, or by the tail of a Gaussian law."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from family_examples import policy_of, region_of, turn_for
from learning_examples import generator, make_flow
from scipy import stats
from torch import Tensor
from torch.distributions import Categorical as TorchCategorical

from marl_tr.errors import UserError
from marl_tr.nn.discrete import Categorical, MultiCategorical
from marl_tr.nn.distributions import Gaussian, ProductLaw
from marl_tr.region.family.mass import tail_mass
from marl_tr.scenario import ScenarioError, load_scenario
from marl_tr.scenario.schema import Scenario
from marl_tr.trainer.build import build_env, build_players

torch.set_num_threads(1)

MASS_READERS = ("dppo", "bandpo", "maspo")


def wide(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


@pytest.mark.parametrize("dimensions", [1, 2, 7])
def test_the_tail_mass_is_the_chi_squared_distributions_of_the_mahalanobis_distance(dimensions: int) -> None:
    law = Gaussian(wide((50, dimensions), 0), 0.5 * wide((50, dimensions), 1))
    action = law.sample(generator(2))
    distance = ((action - law.mean) / law.log_std.exp()).square().sum(-1)
    expected = torch.from_numpy(stats.chi2.sf(distance.numpy(), dimensions))
    torch.testing.assert_close(law.tail_mass(law.log_prob(action)), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", ["gaussian", "flow"])
def test_under_the_law_that_acted_tail_masses_are_uniform(kind: str) -> None:
    policy = policy_of(kind)
    turn = turn_for(policy, steps=30, environments=40)
    tail = tail_mass(policy, turn.old.law, turn.old.log_prob)
    assert tail.shape == turn.old.log_prob.shape
    if kind == "flow":
        moving = turn.old.law.stochastic
        assert bool((tail[~moving] == 1).all())
        tail = tail[moving]
    result = stats.kstest(tail.flatten().numpy(), "uniform")
    assert result.pvalue > 0.01
    # A wrong number of dimensions would be seen.
    assert stats.kstest(tail.flatten().square().numpy(), "uniform").pvalue < 1e-6


def test_the_tail_of_a_flows_surrogate_log_probability_is_that_of_its_density() -> None:
    exact = make_flow(sampler="cps", cps_log_prob="gaussian")
    surrogate = make_flow(sampler="cps", cps_log_prob="surrogate")
    turn = turn_for(exact)
    parameters = turn.learners.parameters(turn.rows)
    other = surrogate.evaluate(parameters, turn.batch)
    torch.testing.assert_close(
        tail_mass(surrogate, other.law, other.log_prob),
        tail_mass(exact, turn.old.law, turn.old.log_prob),
        rtol=1e-3,
        atol=1e-4,
    )


def test_the_tail_mass_is_differentiable_and_finite_at_the_mean_and_far_out() -> None:
    mean = torch.zeros(3, 2, dtype=torch.float64, requires_grad=True)
    law = ProductLaw({"action": Gaussian(mean, torch.zeros(2, dtype=torch.float64))})
    action = torch.tensor([[0.0, 0.0], [0.5, -1.0], [60.0, 0.0]], dtype=torch.float64)
    tail = law.tail_mass(law.log_prob({"action": action}))
    # Of two dimensions the tail is exp(-m / 2).
    torch.testing.assert_close(tail.detach(), torch.exp(-0.5 * action.square().sum(-1)), rtol=1e-6, atol=1e-9)
    (gradient,) = torch.autograd.grad(tail.sum(), mean)
    torch.testing.assert_close(gradient, action * tail.detach().unsqueeze(-1), rtol=1e-6, atol=1e-9)


def test_total_variations_are_exact_where_they_can_be_and_bounds_elsewhere() -> None:
    old, new = wide((6, 5), 0), wide((6, 5), 1)
    found = Categorical(old).total_variation(Categorical(new))
    p, q = TorchCategorical(logits=old).probs, TorchCategorical(logits=new).probs
    torch.testing.assert_close(found, 0.5 * (p - q).abs().sum(-1))
    # Two choices at once: the joint law's is at most what is said.
    joint = [(x[:, :2].softmax(-1).unsqueeze(-1) * x[:, 2:].softmax(-1).unsqueeze(-2)).flatten(-2) for x in (old, new)]
    said = MultiCategorical(old, (2, 3)).total_variation(MultiCategorical(new, (2, 3)))
    assert bool((said >= 0.5 * (joint[0] - joint[1]).abs().sum(-1) - 1e-12).all())
    for scale, exact in ((1.0, True), (1.7, False)):
        a = Gaussian(torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64))
        b = Gaussian(torch.full((1,), 0.8, dtype=torch.float64), torch.full((1,), math.log(scale)).double())
        grid = torch.linspace(-12, 12, 200_001, dtype=torch.float64).unsqueeze(-1)
        integral = 0.5 * (a.log_prob(grid).exp() - b.log_prob(grid).exp()).abs().sum() * 24 / 200_000
        assert float(a.total_variation(b)) >= float(integral) - 1e-6
        assert (abs(float(a.total_variation(b)) - float(integral)) < 1e-5) == exact


@pytest.mark.parametrize("kind", ["gaussian", "flow"])
@pytest.mark.parametrize("name", MASS_READERS)
def test_with_tail_mass_the_mechanisms_serve_gaussians_and_flows(name: str, kind: str) -> None:
    policy, exact, region = policy_of(kind), region_of(name), region_of(name, mass="tail")
    assert not exact.requires <= policy.capabilities
    assert region.requires <= policy.capabilities
    assert {str(need) for need in region.needs} == set(region.config.needs)
    turn = turn_for(policy)
    before = turn.learners.parameters(turn.rows)
    candidate = region.propose(turn)
    assert all(bool(torch.isfinite(p).all()) for p in candidate.parameters.values())
    assert any(not torch.equal(p, before[key]) for key, p in candidate.parameters.items())
    assert bool((region.reach(turn, turn.measure(before)).value.abs() < 1e-5).all())
    wild = replace(turn, old=replace(turn.old, log_prob=turn.old.log_prob - 50))
    assert all(bool(torch.isfinite(p).all()) for p in region.propose(wild).parameters.values())


def scenario(agents: str, region: str, env: str = "flow/mixture-v0", **more: Any) -> Scenario:
    return load_scenario(
        {
            "name": "x",
            "env": {"id": env},
            "agents": {"kind": agents},
            "objective": {"kind": "surrogate"},
            "region": {"kind": region, **more},
            "schedule": {"kind": "simultaneous"},
            "critic": {"kind": "mlp"},
            "optimizer": {},
            "trainer": {"total_steps": 10},
        }
    )


@pytest.mark.parametrize("name", MASS_READERS)
def test_a_flow_is_refused_exact_masses_when_the_scenario_is_read_and_told_of_the_tail(name: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        scenario("flow", name)
    (problem,) = caught.value.problems
    assert "needs laws of choices ('mass'), which agents of kind 'flow' do not have" in problem.message
    assert "mass: tail" in problem.message
    scenario("flow", name, mass="tail")


@pytest.mark.parametrize(
    ("mass", "env", "cure"), [("exact", "flow/mixture-v0", "tail"), ("tail", "games/uav_placement-v0", "exact")]
)
def test_agents_whose_actions_are_known_with_the_space_only_are_refused_when_the_run_is_built(
    mass: str, env: str, cure: str
) -> None:
    read = scenario("gaussian", "bandpo", env, mass=mass)
    built = build_env(read, num_envs=2)
    with pytest.raises(UserError, match=f"region 'bandpo' requires .*; or 'mass: {cure}'"):
        build_players(read, built.spec)
    build_players(scenario("gaussian", "bandpo", env, mass=cure), built.spec)
