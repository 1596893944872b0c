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


def test_given_hot_spots_take_the_place_of_drawn_ones():
    config = DownlinkConfig(num_users=200, hotspot_share=0.75, hotspot_sigma_m=0.0)
    centres = [(100.0, 900.0), (500.0, 0.0)]
    streams, episodes = np.arange(20), np.zeros(20, int)
    users = draw_users(config, 6, streams, episodes, centres=centres)
    at = [(users == centre).all(axis=-1) for centre in centres]
    assert (at[0].sum(axis=1) + at[1].sum(axis=1) == 150).all()
    assert at[0].sum() == pytest.approx(1500, abs=4 * np.sqrt(3000 * 0.25))
    # Who is not in a hot spot is where it would be without given ones.
    assert (users[:, 150:] == draw_users(config, 6, streams, episodes)[:, 150:]).all()


@pytest.mark.parametrize(
    ("centres", "message"),
    [([], "no centre is given"), ([(1.0, 1.0), (5.0, 1000.5)], r"centre 1, \(5, 1000\.5\) m, is outside the area")],
)
def test_hot_spots_that_make_no_sense_are_refused(centres, message):
    with pytest.raises(ValueError, match=message):
        draw_users(DownlinkConfig(), 1, np.arange(1), np.zeros(1, int), centres=centres)


@pytest.mark.parametrize(
    ("uavs", "places"),
    [(1, [(0, 0)]), (3, [(0, 0), (50, 0), (0, 50)]), (5, [(0, 0), (50, 0), (100, 0), (0, 50), (50, 50)])],
)
def test_a_depot_is_a_grid_in_the_corner(uavs, places):
    starts = draw_starts(DownlinkConfig(num_uavs=uavs), 1, np.arange(2), np.zeros(2, int), kind="depot")
    assert starts.tolist() == [[list(map(float, place)) for place in places]] * 2


def test_all_uavs_that_there_may_be_fit_into_a_depot_apart():
    starts = draw_starts(DownlinkConfig(num_uavs=64), 1, np.arange(1), np.zeros(1, int), kind="depot", spacing_m=12.0)
    apart = np.hypot(*np.moveaxis(starts[0][:, None] - starts[0][None], -1, 0))
    assert apart[~np.eye(64, dtype=bool)].min() == 12.0


def test_a_depot_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="9 UAVs 50 m apart need 100 m each way, and the area has 90 m"):
        draw_starts(DownlinkConfig(num_uavs=9, area_m=90.0), 1, np.arange(1), np.zeros(1, int), kind="depot")
