"""How numba compiles the loops of this package, and keeps what it compiled."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numba

if TYPE_CHECKING:
    from collections.abc import Callable


def compiled(*freedoms: str) -> Callable[[Callable[..., Any]], Any]:
    """Compile a function without Python's lock; `freedoms` are numba's names of what it may do to sums and products."""
    options: Any = {"nogil": True, "error_model": "numpy", "fastmath": set(freedoms)}

    def decorate(function: Callable[..., Any]) -> Any:
        try:
            return numba.njit(function, cache=True, **options)
        except RuntimeError:  # no folder here can be written to: it is compiled again in each process
            return numba.njit(function, **options)

    return decorate
