import numpy as np
import pytest
import torch

from marl_tr.envs.flow.render import contact_sheet, describe, film, grey
from marl_tr.envs.flow.shapes import Condition, render_clips


def clips(count):
    condition = Condition.from_index(torch.arange(count))
    return render_clips(condition, torch.full((count, 2), 8.0)).numpy()


def test_a_sheet_shows_every_frame_enlarged():
    shown = clips(3)
    sheet = contact_sheet(shown, scale=4)
    cell = 16 * 4 + 4
    assert sheet.shape == (3 * cell, 8 * cell, 3)
    for row in range(3):
        for frame in range(8):
            part = sheet[row * cell + 2 : (row + 1) * cell - 2, frame * cell + 2 : (frame + 1) * cell - 2]
            assert np.array_equal(part[1::4, 2::4], grey(shown[row, 0, frame]))


def test_captions_stand_beside_the_rows():
    plain, told = contact_sheet(clips(2)), contact_sheet(clips(2), ["disc, right, 1 px", "noise"])
    assert told.shape[0] == plain.shape[0]
    margin = told.shape[1] - plain.shape[1]
    assert margin > 20
    assert np.array_equal(told[:, margin:], plain)
    assert (told[:, :margin] < 128).any()
    with pytest.raises(ValueError, match="1 captions for 2 clips"):
        contact_sheet(clips(2), ["one"])


def test_sheets_and_films_have_even_sides():
    for count in (1, 2, 3):
        for scale in (3, 5):
            sheet = contact_sheet(clips(count), ["a"] * count, scale=scale)
            assert sheet.shape[0] % 2 == sheet.shape[1] % 2 == 0
    assert film(clips(1)[0, 0]).shape == (24, 192, 192, 3)


def test_values_beyond_the_range_are_cut_off():
    assert grey(np.array([-3.0, -1.0, 0.0, 1.0, 9.0]))[:, 0].tolist() == [0, 0, 128, 255, 255]


def test_conditions_are_described_in_words():
    condition = Condition.from_index(torch.tensor([0, 23]))
    assert describe(condition, 0) == "disc, right, 1 px"
    assert describe(condition, 1) == "cross, up, 2 px"
