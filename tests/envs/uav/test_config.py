import subprocess
import sys

import pytest
from pydantic import ValidationError

from marl_tr.envs.uav.config import DownlinkConfig


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
        {"environment": "rural"},
        {"resources": "subchannels"},
        {"nun_users": 3},
        {"horizon": "long"},
    ],
)
def test_what_makes_no_sense_is_refused(wrong):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        DownlinkConfig(**wrong)


def test_every_field_is_described():
    assert all(field.description for field in DownlinkConfig.model_fields.values())


def test_the_environment_needs_no_torch():
    code = "import sys, marl_tr.envs.uav.pettingzoo, marl_tr.envs.uav.vector; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
