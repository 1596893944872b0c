"""Copies in worker processes: the same answers as in one process, and what happens when a worker dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from marl_tr.registry import Entry
from marl_tr.vector import BadEnvironmentConfig, EnvironmentFault, make_vector_env
from marl_tr.vector.check_vector import step_digest
from marl_tr.vector.errors import BadEnvironmentData, WorkerCrashed, WorkerRestarted
from marl_tr.vector.sampling import random_actions

# Two agents with different spaces; the second one leaves early, the length differs from episode to episode.
MODULE = """
import os
import signal
import time
from pathlib import Path

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete
from pettingzoo import ParallelEnv


class Lost(Exception):
    def __init__(self, agent):
        super().__init__(f"agent {agent} is lost")


class Two(ParallelEnv):
    metadata = {"name": "two"}

    def __init__(self, render_mode=None, die=None, marker=None, forget=False, fault=None, hang=False, stop=None):
        self.possible_agents = ["walker_0", "thinker_0"]
        self.render_mode, self.hang, self.stop = render_mode, hang, stop
        self.die, self.marker, self.forget, self.fault = die, marker, forget, fault
        self.observation_spaces = {"walker_0": Box(-9, 9, (3,), np.float32), "thinker_0": Box(0, 1, (2,), np.float32)}
        self.action_spaces = {"walker_0": Box(-1, 1, (2,), np.float32), "thinker_0": Discrete(3)}
        self.observation_space, self.action_space = self.observation_spaces.get, self.action_spaces.get

    def reset(self, seed=None, options=None):
        self.np_random = np.random.default_rng(os.getpid() if self.forget else seed)
        self.agents, self.t, self.place = self.possible_agents[:], 0, self.np_random.normal(size=3)
        self.length = int(self.np_random.integers(4, 9))
        return self._seen(), {a: {} for a in self.agents}

    def _seen(self):
        seen = {"walker_0": np.float32(np.clip(self.place, -9, 9)), "thinker_0": np.float32([self.t / 9, 0.5])}
        return {a: seen[a] for a in self.agents}

    def step(self, actions):
        self.t += 1
        if self.die == self.t and not (self.marker and Path(self.marker).exists()):
            if self.marker:
                Path(self.marker).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if self.stop == self.t and not Path(self.marker).exists():
            Path(self.marker).touch()
            os.kill(os.getppid(), signal.SIGINT)
            time.sleep(0.3)
        if self.fault == -self.t:
            raise Lost(3)
        if self.fault == self.t:
            raise KeyError("the table of distances")
        while self.hang:
            pass
        self.place = self.place + np.append(0.1 * actions["walker_0"], self.np_random.normal())
        seen = self._seen()
        rewards = {a: float(self.place[0]) for a in self.agents}
        over = {a: self.t >= self.length or (a == "thinker_0" and self.t == 3) for a in self.agents}
        flags = {a: False for a in self.agents}
        infos = {a: {} for a in self.agents}
        self.agents = [a for a in self.agents if not over[a]]
        return seen, rewards, over, flags, infos

    def render(self):
        return np.full((4, 5, 3), self.t, np.uint8)
