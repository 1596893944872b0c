"""From [-1, 1] to the units of a Box."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces

from marl_tr.nn.box import to_box


def test_the_interval_is_stretched_over_bounds_and_clipped_by_them() -> None:
    box = spaces.Box(np.float32([[-2, 0]]), np.float32([[4, 1]]))
    found = to_box(torch.tensor([[-1.5, -1.0], [0.0, 0.5], [1.0, 3.0]]), box)
    assert found.tolist() == [[[-2.0, 0.0]], [[1.0, 0.75]], [[4.0, 1.0]]]


def test_bounds_as_wide_as_floats_go_give_no_infinity() -> None:
    most = float(np.finfo(np.float32).max)
    found = to_box(torch.tensor([[-1.0], [0.0], [0.5], [1.0]]), spaces.Box(-most, most, (1,)))
    assert found.flatten().tolist() == pytest.approx([-most, 0.0, most / 2, most])
