"""Open a file of cells, wherever it lies, or say what it is and what can be done with it."""

from __future__ import annotations

import os
import zipfile
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import h5py
import zarr
from zarr.errors import ContainsArrayError, NodeNotFoundError

from tahoe._cells.file import CellFile
from tahoe._cells.objects import check_path
from tahoe._cells.tenx import TenX, is_tenx
from tahoe.errors import InputError
from tahoe.model.causes import advised, cannot_lock, first_line, why_not_opened
from tahoe.model.formats import HEAD, ZIP, of_file, of_folder, of_zip

if TYPE_CHECKING:
    from collections.abc import Iterator

# What makes a folder a zarr store, of version 3 or 2.
MARKS = ("zarr.json", ".zgroup")


@contextmanager
def open_source(path: str | os.PathLike[str]) -> Iterator[CellFile]:
    """Open an h5ad file, a zarr store (a folder or a zip archive) or a 10x matrix, here or behind a URL of fsspec.

    The content of a file says what it is, not its name.

    Raises
    ------
    tahoe.errors.InputError
        If there is no such file, if it cannot be read, is truncated, or something else: with what it is, as far as that
        can be seen, and how to go on.
    """
    check_path("source", path)
    name = os.fsdecode(path)
    with ExitStack() as stack:
        root = _open_url(name, stack) if "://" in name else _open_here(name, stack)
        yield TenX(root, name) if is_tenx(root) else CellFile(root, name)


def _open_here(name: str, stack: ExitStack) -> Any:
    place = Path(name)
    try:
        if place.is_dir():
            return _open_folder(name)
        if not place.is_file():
            raise InputError(_not_there(place))
        with place.open("rb") as file:
            head = file.read(HEAD)
        if head.startswith(ZIP):
            return _open_zip(name, stack)
        return _open_hdf5(name, head, name, stack)
    except OSError as error:
        message = f"{name!r} {why_not_opened(error)}"
        raise InputError(message) from error


def _not_there(place: Path) -> str:
    if place.is_symlink():
        return f"{str(place)!r} is a link to {str(place.readlink())!r}, which does not exist"
    if place.exists():
        return f"{str(place)!r} is neither a file nor a folder, but a pipe, a socket or a device; write it to a file"
    return f"{str(place)!r} does not exist; give an h5ad file, a zarr store, a 10x .h5 file, or the URL of one"


def _open_hdf5(name: str, head: bytes, file: Any, stack: ExitStack) -> h5py.File:
    """Open HDF5, by its name or as a file object, unless its first bytes say that it is something else."""
    if seen := of_file(head, name):
        raise InputError(seen)
    try:
        return stack.enter_context(h5py.File(file, "r"))
    except OSError as error:
        if not cannot_lock(error):
            raise
        # nobody can have locked it either
        return stack.enter_context(h5py.File(file, "r", locking=False))


def _open_folder(name: str) -> zarr.Group:
    try:
        return zarr.open_group(name, mode="r")
    except PermissionError:
        raise
    except Exception as error:  # damaged metadata: whatever zarr's classes raise on it
        if isinstance(error, ContainsArrayError) or not any((Path(name) / mark).is_file() for mark in MARKS):
            raise InputError(of_folder(name)) from error
        message = f"{name!r} cannot be opened as a zarr store: {first_line(error)}"
        raise InputError(message) from error


def _open_zip(name: str, stack: ExitStack) -> zarr.Group:
    """Open a zarr store in a zip archive, at its top or in its only folder."""
    try:
        with zipfile.ZipFile(name) as archive:
            inside = archive.namelist()
    except zipfile.BadZipFile as error:
        message = f"{name!r} is not a whole zip archive ({first_line(error)}); was it copied to the end?"
        raise InputError(message) from error
    tops = [path.parent.parts for path in map(PurePosixPath, inside) if path.name in MARKS]
    top = min(tops, key=len, default=None)
    if top is None or len(top) > 1:
        raise InputError(of_zip(inside, name))
    try:
        store = zarr.storage.ZipStore(name, mode="r")
        stack.callback(store.close)
        return zarr.open_group(store, path="/".join(top), mode="r")
    except Exception as error:  # as for a folder
        message = f"{name!r} cannot be opened as a zarr store: {first_line(error)}"
        raise InputError(message) from error


def _open_url(url: str, stack: ExitStack) -> Any:
    import fsspec

    try:
        if url.rstrip("/").endswith(".zarr"):
            return zarr.open_group(url, mode="r")
        file = stack.enter_context(fsspec.open(url, "rb"))
        head = file.read(HEAD)
        file.seek(0)
        return _open_hdf5(url, head, file, stack)
    except InputError:
        raise
    except (FileNotFoundError, NodeNotFoundError) as error:
        message = f"{url!r} does not exist there"
        raise InputError(message) from error
    except Exception as error:  # whatever the packages for protocols raise
        message = advised(f"{url!r} cannot be opened ({type(error).__name__}: {first_line(error)})", error)
        raise InputError(message) from error
