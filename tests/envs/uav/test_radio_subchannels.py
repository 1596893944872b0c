import dataclasses
import math

import numpy as np
import pytest

from marl_tr.envs.uav import association
from marl_tr.envs.uav.radio import serve
from marl_tr.envs.uav.radio_config import RadioConfig
from marl_tr.envs.uav.subchannels import SubchannelLinks, serve_subchannels, split_power

NOISE, BAND, P_MAX = 2e-14, 1e6, 0.1
FIELDS = [field.name for field in dataclasses.fields(SubchannelLinks)]


def links(gain, power, choice, resources="equal_share", *, full=None, horizontal_sq=None, **limits):
    return serve_subchannels(
        gain,
        power,
        choice,
        full_power=np.full(gain.shape[:2], P_MAX, gain.dtype) if full is None else full,
        noise_w=NOISE,
        bandwidth_hz=BAND,
        resources=resources,
        limits=RadioConfig(**limits),
        horizontal_sq=horizontal_sq,
    )


def instance(seed=0, e=3, u=4, g=12, k=5, dtype=np.float64):
    """Gains, powers, and choices of which most are own users, some are others' and some are idle."""
    rng = np.random.default_rng(seed)
    gain = (10 ** rng.uniform(-12, -8, size=(e, u, g))).astype(dtype)
    power = split_power(rng.normal(size=(e, u, k)), P_MAX).astype(dtype)
    choice = rng.integers(-1, g, (e, u, k))
    owner = gain.argmax(axis=1)
    for i, j in np.ndindex(e, u):
        own = np.flatnonzero(owner[i] == j)
        if len(own):
            choice[i, j, : k - 2] = rng.choice(own, k - 2)
    return gain, power, choice


def brute_force(gain, power, choice, serving, resources, *, least_db=-math.inf, most=math.inf):
    """Sub-channel after sub-channel, UAV after UAV, in Python."""
    (envs, uavs, users), subchannels = gain.shape, power.shape[2]
    share = uavs if resources == "orthogonal" else 1
    width, noise = BAND / subchannels / share, NOISE / subchannels / share
    rates, logs, held = np.zeros((3, envs, users))
    levels = np.zeros((envs, uavs, uavs))
    for e in range(envs):
        used = [
            [k for k in range(subchannels) if choice[e, u, k] >= 0 and serving[e, choice[e, u, k]] == u]
            for u in range(uavs)
        ]
        for u in range(uavs):
            for k in used[u]:
                g = choice[e, u, k]
                reach = [power[e, v, k] * gain[e, v, g] if k in used[v] else 0.0 for v in range(uavs)]
                others = 0.0 if resources == "orthogonal" else sum(reach) - reach[u]
                sinr = reach[u] / (others + noise)
                logs[e, g] += math.log1p(sinr)
                held[e, g] += 1
                if 10 * math.log10(sinr) >= least_db:
                    rates[e, g] += width * min(math.log1p(sinr) / math.log(2), most)
                for v in range(uavs):
                    if v == u or resources == "equal_share":
                        levels[e, u, v] += share * reach[v] / NOISE
    return rates, np.expm1(logs / np.maximum(held, 1)), levels


@pytest.mark.parametrize("resources", ["equal_share", "orthogonal"])
@pytest.mark.parametrize("shape", [{}, {"u": 1}, {"u": 2, "g": 3, "k": 9}, {"g": 40, "k": 1, "e": 2}], ids=str)
@pytest.mark.parametrize(
    "limits",
    [{}, {"max_users_per_uav": 2, "min_sinr_db": 3.0, "max_spectral_efficiency": 5.0, "coverage_radius_m": 200.0}],
    ids=["free", "limited"],
)
def test_rates_meet_a_loop_over_subchannels(resources, shape, limits):
    shape = {"k": 5, **shape}
    gain, power, choice = instance(**{**shape, "k": max(shape["k"], 3)})
    power, choice = power[..., : shape["k"]], choice[..., : shape["k"]]
    horizontal_sq = np.random.default_rng(2).uniform(0, 220, gain.shape) ** 2
    found = links(gain, power, choice, resources, horizontal_sq=horizontal_sq, **limits)
    full = np.full(gain.shape[:2], P_MAX)
    plain = serve(
        gain,
        full,
        noise_w=NOISE,
        bandwidth_hz=BAND,
        resources=resources,
        limits=RadioConfig(**limits),
        horizontal_sq=horizontal_sq,
    )
    assert (found.serving == plain.serving).all()
    assert (found.load == plain.load).all()
    least, most = limits.get("min_sinr_db", -math.inf), limits.get("max_spectral_efficiency", math.inf)
    rates, sinr, levels = brute_force(gain, power, choice, found.serving, resources, least_db=least, most=most)
    assert (rates > 0).any()
    assert found.rates == pytest.approx(rates, rel=1e-9)
    assert found.sinr == pytest.approx(sinr, rel=1e-9)
    assert found.levels == pytest.approx(levels, rel=1e-9)
    for u in range(gain.shape[1]):
        assert found.uav_rates[:, u] == pytest.approx(np.where(found.serving == u, rates, 0).sum(axis=1), rel=1e-9)


def test_somebody_elses_user_leaves_the_subchannel_idle_and_silent():
    gain = np.array([[[1e-9, 1e-11], [1e-11, 1e-9]]])  # user 0 is UAV 0's, user 1 is UAV 1's
    power = np.full((1, 2, 1), P_MAX)
    found = links(gain, power, np.array([[[0], [0]]]))
    assert found.user.tolist() == [[[0], [-1]]]
    assert found.power.tolist() == [[[P_MAX], [0.0]]]
    assert found.rates[0] == pytest.approx([BAND * math.log2(1 + P_MAX * 1e-9 / NOISE), 0.0])
    assert found.serving.tolist() == [[0, 1]]


