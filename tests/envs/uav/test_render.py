import dataclasses

import numpy as np
import pytest

from marl_tr.envs.uav.config import DownlinkConfig
from marl_tr.envs.uav.coverage import mean_gain
from marl_tr.envs.uav.pettingzoo import parallel_env
from marl_tr.envs.uav.recording import EpisodeLog
from marl_tr.envs.uav.render import Scene, TopView, flight, pictures
from marl_tr.envs.uav.vector import make

BLUE, ORANGE, INK = (0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00), (0x1F, 0x29, 0x33)


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


def pixel(picture, config, place):
    """Colour of the ground at `place`, in m: the map's frame and limits are those of `TopView`."""
    height, width = picture.shape[:2]
    side = config.area_m
    axes_w, axes_h = 0.645 * width, 0.86 * height
    scale = min(axes_w / (1.06 * side), axes_h / (1.06 * side))
    left = 0.06 * width + (axes_w - 1.06 * side * scale) / 2
    bottom = 0.07 * height + (axes_h - 1.06 * side * scale) / 2
    column = left + (place[0] + 0.03 * side) * scale
    row = height - (bottom + (place[1] + 0.06 * side) * scale)
    return tuple(int(value) for value in picture[int(row), int(column)])


def count(picture, colour):
    """Pixels of the map in exactly this colour."""
    return int((picture[:, : int(0.7 * picture.shape[1])] == colour).all(axis=2).sum())


@pytest.mark.parametrize(
    "config",
    [{}, {"num_uavs": 1, "num_users": 1}, {"num_uavs": 12, "area_m": 5000.0}, {"num_uavs": 30, "num_users": 2000}],
)
@pytest.mark.parametrize("options", [{}, {"colour": "rate"}])
def test_pictures_of_all_sizes_are_drawn(config, options):
    view = TopView(DownlinkConfig(**config), **options)
    picture = view.draw(moment(view.config))
    assert picture.shape == (480, 640, 3)
    assert picture.dtype == np.uint8
    assert picture.std() > 10


@pytest.mark.parametrize("mapped", [False, True])
def test_a_picture_depends_on_its_scene_alone(mapped):
    config = DownlinkConfig()
    view = TopView(config, sinr_map=mean_gain(config) if mapped else None)
    first = view.draw(moment(config))
    other = view.draw(moment(config, x=900.0, serving=1, rates=0.1))
    assert (first != other).any()
    assert (view.draw(moment(config)) == first).all()


def test_users_are_where_they_are_in_the_colour_of_who_serves_them():
    config = DownlinkConfig(num_uavs=2, num_users=3)
    users = np.array([(120.0, 850.0), (870.0, 130.0), (700.0, 800.0)])
    scene = dataclasses.replace(moment(config), users=users, serving=np.array([0, 1, -1]))
    picture = TopView(config, dpi=120).draw(scene)
    assert pixel(picture, config, users[0]) == BLUE
    assert pixel(picture, config, users[1]) == ORANGE
    assert pixel(picture, config, users[2]) == INK  # the middle of a cross
    assert pixel(picture, config, (300.0, 150.0)) == (0xF4, 0xF6, 0xF8)  # bare ground


def test_a_crowd_is_dots_without_lines():
    few, many = (DownlinkConfig(num_uavs=1, num_users=n) for n in (2, 1000))
    users = np.full((1000, 2), 900.0)
    near = dataclasses.replace(moment(few), users=users[:2])
    crowd = dataclasses.replace(moment(many), users=users)
    between = (700.0, 700.0)
    ground = (0xF4, 0xF6, 0xF8)
    assert pixel(TopView(few).draw(near), few, between) != ground
    picture = TopView(many).draw(crowd)
    assert pixel(picture, many, between) == ground
    assert pixel(picture, many, (900.0, 900.0)) == BLUE


def test_unserved_users_are_counted_in_the_panel_and_crossed_on_the_map():
    view = TopView(DownlinkConfig())
    served, alone = view.draw(moment(view.config)), view.draw(moment(view.config, serving=-1))
    assert count(served, BLUE) > count(alone, BLUE)
    assert count(alone, INK) > count(served, INK) + 20


