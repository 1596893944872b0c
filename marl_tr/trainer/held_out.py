"""The evaluations of a run: our policies, and the environment's reference policies beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from marl_tr.errors import Diverged
from marl_tr.scenario.schema import Scenario
from marl_tr.trainer.build import Player, build_env, device_of
from marl_tr.trainer.evaluation import Episodes, evaluate_act, evaluate_policies, policy_actor, summarise
from marl_tr.trainer.first_evaluation import FirstEvaluation, Spread
from marl_tr.trainer.seats import Match, match_of, random_opponent, seated, seats_of
from marl_tr.vector import Table, VectorEnv

__all__ = ["HeldOut", "Pictures", "averaged", "convention", "hacking_index", "headline", "returns_apart"]

Pictures = tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]
"""Pictures ``[H, W, 3]`` and videos ``[T, H, W, 3]`` by tag."""


_MOST_AGENTS = 32
"""Of more agents, no single returns are shown."""


class HeldOut:
    """Plays the held-out episodes of a scenario.

    Args:
        scenario: Says which, and how many.
        players: Who acts: by the averages of their parameters, where the scenario keeps them.
        env: The scenario's environment, for its hooks and agents alone; episodes are played in copies of their own.
    """

    def __init__(self, scenario: Scenario, players: Sequence[Player], env: VectorEnv) -> None:
        self._scenario, self._players, self._env = scenario, tuple(players), env
        settings = scenario.evaluation
        self._seats = seats_of(env.spec, settings.seats) if settings.opponents else ()

    @property
    def compares(self) -> bool:
        """Whether the environment has anything to say about what changed since the first evaluation."""
        return hasattr(self._env, "before_after") or self._hacking is not None

    def evaluate(self, episodes: int, *, recorded: int = 0) -> dict[str, Episodes]:
        """Episodes by way of acting (``sampled``, ``mode``), in the scenario's order; `recorded` are kept whole."""
        settings = self._scenario.evaluation
        return {policy: self._evaluate(policy, episodes, settings.seed, recorded) for policy in settings.policies}

    def scalars(self, results: Mapping[str, Episodes], first: FirstEvaluation | None) -> dict[str, float]:
        """`headline`, and where there is a first evaluation to compare with ``eval/<policy>/hacking_index``."""
        scalars = headline(results, self._scenario)
        pair = self._hacking
        if first is None or pair is None:
            return scalars
        for policy, episodes in results.items():
            spreads = first.metrics.get(policy, {})
            if {*pair} <= spreads.keys() and {*pair} <= episodes.metrics.keys():
                scalars[f"eval/{policy}/hacking_index"] = hacking_index(episodes.metrics, spreads, pair)
        return scalars

    def references(self, episodes: int) -> dict[str, Episodes]:
        """The same held-out episodes under the environment's reference policies, by name."""
        settings = self._scenario.evaluation
        if not settings.references or not hasattr(self._env, "references"):
            return {}
        results: dict[str, Episodes] = {}
        env: Any = self._make(episodes)
        try:
            for reference in env.references():
                played = evaluate_act(env, reference.act, seed=settings.seed, window=settings.window)
                results[reference.name] = self._usable(reference.name, played)
        finally:
            env.close()
        return results

    def matches(self, episodes: int) -> list[Match]:
        """As many held-out episodes against each opponent from each seat, by the headline's way of acting."""
        settings = self._scenario.evaluation
        if not settings.opponents:
            return []
        teams = [player.team for player in self._players]
        mode, device, seed = settings.policies[0] == "mode", device_of(self._scenario), settings.seed
        found: list[Match] = []
        env = self._make(episodes)
        try:
            with averaged(self._players):
                for opponent in settings.opponents:
                    for at, seat in enumerate(self._seats):
                        # Anew for every match: memories, and draws of their own.
                        ours = policy_actor(teams, env, mode=mode, seed=seed, device=device)
                        act = seated(ours, random_opponent(env.spec, seed=seed), seat, env.spec)
                        played = evaluate_act(env, act, seed=seed, window=None)
                        usable = self._usable(f"{seat.name} against {opponent}", played)
                        found.append(match_of(usable, self._seats, at=at, opponent=opponent))
        finally:
            env.close()
        return found

    def pictures(self, results: Mapping[str, Episodes], *, slow: bool) -> Pictures:
        """`media` and `gallery` together."""
        media, gallery = self.media(results, slow=slow), self.gallery(results, slow=slow)
        return media[0] | gallery[0], media[1] | gallery[1]

    def media(self, results: Mapping[str, Episodes], *, slow: bool) -> Pictures:
        """Pictures and videos of the first episode of the headline policy, from the environment's hook.

        Args:
            results: Of `evaluate`.
            slow: Also those that the environment offers to make on demand.
        """
        env: Any = self._env
        if not hasattr(env, "media"):
            return {}, {}
        return _drawn(env.media(next(iter(results.values())).trajectory), "media", slow=slow)

    def gallery(self, results: Mapping[str, Episodes], *, slow: bool) -> Pictures:
        """Pictures and videos of several episodes of every way of acting: ``media/<policy>/<name>``."""
        env: Any = self._env
        images: dict[str, NDArray[Any]] = {}
        videos: dict[str, NDArray[Any]] = {}
        if hasattr(env, "gallery"):
            for policy, episodes in results.items():
                more = _drawn(env.gallery(episodes.trajectories), f"media/{policy}", slow=slow)
                images, videos = images | more[0], videos | more[1]
        return images, videos

    def tables(self, results: Mapping[str, Episodes]) -> dict[str, Table]:
        """Recorded episodes of the headline policy in numbers, from the environment's hook: ``<name>_episode<n>``."""
        env: Any = self._env
        return {
            f"{name}_episode{number}": table
            for number, trajectory in enumerate(next(iter(results.values())).recorded)
            for name, table in env.tables(trajectory).items()
        }

    def before_after(self, first: FirstEvaluation | None, results: Mapping[str, Episodes], *, slow: bool) -> Pictures:
        """The first evaluation beside the same episodes now: the same conditions, and the same noise.

        Noise is drawn for all episodes together, so where `results` are of another number of episodes than the first
        evaluation had, as many are played once more.
        """
        env: Any = self._env
        if first is None or not hasattr(env, "before_after"):
            return {}, {}
        settings = self._scenario.evaluation
        after = results.get(first.policy)
        if after is None or after.played != first.count or settings.seed != first.seed:
            after = self._evaluate(first.policy, first.count, first.seed)
        return _drawn(env.before_after(first.trajectories, after.trajectories), "media", slow=slow)

    @property
    def _hacking(self) -> tuple[str, str] | None:
        pair: tuple[str, str] | None = getattr(self._env, "hacking", None)
        return pair

    def _evaluate(self, policy: str, episodes: int, seed: int, recorded: int = 0) -> Episodes:
        with averaged(self._players):
            played = evaluate_policies(
                [player.team for player in self._players],
                self._make,
                episodes=episodes,
                seed=seed,
                mode=policy == "mode",
                window=self._scenario.evaluation.window,
                device=device_of(self._scenario),
                recorded=recorded,
            )
        return self._usable(policy, played)

    def _usable(self, policy: str, played: Episodes) -> Episodes:
        """The episodes without those whose reward failed, where the scenario says so.

        Raises:
            Diverged: A reward is not finite, and the scenario does not say so, or no episode is left.
        """
        usable = played.without_failed()
        if usable.failed and self._scenario.advantage.failed != "exclude":
            raise Diverged(
                f"evaluation of {policy!r}: the rewards of {usable.failed} of {usable.played} held-out episodes are "
                "not finite; the environment paid them ('marl-tr check-env'), or its reward model failed on a sample "
                "('advantage: {failed: exclude}' leaves such episodes out)"
            )
        if len(usable.returns) == 0:
            raise Diverged(f"evaluation of {policy!r}: no held-out episode has a finite reward")
        return usable

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
    """Scalars of an evaluation: ``eval/iqm`` and its interval are those of the first way of acting.

    Of every way: the environment's metrics (means over episodes) and measures, ``eval/<policy>/<name>``; where one of
    them has the name of a scalar of ours, ours stands. Where agents' returns differ, the mean of each one's is
    ``eval/<policy>/return/<agent>``.
    """
    scalars: dict[str, float] = {}
    for position, (policy, episodes) in enumerate(results.items()):
        summary = summarise(episodes.returns, seed=scenario.evaluation.seed)
        if position == 0:
            scalars |= {"eval/iqm": summary.iqm, "eval/ci_low": summary.ci_low, "eval/ci_high": summary.ci_high}
        scalars |= {f"eval/{policy}/{name}": float(values.mean()) for name, values in episodes.metrics.items()}
        scalars |= {f"eval/{policy}/{name}": value for name, value in episodes.measures.items()}
        scalars |= {f"eval/{policy}/iqm": summary.iqm, f"eval/{policy}/mean": summary.mean}
        for name, values in returns_apart(episodes).items():
            scalars[f"eval/{policy}/return/{name}"] = float(values.mean())
        if episodes.failed:
            scalars[f"eval/{policy}/failed_episodes"] = float(episodes.failed)
        scalars[f"eval/{policy}/length"] = float(np.mean(episodes.lengths))
        if episodes.window is not None:
            scalars[f"eval/{policy}/window_mean"] = float(episodes.window.mean())
    return scalars


