from __future__ import annotations

import anndata
import dask
import dask.array as da
import h5py
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

import tahoe
from tahoe._cells.matrix import choose_matrix
from tahoe._cells.sparse_checks import check_structure
from tahoe.errors import InputError

DAMAGE = {
    "index beyond the columns": lambda m: m["indices"].__setitem__(-1, 10**6),
    "negative index": lambda m: m["indices"].__setitem__(3, -1),
    "pointer falls": lambda m: m["indptr"].__setitem__(2, m["indptr"][5]),
    "pointer beyond the entries": lambda m: m["indptr"].__setitem__(-1, 2**31 - 1),
    "negative pointer": lambda m: m["indptr"].__setitem__(1, -5),
    "pointer starts late": lambda m: m["indptr"].__setitem__(0, 1),
    "too few pointers": lambda m: m.__setitem__("indptr", m["indptr"][:-1]),
    "too few indices": lambda m: m.__setitem__("indices", m["indices"][:-7]),
    "too few values": lambda m: m.__setitem__("data", m["data"][:-7]),
    "too few of both": lambda m: m.update(data=m["data"][:-7], indices=m["indices"][:-7]),
    "indices are fractions": lambda m: m.__setitem__("indices", m["indices"].astype(np.float64)),
    "pointers are fractions": lambda m: m.__setitem__("indptr", m["indptr"].astype(np.float32)),
    "two-dimensional values": lambda m: m.update(data=m["data"][:, None], indices=m["indices"][:, None]),
}
# Doubled entries may make it so in memory, where they are summed.
TOO_LONG = {"a row longer than the matrix is wide": lambda m: m["indptr"].__setitem__(slice(1, -1), m["indptr"][-1])}


def arrays_of(matrix):
    return {name: getattr(matrix, name).copy() for name in ("indptr", "indices", "data")}


def assembled(kind, arrays, shape):
    """What anndata does when it reads a file: no check of anything."""
    matrix = kind(shape, dtype=np.float32)
    for name, array in arrays.items():
        setattr(matrix, name, array)
    return matrix


@pytest.mark.parametrize("kind", [sparse.csr_matrix, sparse.csc_matrix, sparse.csr_array])
@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_matrix_in_memory(tiny, full_cells, kind, damage):
    matrix = kind(full_cells.X)
    arrays = arrays_of(matrix)
    DAMAGE[damage](arrays)
    full_cells.X = assembled(kind, arrays, matrix.shape)
    with pytest.raises(InputError, match="X is a damaged sparse matrix"):
        tahoe.tl.embed(full_cells, tiny)
    assert "X_tahoe" not in full_cells.obsm


@pytest.mark.parametrize("damage", DAMAGE | TOO_LONG)
def test_damaged_matrix_in_a_file(tiny, full_cells, tmp_path, damage):
    full_cells.write_h5ad(tmp_path / "cells.h5ad")
    arrays = arrays_of(full_cells.X)
    (DAMAGE | TOO_LONG)[damage](arrays)
    with h5py.File(tmp_path / "cells.h5ad", "r+") as file:
        for name, array in arrays.items():
            del file["X"][name]
            file["X"][name] = array
    backed = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    with pytest.raises(InputError, match="/?X is a damaged sparse matrix"):
        tahoe.tl.embed(backed, tiny)
    backed.file.close()


def test_size_in_a_file_is_checked_before_memory_is_taken(tiny, full_cells, tmp_path):
    """Ten thousand billion pointers, none of them stored: HDF5 would make them up, 80 TB of them."""
    full_cells.write_h5ad(tmp_path / "cells.h5ad")
    with h5py.File(tmp_path / "cells.h5ad", "r+") as file:
        del file["X/indptr"], file["X/indices"], file["X/data"]
        for name in ("indptr", "indices", "data"):
            file["X"].create_dataset(name, shape=(10**13,), dtype="i8", chunks=(1024,))
    backed = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    with pytest.raises(InputError, match=r"shapes \(10000000000000,\)"):
        tahoe.tl.embed(backed, tiny)
    backed.file.close()


@pytest.mark.parametrize("damage", ["index beyond the columns", "negative index", "pointer falls"])
def test_damaged_chunk_of_a_dask_array(tiny, full_cells, damage):
    arrays = arrays_of(full_cells.X)
    DAMAGE[damage](arrays)
    chunk = dask.delayed(assembled)(sparse.csr_matrix, arrays, full_cells.shape)
    meta = sparse.csr_matrix((0, 0), dtype=np.float32)
    full_cells.X = da.from_delayed(chunk, full_cells.shape, dtype=np.float32, meta=meta)
    with pytest.raises(InputError, match="is a damaged sparse matrix"):
        tahoe.tl.embed(full_cells, tiny, min_coverage=0)


