"""Rows before they become tokens: whether they are what they say, and columns that stand for the same token."""

from __future__ import annotations

import numpy as np

from tahoe.errors import InputError

Rows = tuple[np.ndarray, np.ndarray, np.ndarray]


def refuse_unsafe(indptr: np.ndarray, indices: np.ndarray, data: np.ndarray, column_tokens: np.ndarray) -> None:
    """Refuse arrays that are no CSR rows, and values of genes that are negative or not a number."""
    fits = indptr[0] == 0 and indptr[-1] <= min(len(indices), len(data)) and (indptr[1:] >= indptr[:-1]).all()
    if not fits or (len(indices) and not (indices.min() >= 0 and indices.max() < len(column_tokens))):
        message = "indptr and indices are not those of rows of a CSR matrix with as many columns as column_tokens"
        raise InputError(message)
    if len(data) and not data.min() >= 0:
        lowest = data[column_tokens[indices] >= 0].min(initial=0)
        if not lowest >= 0:
            message = f"data has values like {lowest}; they must be numbers that are not negative"
            raise InputError(message)


def add_columns(indptr: np.ndarray, indices: np.ndarray, data: np.ndarray, column_tokens: np.ndarray) -> Rows:
    """Add the columns of each token to the first of them: CSR rows in, CSR rows out.

    Rows without such columns come back as they are. Sums are taken in float64.
    """
    known = np.flatnonzero(column_tokens >= 0)
    if np.bincount(column_tokens[known], minlength=1).max() <= 1:
        return indptr, indices, data
    target = np.arange(len(column_tokens))
    _, first, token = np.unique(column_tokens[known], return_index=True, return_inverse=True)
    target[known] = known[first][token]
    rows = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
    keys, entry = np.unique(rows * len(column_tokens) + target[indices], return_inverse=True)
    sums = np.bincount(entry, weights=data, minlength=len(keys)).astype(np.float32)
    rows, columns = np.divmod(keys, len(column_tokens))
    return np.searchsorted(rows, np.arange(len(indptr))), columns, sums
