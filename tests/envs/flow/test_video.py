import numpy as np
import pytest
import torch
from pydantic import ValidationError

from marl_tr.envs.cohorts import UnequalCohorts
from marl_tr.envs.flow.config import MovingShapesConfig
from marl_tr.envs.flow.shapes import CONDITIONS, condition_tokens, decode_condition, positions, render_clips
from marl_tr.envs.flow.standardisation import COMPONENTS
from marl_tr.envs.flow.video import CELL, make
from marl_tr.trainer.evaluation import evaluate_act
from marl_tr.vector import make_vector_env
from marl_tr.vector.check import check_env
from marl_tr.vector.sampling import random_actions

ORACLE, OTHER, NOISE = "legal clips as asked", "legal clips of another condition", "noise"


def references(env):
    return {reference.name: reference.act for reference in env.references()}


def tokens(step):
    return step.groups["segment"].observation["tokens"]


def asked(step):
    return decode_condition(torch.from_numpy(tokens(step)[:, 0])).index.numpy()


@pytest.mark.parametrize("config", [{}, {"view": "steps", "steps": 3, "segments": 2}], ids=["clip", "steps"])
def test_check_env_has_nothing_to_say(config):
    report = check_env("flow/moving_shapes-v0", config, cycles=6)
    assert report.passed, report.render()


@pytest.mark.parametrize("config", [{}, {"level": "hard"}, {"segments": 3}], ids=["plain", "hard", "segments"])
def test_the_oracle_is_right_in_everything_and_above_noise_in_each_component(config):
    env = make(num_envs=24, **config)
    episodes = {name: evaluate_act(env, act, seed=5, window=None) for name, act in references(env).items()}
    oracle, other, noise = (episodes[name].metrics for name in (ORACLE, OTHER, NOISE))
    for word in ("shape", "direction", "speed"):
        assert (oracle[f"{word}_accuracy"] == 1).all()
    assert (oracle["manifold_distance"] < 1e-3).all()
    assert (other["manifold_distance"] < 1e-3).all()
    for component in COMPONENTS:
        assert oracle[component].mean() > noise[component].mean()
    assert other["shape_accuracy"].max() == other["speed_accuracy"].max() == 0
    assert episodes[ORACLE].returns.min() > episodes[NOISE].returns.max()
    assert episodes[ORACLE].returns.mean() > episodes[OTHER].returns.mean() + 1


def test_a_cohort_shares_its_condition_and_place_and_nothing_else():
    env = make(num_envs=12, cohort=4, place=True, view="steps", steps=3)
    step = env.reset(3)
    assert step.cohort.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    seen = step.groups["segment"].observation
    by_cohort = seen["tokens"].reshape(3, 4, -1)
    assert (by_cohort == by_cohort[:, :1]).all()
    assert len(np.unique(by_cohort[:, 0], axis=0)) == 3
    assert len(np.unique(seen["latent"].reshape(12, -1), axis=0)) == 12


def test_conditions_are_spread_over_cohorts_and_over_episodes():
    env = make(num_envs=2 * CONDITIONS)
    seen = [asked(env.reset(7)), *(asked(env.next_episode()) for _ in range(CONDITIONS - 1))]
    for conditions in seen:
        assert sorted(conditions[:CONDITIONS]) == sorted(conditions[CONDITIONS:]) == list(range(CONDITIONS))
    assert all(sorted(own) == list(range(CONDITIONS)) for own in np.stack(seen, axis=1))
    assert not np.array_equal(seen[0], asked(env.reset(8)))


def test_equal_seeds_ask_the_same_whatever_was_played_before():
    env = make(num_envs=8, cohort=2)
    first = tokens(env.reset(1)).copy()
    env.step(random_actions(env.spec, np.random.default_rng(0)))
    assert np.array_equal(tokens(env.reset(1)), first)
    assert not np.array_equal(tokens(env.reset(2)), first)


@pytest.mark.parametrize("view", ["clip", "steps"])
def test_a_copy_plays_the_same_in_a_batch_of_any_size(view):
    config = {"view": view, "steps": 2, "cohort": 2}
    large, small = make(num_envs=20, **config), make(num_envs=2, **config)
    a, b = large.reset(4), small.reset(4)
    generator = np.random.default_rng(0)
    for _ in range(3):
        for leaf, array in b.groups["segment"].observation.items():
            assert np.array_equal(array, a.groups["segment"].observation[leaf][:2])
        action = random_actions(large.spec, generator)["segment"]["action"]
        a = large.step({"segment": {"action": action}})
        b = small.step({"segment": {"action": action[:2]}})
        assert np.array_equal(a.groups["segment"].reward[:2], b.groups["segment"].reward)


