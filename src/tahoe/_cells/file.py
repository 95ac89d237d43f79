"""A file of cells, read by rows: no more of it is in memory than what is used."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import anndata
import pandas as pd
import zarr
from anndata.io import read_elem, sparse_dataset

from tahoe._cells.elements import copy_column, length_of, read_column
from tahoe._cells.objects import modality_to_take
from tahoe._cells.sparse_checks import explain_read_errors
from tahoe._genes.clean import as_text
from tahoe.errors import InputError
from tahoe.model.formats import of_hdf5

if TYPE_CHECKING:
    from anndata import AnnData


class CellFile:
    """An AnnData in a file: attributes of the same names, read at their first use; made by `open_source`.

    A real AnnData over the file would hold the names of all cells, which may be a hundred million.
    """

    isbacked = True

    def __init__(self, root: Any, path: str) -> None:
        self.root, self.path = root, path
        with explain_read_errors(f"{path!r}"):
            _refuse_modalities(root, path)
            is_anndata = all(name in root and "_index" in root[name].attrs for name in ("obs", "var"))
        if not is_anndata:
            raise InputError(of_hdf5(root, path))

    @cached_property
    def X(self) -> Any:
        """The matrix, not read yet."""
        with explain_read_errors("X"):
            return _opened(self.root["X"]) if "X" in self.root else None

    @cached_property
    def layers(self) -> dict[str, Any]:
        """The layers, not read yet."""
        with explain_read_errors("layers"):
            layers = self.root.get("layers", {})
            return {name: _opened(layers[name]) for name in layers}

    @cached_property
    def raw(self) -> SimpleNamespace | None:
        """``X`` and ``var`` of raw."""
        with explain_read_errors("raw"):
            raw = self.root.get("raw")
            if raw is None or "X" not in raw:  # a store may say that there is none
                return None
            return SimpleNamespace(X=_opened(raw["X"]), var=_frame(raw["var"]))

    @cached_property
    def var(self) -> pd.DataFrame:
        """The genes."""
        with explain_read_errors("var"):
            return _frame(self.root["var"])

    @cached_property
    def obs(self) -> Any:
        """What is known of the cells, a column at a time."""
        with explain_read_errors("the names of the columns of obs"):
            return _Columns(self.root["obs"])

    @cached_property
    def n_obs(self) -> int:
        """How many cells there are."""
        with explain_read_errors("the index of obs"):
            return length_of(self.root["obs"][self._index])

    @property
    def obs_names(self) -> pd.Index:
        """Names of the cells."""
        with explain_read_errors("the index of obs"):
            return pd.Index(read_column(self.root["obs"], self._index))

    @cached_property
    def uns(self) -> dict[str, Any]:
        """What this package wrote to uns; whatever else is there stays unread."""
        with explain_read_errors("uns"):
            uns = self.root.get("uns", {})
            groups = [key for key in uns if not hasattr(uns[key], "shape")]
            return {key: read_elem(uns[key]) for key in groups if key == "tahoe_genes" or "tahoe_version" in uns[key]}

    @property
    def _index(self) -> str:
        return as_text(self.root["obs"].attrs["_index"])

    def copy_obs(self, target: Any, keep_metadata: bool, without: str) -> list[str]:
        """Copy the index of obs, and if wanted all columns but one, piece by piece; gives the columns' names."""
        names = [name for name in self.obs.columns if name != without] if keep_metadata else []
        target.attrs["_index"] = self._index
        for name in (self._index, *names):
            copy_column(self.root["obs"], name, target, self.n_obs)
        return names

    def to_memory(self) -> AnnData:
        """All of it, as anndata reads it."""
        with explain_read_errors(repr(self.path)):
            if isinstance(self.root, zarr.Group):
                return anndata.read_zarr(self.root)
            # as a file object, which HDF5 does not lock: there are file systems without locks
            with _opened_bytes(self.path) as file:
                return anndata.read_h5ad(file)


class _Columns:
    """``obs``, a column at a time."""

    def __init__(self, group: Any) -> None:
        self.group = group
        self.columns = [as_text(name) for name in group.attrs.get("column-order", [])]

    def __contains__(self, key: object) -> bool:
        return key in self.columns

    def __getitem__(self, keys: list[str]) -> pd.DataFrame:
        with explain_read_errors(f"columns {', '.join(keys)} of obs"):
            return pd.DataFrame({key: read_column(self.group, key) for key in keys})


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
    """Size and time of change of a file, or of all files of a store; empty where they are not known."""
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


def _opened_bytes(path: str) -> Any:
    if "://" not in path:
        return Path(path).open("rb")
    import fsspec

    return fsspec.open(path, "rb")