def returns_apart(episodes: Episodes) -> dict[str, NDArray[np.float64]]:
    """The returns ``[n]`` of each agent; none where all agents earn the same, or are more than 32 (curves and tables
    of thousands of them would show nothing)."""
    own = list(episodes.by_agent.values())
    if not 2 <= len(own) <= _MOST_AGENTS or all(np.allclose(values, own[0]) for values in own[1:]):
        return {}
    return dict(episodes.by_agent)


def hacking_index(now: Mapping[str, NDArray[np.float64]], first: Mapping[str, Spread], pair: tuple[str, str]) -> float:
    """What was gained in a reward without becoming better: the gain in `pair`'s reward less that in its distance.

    Both gains are since the first evaluation and in units of the standard deviation over its episodes (1 where that is
    zero); a distance gains by falling. Zero where both gained alike; positive where the reward rose and the distance
    did not fall as much, or rose.

    Args:
        now: Metrics ``[n]`` by name.
        first: Of the first evaluation.
        pair: Names of the reward and of the distance.

    Source: specification of the SAGE-GRPO study 8.4, "Overall gain minus d_M gain"; the units are ours, for the two
    have none in common.
    """
    reward, distance = ((float(now[name].mean()) - first[name].mean) / (first[name].std or 1.0) for name in pair)
    return reward + distance


def convention(episodes: Episodes, agents: int) -> str:
    """How a printed return is to be read."""
    low, high = int(episodes.lengths.min()), int(episodes.lengths.max())
    steps = f"{low}" if low == high else f"{low} to {high}"
    who = "one agent" if agents == 1 else f"mean over {agents} agents"
    return f"{who}, {steps} steps, undiscounted"


def _drawn(offered: Mapping[str, Any], prefix: str, *, slow: bool) -> Pictures:
    """What a hook offers, by tag; a callable makes what takes long."""
    images: dict[str, NDArray[Any]] = {}
    videos: dict[str, NDArray[Any]] = {}
    for name, made in offered.items():
        if callable(made) and not slow:
            continue
        picture = made() if callable(made) else made
        (images if picture.ndim == 3 else videos)[f"{prefix}/{name}"] = picture
    return images, videos
