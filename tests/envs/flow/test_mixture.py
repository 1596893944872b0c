from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import integrate, optimize, stats

from marl_tr.envs.flow.curves import CURVES
from marl_tr.envs.flow.mixture import make
from marl_tr.envs.flow.mixture_velocity import COMPONENTS, WIDTH, MixtureVelocity, NoCondition, component_means
from marl_tr.registry import find
from marl_tr.trainer.evaluation import evaluate_act
from marl_tr.vector import make_vector_env
from marl_tr.vector.check import check_env
from marl_tr.vector.sampling import random_actions

NAMES = tuple(CURVES)


def condition(arcs, index, count):
    return {"condition": torch.nn.functional.one_hot(torch.full((count,), index), arcs).double()}


def places(count, seed=0):
    return torch.randn(count, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("curve", "view"), [("circle", "clip"), ("moons", "steps")])
def test_check_env_has_nothing_to_say(curve, view):
    report = check_env("flow/mixture-v0", {"curve": curve, "view": view, "steps": 3}, cycles=6)
    assert report.passed, report.render()


@pytest.mark.parametrize("curve", NAMES)
def test_the_nearest_point_is_that_of_a_search_over_the_whole_curve(curve):
    points = places(40).numpy()
    nearest = CURVES[curve].nearest(points)
    fine = CURVES[curve].point(np.linspace(0, 1, 200_001))
    brute = np.array([np.hypot(*(fine - point).T).min() for point in points])
    assert np.allclose(nearest.distance, brute, atol=2e-5)
    assert (nearest.distance <= brute + 1e-12).all()
    assert np.allclose(np.hypot(*(CURVES[curve].point(nearest.u) - points).T), nearest.distance, atol=1e-9)


def test_distances_to_circle_and_moons_are_closed_forms():
    points = places(200).numpy()
    circle = CURVES["circle"].nearest(points)
    assert np.allclose(circle.distance, np.abs(np.hypot(*points.T) - 1), atol=1e-9)
    assert np.allclose(circle.u, np.arctan2(points[:, 1], points[:, 0]) / (2 * np.pi) % 1, atol=1e-7)

    def to_arc(centre, upper):
        x, y = (points - centre).T
        inside = y >= 0 if upper else y <= 0
        ends = np.minimum(np.hypot(x - 1, y), np.hypot(x + 1, y))
        return np.where(inside, np.abs(np.hypot(x, y) - 1), ends)

    moons = np.minimum(to_arc((-0.5, -0.25), True), to_arc((0.5, 0.25), False))
    assert np.allclose(CURVES["moons"].nearest(points).distance, moons, atol=1e-9)


@pytest.mark.parametrize("curve", NAMES)
def test_velocity_is_the_score_of_the_density(curve):
    velocity, x = MixtureVelocity(curve, arcs=3), places(50)
    sigma = torch.linspace(0.05, 0.95, 50, dtype=torch.float64)
    for seen in (condition(3, 1, 50), {"condition": torch.zeros(50, 3)}):
        at = x.clone().requires_grad_()
        (score,) = torch.autograd.grad(velocity.log_density(at, sigma, seen).sum(), at)
        expected = -(x + sigma[:, None] * score) / (1 - sigma[:, None])
        assert torch.allclose(velocity(x, sigma, seen), expected, atol=1e-9)


def test_velocity_is_the_posterior_mean_by_quadrature():
    """``E[e - x0 | x]`` by integrating over ``x0`` on a grid, with the density written out again."""
    sigma, x = 0.4, np.array([0.3, -0.5])
    means = component_means("moons").numpy()[:128]  # arc 0 of 2
    grid = np.linspace(-2.0, 2.0, 201)
    x0 = np.stack(np.meshgrid(grid, grid, indexing="ij"), -1)
    prior = sum(np.exp(-np.square(x0 - mean).sum(-1) / (2 * WIDTH**2)) for mean in means)
    weight = prior * np.exp(-np.square(x - (1 - sigma) * x0).sum(-1) / (2 * sigma**2))
    noise = (x - (1 - sigma) * x0) / sigma
    total = integrate.simpson(integrate.simpson(weight, x=grid), x=grid)
    expected = [
        integrate.simpson(integrate.simpson(weight * (noise - x0)[..., axis], x=grid), x=grid) / total
        for axis in range(2)
    ]
    found = MixtureVelocity("moons", arcs=2)(torch.tensor(x[None]), torch.tensor([sigma]), condition(2, 0, 1))
    assert np.allclose(found[0], expected, atol=1e-6)


