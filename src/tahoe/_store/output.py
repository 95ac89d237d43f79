"""The place that a run writes to: whether it can, and what an error means that stops it."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import anndata

from tahoe.errors import InputError, TahoeError
from tahoe.model.causes import why_not_written

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def check_output(argument: str, output: Path, *, resume: bool = False, replace: bool = False) -> None:
    """Refuse, before any work, an output that is there (unless it is to be replaced), or whose folder is not.

    Raises
    ------
    tahoe.errors.InputError
        With the name of the argument, such as ``output=`` or ``--output``.
    """
    where, folder = f"{argument}{str(output)!r}", output.absolute().parent
    with explain_disk_errors(where):
        exists, has_folder = output.exists() and not replace, folder.is_dir()
    if exists:
        done = ", so there is nothing to resume" if resume else ""
        message = f"{where} exists{done}; choose another place, or delete it first"
        raise InputError(message)
    if not has_folder:
        message = f"{where} is to be in a folder that does not exist; make {str(folder)!r} first"
        raise InputError(message)


@contextmanager
def explain_disk_errors(what: str, then: str = "") -> Iterator[None]:
    """Say what an error of the file system means for an output, and what to do `then`."""
    try:
        yield
    except OSError as error:
        message = f"{what} cannot be written: {why_not_written(error)}{then}"
        raise InputError(message) from error


@contextmanager
def explain_write_errors(what: str) -> Iterator[None]:
    """Turn whatever anndata raises on something that it cannot write into an error that says what it was.

    Strings of which some may be missing are written as they are. Errors of the file system are left to the caller.
    """
    try:
        with anndata.settings.override(allow_write_nullable_strings=True):
            yield
    except (TahoeError, OSError):
        raise
    except Exception as error:
        # anndata notes in which slot it was
        lines = [str(error), *getattr(error, "__notes__", ())]
        reason = ". ".join(line for each in lines if (line := each.strip().partition("\n")[0].removesuffix(".")))
        message = f"{what} cannot be written ({type(error).__name__}: {reason}); change or remove what this names"
        raise InputError(message) from error


def write_h5ad(adata: anndata.AnnData, path: Path, what: str) -> None:
    """Write an h5ad file, or nothing; `what` is how an error calls the output that it is for."""
    try:
        with explain_disk_errors(what), explain_write_errors(what):
            adata.write_h5ad(path)
    except InputError:
        path.unlink(missing_ok=True)
        raise
