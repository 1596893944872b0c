import numpy as np
import pytest

from marl_tr.envs.uav.config import DownlinkConfig
from marl_tr.envs.uav.coverage import ground_sinr_db, mean_gain
from marl_tr.envs.uav.simulator import Simulator


def golden(**config):
    """The two UAVs and five users of the environment's golden vector."""
    uavs = np.array([(250.0, 250.0), (750.0, 700.0)])
    users = np.array([(250.0, 250.0), (300.0, 400.0), (500.0, 500.0), (800.0, 650.0), (900.0, 900.0)])
    return DownlinkConfig(num_uavs=2, num_users=5, **config), uavs, users


def test_the_mean_gain_is_the_golden_path_loss_also_of_uavs_with_a_height():
    config, uavs, users = golden()
    loss = -10 * np.log10(mean_gain(config)(uavs[None], users[None])[0])
    assert loss[0] == pytest.approx([79.46849, 85.87902, 97.18294, 106.66201, 110.41106], abs=5e-6)
    assert loss[1] == pytest.approx([106.51918, 103.55670, 95.61330, 81.25934, 91.73857], abs=5e-6)
    high = np.concatenate((uavs, [[100.0], [100.0]]), axis=1)
    assert mean_gain(config)(high[None], users[None])[0] == pytest.approx(10 ** (-loss / 10), rel=1e-12)
    lower = np.concatenate((uavs, [[50.0], [100.0]]), axis=1)
    assert mean_gain(config)(lower[None], users[None])[0, 0, 0] > 10 ** (-loss[0, 0] / 10)


@pytest.mark.parametrize("resources", ["equal_share", "orthogonal"])
def test_the_map_shows_a_users_sinr_where_the_user_is(resources):
    config, uavs, _ = golden(resources=resources)
    power = np.array([0.1, 0.05])
    drawn = ground_sinr_db(config, mean_gain(config), uavs, power, points=20)
    assert drawn.shape == (20, 20)
    cells = np.array([(3, 4), (19, 0), (0, 19), (12, 14), (10, 10)])  # along y, along x
    sim = Simulator(config, 1, dtype=np.float64)
    sim.reset(0)
    sim.position[..., :2] = uavs
    sim.users[:] = (cells[:, ::-1] + 0.5) * 50.0
    sim.step(np.array([[(-1.0, 0.0, 1.0), (-1.0, 0.0, 0.0)]]))  # hovering at these powers
    assert drawn[cells[:, 0], cells[:, 1]] == pytest.approx(10 * np.log10(sim.sinr[0]), rel=1e-9)


def test_silence_is_minus_infinity_and_a_channel_of_ones_own_is_used():
    config, uavs, _ = golden()
    assert (ground_sinr_db(config, mean_gain(config), uavs, np.zeros(2), points=4) == -np.inf).all()

    def west(places, ground):
        return np.repeat((ground[:, None, :, 0] < 500) * 1e-10, places.shape[1], axis=1)

    drawn = ground_sinr_db(config, west, uavs, np.array([0.1, 0.0]), points=4)
    assert drawn[:, :2] == pytest.approx(10 * np.log10(1e-11 / config.noise_w))
    assert (drawn[:, 2:] == -np.inf).all()
