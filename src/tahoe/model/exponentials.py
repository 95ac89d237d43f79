"""Exponentials of attention scores, compiled by numba: two passes over them, where torch's softmax takes twice as long.

An entry is a float32, or a bfloat16 by its bits in a uint16, for which numba has no type: it is computed in float32 and
rounded to even.
"""

from __future__ import annotations

from typing import Any

import numba
import numba.extending
import numpy as np

from tahoe.model.compiling import compiled

intrinsic: Any = numba.extending.intrinsic
LOWEST, HALF, PER_BIT = np.float32(-87), np.float32(0.5), np.float32(1 / np.log(2))
# The logarithm of two: twelve bits, of which any multiple that is needed is exact, and the rest.
BIT = np.float32(2839 / 4096)
REST = np.float32(np.log(2) - 2839 / 4096)
POSITIVE = np.int32(0x7FFFFFFF)
# The Taylor series: between -log(2) / 2 and log(2) / 2 its next term is below the last bit.
C2, C3, C4, C5, C6 = (np.float32(1 / factorial) for factorial in (2, 6, 24, 120, 720))
ONE = np.float32(1)


# Lanes may each sum a part. NaN and infinity stay what they are.
@compiled("reassoc", "contract")
def exponentials(scores: Any, scale: Any, totals: Any) -> None:
    """Replace each row by ``exp(scale * (row - max(row)))``, and write the sum of it; `scale` is positive."""
    for row in range(scores.shape[0]):
        rank = _rank(_bits(scores[row, 0]))
        for i in range(scores.shape[1]):
            rank = max(rank, _rank(_bits(scores[row, i])))
        largest = _float(_rank(rank))
        total = np.float32(0)
        for i in range(scores.shape[1]):
            power = _exponential((_float(_bits(scores[row, i])) - largest) * scale)
            scores[row, i] = _entry(power, scores[row, i])
            total += power
        totals[row] = total


@compiled()
def _rank(bits: Any) -> Any:
    """Whole numbers in the order of the floats that these are the bits of, and back: their maximum takes one step."""
    return np.int32(bits ^ (bits >> np.int32(31) & POSITIVE))


@compiled("contract")
def _exponential(x: Any) -> Any:
    """``exp(x)`` in float32, for x of at most 0; below -87 as there, about the smallest normal number."""
    x = LOWEST if x < LOWEST else x
    bits = np.floor(x * PER_BIT + HALF)
    part = x - bits * BIT - bits * REST
    power = ONE + part * (ONE + part * (C2 + part * (C3 + part * (C4 + part * (C5 + part * C6)))))
    return power * _float(np.int32(np.int32(bits) + np.int32(127)) << np.int32(23))


@intrinsic
def _bits(_: Any, entry: Any) -> Any:
    """Bits of an entry, as those of a float32."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        integer = context.get_value_type(signature.return_type)
        if entry == numba.float32:
            return builder.bitcast(arguments[0], integer)
        return builder.shl(builder.zext(arguments[0], integer), integer(16))

    return numba.int32(entry), build


@intrinsic
def _float(_: Any, bits: Any) -> Any:
    """Float32 of these bits."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(signature.return_type))

    return numba.float32(numba.int32), build


@intrinsic
def _entry(_: Any, number: Any, like: Any) -> Any:
    """Make an entry of a float32."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if like == numba.float32:
            return arguments[0]
        integer = context.get_value_type(numba.int32)
        bits = builder.bitcast(arguments[0], integer)
        even = builder.and_(builder.lshr(bits, integer(16)), integer(1))
        rounded = builder.add(builder.add(bits, integer(0x7FFF)), even)
        return builder.trunc(builder.lshr(rounded, integer(16)), context.get_value_type(like))

    return like(number, like), build
