"""Drawn channels against what they are drawn from."""

import math

import numpy as np
import pytest
from scipy import stats

from marl_tr.envs.uav.channel_config import AlHouraniConfig, PowerLawConfig, SamplingConfig, Tr36777Config
from marl_tr.envs.uav.propagation import make_channel
from marl_tr.envs.uav.sampled import fading_power, words
from marl_tr.philox import bits

MANY = 40_000
SHADOWED = SamplingConfig(shadowing_los_db=3.0, shadowing_nlos_db=6.0, fading=False)


def drawn(config, envs=1, users=MANY, dtype=np.float64):
    return make_channel(config, carrier_hz=2e9, num_envs=envs, num_uavs=1, num_users=users, dtype=dtype)


def place(x, y=0.0, z=100.0):
    return np.array([[[x, y, z]]])


def same_place(x, users=MANY):
    return np.tile([x, 0.0], (1, users, 1)).astype(float)


def step(made, position, users, slot):
    return made.gain(position, users, seed=7, stream=np.array([3]), moment=np.array([slot], np.int64))


def test_words_are_those_of_the_generator_whatever_their_number():
    stream, step = np.array([0, 5, 9]), np.array([2, 2**32 + 7, 1])
    got = words(3, stream, purpose=102, step=step, count=40_001)
    expected = bits(3, stream, purpose=102, step=step % 2**32, blocks=10_001).reshape(3, -1)
    assert (got == expected[:, :40_001]).all()


@pytest.mark.parametrize("k_db", [-5.0, 0.0, 15.0])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_fading_is_rician_with_line_of_sight_and_rayleigh_without(k_db, dtype):
    k = 10 ** (k_db / 10)
    random = words(1, np.array([0]), purpose=102, step=np.array([0]), count=2 * MANY).reshape(1, 2, MANY)
    for los, law in ((True, stats.ncx2(2, 2 * k, scale=1 / (2 * (1 + k)))), (False, stats.expon())):
        power = fading_power(random, np.full((1, MANY), los), k, dtype)[0]
        assert power.dtype == dtype
        assert (power > 0).all()
        variance = (1 + 2 * k) / (1 + k) ** 2 if los else 1.0
        assert power.mean() == pytest.approx(1.0, abs=4 * math.sqrt(variance / MANY))
        assert power.var() == pytest.approx(variance, rel=0.06)
        assert stats.kstest(power, law.cdf).pvalue > 0.01


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_extreme_words_give_finite_positive_fading(dtype):
    ends = np.array([0, 1, 2**31, 2**32 - 1], np.uint32)
    random = np.stack(np.meshgrid(ends, ends)).reshape(1, 2, 16)
    for los in (True, False):
        power = fading_power(random, np.full((1, 16), los), 1.0, dtype)
        assert np.isfinite(power).all()
        assert (power >= 0).all()
    assert (power > 0).all()


@pytest.mark.parametrize("radius", [0.0, 150.0, 250.0, 600.0])
def test_as_many_links_are_in_sight_as_the_probability_says(radius):
    made = drawn(AlHouraniConfig(averaging="sampled"))
    step(made, place(0.0), same_place(radius), 0)
    p = float(made.model.los_probability(np.array([radius**2]), np.array([100.0]))[0])
    assert made.los.mean() == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / MANY) + 1e-12)


@pytest.mark.parametrize(
    "config",
    [
        AlHouraniConfig(averaging="sampled"),
        PowerLawConfig(averaging="sampled", sampling=SHADOWED),
        Tr36777Config(averaging="sampled", scenario="umi"),
        Tr36777Config(averaging="sampled", scenario="uma", sampling=SamplingConfig(shadowing=False)),
        AlHouraniConfig(averaging="sampled", sampling=SamplingConfig(shadowing_nlos_db=4.0, rician_k_db=0.0)),
    ],
    ids=lambda config: config.kind,
)
def test_draws_average_to_the_expected_gain(config):
    made = drawn(config)
    gain = step(made, place(0.0, z=60.0), same_place(180.0), 0)[0, 0]
    expected = made.mean_gain(place(0.0, z=60.0), same_place(180.0, 1))[0, 0, 0]
    error = gain.std() / math.sqrt(MANY)
    assert gain.mean() == pytest.approx(expected, abs=4 * error)
    assert error < 0.05 * expected  # else the line above would say little


def test_nothing_random_is_left_where_all_is_switched_off_and_all_are_in_sight():
    config = Tr36777Config(scenario="uma", averaging="sampled", sampling=SamplingConfig(shadowing=False, fading=False))
    made = drawn(config, users=50)
    users = same_place(400.0, 50)
    assert step(made, place(0.0, z=120.0), users, 0) == pytest.approx(made.mean_gain(place(0.0, z=120.0), users))


def test_a_link_whose_ends_stay_keeps_everything_but_its_fading():
    still = drawn(PowerLawConfig(averaging="sampled", sampling=SHADOWED))
    users = same_place(400.0)
    first = step(still, place(0.0), users, 0)
    for slot in range(1, 4):
        assert (step(still, place(0.0), users, slot) == first).all()

    faded = drawn(AlHouraniConfig(averaging="sampled"))
    gains = [step(faded, place(0.0), same_place(250.0), slot)[0, 0] for slot in range(3)]
    los = faded.los[0, 0]
    for mine in (los, ~los):
        for a, b in ((0, 1), (1, 2), (0, 2)):
            assert abs(np.corrcoef(gains[a][mine], gains[b][mine])[0, 1]) < 4 / math.sqrt(mine.sum())


