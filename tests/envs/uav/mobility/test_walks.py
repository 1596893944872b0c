"""Random walk and Gauss-Markov against their closed forms."""

import math

import numpy as np
import pytest
from scipy import stats

from marl_tr.envs.uav.mobility_config import GaussMarkovConfig, RandomWalkConfig
from marl_tr.envs.uav.walks import reflect

FAR = 1e5


def bounce(place, step, side):
    """One coordinate of a particle that goes `step` and turns at every wall; its place, and how often it turned."""
    turns, place = 0, place + step
    while not 0 <= place <= side:
        place = -place if place < 0 else 2 * side - place
        turns += 1
    return place, turns


def test_reflection_is_that_of_a_particle_between_walls():
    rng = np.random.default_rng(0)
    begin, step = rng.uniform(0, 7.3, 400), rng.normal(0, 12.0, 400)
    place, mirrored = reflect(begin + step, 7.3)
    expected = [bounce(b, s, 7.3) for b, s in zip(begin, step, strict=True)]
    assert place == pytest.approx([where for where, _ in expected], abs=1e-12)
    assert mirrored.tolist() == [turns % 2 == 1 for _, turns in expected]
    assert sum(turns > 1 for _, turns in expected) > 50


def test_reflection_leaves_what_is_inside_and_keeps_to_the_borders():
    inside = np.array([0.0, 3.0, 7.0])
    place, mirrored = reflect(inside.copy(), 7.0)
    assert (place == inside).all()
    assert mirrored is None
    tiny = np.array([-1e-300, np.nextafter(7.0, 8.0), -7.0, 14.0])
    assert reflect(tiny, 7.0)[0].tolist() == pytest.approx([0.0, 7.0, 7.0, 0.0])
    assert ((tiny >= 0) & (tiny <= 7.0)).all()


def test_random_walk_spreads_as_its_mean_square_says(users_of):
    users = users_of(RandomWalkConfig(v_max=3.0), envs=64, users=100, area_m=FAR, slot_s=2.0, dtype=np.float64)
    path, _ = users.walk(40)
    for slots in (1, 10, 40):
        square = np.square(path[slots] - path[0]).sum(axis=-1)
        expected = slots * 3.0**2 * 2.0**2 / 3
        assert square.mean() == pytest.approx(expected, abs=4 * square.std() / 80)
    assert np.abs((path[40] - path[0]).mean()) < 4 * math.sqrt(40 * 12 / 2 / 12_800)


def test_random_walk_draws_heading_and_speed_uniformly_and_independently(users_of):
    users = users_of(RandomWalkConfig(v_max=3.0), envs=64, users=100, area_m=FAR)
    _, velocities = users.walk(2)
    vx, vy = velocities[..., 0].astype(float), velocities[..., 1].astype(float)
    speed, heading = np.hypot(vx, vy), np.arctan2(vy, vx)
    assert stats.kstest(speed.ravel(), stats.uniform(0, 3.0).cdf).pvalue > 1e-3
    assert stats.kstest(heading.ravel(), stats.uniform(-math.pi, 2 * math.pi).cdf).pvalue > 1e-3
    for a, b in ((speed[0], speed[1]), (np.cos(heading[0]), np.cos(heading[1])), (speed[0], np.cos(heading[0]))):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 4 / 80


def test_a_walk_between_borders_is_the_free_walk_bounced(users_of):
    # Draws do not depend on the area: the steps of a free walk are those of one that meets borders.
    config = RandomWalkConfig(v_max=20.0)
    free, _ = users_of(config, users=1, area_m=FAR, dtype=np.float64).walk(200)
    bound, velocities = users_of(config, users=1, area_m=9.0, dtype=np.float64).walk(200)
    place, turned = [4.5, 4.5], 0
    for slot, step in enumerate(np.diff(free, axis=0)[:, 0, 0]):
        before = place
        results = [bounce(p, float(s), 9.0) for p, s in zip(place, step, strict=True)]
        place = [where for where, _ in results]
        turned += sum(turns for _, turns in results)
        assert bound[slot + 1, 0, 0] == pytest.approx(place, abs=1e-6)
        assert velocities[slot, 0, 0] == pytest.approx(np.subtract(place, before), abs=1e-6)
    assert turned > 200


# Rounding to 5.8 deviations and the clip at 0 are far out here: speeds stay between 4 and 16 m/s.
FREE = GaussMarkovConfig(memory=0.85, mean_speed=10.0, speed_deviation=1.0, v_max=40.0, heading_deviation=0.4)


