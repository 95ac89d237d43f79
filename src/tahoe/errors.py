"""What can go wrong, by kind.

Every error says what was seen, in which argument or slot, and what to do next.
"""

from __future__ import annotations

import difflib
import sys
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

__all__ = ["DeviceError", "GeneError", "InputError", "ModelError", "TahoeError", "TahoeWarning"]


class TahoeError(Exception):
    """Any error that this package raises on purpose."""


class InputError(TahoeError, ValueError):
    """An argument, or a slot of the AnnData, that cannot be used as it is."""


class GeneError(InputError):
    """Genes that cannot be found in the gene table or in a model's vocabulary."""


class ModelError(TahoeError, ValueError):
    """A model name, configuration or weights file that cannot be used."""


class DeviceError(TahoeError, RuntimeError):
    """A device, precision or attention kernel that this machine does not have."""


class TahoeWarning(UserWarning):
    """Something in the data that a user should know, and that does not stop the work."""


def warn(message: str) -> None:
    """Warn of something in the data, at the line of whoever called this package."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "tahoe":
        frame, level = frame.f_back, level + 1
    warnings.warn(message, TahoeWarning, stacklevel=level)


def check_choice(**arguments: tuple[Any, Collection[Any]]) -> None:
    """Refuse an argument that is none of its choices."""
    for name, (value, choices) in arguments.items():
        if value not in choices:
            message = f"{name}={value!r} is unknown; choose from {listed(choices)}"
            raise InputError(message)


def check_at_least(**limits: tuple[int | None, int]) -> None:
    """Refuse numbers below their minimum; None passes."""
    for name, (value, minimum) in limits.items():
        if value is not None and value < minimum:
            message = f"{name}={value}: it must be at least {minimum}"
            raise InputError(message)


def listed(names: Iterable[Any], most: int = 8) -> str:
    """Names for a message, the first ones of many."""
    quoted = [repr(name if name is None or isinstance(name, bool) else str(name)) for name in names]
    return ", ".join(quoted[:most]) + (", …" if len(quoted) > most else "") or "none"


def similar_names(name: Any, known: Iterable[Any], most: int = 3) -> str:
    """Names for a message that are most like one that is not known, or the first ones."""
    names = [str(each) for each in known]
    return listed(difflib.get_close_matches(str(name), names, n=most) or names[:most])
