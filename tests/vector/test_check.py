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
    "vector_examples:UsesGlobalRandom": ("repeats itself", "stepped in turns, part at the reset", "not np.random"),
    "vector_examples:SeedsGlobalRandom": ("repeats itself", "stepped in turns", "self.np_random"),
    "vector_examples:IgnoresSeedZero": ("seed 0", "seed=0 differ at the reset", "if seed is not None"),
    "vector_examples:SeedOrDefault": ("seed 0", "reset() without a seed", "if seed is not None"),
    "vector_examples:NanLater": ("finite values", "Step 5, agent 'walker_1'", "division by zero"),
    "vector_examples:InfiniteReward": ("finite values", "rewards are not finite", "division by zero"),
    "broken_examples:NanReward": ("finite values", "Step 3, agent 'walker_0': rewards", "division by zero"),
    "vector_examples:LeavesItsSpace": ("inside the spaces", "its space [-100.0, 100.0]", "low and high"),
    "vector_examples:WrongDtype": ("inside the spaces", "dtype float64", "dtype=space.dtype"),
    "broken_examples:LacksAKey": ("inside the spaces", "Step 3, agent 'walker_1'", "a value for every key"),
    "broken_examples:LeafLeavesItsSpace": ("inside the spaces", "leaf 'clock' is 100", "clip the value"),
    "vector_examples:NewSpaces": ("same space objects", "new object", "lru_cache"),
    "vector_examples:StateOfTheLiving": ("state()", ", (3,) after the reset", "possible_agents"),
    "vector_examples:Vanishes": ("leaving and returning", "Step 3: agent 'walker_2' left", "why an agent leaves"),
    "vector_examples:NeverRemoved": ("leaving and returning", "Step 3: agent 'walker_1' is still", "remove an agent"),
    "vector_examples:HashOrder": ("two processes", "at step 0", "hash()"),
    "broken_examples:SetOrder": ("two processes", "at step 0", "sort sets"),
    "vector_examples:ArrayReward": ("rewards are numbers", "ndarray(1,)", "float(reward)"),
    "vector_examples:ForgetsInfos": ("entries of the dicts", "infos lacks 'walker_0'", "all five dicts"),
    "vector_examples:ForgetsAReward": ("entries of the dicts", "rewards lacks 'walker_2'", "all five dicts"),
    "vector_examples:Revives": ("entries of the dicts", "Step 5: observations lacks 'walker_1'", "one that joins"),
    "vector_examples:RejectsBounds": ("actions at the bounds", "ValueError: too far", "bounds included"),
    "vector_examples:Crashes": ("episode runs", "ZeroDivisionError: division by zero (vector_examples.py:", "by hand"),
    "broken_examples:OldReset": ("first step", "Reset returned a dict", "pettingzoo.farama.org/api"),
    "broken_examples:OldStep": ("first step", "Step returned 4 values", "pettingzoo.farama.org/api"),
    "broken_examples:RewardsAreAList": ("first step", "Rewards are a list", "pettingzoo.farama.org/api"),
    "broken_examples:ObservesNothing": ("inside the spaces", "Step 2, agent 'walker_1'", "np.asarray"),
    "broken_examples:NothingAllowedAtFirst": ("action masks", "step 0: info 'action_mask' is all zero", "at least one"),
    "broken_examples:WantsFloat64": ("first step", "need float64, got float32", "the dtype that step needs"),
    "broken_examples:MaskLies": ("allowed actions", "choice 3 is allowed", "one rule"),
    "broken_examples:MaskVanishes": ("action masks", "step 5: info 'action_mask' is missing", "every reset and step"),
    "broken_examples:MaskAllowsNothing": ("action masks", "step 4: info 'action_mask' is all zero", "at least one"),
    "broken_examples:MaskTooShort": ("action masks", "has 3 entries", "for each choice"),
    "broken_examples:MaskOfShares": ("action masks", "holds 0.5, not 0 or 1", "one 0 or 1"),
    "broken_examples:NoDeadStep": ("dead steps", "step(None), for an agent whose episode is over", "_was_dead_step"),
    "broken_examples:StaysDead": ("dead steps", "was given None and is still in agents", "_was_dead_step"),
    "broken_examples:LeavesWithoutATurn": ("dead steps", "without a turn of its own", "take one more turn"),
    "broken_examples:SelectsTheGone": ("whose turn", "agent_selection is 'taker_1'", "among self.agents"),
    "broken_examples:NotAccumulated": ("last() adds up", "it earned 0, and", "self._accumulate_rewards()"),
    "broken_examples:PaidTwice": ("last() adds up", "it earned 2.66667, and", "_cumulative_rewards[agent] = 0"),
    "broken_examples:LyingMaskInTurn": ("allowed actions", "choice 2 is allowed", "list of legal moves"),
    "broken_examples:ObservesAndDraws": ("observe() changes nothing", "two calls of observe", "no random numbers"),
}

