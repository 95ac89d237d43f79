"""Defaults for the keywords of all functions, changed in one place.

>>> import tahoe
>>> tahoe.settings.device = "cpu"  # from here on
>>> with tahoe.settings.override(progress=False):  # in this block only
...     pass
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from tahoe.errors import InputError

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
    progress: bool = True
    """Whether progress bars are drawn."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in {field.name for field in fields(self)}:
            message = f"settings has no field {name!r}; it has {', '.join(f.name for f in fields(self))}"
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
        if not text:
            continue
        if field.name == "progress":
            settings.progress = text.strip().lower() not in {"0", "false", "no", "off"}
        else:
            setattr(settings, field.name, Path(text) if field.name == "cache_dir" else text)
    return settings


settings = _from_environment()
