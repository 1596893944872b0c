"""check-env: right environments pass, and each wrong one is told apart from the others."""

import numpy as np
import pytest
from vector_examples import HashOrder, Walkers

from marl_tr.registry import UnknownName, register_env
from marl_tr.vector import BadEnvironmentConfig, InProcessVectorEnv
from marl_tr.vector.check import check_env
from marl_tr.vector.check_vector import contract_problems, vector_checks
from marl_tr.vector.report import run_checks

ECOSYSTEM = {"pettingzoo api test", "pettingzoo seed test"}

# name of the environment: (the one question of ours that it fails, a word of what is seen, a word of the cure)
BROKEN = {
    "UsesGlobalRandom": ("repeats itself", "stepped in turns, part at the reset", "self.np_random, not np.random"),
    "SeedsGlobalRandom": ("repeats itself", "stepped in turns", "self.np_random"),
    "IgnoresSeedZero": ("seed 0", "seed=0 differ at the reset", "if seed is not None"),
    "SeedOrDefault": ("seed 0", "reset() without a seed", "if seed is not None"),
    "NanLater": ("finite values", "Step 5, agent 'walker_1'", "division by zero"),
    "InfiniteReward": ("finite values", "rewards are not finite", "division by zero"),
    "LeavesItsSpace": ("inside the spaces", "its space [-100.0, 100.0]", "low and high"),
    "WrongDtype": ("inside the spaces", "dtype float64", "dtype=space.dtype"),
    "NewSpaces": ("same space objects", "new object", "lru_cache"),
    "StateOfTheLiving": ("state()", ", (3,) after the reset", "possible_agents"),
    "Revives": ("nobody is revived", "Step 5: agent 'walker_1'", "remove an agent"),
    "HashOrder": ("two processes", "at step 0", "hash()"),
    "ArrayReward": ("rewards are numbers", "ndarray(1,)", "float(reward)"),
    "ForgetsInfos": ("entries of the dicts", "infos lacks 'walker_0'", "all five dicts"),
    "ForgetsAReward": ("entries of the dicts", "rewards lacks 'walker_2'", "all five dicts"),
    "RejectsBounds": ("actions at the bounds", "ValueError: too far", "bounds included"),
    "OutlivesReset": ("reset forgets", "at the reset: observations", "outlives reset"),
    "Crashes": ("episode runs", "ZeroDivisionError: division by zero (vector_examples.py:", "by hand"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_environment_fails_its_own_question_and_no_other(name):
    check, seen, cure = BROKEN[name]
    report = check_env(f"vector_examples:{name}", cycles=60)
    failed = {finding.check: finding for finding in report.findings if not finding.ok}
    assert set(failed) - ECOSYSTEM == {check}
    assert seen in failed[check].message
    assert cure in failed[check].cure
    assert not report.passed
    assert "FAILED" in report.render()


@pytest.mark.parametrize(
    ("id", "config"),
    [
        ("vector_examples:Walkers", {"death": 0.1}),
        ("vector_examples:TruncatesOne", {}),
        ("mpe2.simple_spread_v3:parallel_env", {"continuous_actions": True}),
        ("gymnasium/CartPole-v1", {}),
        ("gymnasium/Pendulum-v1", {}),
        ("uav/downlink-v0", {}),
        ("marl_tr.envs.uav.pettingzoo:parallel_env", {"num_uavs": 2, "num_users": 5}),
        ("vector_examples:Auction", {}),
        ("pettingzoo.classic.connect_four_v3:env", {}),
    ],
)
def test_a_right_environment_passes_every_question(id, config):
    report = check_env(id, config, cycles=60)
    assert report.passed, report.render()
    assert report.not_run == ()
    assert {"batch: resume", "two processes"} <= {finding.check for finding in report.findings}


@pytest.mark.parametrize(("name", "check"), [("NeverEnds", "episode ends"), ("AlwaysTheSame", "seeds differ")])
def test_oddities_are_warnings(name, check):
    report = check_env(f"vector_examples:{name}", cycles=40)
    assert report.passed, report.render()
    assert check in {finding.check for finding in report.findings if finding.warning}


def test_what_builds_on_a_failed_question_is_listed_as_not_run():
    report = check_env("vector_examples:Crashes", cycles=20)
    assert {"finite values", "batch: resume", "two processes"} <= set(report.not_run)
    assert "not run until the above is mended: " in report.render()


def test_a_factory_that_another_process_cannot_import_is_a_warning():
    register_env("vector-tests/walkers-v0", lambda **config: Walkers(**config))
    report = check_env("vector-tests/walkers-v0", {"walkers": 2}, cycles=20)
    assert report.passed, report.render()
    finding = report.findings[-1]
    assert (finding.check, finding.warning) == ("two processes", True)
    assert "package.module:factory" in finding.cure


def test_a_registered_class_is_compared_with_a_second_process():
    register_env("vector-tests/hashed-v0", HashOrder)
    report = check_env("vector-tests/hashed-v0", cycles=20)
    assert [finding.check for finding in report.findings if not finding.ok] == ["two processes"]


def test_pettingzoo_tests_that_fail_are_findings():
    report = check_env("vector_examples:Revives", cycles=20)
    (finding,) = [finding for finding in report.findings if finding.check == "pettingzoo api test"]
    assert not finding.ok
    assert "AssertionError" in finding.message
    assert finding.cure


def test_what_is_no_environment_is_one_finding():
    report = check_env("vector_examples:np.array", {"object": 1})
    assert [finding.check for finding in report.findings] == ["builds"]
    assert "its factory returned numpy.ndarray" in report.findings[0].message
    assert "by hand" not in report.render(), "the message has its own cure"


def test_wrong_names_settings_and_cycles_are_the_callers_mistake():
    with pytest.raises(UnknownName):
        check_env("team/nothing-v0")
    with pytest.raises(BadEnvironmentConfig, match="'deth'; did you mean 'death'"):
        check_env("vector_examples:Walkers", {"deth": 0.1})
    with pytest.raises(ValueError, match="cycles"):
        check_env("vector_examples:Walkers", cycles=0)


def test_the_table_fits_its_width_and_says_what_to_do():
    text = check_env("vector_examples:NanLater", cycles=20).render(width=100)
    assert max(map(len, text.splitlines())) <= 100
    assert text.startswith("vector_examples:NanLater: 1 of ")
    assert "Cure: " in text


class Whole(InProcessVectorEnv):
    """A batch that is right; the ones below spoil one thing each."""

    def __init__(self, num_envs):
        super().__init__("batch", lambda: Walkers(death=0.1), num_envs)


class Strided(Whole):
    def step(self, actions):
        step = super().step(actions)
        part = step.groups["walker"]
        part.observation["observation"] = np.asfortranarray(part.observation["observation"])
        return step


class NoFinal(Whole):
    def step(self, actions):
        step = super().step(actions)
        step.groups["walker"].final_observation = None
        return step


class DeadAreRewarded(Whole):
    def step(self, actions):
        step = super().step(actions)
        step.groups["walker"].reward += 1
        return step


class RowsTalk(Whole):
    def step(self, actions):
        step = super().step(actions)
        step.state["state"] += np.float32(step.state["state"].mean())
        return step


class LosesItsEpisode(Whole):
    def load_state_dict(self, state):
        self.reset(state["seed"])


class IgnoresSeeds(Whole):
    calls = 0

    def reset(self, seed):
        IgnoresSeeds.calls += 1
        return super().reset(IgnoresSeeds.calls)


@pytest.mark.parametrize(
    ("make", "check", "seen"),
    [
        (Strided, "batch: contract", "not C-contiguous"),
        (NoFinal, "batch: contract", "final_observation is None"),
        (DeadAreRewarded, "batch: contract", "not alive has a reward"),
        (RowsTalk, "batch: any size", "state 'state' of the first 1"),
        (LosesItsEpisode, "batch: resume", "the answers part"),
        (IgnoresSeeds, "batch: same seed", "at step 0"),
    ],
)
def test_a_broken_batch_fails_its_own_question(make, check, seen):
    report = run_checks("batch", vector_checks(make, 40))
    failed = {finding.check: finding for finding in report.findings if not finding.ok}
    assert set(failed) == {check}
    assert seen in failed[check].message


def test_a_whole_batch_passes():
    report = run_checks("batch", vector_checks(Whole, 40))
    assert report.passed, report.render()
    assert len(report.findings) == 5


def test_wrong_leaves_groups_and_values_are_told_in_words():
    env = Whole(2)
    step = env.reset(0)
    assert contract_problems(env.spec, step) == []
    step.done = step.done.astype(np.int64)
    step.state["extra"] = step.state["state"]
    step.groups["walker"].observation["observation"][0, 0, 0] = np.inf
    step.groups["walker"].reward = step.groups["walker"].reward.astype(np.float64)
    assert contract_problems(env.spec, step) == [
        "done has dtype int64, expected bool",
        "state has the leaves ['extra', 'state'], the spec ['state']",
        "walker: reward has dtype float64, expected float32",
        "walker: observation 'observation' is not finite",
    ]