def test_a_state_lasts_until_the_uav_is_far_from_where_it_was_drawn():
    made = drawn(AlHouraniConfig(averaging="sampled"))
    users = same_place(250.0)
    step(made, place(0.0), users, 0)
    before = made.los.copy()
    # Out and back and up, 100 m in all but never 50 m away.
    for slot, where in enumerate([place(40.0), place(0.0), place(0.0, z=140.0), place(29.9, 40.0)], start=1):
        step(made, where, users, slot)
        assert (made.los == before).all()
    step(made, place(0.0, 50.0), users, 5)
    p = made.los.mean()
    # Drawn anew, and so independent of the old: the share that changed is that of two independent draws.
    expected = before.mean() * (1 - p) + p * (1 - before.mean())
    assert (made.los != before).mean() == pytest.approx(expected, abs=4 * 0.5 / math.sqrt(MANY))


def test_a_user_that_goes_far_changes_its_own_link_alone():
    made = drawn(AlHouraniConfig(averaging="sampled"))
    users = same_place(250.0)
    step(made, place(0.0), users, 0)
    before = made.los.copy()
    users[:, ::2, 1] += 50.0
    step(made, place(0.0), users, 1)
    assert (made.los[..., 1::2] == before[..., 1::2]).all()
    assert 0.2 < (made.los[..., ::2] != before[..., ::2]).mean() < 0.8
    # Those links were drawn a slot later, and last longer: the UAV has now gone 50 m for the others, which were
    # drawn where it was at first, and 30 m for these.
    after = made.los.copy()
    step(made, place(20.0), users, 2)
    users[:, ::2, 1] += 50.0
    step(made, place(20.0), users, 3)
    late = made.los.copy()
    assert (late[..., 1::2] == after[..., 1::2]).all()
    step(made, place(50.0), users, 4)
    assert (made.los[..., ::2] == late[..., ::2]).all()
    assert (made.los[..., 1::2] != late[..., 1::2]).any()


@pytest.mark.parametrize(("by_uav", "by_user"), [(10.0, 0.0), (0.0, 7.0), (6.0, 3.0)])
def test_shadowing_forgets_exponentially_with_the_distance_moved(by_uav, by_user):
    settings = SHADOWED.model_copy(update={"decorrelation_m": 40.0})
    made = drawn(PowerLawConfig(averaging="sampled", sampling=settings))
    users = same_place(250.0)
    seen = []
    for slot in range(6):
        there = users + np.array([0.0, slot * by_user])
        step(made, place(slot * by_uav), there, slot)
        seen.append(made.shadowing[0, :, 0].copy())
    for slot, now in enumerate(seen):
        assert now.mean(axis=1) == pytest.approx(0.0, abs=4 / math.sqrt(MANY))
        assert now.var(axis=1) == pytest.approx(1.0, abs=4 * math.sqrt(2 / MANY))
        for state in range(2):
            correlation = np.corrcoef(seen[0][state], now[state])[0, 1]
            assert correlation == pytest.approx(math.exp(-slot * (by_uav + by_user) / 40.0), abs=4 / math.sqrt(MANY))
    assert abs(np.corrcoef(seen[-1])[0, 1]) < 4 / math.sqrt(MANY)  # the two states' shadowing is independent


def test_shadowing_has_the_deviation_asked_for_in_each_state():
    made = drawn(PowerLawConfig(averaging="sampled", sampling=SHADOWED))
    gain = step(made, place(0.0), same_place(400.0), 0)[0, 0]
    clear, shadowed = made.model.gains(np.array([400.0**2]), np.array([100.0]))
    los = made.los[0, 0]
    assert 0.2 < los.mean() < 0.8
    for mine, base, deviation in ((los, clear, 3.0), (~los, shadowed, 6.0)):
        decibels = 10 * np.log10(gain[mine] / base)
        assert decibels.std() == pytest.approx(deviation, rel=0.03)
        assert decibels.mean() == pytest.approx(0.0, abs=4 * deviation / math.sqrt(mine.sum()))


def test_without_shadowing_none_is_kept():
    assert drawn(AlHouraniConfig(averaging="sampled"), users=5).shadowing.size == 0
    off = SamplingConfig(shadowing=False, shadowing_los_db=3.0)
    assert drawn(AlHouraniConfig(averaging="sampled", sampling=off), users=5).shadowing.size == 0
    assert drawn(Tr36777Config(averaging="sampled"), users=5).shadowing.shape == (1, 2, 1, 5)


def test_draws_of_other_seeds_environments_and_slots_differ():
    def first_gain(seed=7, stream=3, slot=0):
        made = drawn(Tr36777Config(averaging="sampled"), users=64)
        return made.gain(
            place(0.0), same_place(250.0, 64), seed=seed, stream=np.array([stream]), moment=np.array([slot])
        )

    reference = first_gain()
    assert (first_gain() == reference).all()
    for other in (first_gain(seed=8), first_gain(stream=4), first_gain(slot=1)):
        assert (other != reference).all()


def test_float32_draws_the_same_channel():
    gains = []
    for dtype in (np.float32, np.float64):
        made = drawn(Tr36777Config(averaging="sampled", scenario="umi"), users=2000, dtype=dtype)
        gains.append([step(made, place(20.0 * slot), same_place(250.0, 2000), slot) for slot in range(4)])
    single, double = (np.stack(g) for g in gains)
    close = np.isclose(single, double, rtol=2e-3)
    assert close.mean() > 0.999  # a state drawn within rounding of its probability may differ