def test_density_integrates_to_one():
    velocity = MixtureVelocity("spiral", arcs=4)
    grid = torch.linspace(-3, 3, 151, dtype=torch.float64)
    points = torch.cartesian_prod(grid, grid)
    sigma = torch.full((len(points),), 0.3, dtype=torch.float64)
    density = velocity.log_density(points, sigma, condition(4, 2, len(points))).exp()
    assert density.sum().item() * 0.04**2 == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("curve", NAMES)
def test_the_ode_carries_noise_to_the_data(curve):
    count, arcs = 2000, 2
    velocity, seen = MixtureVelocity(curve, arcs), condition(arcs, 1, count)
    x, levels = places(count, seed=4), torch.linspace(1, 0, 61, dtype=torch.float64)
    for now, then in pairwise(levels):  # Heun
        first = velocity(x, now.expand(count), seen)
        second = velocity(x + (then - now) * first, then.expand(count), seen)
        x = x + (then - now) * (first + second) / 2
    observation, data = make(curve=curve, arcs=arcs).demonstrations(4 * count, torch.Generator().manual_seed(1))
    data = data[observation["condition"].argmax(1) == 1].double()
    for direction in (0.0, 0.9, 2.1):
        axis = torch.tensor([np.cos(direction), np.sin(direction)], dtype=torch.float64)
        assert stats.ks_2samp(x @ axis, data @ axis).statistic < 0.05
    assert torch.allclose(x.mean(0), data.mean(0), atol=0.04)
    assert torch.allclose(torch.cov(x.T), torch.cov(data.T), atol=0.04)


def test_velocity_keeps_the_dtype_and_is_exact_at_the_ends():
    velocity, x = MixtureVelocity("circle", 4), places(6)
    noise = velocity(x, torch.ones(6), condition(4, 0, 6))
    mean = component_means("circle")[:64].mean(0)
    assert torch.allclose(noise, x - mean, atol=1e-12)  # at s = 1 x tells nothing of x0
    assert velocity(x.float(), torch.ones(6), condition(4, 0, 6)).dtype == torch.float32
    on = component_means("circle")[:6]
    data = velocity(on, torch.zeros(6), {"condition": torch.zeros(6, 4)})
    assert torch.allclose(data, -on, atol=1e-9)  # at s = 0 x is x0, and the noise's mean is 0
    assert list(velocity.parameters()) == []


def test_models_are_registered_for_every_curve_and_fit_the_environment():
    for curve in NAMES:
        env = make_vector_env("flow/mixture-v0", num_envs=2, config={"curve": curve, "arcs": 5})
        model = find("models", f"mixture_{curve}").load()(env.spec.groups[0])
        seen = {"condition": torch.from_numpy(env.reset(0).groups["point"].observation["condition"][:, 0])}
        assert model(torch.zeros(2, 2), torch.full((2,), 0.5), seen).shape == (2, 2)
        assert torch.equal(model.means, component_means(curve))
        assert model.members.sum() == COMPONENTS
    video = make_vector_env("flow/moving_shapes-v0", num_envs=1)
    with pytest.raises(NoCondition, match="tokens"):
        find("models", "mixture_circle").load()(video.spec.groups[0])


@pytest.mark.parametrize("curve", NAMES)
def test_references_are_ranked_as_they_should(curve):
    env = make(num_envs=64, curve=curve)
    episodes = {r.name: evaluate_act(env, r.act, seed=1, window=None) for r in env.references()}
    best, data, noise = (episodes[name] for name in ("preferred point", "data as asked", "noise"))
    assert np.allclose(best.returns, 1, atol=1e-6)
    assert np.allclose(best.metrics["manifold_distance"], 0, atol=1e-6)
    assert best.returns.mean() > data.returns.mean() > noise.returns.mean()
    # The distance of a Gaussian to a straight line, the ends of the curve aside.
    assert data.metrics["manifold_distance"].mean() == pytest.approx(WIDTH * (2 / np.pi) ** 0.5, rel=0.35)
    assert data.metrics["arc_accuracy"].mean() > 0.9


