"""What can go wrong, by kind.

Every error says what was seen, in which argument or slot, and what to do next.
"""

from __future__ import annotations

import sys
import warnings

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
