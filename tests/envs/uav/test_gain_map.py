"""Gain maps: the file, and what is read off it."""

import numpy as np
import pytest
from scipy.interpolate import RegularGridInterpolator

from marl_tr.envs.uav.channel_config import GainMapConfig
from marl_tr.envs.uav.gain_map import GainMapError, load_gain_map, save_gain_map
from marl_tr.envs.uav.propagation import make_channel

# Uneven on purpose: a search, not a division, must find the cell.
UAV_X, UAV_Y, UAV_Z = np.array([0.0, 40.0, 100.0, 250.0]), np.array([-10.0, 80.0, 90.0]), np.array([50.0, 120.0])
USER_X, USER_Y = np.array([0.0, 10.0, 35.0, 60.0, 100.0]), np.array([20.0, 30.0, 90.0])
AXES = {"uav_x": UAV_X, "uav_y": UAV_Y, "user_x": USER_X, "user_y": USER_Y}
SOLID = np.random.default_rng(5).uniform(-130.0, -70.0, (4, 3, 2, 5, 3))
FLAT = SOLID[:, :, 0]
HOLED = FLAT.copy()
HOLED[1, 2, 3, 0] = -np.inf


@pytest.fixture
def solid(tmp_path):
    return save_gain_map(tmp_path / "solid.npz", gain_db=SOLID, uav_z=UAV_Z, **AXES)


def channel(file, *, dtype=np.float64, carrier_hz=2e9, **settings):
    config = GainMapConfig(file=str(file), **settings)
    return make_channel(config, carrier_hz=carrier_hz, num_envs=1, num_uavs=1, num_users=1, dtype=dtype)


