import numpy as np
import pytest
from scipy import stats

from marl_tr.envs.uav.config import DownlinkConfig
from marl_tr.envs.uav.observation import (
    OWN,
    PER_OTHER,
    PER_USER,
    View,
    observation_shapes,
    observation_size,
    observe,
    split_observation,
    state_shapes,
    write_state,
)
from marl_tr.envs.uav.simulator import Simulator
from marl_tr.vector.sampling import sample


def flown(steps=3, envs=5, **config):
    sim = Simulator(DownlinkConfig(**config), envs)
    sim.reset(4)
    rng = np.random.default_rng(0)
    for _ in range(steps):
        leaves = {leaf: sample(space, (envs, sim.config.num_uavs), rng) for leaf, space in sim.actions.items()}
        sim.step(leaves)
    return sim


def observation(sim):
    # NaN shows an entry that nobody writes.
    out = np.full((sim.num_envs, sim.config.num_uavs, observation_size(sim.config)), np.nan, np.float32)
    observe(View(sim), out)
    return out


def state(sim):
    out = {
        name: np.full((sim.num_envs, *shape), np.nan, np.float32) for name, shape in state_shapes(sim.config).items()
    }
    write_state(View(sim), out)
    return out


def by_hand(sim, e, u):
    """One UAV's observation, entry by entry, in the order of the documentation."""
    c, flight = sim.config, sim.config.flight
    side, ref = c.area_m, c.rate_ref
    three = flight.dimensions == 3
    own = [*sim.position[e, u, :2] / side, *sim.velocity[e, u, :2] / c.v_max, sim.power[e, u] / c.p_max_w]
    own += [sim.load[e, u] / c.num_users, sim.uav_rates[e, u] / (c.num_users / c.num_uavs * ref)]
    own += [sim.slot[e] / c.horizon]
    if three:
        own += [sim.position[e, u, 2] / flight.altitude_max_m, sim.velocity[e, u, 2] / c.v_max]
    if flight.yaw_rate_max_deg_s or flight.accel_max_m_s2:
        own += [np.cos(sim.heading[e, u]), np.sin(sim.heading[e, u])]
    if c.battery is not None:
        own += [sim.battery[e, u] / c.battery.capacity_j]
    distance = np.linalg.norm(sim.position[e] - sim.position[e, u], axis=1)
    flying = [v for v in range(c.num_uavs) if v != u and sim.alive[e, v]]
    others = []
    for v in sorted(flying, key=lambda v: distance[v]):
        row = [1, *(sim.position[e, v] - sim.position[e, u])[:2] / side, *sim.velocity[e, v, :2] / c.v_max]
        row += [sim.power[e, v] / c.p_max_w, sim.load[e, v] / c.num_users]
        if three:
            row += [(sim.position[e, v] - sim.position[e, u])[2] / flight.altitude_max_m]
            row += [sim.velocity[e, v, 2] / c.v_max]
        seen = c.comm_range_m is None or distance[v] <= c.comm_range_m
        others += row if seen else [0] * len(row)
    others += [0] * ((c.num_uavs - 1) * (PER_OTHER + 2 * three) - len(others))
    users, cell = [], []
    away = sim.users[e] - sim.position[e, u, :2]
    order = np.arange(c.num_users)
    if c.nearest_users is not None:
        order = np.argsort(np.linalg.norm(away, axis=1), kind="stable")[: c.nearest_users]
    for g in order:
        row = [1, *away[g] / side, sim.serving[e, g] == u, sim.rates[e, g] / ref, sim.mean_rates[e, g] / ref]
        row += [10 * np.log10(sim.sinr[e, g]) / 40 if sim.sinr[e, g] > 0 else 0]
        if c.cells:
            rivals = [v for v in flying if c.comm_range_m is None or distance[v] <= c.comm_range_m]
            theirs = [np.linalg.norm(sim.users[e, g] - sim.position[e, v, :2]) for v in rivals]
            ahead = (min(theirs, default=np.inf) - np.linalg.norm(away[g])) / side
            row += [ahead >= 0, min(ahead, 1)]
        seen = c.sense_range_m is None or np.linalg.norm(away[g]) <= c.sense_range_m
        if c.cells and seen and ahead >= 0:
            cell.append(away[g] / side)
        users += row if seen else [0] * len(row)
    if c.cells:
        own += [*np.mean(cell, axis=0), len(cell) / c.num_users] if cell else [0, 0, 0]
    edges, adjacency = [], []
    for v in range(c.num_uavs) if c.observation == "graph" else ():
        gap = sim.position[e, v] - sim.position[e, u]
        edges += [*gap[:2] / side, distance[v] / side, 0.1 * np.log10(max(sim.levels[e, u, v], 1e-3))]
        edges += [gap[2] / flight.altitude_max_m] if three else []
        within = c.comm_range_m is None or distance[v] <= c.comm_range_m
        adjacency += [v == u or (within and sim.alive[e, v] and sim.alive[e, u])]
    return np.array([*own, *others, *users, *edges, *adjacency], float)


