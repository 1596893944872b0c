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


def test_every_field_is_described():
    models = settings(DownlinkConfig)
    assert len(models) > 5
    tags = {"kind"}
    for model in models:
        assert all(field.description for name, field in model.model_fields.items() if name not in tags), model


def test_the_environment_needs_no_torch():
    code = "import sys, marl_tr.envs.uav.pettingzoo, marl_tr.envs.uav.vector; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
