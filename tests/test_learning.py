"""Shipped scenarios learn: slow, run with ``-m slow``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

THRESHOLDS = [
    # CartPole's own threshold of "solved".
    ("cartpole", [], "eval/mode/mean", 475.0),
    # A policy that swings up and balances earns about -150 to -200; one that never does, below -1000.
    ("pendulum", [], "eval/mode/mean", -250.0),
    # Mean over agents; random play earns about -24.8, HARL's HATRPO recorded -21.7 at 200,000 steps.
    ("simple_spread", [], "eval/mode/mean", -19.0),
    # An untrained Hopper falls at about 20.
    ("hopper", [], "eval/mode/mean", 600.0),
    # Random play earns -28.1.
    ("reference", [], "eval/mode/mean", -23.0),
    # Of random predators: untrained prey lose about 34.
    ("world_comm", [], "eval/vs_random/prey", -15.0),
    # Kills an agent; random play has 0.7.
    ("zombies", [], "eval/sampled/mean", 1.0),
    # Against random moves, where untrained players win one or two games of three at the most.
    ("connect_four", [], "eval/vs_random/player_0/won", 0.8),
    ("connect_four", [], "eval/vs_random/player_1/won", 0.7),
    # The demo: untrained agents earn about 0.3, k-means at full power 0.752.
    ("uav_quick", [], "eval/sampled/window_mean", 0.75),
    # Flow policies: as the explicit ones; random play earns 0.32 a slot on the UAV task.
    ("flow_pendulum", [], "eval/sampled/mean", -250.0),
    ("flow_uav", [], "eval/sampled/window_mean", 0.5),
    ("podpo_pendulum", [], "eval/mode/mean", -250.0),
    # The nearest goal earns 0.63, uniform steps -0.75.
    ("podpo_reach", [], "eval/mode/mean", 0.4),
    # Samples of the data earn 0.79, the preferred points 1.
    ("sage_mixture", [], "eval/mode/mean", 0.95),
    ("sage_steps", [], "eval/mode/mean", 0.95),
    # In standard deviations of the pretrained model with ten steps; with four it earns -1.09 before training.
    ("sage_quick", [], "eval/mode/overall", -0.85),
]


@pytest.mark.parametrize(("scenario", "overrides", "tag", "threshold"), THRESHOLDS)
def test_a_shipped_scenario_learns(
    scenario: str, overrides: list[str], tag: str, threshold: float, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "marl_tr", "run", scenario, f"trainer.runs_dir={tmp_path}", *overrides]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (metrics,) = tmp_path.glob("*/*/metrics.jsonl")
    final = [json.loads(line) for line in metrics.read_text().splitlines()][-1]
    assert final["phase"] == "final"
    assert final["scalars"][tag] > threshold
    audited = subprocess.run(
        [sys.executable, "-m", "marl_tr", "audit", str(metrics.parent)], capture_output=True, text=True, check=False
    )
    assert audited.returncode == 0, audited.stdout
