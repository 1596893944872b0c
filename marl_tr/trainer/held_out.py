"""The evaluations of a run: our policies, and the environment's reference policies beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from marl_tr.scenario.schema import Scenario
from marl_tr.trainer.build import Player, build_env, device_of
from marl_tr.trainer.evaluation import Episodes, evaluate_act, evaluate_policies, summarise
from marl_tr.vector import VectorEnv

__all__ = ["HeldOut", "averaged", "convention", "headline"]


class HeldOut:
    """Plays the held-out episodes of a scenario.

    Args:
        scenario: Says which, and how many.
        players: Who acts: by the averages of their parameters, where the scenario keeps them.
        env: The scenario's environment, for its hooks alone; episodes are played in copies of their own.
    """

    def __init__(self, scenario: Scenario, players: Sequence[Player], env: VectorEnv) -> None:
        self._scenario, self._players, self._env = scenario, tuple(players), env

    def evaluate(self, episodes: int) -> dict[str, Episodes]:
        """Episodes by way of acting (``sampled``, ``mode``), in the scenario's order."""
        settings = self._scenario.evaluation
        with averaged(self._players):
            return {
                policy: evaluate_policies(
                    [player.team for player in self._players],
                    self._make,
                    episodes=episodes,
                    seed=settings.seed,
                    mode=policy == "mode",
                    window=settings.window,
                    device=device_of(self._scenario),
                )
                for policy in settings.policies
            }

    def references(self, episodes: int) -> dict[str, Episodes]:
        """The same held-out episodes under the environment's reference policies, by name."""
        settings = self._scenario.evaluation
        if not settings.references or not hasattr(self._env, "references"):
            return {}
        results: dict[str, Episodes] = {}
        env: Any = self._make(episodes)
        try:
            for reference in env.references():
                results[reference.name] = evaluate_act(env, reference.act, seed=settings.seed, window=settings.window)
        finally:
            env.close()
        return results

    def media(
        self, results: Mapping[str, Episodes], *, slow: bool
    ) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
        """Pictures and videos of the first episode of the headline policy, from the environment's hook.

        Args:
            results: Of `evaluate`.
            slow: Also those that the environment offers to make on demand.
        """
        env: Any = self._env
        if not hasattr(env, "media"):
            return {}, {}
        first = next(iter(results.values()))
        images: dict[str, NDArray[Any]] = {}
        videos: dict[str, NDArray[Any]] = {}
        for name, offered in env.media(first.trajectory).items():
            if callable(offered) and not slow:
                continue
            picture = offered() if callable(offered) else offered
            (images if picture.ndim == 3 else videos)[f"media/{name}"] = picture
        return images, videos

    def _make(self, copies: int) -> VectorEnv:
        return build_env(self._scenario, num_envs=copies)


@contextmanager
def averaged(players: Sequence[Player]) -> Iterator[None]:
    """Inside, every player acts by the average of its parameters, where the scenario keeps one."""
    with ExitStack() as stack:
        for player in players:
            stack.enter_context(player.learners.averaged())
        yield


def headline(results: Mapping[str, Episodes], scenario: Scenario) -> dict[str, float]:
    """Scalars of an evaluation: ``eval/iqm`` and its interval are those of the first way of acting."""
    scalars: dict[str, float] = {}
    for position, (policy, episodes) in enumerate(results.items()):
        summary = summarise(episodes.returns, seed=scenario.evaluation.seed)
        if position == 0:
            scalars |= {"eval/iqm": summary.iqm, "eval/ci_low": summary.ci_low, "eval/ci_high": summary.ci_high}
        scalars |= {f"eval/{policy}/iqm": summary.iqm, f"eval/{policy}/mean": summary.mean}
        scalars[f"eval/{policy}/length"] = float(np.mean(episodes.lengths))
        if episodes.window is not None:
            scalars[f"eval/{policy}/window_mean"] = float(episodes.window.mean())
    return scalars


def convention(episodes: Episodes, agents: int) -> str:
    """How a printed return is to be read."""
    low, high = int(episodes.lengths.min()), int(episodes.lengths.max())
    steps = f"{low}" if low == high else f"{low} to {high}"
    who = "one agent" if agents == 1 else f"mean over {agents} agents"
    return f"{who}, {steps} steps, undiscounted"
