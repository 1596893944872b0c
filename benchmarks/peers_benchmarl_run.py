"""BenchMARL's MAPPO for `peers_benchmarl.py`: a setting on standard input, then a row an iteration as it is told to go.

It imports nothing of this package, so that the interpreter that runs it needs BenchMARL and ``pettingzoo[mpe]`` alone.
Whoever starts it sets the threads of the linear algebra.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
import tempfile
from typing import Any

import torch
from benchmarl.algorithms import MappoConfig
from benchmarl.environments import PettingZooTask
from benchmarl.experiment import Callback, Experiment, ExperimentConfig
from benchmarl.models.mlp import MlpConfig
from peers_turns import Turns, stepping_rate

VERSIONS = ("benchmarl", "torchrl", "tensordict", "torch", "pettingzoo", "numpy")


class Reported(Callback):
    """A row after each iteration's training; then it waits. What follows training counts to the next iteration.

    Attributes:
        turns: To be set once the experiment is built, which pickles its callbacks.
    """

    turns: Turns

    def __init__(self, frames: int) -> None:
        super().__init__()
        self._frames = frames
        self._returns: float | None = None

    def on_batch_collected(self, batch: Any) -> None:
        (group,) = self.experiment.group_map
        over = batch["next", "done"].squeeze(-1)
        returns = batch["next", group, "episode_reward"].squeeze(-1).sum(-1)[over]
        self._returns = float(returns.mean()) if len(returns) else None

    def on_train_end(self, training_td: Any, group: str) -> None:
        self.turns.done(steps=self._frames, episode_return=self._returns)


def main() -> None:
    # What the libraries print, loggers that hold on to standard output among them, is for people.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    job = json.loads(sys.stdin.readline())
    torch.set_num_threads(1)
    turns = Turns(sys.stdin, answers)
    with tempfile.TemporaryDirectory() as folder:
        reported = Reported(job["frames"])
        experiment = built(job, folder, reported)
        reported.turns = turns
        turns.ready(
            versions={name: importlib.metadata.version(name) for name in VERSIONS},
            stepping=stepping(),
        )
        experiment.run()


def built(job: dict[str, Any], folder: str, reported: Reported) -> Experiment:
    """The experiment, its environments included."""
    config = ExperimentConfig.get_from_yaml()
    # One more than is asked for: nobody closes the environments while their last iteration is waited for.
    config.max_n_iters, config.max_n_frames = job["iterations"] + 1, None
    config.on_policy_collected_frames_per_batch = job["frames"]
    config.on_policy_n_envs_per_worker = job["envs"]
    config.on_policy_n_minibatch_iters = job["epochs"]
    config.on_policy_minibatch_size = job["minibatch"]
    config.gamma, config.lr = job["gamma"], job["learning_rate"]
    config.evaluation, config.render, config.create_json = False, False, False
    config.loggers, config.save_folder = [], folder
    algorithm = MappoConfig.get_from_yaml()
    algorithm.lmbda = job["lam"]
    models = []
    for _ in ("policy", "critic"):
        model = MlpConfig.get_from_yaml()
        model.num_cells, model.activation_class = job["hidden"], torch.nn.Tanh
        models.append(model)
    task = PettingZooTask.SIMPLE_SPREAD.get_from_yaml()
    task.config |= {"max_cycles": job["max_cycles"]}
    return Experiment(
        task=task,
        algorithm_config=algorithm,
        model_config=models[0],
        critic_model_config=models[1],
        seed=job["seed"],
        config=config,
        callbacks=[reported],
    )


def stepping() -> float:
    """Steps per CPU-second of the bare environment that its wrapper steps."""
    from pettingzoo.mpe import simple_spread_v3

    return stepping_rate(simple_spread_v3.parallel_env(N=3, max_cycles=25, continuous_actions=True))


if __name__ == "__main__":
    main()
