import numpy as np
import pytest

from marl_tr.envs.uav.config import DownlinkConfig
from marl_tr.envs.uav.observation import (
    OWN,
    PER_OTHER,
    PER_USER,
    observation_size,
    observe,
    state_shapes,
    write_state,
)
from marl_tr.envs.uav.simulator import Simulator


def flown(steps=3, envs=5, **config):
    sim = Simulator(DownlinkConfig(**config), envs)
    sim.reset(4)
    rng = np.random.default_rng(0)
    for _ in range(steps):
        sim.step(rng.uniform(-1, 1, (envs, sim.config.num_uavs, 3)))
    return sim


def observation(sim):
    # NaN shows an entry that nobody writes.
    out = np.full((sim.num_envs, sim.config.num_uavs, observation_size(sim.config)), np.nan, np.float32)
    observe(sim, out)
    return out


def state(sim):
    out = {
        name: np.full((sim.num_envs, *shape), np.nan, np.float32) for name, shape in state_shapes(sim.config).items()
    }
    write_state(sim, out)
    return out


def by_hand(sim, e, u):
    """One UAV's observation, entry by entry."""
    c = sim.config
    side, ref = c.area_m, c.rate_ref
    own = [*sim.position[e, u] / side, *sim.velocity[e, u] / c.v_max, sim.power[e, u] / c.p_max_w]
    own += [sim.load[e, u] / c.num_users, sim.uav_rates[e, u] / (c.num_users / c.num_uavs * ref)]
    own += [sim.slot[e] / c.horizon]
    distance = np.linalg.norm(sim.position[e] - sim.position[e, u], axis=1)
    others = []
    for v in sorted((v for v in range(c.num_uavs) if v != u), key=lambda v: distance[v]):
        row = [1, *(sim.position[e, v] - sim.position[e, u]) / side, *sim.velocity[e, v] / c.v_max]
        row += [sim.power[e, v] / c.p_max_w, sim.load[e, v] / c.num_users]
        seen = c.comm_range_m is None or distance[v] <= c.comm_range_m
        others += row if seen else [0] * PER_OTHER
    users = []
    for g in range(c.num_users):
        away = sim.users[e, g] - sim.position[e, u]
        row = [1, *away / side, sim.serving[e, g] == u, sim.rates[e, g] / ref, sim.mean_rates[e, g] / ref]
        row += [10 * np.log10(sim.sinr[e, g]) / 40]
        seen = c.sense_range_m is None or np.linalg.norm(away) <= c.sense_range_m
        users += row if seen else [0] * PER_USER
    return np.array([*own, *others, *users], float)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"num_uavs": 1},
        {"num_uavs": 4, "num_users": 3},
        {"num_uavs": 4, "comm_range_m": 400.0, "sense_range_m": 300.0},
    ],
)
def test_every_entry_is_what_the_layout_says(config):
    sim = flown(**config)
    seen = observation(sim)
    for e in range(sim.num_envs):
        for u in range(sim.config.num_uavs):
            assert seen[e, u] == pytest.approx(by_hand(sim, e, u), abs=2e-5)


def test_ranges_hide_what_is_beyond_them():
    sim = flown(num_uavs=4, comm_range_m=400.0, sense_range_m=300.0)
    seen = observation(sim)
    split = OWN + 3 * PER_OTHER
    masks = seen[..., OWN:split:PER_OTHER], seen[..., split::PER_USER]
    for mask in masks:
        assert set(np.unique(mask)) == {0.0, 1.0}
    assert set(np.unique(state(sim)["adjacency"])) == {0.0, 1.0}
    assert (np.diagonal(state(sim)["adjacency"], axis1=1, axis2=2) == 1).all()


def test_entries_are_of_order_one():
    seen = observation(flown(steps=60, envs=64))
    assert np.isfinite(seen).all()
    assert np.quantile(np.abs(seen), 0.99) < 5
    assert np.abs(seen).max() < 60


def test_before_the_first_slot_nothing_was_sent():
    sim = flown(steps=0)
    seen = observation(sim)
    assert np.isfinite(seen).all()
    assert (seen[..., 2:OWN] == 0).all()
    users = seen[..., OWN + 2 * PER_OTHER :].reshape(5, 3, 20, PER_USER)
    assert (users[..., 3:] == 0).all()


def test_the_state_holds_positions_rates_time_and_who_serves_whom():
    sim = flown()
    leaves = state(sim)
    assert leaves["uavs"][..., :2] == pytest.approx(sim.position / 1000, rel=1e-6)
    assert leaves["users"][..., :2] == pytest.approx(sim.users / 1000, rel=1e-6)
    assert leaves["users"][..., 2] == pytest.approx(sim.rates / sim.config.rate_ref, rel=1e-5)
    assert (leaves["users"][..., 5:].argmax(axis=2) == sim.serving).all()
    assert (leaves["users"][..., 5:].sum(axis=2) == 1).all()
    assert leaves["time"] == pytest.approx(np.full((5, 1), 0.03))
    assert (leaves["adjacency"] == 1).all()


def test_edges_point_from_receiver_to_sender_and_hold_the_interference():
    sim = flown()
    edges = state(sim)["edges"]
    for receiver in range(3):
        for sender in range(3):
            away = (sim.position[:, sender] - sim.position[:, receiver]) / 1000
            assert edges[:, receiver, sender, :2] == pytest.approx(away, abs=1e-6)
            assert edges[:, receiver, sender, 2] == pytest.approx(np.linalg.norm(away, axis=1), abs=1e-6)
            level = np.log10(np.maximum(sim.levels[:, receiver, sender], 1e-3)) / 10
            assert edges[:, receiver, sender, 3] == pytest.approx(level, abs=1e-5)
    assert np.isfinite(state(flown(steps=0))["edges"]).all()
