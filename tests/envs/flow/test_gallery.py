"""What generation environments show and measure of many samples."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist

from marl_tr.envs.flow.measures import pairwise_distance
from marl_tr.envs.flow.mixture import make as make_mixture
from marl_tr.envs.flow.plane import planes
from marl_tr.envs.flow.render import contact_sheet, grid_film, side_by_side
from marl_tr.envs.flow.video import make as make_shapes
from marl_tr.trainer.evaluation import evaluate_act


def played(env, name, seed=3):
    """Episodes of the environment's reference of that name."""
    reference = {r.name: r for r in env.references()}[name]
    return evaluate_act(env, reference.act, seed=seed, window=None)


def made(offered):
    return {name: picture() if callable(picture) else picture for name, picture in offered.items()}


@pytest.mark.parametrize("settings", [{}, {"segments": 2}, {"level": "hard"}, {"view": "steps", "steps": 3}])
def test_clips_are_shown_with_what_was_asked_and_what_came(settings):
    env = make_shapes(num_envs=20, cohort=2, **settings)
    good, bad = played(env, "legal clips as asked"), played(env, "legal clips of another condition")
    assert len(good.trajectories) == 16
    gallery = made(env.gallery(good.trajectories))
    assert set(gallery) == {"clips", "motion"}
    frames = 8 * settings.get("segments", 1)
    assert gallery["motion"].shape[0] == 3 * frames
    # Clips and film show every clip; what is asked and seen is told beside it.
    other = made(env.gallery(bad.trajectories))
    assert gallery["clips"].shape[0] == other["clips"].shape[0]
    both = made(env.before_after(bad.trajectories, good.trajectories))
    assert set(both) == {"before_after", "before_after_motion"}
    assert both["before_after_motion"].shape[0] == gallery["motion"].shape[0]
    assert both["before_after_motion"].shape[2] > 2 * gallery["motion"].shape[2]
    for picture in (*gallery.values(), *both.values()):
        assert picture.dtype == np.uint8
        assert picture.shape[-1] == 3
        assert picture.shape[-3] % 2 == picture.shape[-2] % 2 == 0


def test_diversity_is_high_for_starts_drawn_anywhere_and_zero_for_one_clip():
    env = make_shapes(num_envs=64, cohort=8)
    measures = played(env, "legal clips as asked").measures
    assert math.log(16) - 0.5 < measures["start_entropy"] <= math.log(16)
    one = env.task.targets()["legal clips as asked"](env._asked, env._draw)[:1].repeat(64, 0)
    same = env.measures({"segment": {"action": one}}, np.arange(64) // 8)
    assert same == {"start_entropy": 0.0, "pairwise_distance": 0.0}
    assert measures["pairwise_distance"] > 0.3
    assert set(env.measures({"segment": {"action": one}}, np.arange(64))) == {"start_entropy"}


def test_pairs_are_those_within_cohorts():
    random = np.random.default_rng(0)
    samples = random.normal(size=(9, 3, 2))
    cohort = np.array([4, 1, 4, 1, 7, 4, 9, 9, 9])
    pairs = np.concatenate([pdist(samples[cohort == c].reshape(-1, 6)) for c in (1, 4, 7, 9)])
    found = pairwise_distance(torch.from_numpy(samples), torch.from_numpy(cohort))
    assert found == pytest.approx(pairs.mean() / math.sqrt(6))
    assert pairwise_distance(torch.from_numpy(samples), torch.arange(9)) is None


@pytest.mark.parametrize("settings", [{}, {"curve": "moons", "arcs": 9}, {"view": "steps", "steps": 3}])
def test_points_are_shown_over_the_curve_in_the_colours_of_their_arcs(settings):
    env = make_mixture(num_envs=300, cohort=4, **settings)
    data, best = played(env, "data as asked"), played(env, "preferred point")
    assert len(data.trajectories) == 256
    gallery, both = env.gallery(data.trajectories), env.before_after(data.trajectories, best.trajectories)
    assert gallery["points"].shape == (420, 400, 3)
    assert both["before_after"].shape == (420, 800, 3)
    colors = np.unique(gallery["points"].reshape(-1, 3), axis=0)
    assert {(0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167)} <= {tuple(color) for color in colors.tolist()}
    assert data.measures["curve_entropy"] > 3
    # One point an arc.
    assert best.measures["curve_entropy"] == pytest.approx(math.log(env.config.arcs), abs=0.02)
    assert best.measures["pairwise_distance"] == pytest.approx(0, abs=1e-6)


def test_points_far_away_are_drawn_at_the_edge():
    points, asked, targets = np.array([[0.1, 0.1], [900.0, -0.5]]), np.array([0, 1]), np.array([0.4, 0.9])
    near = planes("circle", [points[:1]], asked[:1], targets, titles=["near"])
    far = planes("circle", [points], asked, targets, titles=["near"])
    differs = (near != far).any(-1)
    assert differs.any()
    assert np.nonzero(differs)[1].min() > 350


def test_groups_of_rows_have_room_between_them():
    clips = np.zeros((6, 1, 2, 16, 16), np.float32)
    plain, grouped = contact_sheet(clips, scale=2), contact_sheet(clips, scale=2, group=2)
    rows = plain.shape[0] // 6
    assert grouped.shape[0] - plain.shape[0] == 20
    np.testing.assert_array_equal(grouped[: 2 * rows], plain[: 2 * rows])
    assert (grouped[2 * rows : 2 * rows + 10] == 255).all()
    np.testing.assert_array_equal(grouped[2 * rows + 10 : 4 * rows + 10], plain[: 2 * rows])


def test_films_play_beside_each_other():
    clips = np.stack([np.full((1, 4, 16, 16), value, np.float32) for value in np.linspace(-1, 1, 5)])
    film = grid_film(clips, [f"clip {number}" for number in range(5)], columns=3, scale=3, repeats=2)
    assert film.shape[0] == 8
    both = side_by_side([film, film], ["left", "right"])
    assert both.shape[0] == 8
    assert both.shape[1] % 2 == both.shape[2] % 2 == 0
    np.testing.assert_array_equal(both[:, 30 : 30 + film.shape[1], : film.shape[2]], film)
