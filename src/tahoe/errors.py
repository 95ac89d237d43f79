"""What can go wrong, by kind.

Every error says what was seen, in which argument or slot, and what to do next.
"""


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
