"""Defaults for the keywords of all functions, changed in one place.

>>> import tahoe
>>> tahoe.settings.device = "cpu"  # from here on
>>> with tahoe.settings.override(progress=False):  # in this block only
...     pass
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from tahoe.errors import InputError

# What the text of an environment variable stands for, where it is not the text itself.
READ_AS: dict[str, Callable[[str], Any]] = {
    "cache_dir": Path,
    "progress": lambda text: text.strip().lower() not in {"0", "false", "no", "off"},
    "token_budget": lambda text: int(text) if text.strip().isdecimal() else text,  # other text is refused by the field
}

# A process with another number was forked from the one that imported the package.
IMPORTED_BY = os.getpid()


@dataclass
class Settings:
    """Defaults for the keywords of all functions; an argument that is given wins.

    Each field is read once, at import, from the environment variable ``TAHOE_<FIELD>``.
    """

    device: str | None = None
    """Where the network runs; `None` picks CUDA, then MPS, then the CPU."""
    dtype: str | None = None
    """Precision of the linear layers; `None` is the checkpoint's own where the device computes it, else float32."""
    cache_dir: Path | None = None
    """Where downloaded checkpoints are kept; `None` is the ordinary Hugging Face cache."""
    attention: str | None = None
    """How attention is computed, for models that are loaded from here on: see `tahoe.load_model`. `None` picks by
    device."""
    token_budget: int | None = None
    """Maximum number of tokens in one pass through the network. `None` is 65,536, or as many as fit into the memory of
    the GPU. On a CPU each core takes one cell at a time, and this bounds how many wait. No result depends on it beyond
    rounding."""
    progress: bool = True
    """Whether progress bars are drawn."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in {field.name for field in fields(self)}:
            message = f"settings has no field {name!r}; it has {', '.join(f.name for f in fields(self))}"
            raise InputError(message)
        if name == "token_budget" and value is not None and not (isinstance(value, int) and value >= 1):
            message = f"token_budget={value!r}: it must be a whole number, at least 1, or None"
            raise InputError(message)
        super().__setattr__(name, value)

    @contextmanager
    def override(self, **values: Any) -> Iterator[None]:
        """Change some fields inside a ``with`` block."""
        before = {field.name: getattr(self, field.name) for field in fields(self)}
        try:
            for name, value in values.items():
                setattr(self, name, value)
            yield
        finally:
            for name, value in before.items():
                setattr(self, name, value)


def _from_environment() -> Settings:
    settings = Settings()
    for field in fields(Settings):
        text = os.environ.get(f"TAHOE_{field.name.upper()}")
        if text:
            setattr(settings, field.name, READ_AS.get(field.name, str)(text))
    return settings


settings = _from_environment()
