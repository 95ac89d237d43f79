"""A file of cells, read by rows: no more of it is in memory than what was asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata
import h5py
import pandas as pd
import zarr
from anndata.io import read_elem, sparse_dataset

from tahoe._causes import cannot_lock
from tahoe._formats import of_hdf5
from tahoe._sparse import reading
from tahoe.errors import InputError

if TYPE_CHECKING:
    from types import SimpleNamespace

    from anndata import AnnData

# Entries of obs that are copied at once.
COPIED_AT_ONCE = 1 << 16


class Source:
    """An AnnData in a file, with those of its attributes that reading needs; made by `tahoe._open.open_source`."""

    isbacked, is_view = True, False

    def __init__(self, root: Any, path: str) -> None:
        self.root = root
        self.path = path
        with reading(f"{path!r}"):
            missing = [name for name in ("obs", "var") if name not in root or "_index" not in root[name].attrs]
        if missing:
            raise InputError(of_hdf5(root, path))
        self.layers: Mapping[str, Any] = _Layers(root.get("layers", {}))
        self.uns: Any = _Elements(root.get("uns", {}))

    @cached_property
    def obs(self) -> Any:
        """What is known of the cells, a column at a time."""
        return _Columns(self.root["obs"])

    @property
    def n_obs(self) -> int:
        """How many cells there are."""
        return self.obs.n_rows

    @cached_property
    def var(self) -> pd.DataFrame:
        """The genes."""
        with reading("var"):
            return read_elem(self.root["var"])

    @property
    def X(self) -> Any:
        """The matrix, not read yet."""
        with reading("X"):
            return _opened(self.root["X"]) if "X" in self.root else None

    @property
    def raw(self) -> SimpleNamespace | None:
        """``X`` and ``var`` of raw."""
        from types import SimpleNamespace

        with reading("raw"):
            raw = self.root.get("raw")
            return None if raw is None else SimpleNamespace(X=_opened(raw["X"]), var=read_elem(raw["var"]))

    def values(self, slot: str) -> Any:
        """The matrix in a slot, as `tahoe._matrix.Matrix` names it."""
        if slot == "raw.X":
            return _opened(self.root["raw"]["X"])
        return self.X if slot == "X" else self.layers[slot.removeprefix('layers["').removesuffix('"]')]

    def copy_obs(self, target: Any, columns: bool, without: str) -> list[str]:
        """Copy the index of obs, and if wanted all columns but one, piece by piece; gives the columns' names."""
        frame = self.root["obs"]
        names = [name for name in self.obs.columns if name != without] if columns else []
        index = str(frame.attrs["_index"])
        target.attrs["_index"] = index
        for name in (index, *names):
            with reading(f"obs[{name!r}]"):
                column = frame[name]
            copy_element(column, target, name)
        return names

    def to_memory(self) -> AnnData:
        """All of it, as anndata reads it."""
        with reading(repr(self.path)):
            if isinstance(self.root, zarr.Group):
                return anndata.read_zarr(self.root)
            if "://" in self.path:
                import fsspec

                with fsspec.open(self.path, "rb") as file:
                    return anndata.read_h5ad(file)
            try:
                return anndata.read_h5ad(self.path)
            except OSError as error:
                if not cannot_lock(error):
                    raise
                with Path(self.path).open("rb") as file:  # which HDF5 does not lock
                    return anndata.read_h5ad(file)


class _Columns:
    """``obs``, a column at a time."""

    def __init__(self, group: Any) -> None:
        self.group = group

    @property
    def columns(self) -> list[str]:
        with reading("the names of the columns of obs"):
            return [str(name) for name in self.group.attrs.get("column-order", [])]

    @property
    def n_rows(self) -> int:
        with reading("the index of obs"):
            return self.group[self.group.attrs["_index"]].shape[0]

    def __contains__(self, key: object) -> bool:
        return key in self.columns

    def __getitem__(self, keys: list[str]) -> pd.DataFrame:
        with reading(f"columns {', '.join(keys)} of obs"):
            return pd.DataFrame({key: read_elem(self.group[key]) for key in keys})


class _Elements(Mapping[str, Any]):
    """The elements of a group, read when they are asked for."""

    def __init__(self, group: Any) -> None:
        self.group = group

    def __getitem__(self, key: str) -> Any:
        if key not in self.group:
            raise KeyError(key)
        with reading(repr(key)):
            return self.read(self.group[key])

    @staticmethod
    def read(element: Any) -> Any:
        """Read an element whole."""
        return read_elem(element)

    def __iter__(self) -> Iterator[str]:
        return iter(self.group)

    def __len__(self) -> int:
        return len(self.group)


class _Layers(_Elements):
    @staticmethod
    def read(element: Any) -> Any:
        """Open a matrix."""
        return _opened(element)


def absolute(path: str) -> str:
    """The same path from everywhere; a URL stays as it is."""
    return path if "://" in path else str(Path(path).absolute())


def identity(path: str) -> dict[str, Any]:
    """Size and time of change of a file, or of all files of a store; empty where they cannot be told."""
    place = Path(path)
    if not place.exists():
        return {}
    files = [place] if place.is_file() else [each for each in place.rglob("*") if each.is_file()]
    states = [each.stat() for each in files]
    return {
        "size of the input": sum(state.st_size for state in states),
        "time of change of the input": max(state.st_mtime_ns for state in states),
    }


def _opened(element: Any) -> Any:
    """A matrix in a file, by what it is."""
    kind = element.attrs.get("encoding-type", element.attrs.get("h5sparse_format", ""))
    return sparse_dataset(element) if kind in ("csr_matrix", "csc_matrix", "csr", "csc") else element


def copy_element(element: Any, target: Any, name: str) -> None:
    """Copy an array or a group of arrays, with its attributes, a piece at a time."""
    if not hasattr(element, "dtype"):
        group = target.require_group(name)
        group.attrs.update(_plain(element.attrs))
        for key in element:
            copy_element(element[key], group, key)
        return
    is_dataset, shape = isinstance(element, h5py.Dataset), element.shape
    size = max(1, min(element.size, COPIED_AT_ONCE))
    is_text = h5py.check_string_dtype(element.dtype) if is_dataset else element.dtype.kind in "OT"
    rows = element.asstr() if is_dataset and is_text else element
    options = {"dtype": "string" if is_text else element.dtype, "chunks": (size, *shape[1:]) if shape else ()}
    try:
        copied = target.create_array(name, shape=shape, overwrite=True, attributes=_plain(element.attrs), **options)
    except (TypeError, ValueError) as error:
        message = f"{element.name} holds {element.dtype}, which zarr cannot; leave columns=True (--columns) away"
        raise InputError(message) from error
    for start in range(0, shape[0] if shape else 1, size):
        part = slice(start, start + size) if shape else ()
        # what cannot be read is told here, what cannot be written by whoever writes
        with reading(element.name):
            piece = rows[part]
        copied[part if shape else ...] = piece


def _plain(attributes: Any) -> dict[str, Any]:
    """Attributes as JSON has them."""
    return {key: value.tolist() if hasattr(value, "tolist") else value for key, value in attributes.items()}
