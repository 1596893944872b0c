"""One run of Stable-Baselines3, for `peers_sb3.py`: a job on standard input, its row on standard output.

It imports nothing of this package, so that the interpreter that runs it needs Stable-Baselines3, sb3-contrib, Gymnasium
and NumPy alone. Wall and processor time are those of building and learning; evaluations are not in them.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
import sb3_contrib
import stable_baselines3
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

ALGORITHMS = {"ppo": stable_baselines3.PPO, "trpo": sb3_contrib.TRPO}
ACTIVATIONS = {"tanh": torch.nn.Tanh, "relu": torch.nn.ReLU}
PACKAGES = ("stable-baselines3", "sb3-contrib", "gymnasium", "mujoco", "torch", "numpy")


def main() -> None:
    job = json.load(sys.stdin)
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    wall, cpu = time.perf_counter(), time.process_time()
    env: VecEnv = make_vec_env(job["env"], n_envs=job["num_envs"], seed=job["seed"])
    if job["normalize"]:
        # The zoo, too, scales rewards by the discount that is learned with.
        env = VecNormalize(env, gamma=job["settings"].get("gamma", 0.99))
    network = dict(job["network"])
    if "activation_fn" in network:
        network["activation_fn"] = ACTIVATIONS[network["activation_fn"]]
    model = ALGORITHMS[job["algorithm"]](
        "MlpPolicy", env, seed=job["seed"], device="cpu", policy_kwargs=network or None, **job["settings"]
    )
    model.learn(job["total_steps"])
    row: dict[str, Any] = {
        "wall_s": round(time.perf_counter() - wall, 2),
        "cpu_s": round(time.process_time() - cpu, 2),
        "load": [load, os.getloadavg()[0]],
        "steps": model.num_timesteps,
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }
    for way, mode in (("drawn", False), ("mode", True)):
        row[way] = evaluated(model, env, job, mode=mode)
    print(json.dumps(row))


def evaluated(model: BaseAlgorithm, env: VecEnv, job: Mapping[str, Any], *, mode: bool) -> dict[str, Any]:
    """An episode from each seed, side by side, under the statistics that were learned."""
    copies = [gymnasium.make(job["env"]) for _ in job["episode_seeds"]]
    seen = np.stack([copy.reset(seed=seed)[0] for copy, seed in zip(copies, job["episode_seeds"], strict=True)])
    returns = np.zeros(len(copies))
    over = np.zeros(len(copies), bool)
    while not over.all():
        shown = env.normalize_obs(seen) if isinstance(env, VecNormalize) else seen
        actions, _ = model.predict(shown, deterministic=mode)
        for k in np.flatnonzero(~over):
            seen[k], reward, terminated, truncated, _ = copies[k].step(actions[k])
            returns[k] += float(reward)
            over[k] = terminated or truncated
    for copy in copies:
        copy.close()
    return {"return": float(returns.mean()), "returns": returns.round(3).tolist()}


if __name__ == "__main__":
    main()
