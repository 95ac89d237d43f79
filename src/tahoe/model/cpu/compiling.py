"""How numba compiles the loops of this package, keeps what it compiled, and reads tensors.

An entry of a tensor is a float32, or a bfloat16 by its bits in a uint16, for which numba and numpy have no type.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numba
import numba.extending
import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Callable

intrinsic: Any = numba.extending.intrinsic
# All bits of a float32 but its sign.
ALL_BUT_SIGN = np.int32(0x7FFFFFFF)


def compiled(*fastmath: str) -> Callable[[Callable[..., Any]], Any]:
    """Compile a function without Python's lock; `fastmath` are numba's names of what it may do to sums and products."""
    options: Any = {"nogil": True, "error_model": "numpy", "fastmath": set(fastmath)}

    def decorate(function: Callable[..., Any]) -> Any:
        try:
            return numba.njit(function, cache=True, **options)
        except RuntimeError:  # no folder here can be written to: it is compiled again in each process
            return numba.njit(function, **options)

    return decorate


def entries(tensor: torch.Tensor) -> np.ndarray:
    """The entries of a tensor."""
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


@intrinsic
def bits_of(_: Any, entry: Any) -> Any:
    """Bits of an entry, as those of a float32."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        integer = context.get_value_type(signature.return_type)
        if entry == numba.float32:
            return builder.bitcast(arguments[0], integer)
        return builder.shl(builder.zext(arguments[0], integer), integer(16))

    return numba.int32(entry), build


@intrinsic
def float_of(_: Any, bits: Any) -> Any:
    """Float32 of these bits."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(signature.return_type))

    return numba.float32(numba.int32), build


@intrinsic
def entry_of(_: Any, number: Any, like: Any) -> Any:
    """Make an entry of a float32; bfloat16 is rounded to even."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if like == numba.float32:
            return arguments[0]
        integer = context.get_value_type(numba.int32)
        bits = builder.bitcast(arguments[0], integer)
        even = builder.and_(builder.lshr(bits, integer(16)), integer(1))
        rounded = builder.add(builder.add(bits, integer(0x7FFF)), even)
        return builder.trunc(builder.lshr(rounded, integer(16)), context.get_value_type(like))

    return like(number, like), build