@pytest.mark.parametrize("resources", ["equal_share", "orthogonal"])
def test_one_subchannel_with_one_user_is_the_plain_downlink(resources):
    gain = instance(u=3, g=3)[0]
    gain[:, np.arange(3), np.arange(3)] = 1e-7  # each UAV has the user of its number
    power = np.random.default_rng(0).uniform(0.09, 0.1, (3, 3))
    choice = np.broadcast_to(np.arange(3)[None, :, None], (3, 3, 1))
    found = links(gain, power[..., None], choice, resources)
    plain = serve(gain, power, noise_w=NOISE, bandwidth_hz=BAND, resources=resources)
    for name in ("serving", "sinr", "rates", "load", "uav_rates", "levels"):
        assert getattr(found, name) == pytest.approx(getattr(plain, name), rel=1e-9), name
    # Nor does it matter into how many equal parts the same user gets it all.
    parts = links(gain, np.repeat(power[..., None] / 4, 4, axis=2), np.repeat(choice, 4, axis=2), resources)
    for name in ("sinr", "rates", "uav_rates", "levels"):
        assert getattr(parts, name) == pytest.approx(getattr(plain, name), rel=1e-9), name


def test_uavs_on_different_subchannels_do_not_disturb_each_other():
    gain, _, _ = instance(u=2, g=2)
    gain[:, [0, 1], [0, 1]] = 1e-7
    choice = np.array([[[0, -1], [-1, 1]]] * 3)
    found = links(gain, np.full((3, 2, 2), P_MAX / 2), choice)
    alone = BAND / 2 * math.log2(1 + P_MAX / 2 * 1e-7 / (NOISE / 2))
    assert found.rates == pytest.approx(np.full((3, 2), alone))


def test_silent_uavs_serve_nobody_and_all_may_be_silent():
    gain, power, choice = instance()
    full = np.full((3, 4), P_MAX)
    full[0, 1] = 0
    full[1] = 0
    found = links(gain, power, choice, full=full)
    assert not (found.serving[0] == 1).any()
    assert (found.power[0, 1] == 0).all()
    assert (found.levels[0, :, 1] == 0).all()
    assert (found.serving[1] == -1).all()
    assert found.rates[1].tolist() == [0.0] * 12
    assert found.rates[2].sum() > 0
    assert all(np.isfinite(getattr(found, name)).all() for name in FIELDS)


def test_exchanging_users_exchanges_the_results():
    gain, power, choice = instance()
    order = np.random.default_rng(1).permutation(12)
    renamed = np.where(choice >= 0, np.argsort(order)[choice], -1)
    base, other = links(gain, power, choice), links(gain[:, :, order], power, renamed)
    assert (other.rates == base.rates[:, order]).all()
    assert (other.uav_rates == base.uav_rates).all()


def test_power_scaling_leaves_interference_limited_sinr_unchanged():
    gain, power, choice = instance()
    gain *= 1e6
    strong, weak = links(gain, power, choice), links(gain, 0.2 * power, choice)
    crowded = strong.subchannel_sinr < 1e6
    assert crowded.any()
    assert weak.subchannel_sinr[crowded] == pytest.approx(strong.subchannel_sinr[crowded], rel=1e-3)


def test_a_batch_of_65_equals_65_singles_whatever_the_blocks(monkeypatch):
    gain, power, choice = instance(e=65, dtype=np.float32)
    together = links(gain, power, choice)
    monkeypatch.setattr(association, "_BLOCK", 7 * 4 * 20)
    cut = links(gain, power, choice)
    singles = [links(gain[[e]], power[[e]], choice[[e]]) for e in range(65)]
    for name in FIELDS:
        whole = getattr(together, name)
        assert (getattr(cut, name) == whole).all(), name
        assert (np.concatenate([getattr(single, name) for single in singles]) == whole).all(), name
    assert together.rates.dtype == together.levels.dtype == together.sinr.dtype == np.float32
    exact = links(*(a.astype(np.float64) for a in (gain, power)), choice)
    assert together.rates == pytest.approx(exact.rates, rel=2e-5)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("power", -1e-3, r"power of UAV 3 on sub-channel 2 in environment 1 must be finite and not negative"),
        ("power", np.nan, r"power of UAV 3 on sub-channel 2 in environment 1 must be finite and not negative"),
        ("power", 0.11, r"powers of UAV 3 in environment 1 add up to 0\.\d+ W, above its 0\.1 W"),
        ("choice", 12, r"choice of UAV 3 for sub-channel 2 in environment 1 must be a user in \[0, 12\) or -1, not 12"),
        ("choice", -2, r"choice of UAV 3 for sub-channel 2 in environment 1 must be a user in \[0, 12\) or -1, not -2"),
    ],
)
def test_impossible_actions_are_refused_with_their_place(name, value, message):
    gain, power, choice = instance()
    {"power": power, "choice": choice}[name][1, 3, 2] = value
    with pytest.raises(ValueError, match=message):
        links(gain, power, choice)


def test_split_power_is_a_softmax_with_a_part_that_is_not_used():
    logits = np.random.default_rng(0).normal(scale=3, size=(50, 4))
    weights = np.exp(np.concatenate((logits, np.zeros((50, 1))), axis=1))
    expected = P_MAX * weights[:, :4] / weights.sum(axis=1, keepdims=True)
    assert split_power(logits, P_MAX) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("logit", [-1e4, -100.0, 100.0, 1e4])
def test_split_power_keeps_the_budget_at_any_logit(logit):
    power = split_power(np.array([[logit, logit, 0.0]], np.float32), P_MAX)
    assert (power >= 0).all()
    assert power.sum() == pytest.approx(P_MAX if logit > 0 else P_MAX / 2)
