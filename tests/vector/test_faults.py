"""Every way in which somebody's environment can fail says which environment it was, where, and what to do next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from vector_examples import Auction, Counter, Walkers

from marl_tr.cli import main
from marl_tr.foreign import own_traceback, raised_inside
from marl_tr.registry import BadTarget, Entry, register_env
from marl_tr.vector import BadEnvironmentData, make_vector_env
from marl_tr.vector.errors import MissingDependency
from marl_tr.vector.sampling import random_actions

SCENARIO = """
name: faulty
preset: mappo
env: {{id: "{id}", num_envs: 2}}
agents: {{kind: gaussian, hidden: [8]}}
trainer: {{total_steps: 20, rollout_steps: 10}}
evaluation: {{final_episodes: 2}}
"""


class FailsToStart(Walkers):
    def __init__(self) -> None:
        raise RuntimeError("no licence")


class NeedsMore(Walkers):
    def __init__(self) -> None:
        import no_such_simulator  # noqa: F401


class NeedsAnExtra(Walkers):
    def __init__(self) -> None:
        raise gymnasium.error.DependencyNotInstalled("mujoco is not installed")


class HidesItsSpaces(Walkers):
    def observation_space(self, agent: str) -> Any:
        raise KeyError(agent)


class FailsToReset(Walkers):
    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        raise RuntimeError("no map")


class FailsToStep(Walkers):
    def step(self, actions: Any) -> Any:
        if self.t == 4:
            raise RuntimeError("wheel lost")
        return super().step(actions)


class StateLost(Walkers):
    def state(self) -> Any:
        if self.t == 2:
            raise RuntimeError("state lost")
        return super().state()


class StateIsSpoilt(Walkers):
    """The mistake is its own, not that it has no state."""

    def state(self) -> Any:
        return self.no_such_attribute


class FailsToRender(Walkers):
    def render(self) -> Any:
        raise RuntimeError("no display")


def play(factory: Any, *, render: bool = False) -> None:
    env = make_vector_env("team/faulty-v0", num_envs=2, render=render, entry=Entry(factory))
    generator = np.random.default_rng(0)
    step = env.reset(0)
    if render:
        env.render()  # type: ignore[attr-defined]
    for _ in range(6):
        step = env.step(random_actions(env.spec, generator, step))


@pytest.mark.parametrize(
    ("factory", "error", "where"),
    [
        (FailsToStart, RuntimeError, "the factory of environment 'team/faulty-v0'"),
        (HidesItsSpaces, KeyError, "environment 'team/faulty-v0', observation_space('walker_0')"),
        (FailsToReset, RuntimeError, "environment 'team/faulty-v0', at its first reset"),
        (FailsToStep, RuntimeError, "environment 'team/faulty-v0', copy 0, step 5, step()"),
        (StateLost, RuntimeError, "environment 'team/faulty-v0', copy 0, step 2, state()"),
        (StateIsSpoilt, AttributeError, "environment 'team/faulty-v0', state() after its first reset"),
        (FailsToRender, RuntimeError, "environment 'team/faulty-v0', copy 0, step 0, render()"),
    ],
)
def test_what_the_environments_code_raises_keeps_its_type_and_says_where(
    factory: Any, error: type[Exception], where: str
) -> None:
    with pytest.raises(error) as raised:
        play(factory, render=factory is FailsToRender)
    note = raised_inside(raised.value)
    assert note is not None
    assert (note.where, note.env_id) == (where, "team/faulty-v0")
    files = {line.split('"')[1] for line in own_traceback(raised.value).splitlines() if line.startswith("  File")}
    assert files == {__file__}


def test_a_move_of_a_turn_based_environment_is_shown_without_the_view_of_it() -> None:
    class Stumbles(Auction):
        def step(self, action: Any) -> None:
            raise RuntimeError("hammer lost")

    with pytest.raises(RuntimeError) as raised:
        play(Stumbles)
    note = raised_inside(raised.value)
    assert note is not None
    assert note.where == "environment 'team/faulty-v0', copy 0, step 1, step()"
    files = [line.split('"')[1] for line in own_traceback(raised.value).splitlines() if line.startswith("  File")]
    assert files == [__file__]


class OldGymStep(Counter):
    def step(self, action: Any) -> Any:
        observation, reward, terminated, _, info = super().step(action)
        return observation, reward, terminated, info


class OldGymReset(Counter):
    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return super().reset(seed=seed)[0]


@pytest.mark.parametrize(
    ("factory", "said"),
    [
        (
            OldGymStep,
            "copy 0, step 1, step returned 4 values; return (observation, reward, terminated, truncated, info)",
        ),
        (OldGymReset, "at its first reset, reset returned a int; return (observation, info)"),
    ],
)
def test_gymnasium_environments_of_before_2022_are_told_what_to_return(factory: Any, said: str) -> None:
    with pytest.raises(BadEnvironmentData) as raised:
        play(factory)
    assert said in str(raised.value)


@pytest.mark.parametrize(("factory", "what"), [(NeedsMore, "no_such_simulator"), (NeedsAnExtra, "mujoco")])
def test_a_package_that_is_not_installed_is_named_with_the_line_that_needs_it(factory: Any, what: str) -> None:
    with pytest.raises(MissingDependency, match=what) as raised:
        play(factory)
    message = str(raised.value)
    assert message.startswith("environment 'team/faulty-v0': ")
    assert f"{Path(__file__).name}:" in message
    assert message.endswith("install what it needs")


def test_a_registered_target_that_leads_nowhere_names_the_environment() -> None:
    with pytest.raises(BadTarget, match=r"environment 'team/faulty-v0': 'vector_examples:Walker'.*did you mean"):
        make_vector_env("team/faulty-v0", num_envs=1, entry=Entry("vector_examples:Walker"))


def test_malformed_data_leads_to_check_env() -> None:
    class Forgets(Walkers):
        def step(self, actions: Any) -> Any:
            answer = super().step(actions)
            answer[1].pop("walker_2")
            return answer

    with pytest.raises(BadEnvironmentData, match="copy 0, agent 'walker_2', step 1: reward is missing") as raised:
        play(Forgets)
    assert "'marl-tr check-env team/faulty-v0'" in str(raised.value)


def test_run_shows_the_environments_frames_alone_and_what_to_do_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    name = "faults-tests/step-v0"
    register_env(name, FailsToStep)
    Path("faulty.yaml").write_text(SCENARIO.format(id=name))
    assert main(["run", "faulty.yaml"]) == 1
    first, *_, last = capsys.readouterr().err.splitlines()
    assert first == f"crash: RuntimeError in environment '{name}', copy 0, step 5, step()"
    assert last == f"'marl-tr check-env {name}' looks for the cause"
