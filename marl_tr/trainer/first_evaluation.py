"""A run's first evaluation, kept in its folder: what everything that was learned is compared with."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from marl_tr.errors import UserError
from marl_tr.trainer.evaluation import Episodes
from marl_tr.vector.contract import Trajectory

__all__ = ["FIRST_EVALUATION", "FirstEvaluation", "Spread"]

FIRST_EVALUATION = "first_evaluation.npz"


@dataclass(frozen=True)
class Spread:
    """A metric over episodes.

    Attributes:
        mean: Over episodes.
        std: Population standard deviation over episodes.
    """

    mean: float
    std: float


@dataclass(frozen=True)
class FirstEvaluation:
    """What the policies did before they learned anything.

    Attributes:
        seed: Of its episodes.
        count: How many they were.
        policy: Way of acting of `trajectories`: the mode, where it is evaluated (of a flow the samples that are
            deployed, whose only noise is the one they start from), else the first.
        metrics: By way of acting and name.
        trajectories: Of its first episodes.
    """

    seed: int
    count: int
    policy: str
    metrics: Mapping[str, Mapping[str, Spread]]
    trajectories: tuple[Trajectory, ...]

    @classmethod
    def of(cls, results: Mapping[str, Episodes], *, seed: int) -> FirstEvaluation:
        """Of the results by way of acting."""
        policy = "mode" if "mode" in results else next(iter(results))
        return cls(
            seed=seed,
            count=results[policy].played,
            policy=policy,
            metrics={
                name: {
                    metric: Spread(mean=float(values.mean()), std=float(values.std()))
                    for metric, values in episodes.metrics.items()
                }
                for name, episodes in results.items()
            },
            trajectories=results[policy].trajectories,
        )

    def save(self, folder: Path) -> None:
        """Write ``first_evaluation.npz``, all or nothing."""
        arrays: list[NDArray[Any]] = []
        index = [_listed(trajectory, arrays) for trajectory in self.trajectories]
        metrics = {
            policy: {name: [spread.mean, spread.std] for name, spread in spreads.items()}
            for policy, spreads in self.metrics.items()
        }
        about = {
            "seed": self.seed,
            "count": self.count,
            "policy": self.policy,
            "metrics": metrics,
            "trajectories": index,
        }
        path = folder / FIRST_EVALUATION
        partial = path.with_name(f".partial-{path.name}")
        # By number: names of leaves may hold what a file's name must not.
        numbered = {str(number): array for number, array in enumerate(arrays)}
        try:
            with partial.open("wb") as file:
                np.savez_compressed(file, about=np.array(json.dumps(about)), **numbered)  # type: ignore[arg-type]
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)

    @classmethod
    def load(cls, folder: Path) -> FirstEvaluation | None:
        """Read it back; None where the folder holds none.

        Raises:
            UserError: It is there, and cannot be read.
        """
        path = folder / FIRST_EVALUATION
        if not path.is_file():
            return None
        try:
            with np.load(path, allow_pickle=False) as file:
                about = json.loads(str(file["about"]))
                return cls(
                    seed=int(about["seed"]),
                    count=int(about["count"]),
                    policy=str(about["policy"]),
                    metrics={
                        policy: {name: Spread(mean=mean, std=std) for name, (mean, std) in spreads.items()}
                        for policy, spreads in about["metrics"].items()
                    },
                    trajectories=tuple(_read(listed, file) for listed in about["trajectories"]),
                )
        except Exception as error:  # zipfile, numpy and json each have errors of their own
            raise UserError(
                f"{path} cannot be read ({error!r}); delete it to go on without a comparison with the start"
            ) from error


def _listed(trajectory: Trajectory, arrays: list[NDArray[Any]]) -> dict[str, Any]:
    """The fields of a trajectory with the numbers of their arrays, which are appended to `arrays`."""

    def put(leaves: Mapping[str, NDArray[Any]]) -> dict[str, int]:
        first = len(arrays)
        arrays.extend(leaves.values())
        return {leaf: first + position for position, leaf in enumerate(leaves)}

    return {
        "state": put(trajectory.state),
        "actions": {group: put(leaves) for group, leaves in trajectory.actions.items()},
        "reward": put(trajectory.reward),
        "metrics": put(trajectory.metrics),
    }


def _read(listed: Mapping[str, Any], file: Mapping[str, NDArray[Any]]) -> Trajectory:
    def get(numbers: Mapping[str, int]) -> dict[str, NDArray[Any]]:
        return {leaf: file[str(number)] for leaf, number in numbers.items()}

    return Trajectory(
        state=get(listed["state"]),
        actions={group: get(numbers) for group, numbers in listed["actions"].items()},
        reward=get(listed["reward"]),
        metrics=get(listed["metrics"]),
    )
