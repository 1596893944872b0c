import numpy as np
import pytest

from marl_tr.envs.uav.config import DownlinkConfig
from marl_tr.envs.uav.render import Scene, TopView


def moment(config, *, x=500.0, serving=0, rates=1.0):
    uavs, users = config.num_uavs, config.num_users
    track = np.full((3, uavs, 2), config.area_m / 2)
    track[:, 0, 0] = np.linspace(0.0, x, 3)
    rng = np.random.default_rng(0)
    return Scene(
        track=track,
        users=rng.uniform(0, config.area_m, (users, 2)),
        serving=np.full(users, serving),
        rates_mbps=np.full(users, rates),
        power_w=np.full(uavs, config.p_max_w),
        title="a moment",
    )


@pytest.mark.parametrize("config", [{}, {"num_uavs": 1, "num_users": 1}, {"num_uavs": 12, "area_m": 5000.0}])
def test_pictures_of_all_sizes_are_drawn(config):
    view = TopView(DownlinkConfig(**config))
    picture = view.draw(moment(view.config))
    assert picture.shape == (480, 640, 3)
    assert picture.std() > 10


def test_a_picture_depends_on_its_scene_alone():
    view = TopView(DownlinkConfig())
    first = view.draw(moment(view.config))
    other = view.draw(moment(view.config, x=900.0, serving=1, rates=0.1))
    assert (first != other).any()
    assert (view.draw(moment(view.config)) == first).all()


def test_served_users_wear_their_uavs_colour():
    view = TopView(DownlinkConfig())
    blue, unserved = (0x00, 0x72, 0xB2), (0x8A, 0x97, 0xA6)

    def count(picture, colour):
        return int((picture[:, :450] == colour).all(axis=2).sum())

    served, alone = view.draw(moment(view.config)), view.draw(moment(view.config, serving=-1))
    assert count(served, blue) > count(alone, blue)
    assert count(alone, unserved) > count(served, unserved)


def test_a_video_has_a_frame_a_scene():
    view = TopView(DownlinkConfig())
    frames = view.video([moment(view.config, x=x) for x in (100.0, 300.0)])
    assert frames.shape == (2, 480, 640, 3)
    assert frames.dtype == np.uint8
