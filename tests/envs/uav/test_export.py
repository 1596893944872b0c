import csv
import dataclasses

import numpy as np
import pytest

from marl_tr.envs.uav.export import tables, uav_table
from marl_tr.envs.uav.pettingzoo import parallel_env
from marl_tr.envs.uav.recording import EpisodeLog, read_state
from marl_tr.envs.uav.vector import make
from marl_tr.trainer.evaluation import evaluate_act
from marl_tr.vector.tables import write_table


def flown(**config):
    """An episode of the PettingZoo view, with every slot's infos and the simulator's positions."""
    env = parallel_env(num_uavs=2, num_users=4, horizon=5, slot_s=0.5, **config)
    env.reset(seed=1)
    log, infos, places = EpisodeLog(env), [], [env._sim.position[0, :, :2].copy()]
    rng = np.random.default_rng(0)
    while env.agents:
        actions = {agent: rng.uniform(-1, 1, 3).astype(np.float32) for agent in env.agents}
        _, rewards, _, _, info = env.step(actions)
        log.add(rewards)
        infos.append((rewards, info))
        places.append(env._sim.position[0, :, :2].copy())
    return env, log.trajectory(), infos, np.array(places)


def read(path):
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    return rows[0], np.array(rows[1:], float)


def test_tables_hold_what_the_environment_said(tmp_path):
    env, trajectory, infos, places = flown()
    found = tables(env.config, trajectory)
    assert set(found) == {"uavs", "users"}
    for name, table in found.items():
        write_table(tmp_path / f"{name}.csv", table)
    header, rows = read(tmp_path / "uavs.csv")
    assert header == ["t", "uav", "x", "y", "z", "vx_m_s", "vy_m_s", "power_w", "users", "rate_bps", "reward"]
    assert rows.shape == (6 * 2, 11)
    rows = rows.reshape(6, 2, 11)
    assert (rows[:, :, 0] == np.arange(6)[:, None] * 0.5).all()
    assert (rows[:, :, 1] == (0, 1)).all()
    assert rows[:, :, 2:4] == pytest.approx(places, abs=1e-3)
    assert (rows[:, :, 4] == 100.0).all()
    assert rows[1:, :, 5:7] == pytest.approx(np.diff(places, axis=0) / 0.5, abs=1e-2)
    assert (rows[0, :, 5:10] == 0).all()
    assert np.isnan(rows[0, :, 10]).all()
    for slot, (rewards, info) in enumerate(infos, start=1):
        for u, agent in enumerate(env.possible_agents):
            assert rows[slot, u, 7] == pytest.approx(info[agent]["power_W"], rel=1e-5)
            assert rows[slot, u, 8] == info[agent]["n_users"]
            assert rows[slot, u, 9] == pytest.approx(info[agent]["rate_sum"], rel=1e-5)
            assert rows[slot, u, 10] == pytest.approx(rewards[agent], rel=1e-6)

    header, rows = read(tmp_path / "users.csv")
    assert header == ["t", "id", "x", "y", "serving", "rate_bps", "sinr_db"]
    rows = rows.reshape(6, 4, 7)
    assert (rows[..., 1] == np.arange(4)).all()
    assert rows[..., 2:4] == pytest.approx(np.broadcast_to(env._sim.users[0], (6, 4, 2)), abs=1e-3)
    assert (rows[0, :, 4] == -1).all()
    assert np.isnan(rows[0, :, 6]).all()
    assert (rows[-1, :, 4] == env._sim.serving[0]).all()
    for slot, (_, info) in enumerate(infos, start=1):
        assert rows[slot, :, 5] == pytest.approx(info["uav_0"]["rates"], rel=1e-5)
        assert rows[slot, :, 6] == pytest.approx(info["uav_0"]["sinr_db"], rel=1e-4, abs=1e-4)


def test_a_table_reads_back_bit_for_bit(tmp_path):
    rng = np.random.default_rng(3)
    table = {
        "single": rng.normal(size=50).astype(np.float32) * np.float32(1e-7),
        "double": rng.normal(size=50) * 1e12,
        "whole": rng.integers(-5, 5, 50),
        "yes": rng.random(50) < 0.5,
        "word": np.array(['a, "quoted" word'] * 50),
    }
    write_table(tmp_path / "new" / "t.csv", table)
    with (tmp_path / "new" / "t.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [np.float32(row["single"]) for row in rows] == table["single"].tolist()
    assert [float(row["double"]) for row in rows] == table["double"].tolist()
    assert [int(row["whole"]) for row in rows] == table["whole"].tolist()
    assert [row["yes"] for row in rows] == [str(int(x)) for x in table["yes"]]
    assert {row["word"] for row in rows} == {'a, "quoted" word'}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["t.csv"]


@pytest.mark.parametrize("table", [{}, {"a": np.zeros(2), "b": np.zeros(3)}, {"a": np.zeros((2, 2))}])
def test_what_is_no_table_is_refused(table, tmp_path):
    with pytest.raises(ValueError, match=r"t\.csv: a table needs columns of one shape"):
        write_table(tmp_path / "t.csv", table)
    assert not list(tmp_path.iterdir())


def test_an_evaluated_episode_also_has_its_slots():
    env = make(num_envs=3, num_uavs=2, num_users=4, horizon=6)
    episodes = evaluate_act(env, env.references()[0].act, seed=0, window=None, recorded=2)
    assert len(episodes.recorded) == 2
    assert len(episodes.trajectories) == 1
    found = env.tables(episodes.recorded[1])
    assert found["slots"]["t"].tolist() == [1, 2, 3, 4, 5, 6]
    assert found["slots"]["reward_mean"].sum() == pytest.approx(episodes.returns[1], rel=1e-5)
    assert found["slots"]["jain"].mean() == pytest.approx(episodes.metrics["jain"][1], rel=1e-5)
    first, second = (env.tables(trajectory)["users"]["x"] for trajectory in episodes.recorded)
    assert (first != second).any()


def test_uavs_that_climb_have_their_heights_and_climbs():
    env, trajectory, *_ = flown()
    level = read_state(env.config, trajectory.state)
    heights = np.linspace(50.0, 105.0, 12).reshape(6, 2, 1)
    climbing = dataclasses.replace(
        level,
        position=np.concatenate((level.position, heights), axis=2),
        velocity=np.concatenate((level.velocity, heights / 10), axis=2),
    )
    table = uav_table(env.config, climbing, np.zeros((5, 2)), np.arange(6.0))
    assert list(table)[4:8] == ["z", "vx_m_s", "vy_m_s", "vz_m_s"]
    assert table["z"] == pytest.approx(heights.ravel())
    assert table["vz_m_s"] == pytest.approx(heights.ravel() / 10)
    assert table["x"] == pytest.approx(level.position[..., 0].ravel())