def test_an_offset_batch_goes_on_where_the_other_ends():
    whole, tail = make(num_envs=6, cohort=2), make(num_envs=2, cohort=2, env_offset=4)
    assert np.array_equal(tokens(whole.reset(9))[4:], tokens(tail.reset(9)))


@pytest.mark.parametrize("config", [{}, {"view": "steps", "steps": 3, "segments": 2}], ids=["clip", "steps"])
def test_a_restored_batch_goes_on_bit_for_bit(config):
    env, twin = make(num_envs=3, **config), make(num_envs=3, **config)
    generator = np.random.default_rng(0)
    env.reset(2)
    for _ in range(4):
        env.step(random_actions(env.spec, generator))
    twin.load_state_dict(env.state_dict())
    for _ in range(4):
        action = random_actions(env.spec, generator)
        mine, theirs = env.step(action), twin.step(action)
        assert np.array_equal(mine.groups["segment"].reward, theirs.groups["segment"].reward)
        for leaf, array in mine.groups["segment"].observation.items():
            assert np.array_equal(array, theirs.groups["segment"].observation[leaf])
        for name, values in mine.metrics.items():
            assert np.array_equal(values, theirs.metrics[name])


def test_a_state_of_another_view_or_size_is_refused():
    state = make(num_envs=2, view="steps", steps=3).state_dict()
    with pytest.raises(ValueError, match="another view"):
        make(num_envs=2).load_state_dict(state)
    with pytest.raises(ValueError, match="shape"):
        make(num_envs=3, view="steps", steps=3).load_state_dict(state)


def test_a_clip_is_an_episode():
    env = make(num_envs=4)
    env.reset(0)
    step = env.step(random_actions(env.spec, np.random.default_rng(0)))
    part = step.groups["segment"]
    assert step.done.all()
    assert part.terminated.all()
    assert not part.truncated.any()
    assert env.spec.horizon == 1


def test_step_by_step_the_reward_comes_last_and_is_the_last_actions():
    stepwise, whole = make(num_envs=3, view="steps", steps=4), make(num_envs=3)
    step = stepwise.reset(6)
    levels = stepwise.config.sigmas
    assert step.groups["segment"].observation["latent"].std() == pytest.approx(1, abs=0.05)
    generator = np.random.default_rng(0)
    for slot in range(4):
        part = step.groups["segment"]
        assert np.allclose(part.observation["sigma"], levels[slot : slot + 2])
        assert not part.reward.any()
        action = random_actions(stepwise.spec, generator)
        step = stepwise.step(action)
        assert step.done.all() == (slot == 3)
        if slot < 3:
            assert np.array_equal(step.groups["segment"].observation["latent"], action["segment"]["action"])
            assert not any(values.any() for values in step.metrics.values())
    whole.reset(6)
    expected = whole.step(action)
    assert np.array_equal(step.groups["segment"].reward, expected.groups["segment"].reward)
    # The mean over the episode's steps is the sample's own.
    assert np.allclose(step.metrics["vq"] / 4, expected.metrics["vq"])
    assert np.array_equal(step.groups["segment"].final_observation["latent"], action["segment"]["action"])


def test_step_by_step_references_go_straight_to_their_clips():
    env = make(num_envs=6, view="steps", steps=4)
    oracle = references(env)[ORACLE]
    episodes = evaluate_act(env, oracle, seed=3, window=None)
    clips = make(num_envs=6)
    whole = evaluate_act(clips, references(clips)[ORACLE], seed=3, window=None)
    assert episodes.lengths.tolist() == [4] * 6
    assert np.allclose(episodes.returns, whole.returns)
    assert np.allclose(episodes.metrics["overall"], whole.metrics["overall"], atol=1e-5)
    latents = episodes.trajectory.state["latent"]
    end, start = latents[-1], latents[0]
    for latent, sigma in zip(latents, env.config.sigmas, strict=True):
        assert np.allclose(latent, (1 - sigma) * end + sigma * start, atol=1e-4)


def test_segments_are_told_the_cell_where_they_start_in_the_ideal_motion():
    env = make(num_envs=24, segments=3)
    step = env.reset(1)
    asked_of = env.task.ask(env._draw)
    ideal = positions(asked_of.start[:, 0], asked_of.condition.velocity, frames=24)[:, ::8]
    assert torch.allclose(asked_of.start, ideal)
    assert ((asked_of.place - CELL / 2) % CELL == 0).all()
    assert ((asked_of.place - asked_of.start).abs() <= CELL / 2 + 1e-5).all()
    for k in range(3):
        expected = condition_tokens(asked_of.condition, asked_of.place[:, k])
        assert np.allclose(tokens(step)[:, k], expected.numpy(), atol=1e-5)