"""
ID = "two_workers:Two"


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "two_workers.py"
    path.write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield path
    sys.modules.pop("two_workers", None)


def both(num_envs, workers, **config):
    here = make_vector_env(ID, num_envs=num_envs, config=config)
    there = make_vector_env(ID, num_envs=num_envs, config=config, backend="workers", workers=workers)
    return here, there


def test_workers_answer_as_one_process_does_bit_for_bit(module):
    here, there = both(5, 2)
    generator = np.random.default_rng(0)
    try:
        assert there.spec == here.spec
        for seed in (3, 0):
            assert step_digest(here.reset(seed)) == step_digest(there.reset(seed))
            kept = None
            for _ in range(25):
                actions = random_actions(here.spec, generator)
                mine, theirs = here.step(actions), there.step(actions)
                assert step_digest(mine) == step_digest(theirs)
                if kept is not None:
                    assert step_digest(kept[0]) == kept[1]  # a step is the caller's to keep
                kept = (theirs, step_digest(theirs))
        assert str(here.state_dict()) == str(there.state_dict())
    finally:
        there.close()


def test_a_run_goes_on_with_the_other_backend(module):
    here, there = both(3, 3)
    generator = np.random.default_rng(1)
    try:
        here.reset(7)
        for _ in range(6):
            here.step(random_actions(here.spec, generator))
        there.load_state_dict(here.state_dict())
        for _ in range(12):
            actions = random_actions(here.spec, generator)
            assert step_digest(here.step(actions)) == step_digest(there.step(actions))
        back = make_vector_env(ID, num_envs=3)
        back.load_state_dict(there.state_dict())
        actions = random_actions(here.spec, generator)
        assert step_digest(back.step(actions)) == step_digest(there.step(actions))
    finally:
        there.close()


def test_a_worker_that_dies_is_named_and_replaced_and_nothing_is_lost(module, tmp_path):
    marker = tmp_path / "died"
    there = make_vector_env(ID, num_envs=4, config={"die": 2, "marker": str(marker)}, backend="workers", workers=2)
    here = make_vector_env(ID, num_envs=4)
    generator = np.random.default_rng(2)
    try:
        assert step_digest(here.reset(5)) == step_digest(there.reset(5))
        actions = random_actions(here.spec, generator)
        assert step_digest(here.step(actions)) == step_digest(there.step(actions))
        actions = random_actions(here.spec, generator)
        with pytest.warns(WorkerRestarted, match=r"copies [02] to [13].*killed by SIGKILL.*step 2"):
            theirs = there.step(actions)
        assert step_digest(here.step(actions)) == step_digest(theirs)
        assert there.restarts in (1, 2)  # both workers may have looked for the marker before either made it
        for _ in range(12):
            actions = random_actions(here.spec, generator)
            assert step_digest(here.step(actions)) == step_digest(there.step(actions))
    finally:
        there.close()


def test_a_worker_that_dies_again_in_the_same_step_ends_the_run_by_name(module):
    there = make_vector_env(ID, num_envs=3, config={"die": 3}, backend="workers", workers=1)
    generator = np.random.default_rng(2)
    try:
        there.reset(5)
        for _ in range(2):
            there.step(random_actions(there.spec, generator))
        processes = [worker.process for worker in there._workers]
        assert all(process.is_alive() for process in processes)
        with pytest.warns(WorkerRestarted), pytest.raises(WorkerCrashed, match=r"copies 0 to 2.*SIGKILL.*step 3"):
            there.step(random_actions(there.spec, generator))
    finally:
        there.close()
    assert not any(process.is_alive() for process in processes)


def test_a_replacement_that_does_not_repeat_is_refused(module, tmp_path):
    config = {"die": 2, "marker": str(tmp_path / "died"), "forget": True}
    there = make_vector_env(ID, num_envs=1, config=config, backend="workers", workers=1)
    generator = np.random.default_rng(2)
    try:
        there.reset(5)
        there.step(random_actions(there.spec, generator))
        with pytest.warns(WorkerRestarted), pytest.raises(EnvironmentFault, match=r"copy 0.*differs"):
            there.step(random_actions(there.spec, generator))
    finally:
        there.close()


def test_what_an_environment_raises_comes_back_with_its_place(module):
    there = make_vector_env(ID, num_envs=4, config={"fault": 2}, backend="workers", workers=2)
    generator = np.random.default_rng(2)
    try:
        there.reset(5)
        there.step(random_actions(there.spec, generator))
        with pytest.raises(KeyError, match="table of distances") as caught:
            there.step(random_actions(there.spec, generator))
        notes = "\n".join(caught.value.__notes__)
        assert "copy 0" in notes
        assert "step 2" in notes
        assert "two_workers.py" in notes  # the user's own line
    finally:
        there.close()


def test_after_an_interruption_a_batch_goes_on_from_its_last_whole_step(module, tmp_path):
    config = {"stop": 3, "marker": str(tmp_path / "stopped")}
    there = make_vector_env(ID, num_envs=4, config=config, backend="workers", workers=2)
    here = make_vector_env(ID, num_envs=4)
    generator = np.random.default_rng(2)
    try:
        assert step_digest(here.reset(5)) == step_digest(there.reset(5))
        for _ in range(2):
            actions = random_actions(here.spec, generator)
            assert step_digest(here.step(actions)) == step_digest(there.step(actions))
        with pytest.raises(KeyboardInterrupt):
            there.step(random_actions(here.spec, generator))
        assert str(here.state_dict()) == str(there.state_dict())
        for _ in range(12):  # another action than that which was interrupted
            actions = random_actions(here.spec, generator)
            assert step_digest(here.step(actions)) == step_digest(there.step(actions))
    finally:
        there.close()


def test_an_exception_that_would_be_made_again_with_another_text_is_told_as_text(module):
    there = make_vector_env(ID, num_envs=1, config={"fault": -1}, backend="workers", workers=1)
    try:
        there.reset(5)
        with pytest.raises(RuntimeError) as caught:
            there.step(random_actions(there.spec, np.random.default_rng(2)))
        assert str(caught.value) == "two_workers.Lost: agent 3 is lost"
    finally:
        there.close()


def test_actions_are_taken_and_refused_as_in_one_process(module):
    here, there = both(2, 2)
    generator = np.random.default_rng(2)
    moves = generator.uniform(-1, 1, (2, 1, 2))  # float64, where the space has float32
    actions = {"walker": {"action": moves}, "thinker": {"action": np.array([[1], [2]], np.int8)}}
    try:
        here.reset(5)
        there.reset(5)
        assert step_digest(here.step(actions)) == step_digest(there.step(actions))
        assert str(here.state_dict()) == str(there.state_dict())
        for wrong in ({"walker": actions["walker"]}, {**actions, "walker": {}}, {**actions, "walker": {"action": 0}}):
            with pytest.raises(ValueError, match=r"actions (lack|of group)") as mine:
                here.step(wrong)
            with pytest.raises(ValueError, match=r"actions (lack|of group)") as theirs:
                there.step(wrong)
            assert str(mine.value) == str(theirs.value)
    finally:
        there.close()


def test_copies_are_named_by_their_place_in_the_whole_batch(module):
    source = module.read_text().replace(
        "rewards = {a: float(self.place[0])", 'rewards = {a: float("nan" if self.length == 8 else self.place[0])'
    )
    module.write_text(source)
    here, there = both(12, 3)
    generator = np.random.default_rng(0)
    try:
        here.reset(1)
        there.reset(1)
        actions = random_actions(here.spec, generator)
        with pytest.raises(BadEnvironmentData) as mine:
            here.step(actions)
        with pytest.raises(BadEnvironmentData) as theirs:
            there.step(actions)
        assert str(mine.value) == str(theirs.value)
    finally:
        there.close()


def test_the_first_copy_renders(module):
    there = make_vector_env(ID, num_envs=2, backend="workers", workers=2, render=True)
    try:
        there.reset(0)
        there.step(random_actions(there.spec, np.random.default_rng(0)))
        assert (there.render() == 1).all()
        os.kill(there._workers[0].process.pid, signal.SIGKILL)
        with pytest.warns(WorkerRestarted, match=r"copy 0.*killed by SIGKILL.*in a render"):
            assert (there.render() == 1).all()
    finally:
        there.close()


def test_what_cannot_travel_or_does_not_fit_is_refused(module):
    entry = Entry(target=lambda: None)
    with pytest.raises(EnvironmentFault, match="cannot be sent to a worker process"):
        make_vector_env("local", num_envs=2, entry=entry, backend="workers", workers=2)
    with pytest.raises(ValueError, match="workers must lie in"):
        make_vector_env(ID, num_envs=2, backend="workers", workers=3)
    with pytest.raises(BadEnvironmentConfig, match="did you mean 'die'"):
        make_vector_env(ID, num_envs=2, config={"dye": 1}, backend="workers", workers=2)
    with pytest.raises(BadEnvironmentConfig, match="in_process"):
        make_vector_env("uav/downlink-v0", num_envs=2, backend="workers")


def test_a_script_that_starts_workers_while_it_is_imported_is_told_what_to_write(module):
    path = module.parent / "unguarded.py"
    path.write_text(
        f"from marl_tr.vector import make_vector_env\n"
        f"env = make_vector_env({ID!r}, num_envs=1, backend='workers', workers=1)\nenv.reset(0)\n"
    )
    ran = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 1
    assert "put what it does under 'if __name__ == \"__main__\":'" in ran.stderr.splitlines()[-1]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_workers_do_not_outlive_a_parent_that_is_killed_in_the_middle_of_a_step(module, how):
    script = textwrap.dedent(
        f"""
        import sys
        import numpy as np
        sys.path.insert(0, {str(module.parent)!r})
        from marl_tr.vector import make_vector_env
        from marl_tr.vector.sampling import random_actions
        if __name__ == "__main__":
            env = make_vector_env({ID!r}, num_envs=2, config=dict(hang=True), backend="workers", workers=2)
            env.reset(0)
            print(*[worker.process.pid for worker in env._workers], flush=True)
            env.step(random_actions(env.spec, np.random.default_rng(0)))
        """
    )
    path = module.parent / "parent.py"
    path.write_text(script)
    with subprocess.Popen([sys.executable, str(path)], stdout=subprocess.PIPE, text=True) as parent:
        workers = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(workers) == 2
        parent.send_signal(how)
        parent.wait(30)
    deadline = time.monotonic() + 30
    while any(_runs(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(_runs(pid) for pid in workers)


def _runs(pid: int) -> bool:
    """Whether the process is there, and no zombie whose new parent has not looked yet."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
