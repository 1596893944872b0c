"""One run of Stable-Baselines3's PPO, for `drifting_control.py`: a job on standard input, its row on standard output.

It imports nothing of this package, so that the interpreter that runs it needs Stable-Baselines3, Gymnasium and NumPy
alone. Settings are the library's defaults but for what the job says; observations and rewards are normalised by its
``VecNormalize``. Wall and processor time are those of learning; evaluations are not in them.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
import stable_baselines3
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize


class Curve(BaseCallback):
    """A point before every rollout: all that was learned from the rollouts so far."""

    def __init__(self) -> None:
        super().__init__()
        self.points: dict[str, list[float | None]] = {"step": [], "wall_s": [], "cpu_s": [], "return": []}
        self.divergence: list[float] = []

    def _on_training_start(self) -> None:
        self._since = time.perf_counter(), time.process_time()

    def _on_rollout_start(self) -> None:
        if self.num_timesteps:
            self.add()

    def _on_step(self) -> bool:
        return True

    def add(self) -> None:
        recent = [episode["r"] for episode in self.model.ep_info_buffer or ()]
        self.points["step"].append(self.num_timesteps)
        self.points["wall_s"].append(round(time.perf_counter() - self._since[0], 2))
        self.points["cpu_s"].append(round(time.process_time() - self._since[1], 2))
        self.points["return"].append(round(float(np.mean(recent)), 4) if recent else None)
        self.divergence.append(float(f"{self.logger.name_to_value['train/approx_kl']:.5g}"))


def main() -> None:
    job = json.load(sys.stdin)
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    started = time.perf_counter(), time.process_time()
    env = VecNormalize(make_vec_env(job["env"], n_envs=job["num_envs"], seed=job["seed"]), gamma=job["gamma"])
    model = PPO(
        "MlpPolicy",
        env,
        n_steps=job["rollout_steps"],
        gamma=job["gamma"],
        seed=job["seed"],
        device="cpu",
        stats_window_size=job["recent"],
    )
    built = time.perf_counter() - started[0], time.process_time() - started[1]
    curve = Curve()
    model.learn(job["total_steps"], callback=curve)
    curve.add()
    for name, own in zip(("wall_s", "cpu_s"), built, strict=True):
        curve.points[name] = [round(float(t or 0) + own, 2) for t in curve.points[name]]
    look: dict[str, Any] = {"iteration": len(curve.divergence), "step": model.num_timesteps}
    for way, mode in (("drawn", False), ("mode", True)):
        look[way] = evaluated(model, env, job, mode=mode)
    row = {
        "wall_s": curve.points["wall_s"][-1],
        "cpu_s": curve.points["cpu_s"][-1],
        "load": [load, os.getloadavg()[0]],
        "iterations": len(curve.divergence),
        "outcomes": {},
        "diverged": None,
        "parameters": _parameters(model),
        "curve": curve.points,
        # The library's estimate, over the minibatches of the last epoch.
        "training": {"region/divergence": curve.divergence},
        "looks": [look],
        "version": stable_baselines3.__version__,
    }
    print(json.dumps(row))


def evaluated(model: PPO, normalised: VecNormalize, job: Mapping[str, Any], *, mode: bool) -> dict[str, Any]:
    """One episode of each of several copies, side by side, under the statistics that were learned."""
    envs = [gymnasium.make(job["env"]) for _ in range(job["final_episodes"])]
    seen = np.stack([env.reset(seed=job["held_out_seed"] + k)[0] for k, env in enumerate(envs)])
    returns, lengths = np.zeros(len(envs)), np.zeros(len(envs), int)
    over = np.zeros(len(envs), bool)
    while not over.all():
        actions, _ = model.predict(normalised.normalize_obs(seen), deterministic=mode)
        for k in np.flatnonzero(~over):
            seen[k], reward, terminated, truncated, _ = envs[k].step(actions[k])
            returns[k] += float(reward)
            lengths[k] += 1
            over[k] = terminated or truncated
    for env in envs:
        env.close()
    return {
        "return": float(returns.mean()),
        "returns": returns.round(3).tolist(),
        "length": float(lengths.mean()),
    }


def _parameters(model: PPO) -> int:
    """Of the policy without its critic."""
    named = model.policy.named_parameters()
    return sum(p.numel() for name, p in named if "value" not in name)


if __name__ == "__main__":
    main()