def random_points(count=200):
    rng = np.random.default_rng(1)
    low, high = np.array([0.0, -10.0, 50.0]), np.array([250.0, 90.0, 120.0])
    position = rng.uniform(low, high, (2, count // 10, 3))
    return position, rng.uniform([0.0, 20.0], [100.0, 90.0], (2, count, 2))


@pytest.mark.parametrize("interpolation", ["nearest", "linear"])
def test_a_grid_point_has_its_own_gain_exactly(solid, interpolation):
    uavs = np.stack(np.meshgrid(UAV_X, UAV_Y, UAV_Z, indexing="ij"), -1).reshape(1, -1, 3)
    users = np.stack(np.meshgrid(USER_X, USER_Y, indexing="ij"), -1).reshape(1, -1, 2)
    got = load_gain_map(solid).decibels(uavs, users, interpolation=interpolation)
    assert (got[0] == SOLID.reshape(24, 15)).all()


def test_of_two_equally_near_points_the_lower_one_counts(solid):
    middle = np.array([[[20.0, -10.0, 50.0]]])
    got = load_gain_map(solid).decibels(middle, np.array([[[5.0, 25.0]]]), interpolation="nearest")
    assert got == SOLID[0, 0, 0, 0, 0]


@pytest.mark.parametrize("interpolation", ["nearest", "linear"])
@pytest.mark.parametrize("heights", [True, False])
def test_between_grid_points_it_agrees_with_scipy(tmp_path, interpolation, heights):
    axes = AXES | ({"uav_z": UAV_Z} if heights else {})
    gain = SOLID if heights else FLAT
    file = save_gain_map(tmp_path / "map.npz", gain_db=gain, **axes)
    position, users = random_points()
    order = (UAV_X, UAV_Y, *([UAV_Z] if heights else []), USER_X, USER_Y)
    peer = RegularGridInterpolator(order, gain, method=interpolation)
    got = channel(file, interpolation=interpolation).gain(
        position, users, seed=0, stream=np.arange(2), moment=np.arange(2)
    )
    uavs = position if heights else position[..., :2]
    shape = (2, position.shape[1], users.shape[1])
    points = np.concatenate(
        [np.broadcast_to(uavs[:, :, None], (*shape, uavs.shape[2])), np.broadcast_to(users[:, None], (*shape, 2))], -1
    )
    assert got.shape == shape
    assert 10 * np.log10(got) == pytest.approx(peer(points), abs=1e-9)


def test_float32_maps_agree_with_float64_ones(tmp_path, solid):
    small = save_gain_map(tmp_path / "small.npz", gain_db=SOLID.astype(np.float32), uav_z=UAV_Z, **AXES)
    assert load_gain_map(small).gain_db.dtype == np.float32
    position, users = random_points()
    single = channel(small, dtype=np.float32).mean_gain(position.astype(np.float32), users.astype(np.float32))
    assert single.dtype == np.float32
    assert single == pytest.approx(channel(solid).mean_gain(position, users), rel=1e-4)


def test_a_map_without_heights_holds_at_all_of_them(tmp_path):
    made = channel(save_gain_map(tmp_path / "flat.npz", gain_db=FLAT, **AXES))
    position, users = random_points()
    higher = position + np.array([0.0, 0.0, 500.0])
    assert (made.mean_gain(position, users) == made.mean_gain(higher, users)).all()


def test_a_map_of_one_height_holds_there_alone(tmp_path):
    made = channel(save_gain_map(tmp_path / "one.npz", gain_db=SOLID[:, :, :1], uav_z=[80.0], **AXES))
    users = np.array([[[10.0, 30.0]]])
    assert made.mean_gain(np.array([[[40.0, 80.0, 80.0]]]), users) == pytest.approx(10 ** (SOLID[1, 1, 0, 1, 1] / 10))
    with pytest.raises(GainMapError, match=r"a UAV at \(40, 80, 90\) m is off the map.* z 80 to 80 m"):
        made.mean_gain(np.array([[[40.0, 80.0, 90.0]]]), users)


def test_off_the_grid_a_channel_does_what_it_was_told(solid):
    position, users = np.array([[[300.0, 0.0, 60.0], [100.0, 0.0, 60.0]]]), np.array([[[50.0, 50.0], [50.0, 95.0]]])
    with pytest.raises(GainMapError, match=r"a UAV at \(300, 0, 60\) m .*x 0 to 250, y -10 to 90, z 50 to 120"):
        channel(solid).mean_gain(position, users)
    with pytest.raises(GainMapError, match=r"a user at \(50, 95\) m .*x 0 to 100, y 20 to 90 m"):
        channel(solid).mean_gain(position[:, 1:], users)
    edge = channel(solid, outside="edge").mean_gain(position, users)
    inside = channel(solid).mean_gain(np.minimum(position, [250.0, 90.0, 120.0]), np.minimum(users, [100.0, 90.0]))
    assert (edge == inside).all()
    silent = channel(solid, outside="silent").mean_gain(position, users)
    assert (silent[0] == [[0.0, 0.0], [inside[0, 1, 0], 0.0]]).all()


@pytest.mark.parametrize("outside", ["error", "edge", "silent"])
@pytest.mark.parametrize("lowest", [0.0, 50.0])
def test_a_uav_on_the_ground_is_silent_whatever_the_map_covers(tmp_path, outside, lowest):
    file = save_gain_map(tmp_path / "map.npz", gain_db=SOLID, uav_z=[lowest, 120.0], **AXES)
    position = np.array([[[100.0, 0.0, 0.0], [100.0, 0.0, 60.0]]])
    gain = channel(file, outside=outside).mean_gain(position, np.array([[[50.0, 50.0]]]))
    assert (gain[0, :, 0] > 0).tolist() == [False, True]


def test_rounding_does_not_put_the_border_off_the_map(tmp_path):
    axis = [0.0, 700.7]
    file = save_gain_map(
        tmp_path / "odd.npz", gain_db=np.full((2, 2, 2, 2), -90.0), uav_x=axis, uav_y=axis, user_x=axis, user_y=axis
    )
    corner = np.array([[[700.7, 700.7, 50.0]]], np.float32)
    assert float(corner[0, 0, 0]) > 700.7
    made = channel(file, dtype=np.float32)
    assert made.mean_gain(corner, corner[..., :2]) == pytest.approx(1e-9)
    near, far = (np.array([[[-by, 0.0, 50.0]]]) for by in (5e-4, 0.01))
    assert made.mean_gain(near, near[..., :2]) == pytest.approx(1e-9)
    with pytest.raises(GainMapError, match="off the map"):
        made.mean_gain(far, corner[..., :2])


def test_a_file_is_read_once_and_shared_until_it_changes(solid, monkeypatch):
    first = channel(solid)
    monkeypatch.chdir(solid.parent)
    shared = [channel(name) for name in (solid, solid.name)]
    assert all(np.shares_memory(first.map.gain_db, made.map.gain_db) for made in shared[:1])
    assert channel(solid.name).map is shared[1].map
    with pytest.raises(ValueError, match="read-only"):
        first.map.gain_db[0] = 0.0
    save_gain_map(solid, gain_db=FLAT - 1.0, **AXES)
    assert (channel(solid).map.gain_db[:, :, 0] == FLAT - 1.0).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"uav_x": None}, r"no uav_x \(it has gain_db, uav_x, uav_y, user_x, user_y"),
        ({"uavz": UAV_Z}, r"unknown uavz .*may have uav_z, carrier_hz"),
        ({"gain_db": FLAT[:3]}, r"gain_db has shape \(3, 3, 5, 3\), where uav_x, uav_y, .* make it \(4, 3, 5, 3\)"),
        ({"uav_z": UAV_Z}, r"gain_db has shape \(4, 3, 5, 3\), .* make it \(4, 3, 2, 5, 3\)"),
        (
            {"gain_db": HOLED},
            r"gain_db is not finite at \(1, 2, 3, 0\).*floor such as -200 dB",
        ),
        ({"user_x": np.array([0.0, 10.0, np.nan, 60.0, 100.0])}, r"user_x is not finite at \(2,\)$"),
        ({"user_y": USER_Y[::-1]}, r"user_y must ascend, and does not at entry 1$"),
        ({"uav_y": UAV_Y[:, None]}, r"uav_y must be one axis .* not of shape \(3, 1\)"),
        ({"gain_db": -FLAT}, "gain_db goes up to .* dB; a loss of 90 dB is a gain of -90 dB"),
        ({"gain_db": FLAT + 0j}, "gain_db holds complex128, not real numbers"),
        ({"carrier_hz": np.array(-1.0)}, "carrier_hz must be one positive number"),
    ],
)
def test_a_map_that_is_wrong_is_refused_with_what_is(tmp_path, change, message):
    arrays = {name: value for name, value in ({"gain_db": FLAT} | AXES | change).items() if value is not None}
    np.savez(tmp_path / "wrong.npz", **arrays)
    with pytest.raises(GainMapError, match=message) as error:
        load_gain_map(tmp_path / "wrong.npz")
    assert "wrong.npz" in str(error.value)
    if set(arrays) <= {"gain_db", *AXES, "uav_z", "carrier_hz"} and set(AXES) <= set(arrays):
        with pytest.raises(GainMapError, match=message):
            save_gain_map(tmp_path / "again.npz", **arrays)
        assert not (tmp_path / "again.npz").exists()


