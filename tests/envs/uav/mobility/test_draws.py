import numpy as np
import pytest
from scipy import stats

from marl_tr.envs.uav.draws import gaussian, unit, words, words_at


def test_single_blocks_are_those_of_whole_environments():
    stream, step = np.array([3, 9]), np.array([2**32 + 5, 6])
    whole = words(11, stream, purpose=20, step=step, count=37)
    assert whole.shape == (2, 37)
    assert (whole[:, :5] == words(11, stream, purpose=20, step=step, count=5)).all()
    env, block = np.array([0, 1, 1]), np.array([2, 0, 8])
    single = words_at(11, stream[env], purpose=20, step=step[env], block=block)
    assert (single == [whole[e, 4 * b : 4 * b + 4] for e, b in zip(env, block, strict=True)]).all()
    assert (words(11, stream, purpose=20, step=np.array([5, 6]), count=37) == whole).all()


def test_uniform_numbers_are_the_same_in_both_precisions_and_below_one():
    drawn = words(1, np.arange(20), purpose=20, step=np.arange(20), count=1000)
    assert (unit(drawn, np.float32) == unit(drawn)).all()
    assert unit(np.array([2**32 - 1], np.uint32), np.float32)[0] < 1
    assert stats.kstest(unit(drawn).ravel(), "uniform").pvalue > 1e-3


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_normal_numbers_are_standard_and_independent(dtype):
    drawn = words(1, np.arange(20), purpose=21, step=np.arange(20), count=2000).reshape(20, 1000, 2)
    first, second = gaussian(drawn, dtype)
    assert first.dtype == second.dtype == dtype
    for numbers in (first, second):
        assert stats.kstest(numbers.ravel().astype(float), "norm").pvalue > 1e-3
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 4 / np.sqrt(first.size)
    extreme = gaussian(np.array([[2**32 - 1, 0], [0, 0]], np.uint32), dtype)[0]
    assert extreme == pytest.approx([np.sqrt(-2 * np.log(2.0**-24)), 0.0], rel=1e-5)