@pytest.mark.parametrize(
    ("array", "change"),
    [
        ("indices", lambda a: a.__setitem__(7, 10**6)),
        ("indices", lambda a: a.__setitem__(7, -1)),
        ("indptr", lambda a: a.__setitem__(-1, 10**9)),
        ("indptr", lambda a: a.__setitem__(3, a[9])),
        ("indptr", lambda a: a.__setitem__(0, 2)),
        ("data", lambda a: a.__setitem__(7, -5000)),
        ("data", lambda a: a.__setitem__(7, np.nan)),
    ],
)
def test_the_tokenizer_itself_reads_nothing_unsafe(tiny, full_cells, array, change):
    """Who calls it directly gets an error, where compiled code would write beyond its arrays."""
    arrays = arrays_of(full_cells.X)
    change(arrays[array])
    tokens = tiny.vocabulary.tokens_of(full_cells.var_names)
    with pytest.raises(InputError):
        tiny.tokenize(assembled(sparse.csr_matrix, arrays, full_cells.shape), tokens)


@pytest.mark.parametrize("change", [sparse.csc_matrix, lambda rows: rows.toarray()])
def test_the_tokenizer_takes_rows_only(tiny, full_cells, change):
    """Columns of a square matrix would pass for rows."""
    square = change(full_cells.X[:, : full_cells.n_obs])
    with pytest.raises(InputError, match=r"must be a CSR matrix, not .*tocsr"):
        tiny.tokenize(square, np.arange(3, 3 + full_cells.n_obs))


@pytest.mark.parametrize("more", [(1, 0), (0, 1), (1 << 40, 0), (0, 1 << 40), (-1, 0), (0, -1)])
def test_shape_in_a_file(tiny, full_cells, tmp_path, more):
    full_cells.write_h5ad(tmp_path / "cells.h5ad")
    with h5py.File(tmp_path / "cells.h5ad", "r+") as file:
        file["X"].attrs["shape"] = np.add(full_cells.shape, more)
    backed = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    with pytest.raises(InputError, match="X says that its shape is"):
        tahoe.tl.embed(backed, tiny)
    backed.file.close()


@pytest.mark.parametrize("array", ["data", "indices", "indptr"])
def test_chunk_that_cannot_be_read(tiny, full_cells, tmp_path, write_zarr, array):
    write_zarr(full_cells, tmp_path / "cells.zarr")
    store = zarr.open_group(tmp_path / "cells.zarr", mode="r")
    on_disk = anndata.AnnData(anndata.io.sparse_dataset(store["X"]), obs=full_cells.obs, var=full_cells.var)
    chunks = [
        path for path in (tmp_path / "cells.zarr" / "X" / array).rglob("*") if path.name == "0" and path.is_file()
    ]
    assert chunks
    for chunk in chunks:
        chunk.write_bytes(chunk.read_bytes()[:-9])
    with pytest.raises(InputError, match="cannot be read"):
        tahoe.tl.embed(on_disk, tiny)
    assert "X_tahoe" not in on_disk.obsm


def test_a_damaged_layer_is_not_proposed(full_cells):
    arrays = arrays_of(full_cells.X)
    arrays["indices"][3] = -1
    full_cells.layers["counts"] = assembled(sparse.csr_matrix, arrays, full_cells.shape)
    full_cells.X = full_cells.X - sparse.csr_matrix(full_cells.X > 0)
    full_cells.X.data -= 1
    assert "layers" not in choose_matrix(full_cells).remedy()


@st.composite
def damaged(draw):
    """Small pointers, indices and values that fit each other only now and then."""
    shape = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    whole = st.integers(-2, 6)
    pointers = np.cumsum([0, *draw(st.lists(st.integers(-1, 3), min_size=shape[0] - 1, max_size=shape[0] + 1))])
    indices = np.array(draw(st.lists(whole, max_size=8)), dtype=draw(st.sampled_from([np.int32, np.int64])))
    kind = draw(st.sampled_from([sparse.csr_matrix, sparse.csc_matrix]))
    n_values = len(indices) + draw(st.sampled_from([0, 0, 0, -1, 1]))
    data = np.ones(max(n_values, 0), dtype=np.float32)
    return assembled(kind, {"indptr": pointers, "indices": indices, "data": data}, shape)


@settings(max_examples=400, deadline=None)
@given(damaged())
def test_what_passes_is_what_scipy_calls_valid(matrix):
    try:
        check_structure(matrix, "X")
    except InputError:
        return
    matrix.check_format(full_check=True)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_order_duplicates_and_wide_pointers_do_not_matter(data):
    """Unsorted, doubled, 64-bit: all legal, and all the same matrix."""
    n_rows, n_columns = data.draw(st.integers(1, 6)), data.draw(st.integers(2, 8))
    cells = st.tuples(st.integers(0, n_rows - 1), st.integers(0, n_columns - 1), st.integers(0, 9))
    entries = data.draw(st.lists(cells, max_size=20))
    rows, columns, values = np.array([*entries, (0, 0, 0)]).T
    dense = np.zeros((n_rows, n_columns), dtype=np.float32)
    np.add.at(dense, (rows, columns), values)
    order = np.argsort(rows, kind="stable")
    pointers = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=n_rows))])
    matrix = assembled(
        sparse.csr_matrix,
        {
            "indptr": pointers.astype(np.int64),
            "indices": columns[order].astype(np.int64),
            "data": values[order].astype(np.float32),
        },
        dense.shape,
    )
    adata = anndata.AnnData(dense)
    adata.X = matrix
    block = next(choose_matrix(adata).blocks())
    np.testing.assert_array_equal(block.toarray(), dense)
    assert block.has_canonical_format
    assert (block.data != 0).all()
