import pytest
import torch

from marl_tr.envs.flow.bank import Bank
from marl_tr.envs.flow.shapes import (
    CONDITIONS,
    Condition,
    condition_tokens,
    decode_condition,
    positions,
    render_clips,
    sample_clips,
)

LEVELS = ("plain", "hard")


def some_clips(bank, count):
    """`count` clips of the bank, drawn, in float64: their rows among all 24 P P, and ``[count, F S S]``."""
    size = len(bank.grid)
    rows = torch.randperm(CONDITIONS * size**2, generator=torch.Generator().manual_seed(0))[:count]
    start = torch.stack([bank.grid[rows % size**2 // size], bank.grid[rows % size]], -1).double()
    return rows, render_clips(Condition.from_index(rows // size**2), start, level=bank.level).flatten(1)


def noisy_clips(level, count, noise):
    generator = torch.Generator().manual_seed(1)
    condition, start, clips = sample_clips(count, generator, level=level)
    return condition, start, clips + noise * torch.randn(clips.shape, generator=generator)


def test_factored_distances_are_those_of_every_clip_of_the_plain_bank():
    bank = Bank("plain")
    _, _, clips = noisy_clips("plain", 4, 0.3)
    rows, legal = some_clips(bank, 3000)
    found = bank.clip_distances(bank.match(clips)).flatten(1)
    assert found.shape == (4, CONDITIONS * 1024)
    assert torch.allclose(found[:, rows].double(), torch.cdist(clips.double().flatten(1), legal).square(), atol=0.01)


def test_factored_distances_of_the_hard_bank_are_those_at_the_best_legal_brightness():
    bank = Bank("hard")
    _, _, clips = noisy_clips("hard", 2, 0.2)
    rows, legal = some_clips(bank, 300)
    found = bank.clip_distances(bank.match(clips)).flatten(1).double()[:, rows]
    ladder = torch.linspace(0.5, 1.0, 51, dtype=torch.float64)
    for clip, row in zip(clips.double().flatten(1) + 1, found, strict=True):
        tried = torch.stack([(clip - b * (legal + 1)).square().sum(-1) for b in ladder]).min(0).values
        assert (row <= tried + 0.01).all()
        assert torch.allclose(row, tried, atol=0.5)  # the ladder's steps of 0.01 cost up to 0.1


@pytest.mark.parametrize("level", LEVELS)
def test_frame_distances_are_those_of_rendered_frames(level):
    bank = Bank(level)
    _, _, clips = noisy_clips(level, 3, 0.1)
    found = bank.frame_distances(bank.match(clips))
    assert found.shape == (3, 8, 3, len(bank.grid), len(bank.grid))
    condition = Condition.from_index(torch.tensor([2 * 8]))  # a cross
    frame = render_clips(condition, torch.stack([bank.grid[5], bank.grid[7]])[None], level=level)[0, 0, 0]
    ladder = torch.ones(1) if level == "plain" else torch.linspace(0.5, 1, 201)
    drawn = (frame + 1) * ladder[:, None, None] - 1
    exact = (clips[1, 0, 4] - drawn).square().sum((-1, -2)).min()
    assert found[1, 4, 2, 5, 7].item() == pytest.approx(exact.item(), abs=0.02)


@pytest.mark.parametrize("level", LEVELS)
def test_a_legal_clip_is_found_exactly_wherever_it_starts(level):
    bank = Bank(level)
    condition, start, clips = noisy_clips(level, 128, 0.0)
    distances = bank.clip_distances(bank.match(clips))
    fit = bank.fit(clips, distances)
    assert torch.equal(fit.condition.index, condition.index)
    assert fit.distance.max() < 1e-3
    assert (fit.start - start).abs().max() < 0.01
    # What the bank alone would find: a quarter of a pixel away on average.
    floor = (distances.flatten(1).min(1).values / 2048).sqrt().mean()
    assert 0.03 < floor < 0.08


def test_the_distance_of_a_noisy_clip_is_the_noise():
    bank = Bank("plain")
    condition, _, clips = noisy_clips("plain", 64, 0.3)
    fit = bank.fit(clips, bank.clip_distances(bank.match(clips)))
    assert torch.equal(fit.condition.index, condition.index)
    assert fit.distance.mean().item() == pytest.approx(0.3, rel=0.02)


def test_refining_never_moves_away():
    bank = Bank("plain")
    clips = torch.randn(32, 1, 8, 16, 16, generator=torch.Generator().manual_seed(3))
    distances = bank.clip_distances(bank.match(clips))
    coarse = (distances.flatten(1).min(1).values / 2048).sqrt()
    assert (bank.fit(clips, distances).distance <= coarse + 1e-4).all()


def test_brightness_is_recovered_within_its_bounds():
    bank = Bank("hard")
    condition, start = Condition.from_index(torch.arange(24)), torch.full((24, 2), 7.3)
    for brightness, expected in ((0.8, 0.8), (0.5, 0.5), (0.3, 0.5)):
        clips = render_clips(condition, start, level="hard", brightness=torch.full((24,), brightness))
        fit = bank.fit(clips, bank.clip_distances(bank.match(clips)))
        assert torch.allclose(fit.brightness, torch.tensor(expected), atol=2e-3)
        assert (fit.distance < 1e-3).all() == (brightness == expected)


@pytest.mark.parametrize("level", LEVELS)
def test_trajectories_along_an_axis_are_those_of_moving_shapes(level):
    bank = Bank(level)
    size = len(bank.grid)
    found = bank.trajectories().view(4, size, 8)
    for row, speed in zip(found, (1.0, 2.0, -1.0, -2.0), strict=True):
        start = torch.stack([bank.grid, bank.grid], -1)
        expected = positions(start, torch.tensor([speed, 0.0]).expand(size, 2), level=level)[..., 0]
        assert torch.allclose(row, expected)


def test_conditions_are_read_back_from_their_tokens():
    condition = Condition.from_index(torch.arange(CONDITIONS))
    place = torch.rand(CONDITIONS, 2, generator=torch.Generator().manual_seed(0)) * 16
    assert torch.equal(decode_condition(condition_tokens(condition, place)).index, condition.index)
