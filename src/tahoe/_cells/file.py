"""A file of cells, read by rows: no more of it is in memory than what was asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata
import pandas as pd
import zarr
from anndata.io import read_elem, sparse_dataset

from tahoe._cells.elements import copy_column, length_of, read_column
from tahoe._cells.objects import modality_to_take
from tahoe._cells.sparse_checks import reading
from tahoe._genes.debris import as_text
from tahoe.errors import InputError
from tahoe.model.causes import cannot_lock
from tahoe.model.formats import of_hdf5

if TYPE_CHECKING:
    from types import SimpleNamespace

    from anndata import AnnData


class Source:
    """An AnnData in a file, with those of its attributes that reading needs; made by `open_source`."""

    isbacked, is_view = True, False

    def __init__(self, root: Any, path: str) -> None:
        self.root = root
        self.path = path
        with reading(f"{path!r}"):
            _refuse_modalities(root, path)
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

    @property
    def obs_names(self) -> pd.Index:
        """Names of the cells."""
        with reading("the index of obs"):
            return pd.Index(read_column(self.root["obs"], as_text(self.root["obs"].attrs["_index"])))

    @cached_property
    def var(self) -> pd.DataFrame:
        """The genes."""
        with reading("var"):
            return _frame(self.root["var"])

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
            if raw is None or "X" not in raw:  # a store may say that there is none
                return None
            return SimpleNamespace(X=_opened(raw["X"]), var=_frame(raw["var"]))

    def values(self, slot: str) -> Any:
        """The matrix in a slot, as `tahoe._cells.matrix.Matrix` names it."""
        if slot == "raw.X":
            return _opened(self.root["raw"]["X"])
        return self.X if slot == "X" else self.layers[slot.removeprefix('layers["').removesuffix('"]')]

    def copy_obs(self, target: Any, columns: bool, without: str) -> list[str]:
        """Copy the index of obs, and if wanted all columns but one, piece by piece; gives the columns' names."""
        frame = self.root["obs"]
        names = [name for name in self.obs.columns if name != without] if columns else []
        index = as_text(frame.attrs["_index"])
        target.attrs["_index"] = index
        for name in (index, *names):
            copy_column(frame, name, target, self.n_obs)
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
            return [as_text(name) for name in self.group.attrs.get("column-order", [])]

    @property
    def n_rows(self) -> int:
        with reading("the index of obs"):
            return length_of(self.group[self.group.attrs["_index"]])

    def __contains__(self, key: object) -> bool:
        return key in self.columns

    def __getitem__(self, keys: list[str]) -> pd.DataFrame:
        with reading(f"columns {', '.join(keys)} of obs"):
            return pd.DataFrame({key: read_column(self.group, key) for key in keys})


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


def _refuse_modalities(root: Any, path: str) -> None:
    """Refuse a MuData, which holds an AnnData for each modality."""
    if "mod" not in root or "X" in root:
        return
    names = list(root["mod"])
    take = f'mdata["{modality_to_take(names)}"]'
    message = (
        f"{path!r} is a MuData with the modalities {', '.join(map(repr, names))}; take the one with the RNA: mdata ="
        f' mudata.read({path!r}), then tahoe.tl.embed({take}), or {take}.write_h5ad("rna.h5ad") for a file of its own'
    )
    raise InputError(message)


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


def _frame(element: Any) -> pd.DataFrame:
    """A data frame in a file."""
    frame = read_elem(element)
    if not isinstance(frame, pd.DataFrame):
        message = f"{element.name} is no data frame: its encoding-type is {element.attrs.get('encoding-type')!r}"
        raise TypeError(message)
    return frame


def _opened(element: Any) -> Any:
    """A matrix in a file, by what it is."""
    kind = element.attrs.get("encoding-type", element.attrs.get("h5sparse_format", ""))
    return sparse_dataset(element) if kind in ("csr_matrix", "csc_matrix", "csr", "csc") else element
