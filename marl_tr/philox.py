"""Counter-based random numbers: Philox-4x32-10, vectorised over counters.

A number depends on nothing but its coordinates (seed, stream, purpose, step, position), so environment ``j``
of any batch draws what a batch of one draws, and a checkpoint needs no generator state. A NumPy generator
object per environment would cost more than a simulation step.

Source: Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011, section 3.3.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["bits", "normal", "philox4x32", "uniform"]

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def philox4x32(counter: NDArray[np.uint32], key: tuple[int, int], *, rounds: int = 10) -> NDArray[np.uint32]:
    """The Philox-4x32 bijection.

    Args:
        counter: ``[..., 4]`` uint32, the four counter words.
        key: Two words below ``2**32``.
        rounds: 10 is the authors' recommendation; 7 is the least that passes BigCrush.

    Returns:
        ``[..., 4]`` uint32 random words.

    Source: Salmon et al. (2011), figure 2 and equation 1 with the Weyl key schedule.
    """
    c0, c1, c2, c3 = (counter[..., word].astype(np.uint64) for word in range(4))
    for index in range(rounds):
        # Every word stays below 2**32 inside its uint64, so a product of two never overflows.
        k0 = np.uint64((key[0] + index * _WEYL[0]) & 0xFFFFFFFF)
        k1 = np.uint64((key[1] + index * _WEYL[1]) & 0xFFFFFFFF)
        product0 = c0 * _MULTIPLIERS[0]
        product1 = c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (product1 >> _HALF) ^ c1 ^ k0,
            product1 & _LOW,
            (product0 >> _HALF) ^ c3 ^ k1,
            product0 & _LOW,
        )
    return np.stack((c0, c1, c2, c3), axis=-1).astype(np.uint32)


def bits(seed: int, stream: ArrayLike, *, purpose: int, step: ArrayLike, blocks: int) -> NDArray[np.uint32]:
    """Random words at the given coordinates.

    Args:
        seed: In ``[0, 2**64)``; the key.
        stream: Environment (or cohort) indices in ``[0, 2**32)``, ``[E]``.
        purpose: What the numbers are for, in ``[0, 2**32)``: draws of different purposes never overlap.
        step: Time or episode index in ``[0, 2**32)``, ``[E]`` or a number for all streams.
        blocks: Philox blocks (four words each) a stream.

    Returns:
        ``[E, blocks, 4]`` uint32.

    Raises:
        ValueError: `seed` is out of range.
    """
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed must be in [0, 2**64), got {seed}")
    streams = np.atleast_1d(np.asarray(stream))
    counter = np.empty((*streams.shape, blocks, 4), dtype=np.uint32)
    counter[..., 0] = np.arange(blocks, dtype=np.uint32)
    counter[..., 1] = np.asarray(step)[..., None]
    counter[..., 2] = streams[..., None]
    counter[..., 3] = purpose
    return philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32))


def uniform(seed: int, stream: ArrayLike, *, purpose: int, step: ArrayLike, count: int) -> NDArray[np.float64]:
    """Uniform numbers in ``[0, 1)`` with 53 random bits each; coordinates as in `bits`.

    Returns:
        ``[E, count]`` float64. The first ``n`` numbers do not depend on `count`.
    """
    words = bits(seed, stream, purpose=purpose, step=step, blocks=(count + 1) // 2)
    pairs = words.reshape(*words.shape[:-2], -1, 2).astype(np.uint64)
    mantissa = ((pairs[..., 0] >> np.uint64(5)) << np.uint64(26)) | (pairs[..., 1] >> np.uint64(6))
    return mantissa[..., :count] * 2.0**-53


def normal(seed: int, stream: ArrayLike, *, purpose: int, step: ArrayLike, count: int) -> NDArray[np.float64]:
    """Standard normal numbers by the Box-Muller transform; coordinates as in `bits`.

    Returns:
        ``[E, count]`` float64. The first ``n`` numbers do not depend on `count`.
    """
    even = count + count % 2
    u = uniform(seed, stream, purpose=purpose, step=step, count=even)
    radius = np.sqrt(-2.0 * np.log1p(-u[..., 0::2]))  # 1 - u lies in (0, 1]: the logarithm is finite
    angle = 2.0 * np.pi * u[..., 1::2]
    pairs = np.stack((radius * np.cos(angle), radius * np.sin(angle)), axis=-1)
    return np.ascontiguousarray(pairs.reshape(*u.shape[:-1], even)[..., :count])