def test_the_place_is_silent_unless_asked_for():
    assert not tokens(make(num_envs=2).reset(0))[:, :, 3].any()
    assert tokens(make(num_envs=2, place=True).reset(0))[:, :, 3].any()
    assert "place_distance" not in make(num_envs=2).task.metrics


def test_segments_that_do_not_continue_each_other_are_paid_less():
    env = make(num_envs=4, segments=2)
    env.reset(0)
    asked_of = env.task.ask(env._draw)
    plain = make(num_envs=4, segments=2, consistency=0.0)

    def clips(gap, other_shape=False):
        start = asked_of.start.clone()
        start[:, 1, 0] += gap
        rendered = []
        for k in range(2):
            index = (asked_of.condition.index + (8 if other_shape and k else 0)) % CONDITIONS
            rendered.append(render_clips(type(asked_of.condition).from_index(index), start[:, k]))
        return torch.stack(rendered, 1).numpy()

    joined = {gap: env.task.judge(asked_of, clips(gap)) for gap in (0.0, 2.0, 4.0)}
    for gap, verdict in joined.items():
        assert np.allclose(verdict.metrics["consistency"], 1 - gap / CELL, atol=1e-3)
        own = plain.task.judge(asked_of, clips(gap)).reward
        assert np.allclose(verdict.reward - own, verdict.metrics["consistency"][:, None], atol=1e-4)
        assert np.array_equal(verdict.reward[:, 0], verdict.reward[:, 1])
    mixed = env.task.judge(asked_of, clips(0.0, other_shape=True)).metrics["consistency"]
    assert np.allclose(mixed, 0, atol=1e-3)


def test_wrong_settings_are_refused_by_name():
    with pytest.raises(UnequalCohorts, match=r"10 copies .* cohorts of 4"):
        make(num_envs=10, cohort=4)
    with pytest.raises(UnequalCohorts):
        make_vector_env("flow/moving_shapes-v0", num_envs=10, config={"cohort": 4})
    with pytest.raises(ValidationError, match="level: plain"):
        MovingShapesConfig(segments=2, level="hard")
    with pytest.raises(ValidationError):
        MovingShapesConfig(weights=[1.0, 2.0])
    with pytest.raises(ValueError, match="at least 1"):
        make(num_envs=0)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_action_that_is_not_finite_is_refused_by_name(bad):
    env = make(num_envs=3, segments=2)
    env.reset(0)
    action = random_actions(env.spec, np.random.default_rng(0))
    action["segment"]["action"][2, 1, 0, 4, 5, 6] = bad
    with pytest.raises(ValueError, match=r"segment_1 in environment 2 .* not finite"):
        env.step(action)
    with pytest.raises(ValueError, match="expected"):
        env.step({"segment": {"action": action["segment"]["action"][:2]}})


def test_demonstrations_are_legal_clips_with_their_tokens():
    env = make(num_envs=1)
    observation, clips = env.demonstrations(200, torch.Generator().manual_seed(0))
    again, _ = env.demonstrations(200, torch.Generator().manual_seed(0))
    assert torch.equal(observation["tokens"], again["tokens"])
    assert clips.shape == (200, 1, 8, 16, 16)
    told = observation["tokens"][:, 3].abs().sum(1) > 0
    assert told.float().mean().item() == pytest.approx(0.3, abs=0.1)
    measured = env.measure(clips, observation)
    assert measured["shape_accuracy"] == measured["direction_accuracy"] == measured["speed_accuracy"] == 1
    assert measured["manifold_distance"] < 1e-3
    noise = env.measure(torch.randn(clips.shape, generator=torch.Generator().manual_seed(1)), observation)
    assert noise["manifold_distance"] > 1
    # The token of a told place says where the clip starts.
    fit = env.task.judge_clips(clips[told], decode_condition(observation["tokens"][told])).fit
    assert torch.allclose(condition_tokens(fit.condition, fit.start)[:, 3], observation["tokens"][told, 3], atol=0.1)


def test_an_episode_can_be_looked_at():
    env = make(num_envs=2, view="steps", steps=3, segments=2)
    trajectory = evaluate_act(env, references(env)[ORACLE], seed=1, window=None).trajectory
    pictures = env.media(trajectory)
    assert pictures.keys() == {"clip", "denoising", "motion"}
    assert pictures["clip"].dtype == np.uint8
    assert pictures["denoising"].shape[0] == 2 * pictures["clip"].shape[0]  # four levels, two segments
    video = pictures["motion"]()
    assert video.shape[1:] == (192, 192, 3)
    assert len(video) % 16 == 0
    # The last frame shown is that of the last segment.
    last = trajectory.actions["segment"]["action"][-1, 1, 0, -1]
    assert np.allclose(video[-1, 6::12, 6::12, 0] / 127.5 - 1, np.clip(last, -1, 1), atol=0.01)