@pytest.mark.parametrize("slots", [0, 40])
def test_gauss_markov_is_stationary_with_the_given_moments_and_memory(slots, users_of):
    users = users_of(FREE, envs=64, users=100, area_m=FAR, dtype=np.float64)
    users.walk(slots)
    _, velocities = users.walk(4)
    speed = np.hypot(velocities[..., 0], velocities[..., 1]).reshape(4, -1)
    heading = np.arctan2(velocities[..., 1], velocities[..., 0]) - users.mobility.mean_heading
    heading = np.remainder(heading + math.pi, 2 * math.pi).reshape(4, -1) - math.pi
    for values, mean, deviation in ((speed, 10.0, 1.0), (heading, 0.0, 0.4)):
        number = values[0].size
        assert values[0].mean() == pytest.approx(mean, abs=4 * deviation / math.sqrt(number))
        assert values[0].std() == pytest.approx(deviation, abs=4 * deviation / math.sqrt(2 * number))
        assert stats.kstest(values[0], stats.norm(mean, deviation).cdf).pvalue > 1e-3
        for lag in (1, 2, 3):
            assert np.corrcoef(values[0], values[lag])[0, 1] == pytest.approx(0.85**lag, abs=4 / math.sqrt(number))
        # What the memory does not explain has the deviation sqrt(1 - a^2), and no memory.
        fresh = np.diff(values, axis=0) + 0.15 * (values[:-1] - mean)
        assert fresh.std() == pytest.approx(deviation * math.sqrt(1 - 0.85**2), rel=0.03)
        assert abs(np.corrcoef(fresh[0], fresh[1])[0, 1]) < 4 / math.sqrt(number)
    assert abs(np.corrcoef(speed[0], heading[0])[0, 1]) < 4 / math.sqrt(speed[0].size)
    assert (
        stats.kstest(users.mobility.mean_heading.ravel() % (2 * math.pi), stats.uniform(0, 2 * math.pi).cdf).pvalue
        > 1e-3
    )


def test_gauss_markov_clips_the_motion_and_not_the_memory(users_of):
    config = GaussMarkovConfig(mean_speed=1.0, speed_deviation=2.0, v_max=1.5)
    users = users_of(config, envs=32, users=100, area_m=FAR, dtype=np.float64)
    _, velocities = users.walk(5)
    speed = np.hypot(velocities[-1, ..., 0], velocities[-1, ..., 1])
    assert speed.ravel() == pytest.approx(np.clip(users.mobility.speed, 0.0, 1.5).ravel(), abs=1e-6)
    assert users.mobility.speed.std() == pytest.approx(2.0, rel=0.06)
    assert (speed < 1e-9).mean() == pytest.approx(stats.norm.cdf(-0.5), abs=0.04)


def test_without_noise_gauss_markov_is_a_billiard(users_of):
    config = GaussMarkovConfig(mean_speed=3.0, speed_deviation=0.0, v_max=5.0, heading_deviation=0.0, margin_m=0.0)
    users = users_of(config, users=6, area_m=10.0, dtype=np.float64)
    direction = users.mobility.mean_heading[0].copy()
    path, _ = users.walk(100)
    for slot in range(101):
        for user, angle in enumerate(direction):
            step = 3.0 * slot * np.array([math.cos(angle), math.sin(angle)])
            expected = [bounce(5.0, float(s), 10.0)[0] for s in step]
            assert path[slot, 0, user] == pytest.approx(expected, abs=1e-6)


def test_small_steps_far_from_the_origin_add_up_in_float32(users_of):
    # A float32 at 60 km counts in steps of 4 mm, and these are 10 mm long.
    config = GaussMarkovConfig(speed_deviation=0.0, heading_deviation=0.0)
    users = users_of(config, users=50, area_m=1e5, slot_s=0.01, start=np.full((1, 50, 2), 6e4))
    path, velocities = users.walk(1000)
    assert path.dtype == np.float32
    way = (path[-1] - path[0]).astype(float)
    assert np.hypot(way[..., 0], way[..., 1]) == pytest.approx(np.full((1, 50), 10.0), abs=0.02)
    assert np.hypot(velocities[..., 0], velocities[..., 1]) == pytest.approx(np.ones((1000, 1, 50)), abs=1e-4)


def test_mean_headings_turn_inward_near_borders_and_keep_their_sine_or_cosine(users_of):
    config = GaussMarkovConfig(margin_m=50.0, heading_deviation=0.0)
    start = np.random.default_rng(0).uniform(0, 400.0, (16, 100, 2))
    users = users_of(config, envs=16, users=100, area_m=400.0, start=start, dtype=np.float64)
    before = users.mobility.mean_heading.copy()
    users.move()
    after = users.mobility.mean_heading
    for axis, component in ((0, np.cos), (1, np.sin)):
        low, high = start[..., axis] < 50.0, start[..., axis] > 350.0
        assert (component(after)[low] >= -1e-12).all()
        assert (component(after)[high] <= 1e-12).all()
        assert np.abs(component(after)) == pytest.approx(np.abs(component(before)), abs=1e-9)
        middle = ~low & ~high
        assert component(after)[middle] == pytest.approx(component(before)[middle], abs=1e-9)
    # Headings, until now the mean, go after it the short way round (in corners both ways are as long).
    free = ((start > 2.0) & (start < 398.0)).all(axis=-1)
    apart = np.remainder(before - after + math.pi, 2 * math.pi) - math.pi
    assert np.abs(users.mobility.heading - after)[free] == pytest.approx(0.85 * np.abs(apart[free]), abs=1e-9)
    assert ((users.mobility.heading - after) * apart >= 0)[free & (np.abs(apart) < 3.1)].all()
    assert (np.abs(before - after) > math.pi + 0.1).any()


def test_turning_inward_keeps_users_off_the_borders(users_of):
    shares = []
    for margin in (0.0, 40.0):
        config = GaussMarkovConfig(margin_m=margin, mean_speed=1.2)
        path, _ = users_of(config, envs=16, users=50, area_m=200.0).walk(400)
        last = path[200:]
        shares.append(((last < 1.0) | (last > 199.0)).any(axis=-1).mean())
    # A uniform law has 2 % of users within 1 m of a border.
    assert shares[0] > 0.01
    assert shares[1] < 0.002
