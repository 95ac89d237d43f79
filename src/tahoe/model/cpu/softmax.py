"""Exponentials of attention scores, compiled by numba: in less than half the time of torch's softmax."""

from __future__ import annotations

from typing import Any

import numpy as np

from tahoe.model.cpu.compiling import ALL_BUT_SIGN, bits_of, compiled, entry_of, float_of

LOWEST, HALF, PER_BIT = np.float32(-87), np.float32(0.5), np.float32(1 / np.log(2))
# The logarithm of two: twelve bits, of which any multiple that is needed is exact, and the rest.
LN2_HIGH = np.float32(2839 / 4096)
LN2_LOW = np.float32(np.log(2) - 2839 / 4096)
# The Taylor series: between -log(2) / 2 and log(2) / 2 its next term is below the last bit.
C2, C3, C4, C5, C6 = (np.float32(1 / factorial) for factorial in (2, 6, 24, 120, 720))
ONE = np.float32(1)


# Lanes may each sum a part. NaN and infinity stay what they are.
@compiled("reassoc", "contract")
def exponentials(scores: Any, scale: Any, totals: Any) -> None:
    """Replace each row by ``exp(scale * (row - max(row)))``, and write the sum of it; `scale` is positive."""
    for row in range(scores.shape[0]):
        rank = _rank(bits_of(scores[row, 0]))
        for i in range(scores.shape[1]):
            rank = max(rank, _rank(bits_of(scores[row, i])))
        largest = float_of(_rank(rank))
        total = np.float32(0)
        for i in range(scores.shape[1]):
            power = _exponential((float_of(bits_of(scores[row, i])) - largest) * scale)
            scores[row, i] = entry_of(power, scores[row, i])
            total += power
        totals[row] = total


@compiled()
def _rank(bits: Any) -> Any:
    """Whole numbers in the order of the floats that these are the bits of, and back: their maximum takes one step."""
    return np.int32(bits ^ (bits >> np.int32(31) & ALL_BUT_SIGN))


@compiled("contract")
def _exponential(x: Any) -> Any:
    """``exp(x)`` in float32, for x of at most 0; below -87 as there, about the smallest normal number."""
    x = LOWEST if x < LOWEST else x
    bits = np.floor(x * PER_BIT + HALF)
    part = x - bits * LN2_HIGH - bits * LN2_LOW
    power = ONE + part * (ONE + part * (C2 + part * (C3 + part * (C4 + part * (C5 + part * C6)))))
    return power * float_of(np.int32(np.int32(bits) + np.int32(127)) << np.int32(23))
