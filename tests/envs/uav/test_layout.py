import numpy as np
import pytest
from scipy import stats

from marl_tr.envs.uav.config import DownlinkConfig
from marl_tr.envs.uav.layout import draw_starts, draw_users


def test_users_and_starts_lie_in_the_area():
    config = DownlinkConfig(area_m=300.0, hotspot_sigma_m=200.0)
    streams, episodes = np.arange(100), np.zeros(100, int)
    for points in (draw_users(config, 1, streams, episodes), draw_starts(config, 1, streams, episodes)):
        assert points.min() >= 0
        assert points.max() <= 300


def test_starts_and_background_users_are_uniform():
    config = DownlinkConfig(hotspot_share=0.0)
    streams, episodes = np.arange(400), np.zeros(400, int)
    for points in (draw_users(config, 2, streams, episodes), draw_starts(config, 2, streams, episodes)):
        assert stats.kstest(points.ravel() / 1000, "uniform").pvalue > 1e-3


def test_hot_spot_users_gather_with_the_given_deviation():
    config = DownlinkConfig(hotspots=1, hotspot_share=1.0, num_users=200, area_m=10_000.0)
    users = draw_users(config, 3, np.arange(50), np.zeros(50, int))
    centres = users.mean(axis=1, keepdims=True)
    assert (users - centres).std() == pytest.approx(80.0, rel=0.02)
    assert centres.min() > 1_400
    assert centres.max() < 8_600


def test_the_share_of_hot_spot_users_is_kept():
    tight = DownlinkConfig(hotspots=2, hotspot_share=0.75, num_users=20, hotspot_sigma_m=0.0)
    users = draw_users(tight, 4, np.arange(10), np.zeros(10, int))
    for scene in users:
        _, counts = np.unique(scene.round(6), axis=0, return_counts=True)
        assert (counts == 1).sum() >= 5
        assert len(counts) <= 7


def test_users_do_not_depend_on_the_number_of_uavs():
    few, many = DownlinkConfig(num_uavs=2), DownlinkConfig(num_uavs=4)
    streams, episodes = np.arange(3), np.zeros(3, int)
    assert (draw_users(few, 5, streams, episodes) == draw_users(many, 5, streams, episodes)).all()
