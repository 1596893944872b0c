import subprocess
import sys
import typing

import pytest
from pydantic import BaseModel, ValidationError

from marl_tr.envs.uav.config import DownlinkConfig


def settings(model):
    """The model and all that its fields may hold."""
    found, waiting = [], [model]
    while waiting:
        annotation = waiting.pop()
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            found.append(annotation)
            waiting += [field.annotation for field in annotation.model_fields.values()]
        waiting += typing.get_args(annotation)
    return found


def test_noise_and_reference_rate_follow_from_the_defaults():
    config = DownlinkConfig()
    assert config.noise_w == pytest.approx(10 ** ((-167 + 60 - 30) / 10))
    assert config.rate_ref == pytest.approx(3e6 / 20 * 3.4594316)
    assert config.agents == ("uav_0", "uav_1", "uav_2")


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_uavs": 0},
        {"rho": 1.5},
        {"altitude_m": float("nan")},
        {"resources": "subchannels"},
        {"nun_users": 3},
        {"horizon": "long"},
        {"flight": {"dimensions": 4}},
        {"flight": {"altitude_min_m": 100, "altitude_max_m": 80}},
        {"flight": {"yaw_rate_max_deg_s": 0}},
        {"battery": {}},
        {"battery": {"capacity_j": 1.0, "least_charge": 0}},
        {"actions": {"kind": "discreet"}},
        {"actions": {"kind": "discrete", "speed": 3}},
        {"nearest_users": 0},
    ],
)
def test_what_makes_no_sense_is_refused(wrong):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        DownlinkConfig(**wrong)


def test_level_flight_may_be_at_any_height_and_climbing_flight_must_contain_it():
    assert DownlinkConfig(altitude_m=400).altitude_m == 400
    assert DownlinkConfig(altitude_m=400, flight={"dimensions": 3, "altitude_max_m": 500}).flight.dimensions == 3
    with pytest.raises(ValidationError, match="altitude_m must lie between"):
        DownlinkConfig(altitude_m=400, flight={"dimensions": 3})


def test_mobility_that_does_not_suit_the_rest_is_refused_with_the_settings(tmp_path):
    with pytest.raises(ValidationError, match=r"mobility\.groups: 4 groups need at least as many users, got 3"):
        DownlinkConfig(num_users=3, mobility={"kind": "group"})
    with pytest.raises(ValidationError, match="make slots shorter, or speeds lower"):
        DownlinkConfig(slot_s=3600, mobility={"kind": "group", "member_v_lo": 50, "member_v_hi": 90})
    file = tmp_path / "walk.csv"
    file.write_text("t,id,x,y\n0,anna,3,5\n", encoding="utf-8")
    with pytest.raises(ValidationError, match="has 1 ids, fewer than the 2 users"):
        DownlinkConfig(num_users=2, mobility={"kind": "trace", "path": str(file)})
    assert DownlinkConfig(num_users=1, mobility={"kind": "trace", "path": str(file)}).moving_users


def test_traffic_that_cannot_be_counted_is_refused_with_the_settings():
    most = {"kind": "poisson", "packets_per_s": 1e5, "packet_bits": 1_000_000_000}
    with pytest.raises(ValidationError, match=r"more bits than can be counted: lower packet_bits"):
        DownlinkConfig(horizon=1_000_000, traffic=most)


def test_every_field_is_described():
    models = settings(DownlinkConfig)
    assert len(models) > 5
    tags = {"kind"}
    for model in models:
        assert all(field.description for name, field in model.model_fields.items() if name not in tags), model


def test_the_environment_needs_no_torch():
    code = "import sys, marl_tr.envs.uav.pettingzoo, marl_tr.envs.uav.vector; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