def test_files_that_are_no_maps_are_refused(tmp_path):
    with pytest.raises(GainMapError, match=r"No such file.*current folder"):
        load_gain_map(tmp_path / "absent.npz")
    (tmp_path / "text.npz").write_text("gain")
    np.save(tmp_path / "bare.npy", FLAT)
    np.savez(tmp_path / "pickled.npz", gain_db=np.array([{"a": 1}], dtype=object), **AXES)
    (tmp_path / "cut.npz").write_bytes(save_gain_map(tmp_path / "ok.npz", gain_db=FLAT, **AXES).read_bytes()[:400])
    for name in ("text.npz", "pickled.npz", "cut.npz"):
        with pytest.raises(GainMapError, match=r"not an .npz file of plain arrays"):
            load_gain_map(tmp_path / name)
    for name in ("text.npz", "pickled.npz"):  # NumPy would advise to load them without a safeguard
        with pytest.raises(GainMapError, match=r"plain arrays \(no zip archive, or pickled objects; .*save_gain_map"):
            load_gain_map(tmp_path / name)
    with pytest.raises(GainMapError, match="one bare array"):
        load_gain_map(tmp_path / "bare.npy")
    with pytest.raises(GainMapError, match=r"must end in \.npz"):
        save_gain_map(tmp_path / "map.dat", gain_db=FLAT, **AXES)


def test_a_map_of_another_carrier_is_refused(tmp_path):
    file = save_gain_map(tmp_path / "map.npz", gain_db=FLAT, carrier_hz=3.5e9, **AXES)
    assert channel(file, carrier_hz=3.5e9).map.carrier_hz == 3.5e9
    with pytest.raises(GainMapError, match=r"made at 3.5 GHz, and the scenario's carrier is 2 GHz"):
        channel(file, carrier_hz=2e9)
