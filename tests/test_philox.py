import numpy as np
import pytest
from scipy import stats

from marl_tr.philox import bits, normal, philox4x32, uniform

# kat_vectors of Random123 (D. E. Shaw Research): philox4x32-10, counter, key, expected.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text):
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_published_random123_vectors_are_met(counter, key, expected):
    low, high = words(key)
    out = philox4x32(np.array(words(counter), dtype=np.uint32), (low, high))
    assert out.tolist() == words(expected)


def test_a_batch_of_counters_gives_each_counters_own_words():
    counters = np.array([words(c) for c, _, _ in KNOWN_ANSWERS], dtype=np.uint32)
    together = philox4x32(counters, (7, 9))
    for row, counter in zip(together, counters, strict=True):
        assert (philox4x32(counter, (7, 9)) == row).all()


def test_uniform_numbers_are_uniform_on_the_half_open_interval():
    draws = uniform(3, np.arange(200), purpose=1, step=0, count=500).ravel()
    assert stats.kstest(draws, "uniform").pvalue > 1e-3
    assert draws.min() >= 0.0
    assert draws.max() < 1.0


def test_normal_numbers_are_standard_normal():
    draws = normal(3, np.arange(200), purpose=1, step=0, count=501).ravel()
    assert stats.kstest(draws, "norm").pvalue > 1e-3
    assert np.isfinite(draws).all()


@pytest.mark.parametrize("draw", [uniform, normal])
def test_a_stream_does_not_depend_on_its_neighbours_nor_on_how_much_is_drawn(draw):
    batch = draw(5, np.arange(64), purpose=2, step=np.arange(64), count=10)
    for j in (0, 1, 63):
        assert (draw(5, j, purpose=2, step=j, count=10)[0] == batch[j]).all()
        assert (draw(5, j, purpose=2, step=j, count=3)[0] == batch[j, :3]).all()


def test_every_coordinate_changes_the_words():
    base = bits(1, 0, purpose=0, step=0, blocks=4)
    others = [
        bits(2, 0, purpose=0, step=0, blocks=4),
        bits(1 + 2**32, 0, purpose=0, step=0, blocks=4),
        bits(1, 1, purpose=0, step=0, blocks=4),
        bits(1, 0, purpose=1, step=0, blocks=4),
        bits(1, 0, purpose=0, step=1, blocks=4),
    ]
    assert all((base != other).any() for other in others)


def test_streams_and_steps_are_uncorrelated():
    draws = uniform(11, np.arange(2000), purpose=0, step=0, count=4)
    correlation = np.corrcoef(draws.T)
    assert np.abs(correlation - np.eye(4)).max() < 0.08
    assert abs(np.corrcoef(draws[:-1, 0], draws[1:, 0])[0, 1]) < 0.08


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_out_of_range_is_refused(seed):
    with pytest.raises(ValueError, match="seed must be in"):
        bits(seed, 0, purpose=0, step=0, blocks=1)