# The same, where training can go on.
ODD = {
    "vector_examples:OutlivesReset": ("reset forgets", "at the reset: observations", "env: {rebuild: true}"),
    "broken_examples:KeepsItsHeap": ("reset forgets", "at the reset: observations", "env: {rebuild: true}"),
    "vector_examples:Respawns": ("leaving and returning", "PettingZoo's rules forbid it", "a name of its own"),
    "vector_examples:Joins": ("pettingzoo api test", "'walker_2' joined without flags", "terminations and truncations"),
    "broken_examples:ReusesItsBuffer": ("observations are kept", "step 0, agent 'walker_0', was changed", "a copy"),
    "broken_examples:SeesInTurnOnly": ("observe() changes nothing", "observe('taker_1') raises", "at any time"),
    "vector_examples:NeverEnds": ("episode ends", "within 60 steps", "truncate it"),
    "vector_examples:AlwaysTheSame": ("seeds differ", "one and the same episode", "self.np_random"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_environment_fails_its_own_question_and_no_other(name):
    check, seen, cure = BROKEN[name]
    report = check_env(name, cycles=60)
    failed = {finding.check: finding for finding in report.findings if not finding.ok}
    assert set(failed) - ECOSYSTEM == {check}
    assert seen in failed[check].message
    assert cure in failed[check].cure
    assert not report.passed
    assert "FAILED" in report.render()


@pytest.mark.parametrize("name", ODD)
def test_what_training_can_live_with_is_a_warning(name):
    check, seen, cure = ODD[name]
    report = check_env(name, cycles=60)
    assert report.passed, report.render()
    assert report.not_run == ()
    warned = {finding.check: finding for finding in report.findings if finding.warning}
    assert seen in warned[check].message
    assert cure in warned[check].cure


# with how many steps are looked at
RIGHT = [
    ("vector_examples:Walkers", {"death": 0.1}, 30),
    ("vector_examples:TruncatesOne", {}, 30),
    ("vector_examples:Clerk", {}, 30),
    ("vector_examples:Vault", {}, 30),
    ("vector_examples:Vault", {"tuples": False}, 30),
    ("vector_examples:Auction", {}, 30),
    ("vector_examples:Hybrid", {}, 30),
    ("vector_examples:Joins", {"flags": True}, 30),
    ("broken_examples:Choosers", {"death": 0.1}, 30),
    ("broken_examples:Seers", {}, 30),
    ("broken_examples:Takers", {}, 30),
    ("mpe2.simple_spread_v3:parallel_env", {"continuous_actions": True}, 30),
    ("mpe2.simple_reference_v3:parallel_env", {}, 30),
    ("mpe2.simple_world_comm_v3:parallel_env", {"max_cycles": 8}, 10),
    ("mpe2.simple_spread_v3:env", {"max_cycles": 10}, 40),
    ("pettingzoo.classic.connect_four_v3:env", {}, 30),
    ("pettingzoo.classic.tictactoe_v3:env", {}, 30),
    ("gymnasium/CartPole-v1", {}, 30),
    ("gymnasium/Pendulum-v1", {}, 30),
    ("gymnasium/InvertedPendulum-v5", {}, 30),
    ("gymnasium/Hopper-v5", {}, 30),
    ("gymnasium/FrozenLake-v1", {}, 30),
    ("gymnasium/Taxi-v4", {}, 30),
    ("uav/downlink-v0", {}, 30),
    ("games/reach-v0", {}, 30),
    ("flow/mixture-v0", {}, 3),
    ("marl_tr.envs.uav.pettingzoo:parallel_env", {"num_uavs": 2, "num_users": 5}, 30),
    ("marl_tr.envs.games.pettingzoo:meeting", {}, 20),
]


@pytest.mark.parametrize(("id", "config", "cycles"), RIGHT)
def test_a_right_environment_passes_every_question(id, config, cycles):
    report = check_env(id, config, cycles=cycles)
    assert report.passed, report.render()
    assert report.not_run == ()
    assert {"batch: resume", "two processes"} <= {finding.check for finding in report.findings}


@pytest.mark.parametrize("api", ["parallel_env", "env"])
def test_an_environment_that_forgets_too_little_is_asked_as_one_that_is_rebuilt(api):
    """The timer by which knights_archers_zombies_v11 lets zombies in runs on over a reset."""
    id = f"pettingzoo.butterfly.knights_archers_zombies_v11:{api}"
    report = check_env(id, {"spawn_delay": 3, "max_cycles": 10}, cycles=15 if api == "parallel_env" else 50)
    findings = {finding.check: finding for finding in report.findings}
    assert findings["reset forgets"].warning
    assert report.passed, report.render()
    assert findings["batch: resume"].ok


@pytest.mark.parametrize(
    ("id", "config", "said", "unsaid"),
    [
        ("vector_examples:Walkers", {}, ["rendering", "random actions do not reach", "close()"], ["mask", "step 30"]),
        ("vector_examples:Walkers", {"horizon": 99}, ["what follows step 30"], ["mask"]),
        ("broken_examples:Takers", {"heap": 9}, ["what an action does that a mask forbids"], ["what follows step"]),
        ("games/bandit-v0", {}, ["this is a native batch", "hooks"], ["mask", "rendering", "second process"]),
    ],
)
def test_the_report_ends_with_what_was_not_checked(id, config, said, unsaid):
    report = check_env(id, config, cycles=30)
    text = " ".join(report.render(width=80).split("not checked: ")[1].split())
    assert all(phrase in text for phrase in said)
    assert not any(phrase in text for phrase in unsaid)


def test_the_cure_of_an_ecosystem_test_is_about_what_went_wrong_in_it():
    findings = {finding.check: finding for finding in check_env("vector_examples:Crashes", cycles=20).findings}
    assert findings["pettingzoo api test"].cure == "mend what the environment raises here"
    findings = {finding.check: finding for finding in check_env("vector_examples:NeverLeaves", cycles=20).findings}
    assert findings["leaving and returning"].ok  # an end of everybody is the end of the episode
    assert "remove an agent from self.agents in the step" in findings["pettingzoo api test"].cure


def test_what_cannot_be_built_is_not_called_a_native_batch():
    report = check_env("vector_examples:Unborn", cycles=20)
    assert "native" not in report.render()
    assert "1 of 1 check FAILED (1 check, 0 warnings," in report.render()
    assert "everything that is asked of an environment once it can be built" in report.unchecked


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
    assert report.unchecked[-1] == "a second process"


def test_a_registered_class_is_compared_with_a_second_process():
    register_env("vector-tests/hashed-v0", HashOrder)
    report = check_env("vector-tests/hashed-v0", cycles=20)
    assert [finding.check for finding in report.findings if not finding.ok] == ["two processes"]


def test_pettingzoo_tests_that_fail_are_findings():
    report = check_env("vector_examples:NeverRemoved", cycles=20)
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


class BeyondItsSpaces(Whole):
    def step(self, actions):
        step = super().step(actions)
        step.groups["walker"].observation["observation"][0, 0, 1] += 200
        return step


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
        (BeyondItsSpaces, "batch: inside the spaces", "its space [-100.0, 100.0] there"),
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
    assert len(report.findings) == 6


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