THREE = {"dimensions": 3}
SHORT = {"capacity_j": 900.0, "least_charge": 0.3}
"""A battery for five slots, of which some UAVs have less."""


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"num_uavs": 1},
        {"num_uavs": 4, "num_users": 3},
        {"num_uavs": 4, "comm_range_m": 400.0, "sense_range_m": 300.0},
        {"num_uavs": 4, "flight": THREE, "comm_range_m": 300.0},
        {"flight": {**THREE, "accel_max_m_s2": 5.0}, "battery": {"capacity_j": 5e4}},
        {"num_uavs": 4, "flight": {"yaw_rate_max_deg_s": 30.0}, "battery": SHORT},
        {"nearest_users": 4, "sense_range_m": 300.0},
        {"nearest_users": 50, "num_users": 6},
        {"observation": "graph", "num_uavs": 4, "comm_range_m": 500.0},
        {"observation": "graph", "flight": THREE, "nearest_users": 5, "battery": SHORT},
        {"observation": "graph", "num_uavs": 1, "num_users": 1},
        {"cells": True, "num_uavs": 1},
        {"cells": True, "num_uavs": 4, "comm_range_m": 400.0, "nearest_users": 5},
        {"cells": True, "num_uavs": 6, "num_users": 6, "sense_range_m": 300.0},
        {"cells": True, "flight": {**THREE, "yaw_rate_max_deg_s": 30.0}, "battery": SHORT},
    ],
)
def test_every_entry_is_what_the_layout_says(config):
    sim = flown(**config)
    seen = observation(sim)
    for e in range(sim.num_envs):
        for u in range(sim.config.num_uavs):
            expected = by_hand(sim, e, u) if sim.alive[e, u] else np.zeros(seen.shape[2])
            assert seen[e, u] == pytest.approx(expected, abs=2e-5)
    if "battery" in config and config["battery"] is SHORT:
        assert 0.2 < sim.alive.mean() < 0.8


def test_the_leaves_of_an_observation_are_its_parts_in_order():
    config = DownlinkConfig(observation="graph", flight=THREE, nearest_users=5)
    flat = np.arange(2 * observation_size(config), dtype=np.float32).reshape(2, -1)
    leaves = split_observation(config, flat)
    assert {name: leaf.shape[1:] for name, leaf in leaves.items()} == observation_shapes(config)
    assert list(leaves) == ["own", "others", "users", "edges", "adjacency"]
    assert np.concatenate([leaf.reshape(2, -1) for leaf in leaves.values()], axis=1).tolist() == flat.tolist()


def test_the_graph_of_an_observation_is_the_agents_rows_of_the_state():
    sim = flown(observation="graph", num_uavs=4, comm_range_m=500.0, flight=THREE)
    leaves, seen = state(sim), split_observation(sim.config, observation(sim))
    assert (seen["edges"] == leaves["edges"]).all()
    assert (seen["adjacency"] == leaves["adjacency"]).all()
    assert 0 < leaves["adjacency"].mean() < 1


def test_cells_in_the_state_are_those_that_uavs_see_and_the_landed_have_none():
    sim = flown(cells=True, num_uavs=4, battery=SHORT)
    cells = state(sim)["uavs"][..., -3:]
    seen = split_observation(sim.config, observation(sim))["observation"][..., 8 + 1 : 8 + 1 + 3]
    assert 0.2 < sim.alive.mean() < 0.8
    assert (cells[sim.alive] == seen[sim.alive]).all()
    assert (cells[sim.alive] != 0).any()
    assert (cells[~sim.alive] == 0).all()
    assert cells[..., 2].sum(axis=1) == pytest.approx(sim.alive.any(axis=1).astype(float))


def test_errors_of_observed_channels_are_lognormal_and_touch_nothing_else():
    sim = flown(observation="graph", envs=50, csi_sigma=0.4)
    exact = flown(observation="graph", envs=50)
    seen, true = (split_observation(s.config, observation(s)) for s in (sim, exact))
    assert (seen["own"] == true["own"]).all()
    assert (seen["others"] == true["others"]).all()
    assert (seen["users"][..., :6] == true["users"][..., :6]).all()
    assert (seen["edges"][..., :3] == true["edges"][..., :3]).all()
    assert all((a == b).all() for a, b in zip(state(sim).values(), state(exact).values(), strict=True))
    factor = 10 ** (4 * (seen["users"][..., 6] - true["users"][..., 6]).astype(float))
    assert stats.kstest(np.log(factor).ravel() / 0.4, "norm").pvalue > 1e-3
    # Every UAV errs on its own, and levels err as SINRs do (those above the floor).
    assert abs(np.corrcoef(np.log(factor).reshape(50, 3, -1).swapaxes(0, 1).reshape(3, -1))[0, 1]) < 0.1
    above = true["edges"][..., 3] > 0
    level = np.log(10 ** (10 * (seen["edges"][..., 3] - true["edges"][..., 3])[above].astype(float)))
    assert level.std() == pytest.approx(0.4, rel=0.15)
    assert abs(level.mean()) < 0.1


def test_errors_are_the_same_however_often_one_looks_and_new_in_every_slot():
    sim = flown(csi_sigma=0.4)
    assert (observation(sim) == observation(sim)).all()
    before = observation(sim)[..., OWN + 2 * PER_OTHER :].reshape(5, 3, 20, PER_USER)[..., 6]
    before = before - (10 * np.log10(sim.sinr) / 40)[:, None]
    sim.step(np.zeros((5, 3, 3)))
    after = observation(sim)[..., OWN + 2 * PER_OTHER :].reshape(5, 3, 20, PER_USER)[..., 6]
    after = after - (10 * np.log10(sim.sinr) / 40)[:, None]
    assert abs(np.corrcoef(before.ravel(), after.ravel())[0, 1]) < 0.15


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
    assert leaves["uavs"][..., :2] == pytest.approx(sim.position[..., :2] / 1000, rel=1e-6)
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
            away = (sim.position[:, sender, :2] - sim.position[:, receiver, :2]) / 1000
            assert edges[:, receiver, sender, :2] == pytest.approx(away, abs=1e-6)
            assert edges[:, receiver, sender, 2] == pytest.approx(np.linalg.norm(away, axis=1), abs=1e-6)
            level = np.log10(np.maximum(sim.levels[:, receiver, sender], 1e-3)) / 10
            assert edges[:, receiver, sender, 3] == pytest.approx(level, abs=1e-5)
    assert np.isfinite(state(flown(steps=0))["edges"]).all()
