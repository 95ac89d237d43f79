"""A matrix of 10x Genomics in HDF5 (Cell Ranger 2 and later, CellBender), read by rows like an AnnData in a file.

It holds genes × cells by columns, which are the three arrays of cells × genes by rows.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import h5py
import pandas as pd
from anndata import AnnData
from scipy import sparse

from tahoe._cells.elements import copy_element
from tahoe._cells.file import CellFile
from tahoe._cells.sparse_checks import explain_read_errors
from tahoe.errors import InputError

# Cell Ranger 2 has these beside the matrix; later versions have a group of features.
BEFORE = {"barcodes", "genes", "gene_names", "indptr"}


class _ByRows:
    """What `_rows` reads of a sparse matrix in a file."""

    format = "csr"

    def __init__(self, group: h5py.Group) -> None:
        self.group = group
        n_genes, n_cells = (int(n) for n in group["shape"][:])
        self.shape = n_cells, n_genes
        self.dtype = group["data"].dtype


class TenX(CellFile):
    """The matrix of such a file, its barcodes as cells and its features as genes, as `scanpy.read_10x_h5` has them."""

    def __init__(self, root: h5py.File, path: str) -> None:
        self.path = path
        self.group = _group(root, path)
        self.layers, self.uns, self.raw = {}, {}, None
        with explain_read_errors("X"):
            self.X = _ByRows(self.group)
        with explain_read_errors("the barcodes"):
            self.n_obs = int(self.group["barcodes"].shape[0])

    @cached_property
    def obs(self) -> pd.DataFrame:
        """The barcodes; such a file says nothing else of the cells."""
        with explain_read_errors("the barcodes"):
            return pd.DataFrame(index=_text(self.group["barcodes"]))

    @property
    def obs_names(self) -> pd.Index:
        """The barcodes."""
        return self.obs.index

    @cached_property
    def var(self) -> pd.DataFrame:
        """The genes, by symbol, with their ids and whatever else the file says of them."""
        with explain_read_errors("the features"):
            if "features" not in self.group:
                return pd.DataFrame({"gene_ids": _text(self.group["genes"])}, index=_text(self.group["gene_names"]))
            features = self.group["features"]
            columns = {"id": "gene_ids", "feature_type": "feature_types", "genome": "genome"}
            known = {column: _text(features[key]) for key, column in columns.items() if key in features}
            return pd.DataFrame(known, index=_text(features["name"]))

    def copy_obs(self, target: Any, keep_metadata: bool, without: str) -> list[str]:
        """Copy the barcodes as the index of obs; there are no columns."""
        target.attrs["_index"] = "_index"
        copy_element(self.group["barcodes"], target, "_index")
        return []

    def to_memory(self) -> AnnData:
        """All of it, as an AnnData."""
        with explain_read_errors(repr(self.path)):
            arrays = tuple(self.group[name][:] for name in ("data", "indices", "indptr"))
            matrix = sparse.csr_matrix(arrays, shape=self.X.shape)
        return AnnData(matrix, obs=self.obs, var=self.var)


def is_tenx(root: Any) -> bool:
    """Whether an HDF5 file holds a matrix of 10x Genomics."""
    return isinstance(root, h5py.Group) and bool(_groups(root))


def _groups(root: h5py.Group) -> list[h5py.Group]:
    matrix = root.get("matrix")
    if isinstance(matrix, h5py.Group):
        return [matrix] if {"barcodes", "indptr"} <= set(matrix) else []
    return [group for group in root.values() if isinstance(group, h5py.Group) and set(group) >= BEFORE]


def _group(root: h5py.Group, path: str) -> h5py.Group:
    groups = _groups(root)
    if len(groups) > 1:
        names = [group.name.strip("/") for group in groups]
        message = (
            f"{path!r} is a 10x matrix of several genomes ({', '.join(names)}); take one of them:"
            f" sc.read_10x_h5({path!r}, genome={names[0]!r}).write_h5ad('cells.h5ad')"
        )
        raise InputError(message)
    group = groups[0]
    if not {"features", "gene_names"} & set(group):
        message = f"{path!r} is a 10x matrix without the names of its genes: it has neither features nor gene_names"
        raise InputError(message)
    return group


def _text(column: h5py.Dataset) -> Any:
    return column.asstr()[:]
