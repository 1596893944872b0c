"""Cheap random numbers for what every user needs in every slot: one Philox word each, 24 bits of it.

`marl_tr.philox` spends two words on a number. A user's next metre does not need 53 random bits, and a simulator
with thousands of users feels the difference. Both precisions of a simulator get the same numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from marl_tr.philox import bits, philox4x32

__all__ = ["gaussian", "step_word", "unit", "words", "words_at"]

Array = NDArray[Any]


def words(seed: int, stream: ArrayLike, *, purpose: int, step: Array, count: int) -> NDArray[np.uint32]:
    """Random words of whole environments.

    Args:
        seed: In ``[0, 2**64)``.
        stream: Environment indices, ``[E]``.
        purpose: What the numbers are for.
        step: Moment or episode, ``[E]``; taken modulo 2**32.
        count: Words an environment; the first ``n`` do not depend on it.

    Returns:
        ``[E, count]`` uint32.

    Raises:
        ValueError: `seed` is out of range.
    """
    blocks = bits(seed, stream, purpose=purpose, step=step_word(step), blocks=-(-count // 4))
    return blocks.reshape(len(blocks), -1)[:, :count]


def words_at(seed: int, stream: Array, *, purpose: int, step: Array, block: Array) -> NDArray[np.uint32]:
    """The words of single blocks: four for each of ``n`` coordinates.

    What `words` gives for block ``b`` are its words ``4 b`` to ``4 b + 3``.

    Args:
        seed: In ``[0, 2**64)``.
        stream: ``[n]``.
        purpose: What the numbers are for.
        step: ``[n]``, taken modulo 2**32.
        block: ``[n]``, taken modulo 2**32.

    Returns:
        ``[n, 4]`` uint32.
    """
    counter = np.empty((len(block), 4), np.uint32)
    counter[:, 0] = step_word(block)
    counter[:, 1] = step_word(step)
    counter[:, 2] = stream
    counter[:, 3] = purpose
    return philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32))


def unit(word: NDArray[np.uint32], dtype: DTypeLike = np.float64) -> Array:
    """Uniform in ``[0, 1)`` on a grid of 2**-24, which float32 holds exactly; shape as `word`."""
    return (word >> np.uint32(8)).astype(dtype) * 2.0**-24


def gaussian(word: NDArray[np.uint32], dtype: DTypeLike = np.float64) -> tuple[Array, Array]:
    """Two standard normal numbers of each pair of words (Box and Muller); none is beyond 5.8 in size.

    Args:
        word: ``[..., 2]``.
        dtype: Of the result and of the computation.

    Returns:
        Two arrays ``[...]``, independent of each other.
    """
    # 1 - u lies in (0, 1]: the logarithm is finite.
    radius = np.sqrt(-2.0 * np.log(1.0 - unit(word[..., 0], dtype)))
    angle = unit(word[..., 1], dtype) * (2.0 * np.pi)
    return radius * np.cos(angle), radius * np.sin(angle)


def step_word(step: Array) -> NDArray[np.int64]:
    """A count as a word of the counter: modulo 2**32."""
    return np.asarray(step, np.int64) & 0xFFFFFFFF
