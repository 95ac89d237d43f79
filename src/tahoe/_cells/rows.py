"""Rows of a matrix, whatever holds it: in memory, in an h5ad or zarr file, or lazy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from tahoe._cells.sparse_checks import check_indices, check_rows, check_structure, explain_read_errors

if TYPE_CHECKING:
    from collections.abc import Iterator

# Rows held at once: a block of 512 cells with 3,000 genes each is about 12 MB.
BLOCK_CELLS = 512


def is_lazy(values: Any) -> bool:
    """Whether this is a dask array; dask is not imported to find out."""
    return hasattr(values, "__dask_graph__")


def in_file(values: Any) -> bool:
    """Whether this is a sparse matrix that lies in a file."""
    return hasattr(values, "group") and hasattr(values, "format") and not sparse.issparse(values)


def _is_array(values: Any) -> bool:
    """Whether a matrix lies in memory, and no file is behind it."""
    return sparse.issparse(values) or isinstance(values, np.ndarray)


def by_rows(values: Any, slot: str = "a chunk of the matrix") -> Any:
    """Check a sparse matrix, and turn it if it is not CSR, since each slice would cost a pass over the whole of it."""
    with explain_read_errors(slot, not _is_array(values)):
        check_structure(values, slot)
        if not sparse.issparse(values):
            return values
        return _computable(values).tocsr()


def _computable(matrix: Any) -> Any:
    """The same sparse matrix in numbers that scipy can slice: in this machine's byte order, and not in 16 bits."""
    dtype = np.dtype(np.float32) if matrix.dtype == np.float16 else matrix.dtype.newbyteorder("=")
    return matrix if matrix.dtype == dtype else matrix.astype(dtype)


def row_blocks(values: Any, start: int, stop: int) -> Iterator[sparse.csr_array]:
    """Walk rows in order, a few at a time, as canonical CSR in float32: no duplicates, no stored zeros."""
    if is_lazy(values):
        for chunk in _chunks(values, start, stop):
            yield from row_blocks(chunk, 0, chunk.shape[0])
        return
    for first in range(start, stop, BLOCK_CELLS):
        last = min(first + BLOCK_CELLS, stop)
        with explain_read_errors(f"rows {first} to {last - 1}", not _is_array(values)):
            rows = _read(values, first, last)
        yield canonical_csr(rows)


def canonical_csr(rows: Any) -> sparse.csr_array:
    """Any slice of rows as CSR in float32, without touching the user's arrays.

    In float32 before anything is checked: a value beyond its range is infinite, and so refused.
    """
    with np.errstate(over="ignore"):
        if not sparse.issparse(rows):
            return sparse.csr_array(np.asarray(rows).astype(np.float32))
        block = sparse.csr_array(rows)
        if not block.has_canonical_format:
            # in float64, since a sum of small integers may not fit their own type
            block = block.astype(np.float64)
            block.sum_duplicates()
        if block.dtype != np.float32:
            block = block.astype(np.float32)
    if block.nnz and not block.data.all():
        block = block.copy()
        block.eliminate_zeros()
    return block


def _read(values: Any, start: int, stop: int) -> Any:
    """Some rows, as whatever the storage gives."""
    if not in_file(values):
        return values[start:stop]
    # Straight from the three arrays: anndata would keep the row pointers of the whole file in memory.
    indptr = np.asarray(values.group["indptr"][start : stop + 1]).astype(np.int64)
    n_columns, slot = values.shape[1], values.group.name
    check_rows(indptr, values.group["data"].shape[0], n_columns, slot)
    here = slice(int(indptr[0]), int(indptr[-1]))
    indices = values.group["indices"][here]
    check_indices(indices, n_columns, slot)
    return sparse.csr_array((values.group["data"][here], indices, indptr - indptr[0]), shape=(stop - start, n_columns))


def _chunks(values: Any, start: int, stop: int) -> Iterator[Any]:
    """Compute a dask array chunk by chunk, each chunk once."""
    first = 0
    for number, n_rows in enumerate(values.chunks[0]):
        if first < stop and first + n_rows > start:
            with explain_read_errors(f"the chunk of rows {first} to {first + n_rows - 1}"):
                chunk = values.blocks[number].compute()
            yield by_rows(chunk)[max(start - first, 0) : stop - first]
        first += n_rows
