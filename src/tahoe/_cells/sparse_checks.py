"""Whether a compressed sparse matrix, in memory or in a file, is what it says: before anything relies on it.

Neither scipy nor anndata looks when a file is read, and compiled code then reads beyond the end of the arrays, or
leaves entries out.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from tahoe.errors import InputError, TahoeError
from tahoe.model.causes import advised, first_line

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def explain_read_errors(what: str, in_file: bool = True) -> Iterator[None]:
    """Turn whatever a library raises where it cannot read into an error that says what was read, and what helps."""
    try:
        yield
    except TahoeError:
        raise
    except Exception as error:
        seen = f"{what} cannot be read ({type(error).__name__}: {first_line(error)})"
        message = advised(seen, error, "is the file whole?" if in_file else "")
        raise InputError(message) from error


def check_structure(matrix: Any, slot: str) -> None:
    """Refuse a CSR or CSC matrix whose arrays do not fit each other; anything else passes.

    Of one in a file, only sizes and types are looked at, and the two ends of its pointers: see `check_rows`.

    Raises
    ------
    tahoe.errors.InputError
        With what does not fit.
    """
    if getattr(matrix, "format", "") not in ("csr", "csc"):
        return
    arrays = vars(matrix) if sparse.issparse(matrix) else matrix.group
    pointers, indices, data = (arrays[name] for name in ("indptr", "indices", "data"))
    n_major, n_minor = matrix.shape if matrix.format == "csr" else matrix.shape[::-1]
    shapes = [array.shape for array in (pointers, indices, data)]
    if shapes[0] != (n_major + 1,) or len(shapes[1]) != 1 or shapes[1] != shapes[2]:
        seen = ", ".join(map(str, shapes))
        refuse(slot, f"indptr, indices and data have shapes {seen} for {matrix.shape[0]} × {matrix.shape[1]}")
    if any(array.dtype.kind not in "iu" for array in (pointers, indices)):
        refuse(slot, f"indptr and indices are {pointers.dtype} and {indices.dtype}, not whole numbers")
    n_entries = data.shape[0]
    ends = int(pointers[:1][0]), int(pointers[n_major:][0])
    if ends != (0, n_entries) or (sparse.issparse(matrix) and (pointers[1:] < pointers[:-1]).any()):
        refuse(slot, f"indptr does not rise from 0 to {n_entries}, the number of entries")
    if sparse.issparse(matrix):
        check_indices(indices, n_minor, slot)


def check_rows(pointers: np.ndarray, n_entries: int, n_columns: int, slot: str) -> None:
    """Refuse row pointers, of some rows of a file, that lead astray, or to more than rows can hold."""
    lengths = np.diff(pointers)
    if pointers[0] < 0 or pointers[-1] > n_entries or (lengths < 0).any():
        refuse(slot, f"indptr does not rise from 0 to {n_entries}, the number of entries")
    if lengths.max(initial=0) > n_columns:
        refuse(slot, f"one row has {lengths.max()} entries, and there is room for {n_columns}")


def check_indices(indices: np.ndarray, n_minor: int, slot: str) -> None:
    """Refuse indices that point beyond the matrix."""
    if len(indices) and (indices.min() < 0 or indices.max() >= n_minor):
        refuse(slot, f"indices go from {indices.min()} to {indices.max()}; they must lie between 0 and {n_minor - 1}")


def refuse(slot: str, seen: str) -> None:
    """Refuse a matrix for what was seen."""
    message = f"{slot} is a damaged sparse matrix: {seen}; load it again, or build it again from its source"
    raise InputError(message)
