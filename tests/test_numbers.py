"""The same counts in other types of numbers and byte orders give the same vectors, and errors name the right cause."""

from __future__ import annotations

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import zarr
from scipy import sparse

import tahoe
from tahoe.errors import InputError


@pytest.fixture(scope="module")
def cells():
    """Cells whose counts fit into 16 bits."""
    cells = tahoe.datasets.pbmc68k()[:12].copy()
    assert cells.X.max() < 255
    tahoe.pp.map_genes(cells)
    return cells


@pytest.fixture(scope="module")
def demo():
    return tahoe.load_model("demo", device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def truth(cells, demo):
    whole = cells.copy()
    tahoe.tl.embed(whole, demo)
    return whole.obsm["X_tahoe"]


def with_matrix(cells, matrix):
    return anndata.AnnData(matrix, obs=cells.obs.copy(), var=cells.var.copy())


NUMBERS = [">f4", ">f8", ">i4", ">u2", ">i8", "float16", "uint8", "int16", "longdouble"]


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("kind", [sparse.csr_matrix, sparse.csr_array, sparse.csc_matrix, sparse.csc_array, np.asarray])
def test_numbers_in_memory(cells, demo, truth, kind, number):
    matrix = kind(cells.X.toarray()) if kind is np.asarray else kind(cells.X)
    if kind is np.asarray:
        matrix = matrix.astype(number)
    else:
        matrix.data = matrix.data.astype(number)
    adata = with_matrix(cells, matrix)
    tahoe.tl.embed(adata, demo)
    np.testing.assert_array_equal(adata.obsm["X_tahoe"], truth)
    assert adata.X.dtype == number


@pytest.mark.parametrize("number", [">i4", ">i8", "int64"])
@pytest.mark.parametrize("kind", [sparse.csr_matrix, sparse.csc_matrix])
def test_indices_in_memory(cells, demo, truth, kind, number):
    matrix = kind(cells.X)
    matrix.indices, matrix.indptr = matrix.indices.astype(number), matrix.indptr.astype(number)
    adata = with_matrix(cells, matrix)
    tahoe.tl.embed(adata, demo)
    np.testing.assert_array_equal(adata.obsm["X_tahoe"], truth)


@pytest.mark.parametrize("number", [">f4", ">i8", "float16"])
@pytest.mark.parametrize("dense", [False, True])
def test_numbers_in_a_file(cells, demo, truth, tmp_path, number, dense):
    path = tmp_path / "cells.h5ad"
    with_matrix(cells, cells.X.toarray() if dense else cells.X).write_h5ad(path)
    with h5py.File(path, "r+") as file:
        for name in ["X"] if dense else ["X/data", "X/indices", "X/indptr"]:
            values, attributes = file[name][...], dict(file[name].attrs)
            del file[name]
            file[name] = values.astype(number if name in ("X", "X/data") else ">i8")
            file[name].attrs.update(attributes)
    backed = anndata.read_h5ad(path, backed="r")
    tahoe.tl.embed(backed, demo)
    np.testing.assert_array_equal(backed.obsm["X_tahoe"], truth)
    backed.file.close()
    tahoe.embed_file(path, tmp_path / "out.zarr", demo)
    np.testing.assert_array_equal(anndata.read_zarr(tmp_path / "out.zarr").obsm["X_tahoe"], truth)
    if dense:
        tahoe.embed_file(path, tmp_path / "out.h5ad", demo)
        np.testing.assert_array_equal(anndata.read_h5ad(tmp_path / "out.h5ad").obsm["X_tahoe"], truth)
    else:  # anndata does not read it into memory
        with pytest.raises(InputError, match=r"for a \.zarr output"):
            tahoe.embed_file(path, tmp_path / "out.h5ad", demo)


@pytest.mark.parametrize("number", [">f4", "float16"])
def test_numbers_in_a_dask_array(cells, demo, truth, number):
    dask = pytest.importorskip("dask.array")
    adata = with_matrix(cells, dask.from_array(cells.X.toarray().astype(number), chunks=(5, -1)))
    tahoe.tl.embed(adata, demo)
    np.testing.assert_array_equal(np.asarray(adata.obsm["X_tahoe"]), truth)


def test_numbers_in_a_zarr_store(cells, demo, truth, tmp_path):
    """Version 2 of zarr keeps the byte order in the type, version 3 in a codec."""
    for version in (2, 3):
        root = zarr.create_group(tmp_path / f"v{version}.zarr", zarr_format=version)
        for name in ("data", "indices", "indptr"):
            values = getattr(cells.X, name)
            root.create_array(f"X/{name}", data=values.astype(values.dtype.newbyteorder(">")))
        root["X"].attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": cells.shape})
        adata = with_matrix(cells, anndata.io.sparse_dataset(root["X"]))
        tahoe.tl.embed(adata, demo)
        np.testing.assert_array_equal(adata.obsm["X_tahoe"], truth)


def test_columns_in_another_byte_order(cells, demo):
    adata = cells.copy()
    adata.obs["group"] = pd.Series(np.resize([2, 10], 12).astype(">i4"), index=adata.obs_names)
    tahoe.tl.embed_genes(adata, demo, groupby="group")
    assert adata.uns["tahoe"]["groups"] == ["2", "10"]


def test_a_matrix_in_memory_is_no_file(cells, demo):
    """What scipy cannot slice in a view is told as what it is; nobody asks whether a file is whole."""
    matrix = sparse.csr_matrix(cells.X)
    matrix.data = matrix.data.astype(">f4")
    view = with_matrix(cells, matrix)[:5]
    with pytest.raises(
        InputError, match=r'scipy.sparse does not support.*adata.X = adata.X.astype\("float32"\)'
    ) as told:
        tahoe.tl.embed(view, demo)
    assert "whole?" not in str(told.value)


class Breaking(sparse.csr_matrix):
    """A matrix that cannot be read."""

    def __getitem__(self, key):
        message = "no rows today"
        raise RuntimeError(message)


def test_an_unknown_error_in_memory_asks_for_no_file(cells, demo):
    adata = with_matrix(cells, cells.X)
    adata.X = Breaking(cells.X)
    with pytest.raises(InputError, match=r"rows 0 to 11 cannot be read \(RuntimeError: no rows today\)$"):
        tahoe.tl.embed(adata, demo)
