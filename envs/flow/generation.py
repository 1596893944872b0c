"""Generation as an environment: an observation is a condition, an action is a sample, or the next step towards one.

What is asked, how a sample is judged and how it looks is a `Task`; views, cohorts, episodes, the start noise and exact
resume are the same for every task and live here. Random numbers follow from (seed, cohort or copy, episode number), so
copy ``j`` of any batch is asked the same, and held-out episodes are the same in every evaluation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray

from marl_tr.envs.cohorts import copy_indices
from marl_tr.envs.flow.config import GenerationConfig
from marl_tr.philox import normal, uniform
from marl_tr.vector.contract import Actions, EnvSpec, GroupSpec, GroupStep, Leaves, Reference, Step, Trajectory

__all__ = ["Draw", "GenerationVectorEnv", "Task", "Verdict"]

Array = NDArray[Any]
Pictures = Mapping[str, Array | Callable[[], Array]]
Q = TypeVar("Q")

_CONDITION, _LATENT = 0, 1
"""Purposes of random numbers that are the environment's own; tasks' begin at `Draw.FIRST_PURPOSE`."""


@dataclass(frozen=True)
class Draw:
    """The random numbers of one episode of ``E`` copies.

    Attributes:
        seed: Of the reset.
        copy: ``[E]``, index of each copy.
        cohort: ``[E]``, index of its cohort.
        episode: Episodes since the reset.
    """

    seed: int
    copy: Array
    cohort: Array
    episode: int

    FIRST_PURPOSE = 8

    def per_cohort(self, purpose: int, count: int) -> Array:
        """Uniform numbers in ``[0, 1)``, ``[E, count]``, equal within a cohort."""
        return uniform(self.seed, self.cohort, purpose=purpose, step=self.episode, count=count)

    def per_copy(self, purpose: int, count: int) -> Array:
        """Uniform numbers in ``[0, 1)``, ``[E, count]``."""
        return uniform(self.seed, self.copy, purpose=purpose, step=self.episode, count=count)

    def noise(self, purpose: int, shape: Sequence[int]) -> Array:
        """Standard normal numbers ``[E, *shape]`` float32, a copy's own."""
        flat = normal(self.seed, self.copy, purpose=purpose, step=self.episode, count=math.prod(shape))
        return flat.reshape(len(self.copy), *shape).astype(np.float32)

    def conditions(self, count: int) -> Array:
        """A condition in ``0 ... count - 1`` for each copy, ``[E]``, equal within a cohort.

        A Latin square: `count` neighbouring cohorts have all conditions, in an order drawn anew every `count`
        episodes, and so has each cohort within these episodes.
        """
        order = uniform(
            self.seed, self.cohort // count, purpose=_CONDITION, step=self.episode // count, count=count
        ).argsort(axis=1)
        stride = next(s for s in range(max(1, count // 2), 0, -1) if math.gcd(s, count) == 1)
        column = (self.cohort + stride * (self.episode % count)) % count
        return np.take_along_axis(order, column[:, None], axis=1)[:, 0]


@dataclass(frozen=True)
class Verdict:
    """What samples are worth.

    Attributes:
        reward: ``[E, A]``.
        metrics: Named ``[E]`` arrays: those of `Task.metrics`.
    """

    reward: Array
    metrics: Leaves


class Task(Protocol[Q]):
    """What is to be generated; ``Q`` is the task's own record of what ``E`` copies are asked in an episode.

    Attributes:
        id: The registered name.
        group: Name of the one group.
        agents: Names of its ``A`` agents.
        event: Shape of a sample.
        condition: Space of each leaf of the condition, without ``[E, A]``.
        metrics: Names of what `judge` measures.
        hacking: Two of them: what is learned from, and the distance that says what it is worth.
        gallery_size: Samples that `gallery` and `before_after` show.
    """

    id: str
    group: str
    agents: tuple[str, ...]
    event: tuple[int, ...]
    condition: Mapping[str, spaces.Box]
    metrics: tuple[str, ...]
    hacking: tuple[str, str]
    gallery_size: int

    @property
    def config(self) -> GenerationConfig:
        """Settings."""
        ...

    def ask(self, draw: Draw) -> Q:
        """What an episode asks for."""
        ...

    def told(self, asked: Q) -> Leaves:
        """The condition as the agents see it, ``{leaf: [E, A, ...]}`` float32."""
        ...

    def judge(self, asked: Q, samples: Array) -> Verdict:
        """Worth of finite samples ``[E, A, *event]``."""
        ...

    def targets(self) -> Mapping[str, Callable[[Q, Draw], Array]]:
        """Samples ``[E, A, *event]`` to compare with, by the name of the reference that gives them."""
        ...

    def pictures(self, told: Leaves, path: Array) -> Pictures:
        """Of one episode: the condition ``{leaf: [A, ...]}`` and the way to the sample ``[K, A, *event]``."""
        ...

    def gallery(self, told: Leaves, samples: Array) -> Pictures:
        """Of several samples ``[n, A, *event]`` and their conditions ``{leaf: [n, A, ...]}``."""
        ...

    def before_after(self, told: Leaves, before: Array, after: Array) -> Pictures:
        """The same of samples for the same conditions, before and after learning."""
        ...

    def diversity(self, samples: Array, cohort: Array) -> dict[str, float]:
        """How different samples ``[E, A, *event]`` of cohorts ``[E]`` are, by name."""
        ...

    def demonstrations(self, count: int, generator: torch.Generator) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Data: ``{leaf: [B, ...]}`` and samples ``[B, *event]``."""
        ...

    def measure(self, samples: torch.Tensor, observation: Mapping[str, torch.Tensor]) -> dict[str, float]:
        """What samples ``[B, *event]`` made for ``{leaf: [B, ...]}`` are like, by name."""
        ...


class GenerationVectorEnv(Generic[Q]):
    """``E`` copies of a generation task; implements `marl_tr.vector.contract.VectorEnv`.

    In the view ``clip`` an action is a sample, and its reward ends the episode. In the view ``steps`` an episode begins
    with Gaussian noise (leaf ``latent``), each action is the next latent, ``sigma`` holds the noise levels now and
    after the step, and the last action is the sample. All episodes end together, by termination.

    Metrics belong to a sample. In the view ``steps`` they are 0 before an episode's last step and `steps` times their
    value in it, so that the mean over an episode, which is what evaluations report, is the sample's.

    Args:
        task: What to generate.
        num_envs: ``E``.
        env_offset: Index of the first copy in the random streams.

    Raises:
        UnequalCohorts: `num_envs` is not a multiple of the cohort's size.
        ValueError: `num_envs` is below 1.
    """

    def __init__(self, task: Task[Q], *, num_envs: int, env_offset: int = 0) -> None:
        config = task.config
        self.task, self.config = task, config
        self._copy, self._cohort = copy_indices(task.id, num_envs=num_envs, env_offset=env_offset, cohort=config.cohort)
        self._batch = (num_envs, len(task.agents))
        self._stepwise = config.view == "steps"
        self._levels = np.asarray(config.sigmas, np.float32)
        seen = dict(task.condition)
        if self._stepwise:
            seen["latent"] = spaces.Box(-np.inf, np.inf, task.event, np.float32)
            seen["sigma"] = spaces.Box(0.0, 1.0, (2,), np.float32)
        action = spaces.Box(-np.inf, np.inf, task.event, np.float32)
        agents = len(task.agents)
        self.spec = EnvSpec(
            id=task.id,
            num_envs=num_envs,
            groups=(GroupSpec(name=task.group, agents=task.agents, observation=seen, action={"action": action}),),
            # All that the agents see, so that a recorded trajectory holds what was asked.
            state={leaf: spaces.Box(-np.inf, np.inf, (agents, *box.shape), np.float32) for leaf, box in seen.items()},
            horizon=config.horizon,
            own_state=True,
        )
        self._slot = 0
        self._begin(seed=0, episode=0)

    def reset(self, seed: int) -> Step:
        """Start ``E`` new episodes; equal seeds give equal episodes.

        Raises:
            ValueError: `seed` is not in ``[0, 2**64)``.
        """
        self._begin(seed, episode=0)
        return self._step(self._nothing(), ended=False)

    def step(self, actions: Actions) -> Step:
        """Take the samples, or the next latents, of every copy.

        Args:
            actions: ``{group: {"action": [E, A, *event]}}``.

        Raises:
            ValueError: The shape is wrong, or an action is not finite.
        """
        chosen = self._checked(actions)
        self._slot += 1
        if self._slot < self.config.horizon:
            self._latent = chosen
            return self._step(self._nothing(), ended=False)
        verdict = self.task.judge(self._asked, chosen)
        if self._stepwise:
            self._latent = chosen
        final = self._observation()
        self._begin(self._draw.seed, self._draw.episode + 1)
        step = self._step(verdict, ended=True)
        step.groups[self.task.group].final_observation = final
        step.final_state = dict(final)
        return step

    def next_episode(self) -> Step:
        """Leave the running episode and begin the next one of the same seed."""
        self._begin(self._draw.seed, self._draw.episode + 1)
        return self._step(self._nothing(), ended=False)

    def info(self, step: Step) -> dict[str, float]:
        """What the PettingZoo view tells of the first copy's `step`: with an episode's last one the sample's metrics,
        not weighted for the mean over its steps."""
        if not step.done[0]:
            return {}
        return {name: float(values[0]) / self.config.horizon for name, values in step.metrics.items()}

    def state_dict(self) -> dict[str, Any]:
        """Everything the following steps depend on."""
        state: dict[str, Any] = {"seed": self._draw.seed, "episode": self._draw.episode, "slot": self._slot}
        return {**state, "latent": self._latent.copy()} if self._stepwise else state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken.

        Raises:
            ValueError: It was taken from another view, or (view ``steps``) another number of copies or agents.
        """
        if ("latent" in state) != self._stepwise:
            raise ValueError(f"the state is of another view than {self.config.view!r}")
        latent = np.array(state["latent"], np.float32) if self._stepwise else self._latent
        if latent.shape != self._latent.shape:
            raise ValueError(f"the state's latents have shape {latent.shape}, expected {self._latent.shape}")
        self._begin(int(state["seed"]), int(state["episode"]))
        self._slot = int(state["slot"])
        self._latent = latent

    def references(self) -> Sequence[Reference]:
        """The task's own samples as policies; step by step they go straight from the noise to the sample."""

        def actor(target: Callable[[Q, Draw], Array]) -> Callable[[Step], Actions]:
            def act(step: Step) -> Actions:
                sample = target(self._asked, self._draw).astype(np.float32)
                if self._stepwise and self._slot + 1 < self.config.horizon:
                    now, then = self._levels[self._slot : self._slot + 2]
                    latent = step.groups[self.task.group].observation["latent"]
                    sample = latent + (then - now) / now * (latent - sample)
                return {self.task.group: {"action": sample}}

            return act

        return tuple(Reference(name, actor(target)) for name, target in self.task.targets().items())

    def media(self, trajectory: Trajectory) -> Pictures:
        """The task's pictures of a recorded episode."""
        told = {leaf: trajectory.state[leaf][0] for leaf in self.task.condition}
        sample = trajectory.actions[self.task.group]["action"]
        path = trajectory.state["latent"] if self._stepwise else sample
        return self.task.pictures(told, path)

    @property
    def hacking(self) -> tuple[str, str]:
        """Metrics that tell a better sample from one that only earns more."""
        return self.task.hacking

    @property
    def gallery_size(self) -> int:
        """Episodes that `gallery` and `before_after` show."""
        return self.task.gallery_size

    def gallery(self, trajectories: Sequence[Trajectory]) -> Pictures:
        """The task's pictures of several recorded episodes."""
        return self.task.gallery(*self._shown(trajectories))

    def before_after(self, before: Sequence[Trajectory], after: Sequence[Trajectory]) -> Pictures:
        """The task's pictures of episodes with equal conditions."""
        (told, first), (_, last) = self._shown(before), self._shown(after)
        return self.task.before_after(told, first, last)

    def measures(self, actions: Actions, cohort: Array) -> dict[str, float]:
        """How different the samples are, from every episode's last action."""
        return self.task.diversity(actions[self.task.group]["action"], cohort)

    def demonstrations(self, count: int, generator: torch.Generator) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Data to pretrain on: conditions ``{leaf: [B, ...]}`` and samples ``[B, *event]``."""
        return self.task.demonstrations(count, generator)

    def measure(self, samples: torch.Tensor, observation: Mapping[str, torch.Tensor]) -> dict[str, float]:
        """What samples ``[B, *event]`` made for conditions ``{leaf: [B, ...]}`` are like, by name."""
        return self.task.measure(samples, observation)

    def close(self) -> None:
        """Nothing is held."""

    def _shown(self, trajectories: Sequence[Trajectory]) -> tuple[Leaves, Array]:
        """Conditions ``{leaf: [n, A, ...]}`` and samples ``[n, A, *event]``."""
        told = {leaf: np.stack([t.state[leaf][0] for t in trajectories]) for leaf in self.task.condition}
        return told, np.stack([t.actions[self.task.group]["action"][-1] for t in trajectories])

    def _begin(self, seed: int, episode: int) -> None:
        self._draw = Draw(seed, self._copy, self._cohort, episode)
        self._asked = self.task.ask(self._draw)
        self._told = self.task.told(self._asked)
        self._slot = 0
        self._latent = np.zeros((self._batch[0], 0), np.float32)
        if self._stepwise:
            self._latent = self._draw.noise(_LATENT, (self._batch[1], *self.task.event))

    def _checked(self, actions: Actions) -> Array:
        with np.errstate(over="ignore"):  # becomes inf, which is named below
            chosen = np.array(actions[self.task.group]["action"], np.float32, order="C")
        expected = (*self._batch, *self.task.event)
        if chosen.shape != expected:
            raise ValueError(f"actions of group {self.task.group!r} have shape {chosen.shape}, expected {expected}")
        finite = np.isfinite(chosen).reshape(*self._batch, -1).all(axis=2)
        if not finite.all():
            copy, agent = (int(i[0]) for i in np.nonzero(~finite))
            raise ValueError(
                f"action of {self.task.agents[agent]} in environment {self._copy[copy]} of {self.task.id!r} is not "
                f"finite (step {self._slot + 1} of {self.config.horizon})"
            )
        return chosen

    def _nothing(self) -> Verdict:
        """Of a step that ends no episode."""
        metrics = {name: np.zeros(self._batch[0], np.float32) for name in self.task.metrics}
        return Verdict(reward=np.zeros(self._batch, np.float32), metrics=metrics)

    def _observation(self) -> Leaves:
        if not self._stepwise:
            return dict(self._told)
        levels = np.append(self._levels, np.float32(0))[self._slot : self._slot + 2]
        sigma = np.ascontiguousarray(np.broadcast_to(levels, (*self._batch, 2)))
        return {**self._told, "latent": self._latent, "sigma": sigma}

    def _step(self, verdict: Verdict, *, ended: bool) -> Step:
        observation = self._observation()
        group = GroupStep(
            observation=observation,
            reward=verdict.reward.astype(np.float32),
            terminated=np.full(self._batch, ended),
            truncated=np.zeros(self._batch, bool),
            alive=np.ones(self._batch, bool),
            acting=np.ones(self._batch, bool),
        )
        return Step(
            groups={self.task.group: group},
            done=np.full(self._batch[0], ended),
            state=dict(observation),
            cohort=self._cohort.copy(),
            metrics={name: values * np.float32(self.config.horizon) for name, values in verdict.metrics.items()},
        )