def test_rates_are_colours_where_asked_for():
    config = DownlinkConfig(num_uavs=1, num_users=2)
    users = np.array([(150.0, 850.0), (850.0, 150.0)])
    scene = dataclasses.replace(moment(config), users=users, rates_mbps=np.array([0.01, 50.0]))
    picture = TopView(config, dpi=120, colour="rate").draw(scene)
    low, high = (np.array(pixel(picture, config, user)) for user in users)
    assert low == pytest.approx((240, 249, 33), abs=2)  # the two ends of Matplotlib's plasma
    assert high == pytest.approx((13, 8, 135), abs=2)


def test_the_sinr_map_is_bright_under_a_uav_and_dark_between_two():
    config = DownlinkConfig(num_uavs=2, num_users=1)
    track = np.array([[(250.0, 500.0), (750.0, 500.0)]])
    scene = dataclasses.replace(moment(config), track=track, users=np.array([(20.0, 20.0)]))
    picture = TopView(config, dpi=120, sinr_map=mean_gain(config)).draw(scene)

    def brightness(place):
        return sum(pixel(picture, config, place))

    assert brightness((250.0, 570.0)) > brightness((350.0, 570.0)) + 40
    assert brightness((350.0, 570.0)) > brightness((500.0, 570.0)) + 40
    # 500 m apart, halfway: as much interference as signal, 0 dB, a quarter of the way up the colours.
    assert pixel(picture, config, (500.0, 570.0)) == pytest.approx((59, 82, 139), abs=8)


def test_heights_are_written_where_uavs_have_them():
    config = DownlinkConfig(num_uavs=2)
    level = moment(config)
    climbed = dataclasses.replace(level, track=np.concatenate((level.track, np.full((3, 2, 1), 87.0)), axis=2))
    view = TopView(config)
    flat, high = view.draw(level), view.draw(climbed)
    under = slice(230, 275), slice(220, 260)  # below the UAV in the middle
    assert (flat[under] != high[under]).any()
    assert (view.draw(level) == flat).all()


def test_a_video_has_a_frame_a_scene():
    view = TopView(DownlinkConfig())
    frames = view.video([moment(view.config, x=x) for x in (100.0, 300.0)])
    assert frames.shape == (2, 480, 640, 3)
    assert frames.dtype == np.uint8


def test_an_episode_gives_tracks_a_map_and_a_video_of_bounded_length():
    env = parallel_env(num_uavs=2, num_users=6, horizon=150)
    env.reset(seed=2)
    log = EpisodeLog(env)
    while env.agents:
        _, rewards, *_ = env.step(dict.fromkeys(env.agents, np.array([-0.8, 0.25, 1.0], np.float32)))
        log.add(rewards)
    offered = pictures(env.config, log.trajectory())
    assert offered["tracks"].shape == offered["sinr"].shape == (720, 960, 3)
    assert (offered["tracks"] != offered["sinr"]).any(axis=2).mean() > 0.3
    scenes = flight(env.config, log.trajectory())
    assert len(scenes) == 151
    assert scenes[-1].track[:, 0] == pytest.approx(np.array([s.track[-1, 0] for s in scenes]))
    assert scenes[0].serving.tolist() == [-1] * 6
    video = offered["flight"]()
    assert video.shape == (76, 480, 640, 3)
    # The last slot is shown whatever the stride.
    last = TopView(env.config).draw(scenes[-1])
    assert (video[-1] == last).all()


def test_the_batch_and_the_pettingzoo_view_draw_the_same_moment():
    single = parallel_env(num_uavs=2, num_users=5, horizon=9, render_mode="rgb_array")
    single.reset(seed=4)
    batch = make(num_envs=2, num_uavs=2, num_users=5, horizon=9)
    batch.reset(4)
    action = np.array([0.5, -0.3, 0.2], np.float32)
    for _ in range(3):
        single.step(dict.fromkeys(single.agents, action))
        batch.step({"uav": {"action": np.broadcast_to(action, (2, 2, 3))}})
    assert (single.render() == batch.render()).all()