def test_the_reward_is_its_formula_and_leaving_the_curve_costs_what_is_said():
    env = make(num_envs=1, curve="circle", arcs=4, reach=0.5)
    env.reset(0)
    asked = env.task.ask(env._draw)

    def reward(u, radius, task=env.task):
        point = radius * np.array([np.cos(2 * np.pi * u), np.sin(2 * np.pi * u)])
        return float(task.judge(asked, point[None, None].astype(np.float32)).reward[0, 0])

    best = asked.target[0]
    assert reward(best, 1.0) == pytest.approx(1)
    assert reward(best + 0.1, 1.0) == pytest.approx(np.exp(-0.5 * (4 * 0.1 / 0.5) ** 2), abs=1e-5)
    assert reward(best + 0.9, 1.0) == pytest.approx(reward(best - 0.1, 1.0), abs=1e-5)  # closed
    assert reward(best, 1.7) == pytest.approx(1, abs=1e-5)
    for weight in (2.0, -0.5):
        task = make(num_envs=1, curve="circle", arcs=4, manifold_weight=weight).task
        assert reward(best, 1.7, task) == pytest.approx(1 - 0.7 * weight, abs=1e-5)
        assert reward(best, 9.0, task) == pytest.approx(1 - weight, abs=1e-5)
    highest = optimize.minimize_scalar(lambda u: -reward(u, 1.0), bounds=(best - 0.1, best + 0.1), method="bounded")
    assert highest.x == pytest.approx(best, abs=1e-3)


def test_rewards_are_finite_for_every_finite_action():
    env = make(num_envs=4, manifold_weight=1.0)
    env.reset(0)
    wild = np.array([[[3e38, -3e38]], [[0.0, 0.0]], [[1e-40, 0.0]], [[1e20, 1.0]]], np.float32)
    step = env.step({"point": {"action": wild}})
    assert np.isfinite(step.groups["point"].reward).all()
    assert all(np.isfinite(values).all() for values in step.metrics.values())
    wild[1] = np.nan
    with pytest.raises(ValueError, match="point_0 in environment 1"):
        env.step({"point": {"action": wild}})


def test_cohorts_share_an_arc_and_all_arcs_are_asked_for():
    env = make(num_envs=24, cohort=3, arcs=8)
    step = env.reset(0)
    seen = step.groups["point"].observation["condition"].argmax(-1).reshape(8, 3)
    assert (seen == seen[:, :1]).all()
    assert sorted(seen[:, 0]) == list(range(8))


def test_demonstrations_are_the_data_of_the_condition():
    env = make(curve="spiral", arcs=4)
    observation, points = env.demonstrations(2000, torch.Generator().manual_seed(0))
    measured = env.measure(points, observation)
    assert measured["arc_accuracy"] > 0.9
    assert measured["manifold_distance"] < WIDTH
    assert observation["condition"].sum(0).min() > 400


def test_an_episode_can_be_looked_at():
    env = make(num_envs=2, view="steps", steps=4)
    act = next(iter(env.references())).act
    pictures = env.media(evaluate_act(env, act, seed=0, window=None).trajectory)
    assert pictures["plane"].shape == (400, 400, 3)
    assert len(np.unique(pictures["plane"].reshape(-1, 3), axis=0)) > 10


def test_a_restored_batch_goes_on_bit_for_bit():
    env, twin = (make(num_envs=3, view="steps", steps=4) for _ in range(2))
    generator = np.random.default_rng(0)
    env.reset(2)
    for _ in range(6):
        env.step(random_actions(env.spec, generator))
    twin.load_state_dict(env.state_dict())
    for _ in range(4):
        action = random_actions(env.spec, generator)
        mine, theirs = env.step(action).groups["point"], twin.step(action).groups["point"]
        assert np.array_equal(mine.reward, theirs.reward)
        assert np.array_equal(mine.observation["latent"], theirs.observation["latent"])
