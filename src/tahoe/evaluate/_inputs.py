"""What evaluations read of an AnnData: representations, labels, counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from tahoe._cells.matrix import choose_matrix
from tahoe._cells.slots import column_of
from tahoe._genes.columns import gene_columns
from tahoe.errors import InputError, similar_names, warn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData


def names_of(use_rep: str | Sequence[str], baselines: Sequence[str]) -> list[str]:
    """The representations that are named, each once, none of them called like a baseline."""
    names = [use_rep] if isinstance(use_rep, str) else list(use_rep)
    if not names or any(not isinstance(name, str) for name in names):
        message = f'use_rep={use_rep!r}: pass one or more names of representations, such as ["X_tahoe"]'
        raise InputError(message)
    clash = [name for name in names if name in baselines]
    if clash or len(set(names)) < len(names):
        reason = f"{clash[0]!r} is the name of a baseline" if clash else "a name is there twice"
        message = f"use_rep={names!r}: {reason}; rename the slot"
        raise InputError(message)
    return names


def read_representation(adata: AnnData, container: str, key: str) -> np.ndarray:
    """A representation in ``obsm`` or ``varm`` as a float array, rows × dimensions.

    Raises
    ------
    tahoe.errors.InputError
        If there is no such slot, or it does not hold numbers.
    """
    slots = getattr(adata, container)
    if key not in slots:
        message = f"{container}[{key!r}] does not exist; adata.{container} has {similar_names(key, slots)}"
        raise InputError(message)
    values: Any = slots[key]
    values = values.toarray() if sparse.issparse(values) else values
    vectors = np.asarray(values.to_numpy() if isinstance(values, pd.DataFrame) else values)
    if vectors.ndim != 2 or not vectors.shape[1] or vectors.dtype.kind not in "fiub":
        message = f"{container}[{key!r}] is {vectors.dtype} of shape {vectors.shape}; it must be a matrix of numbers"
        raise InputError(message)
    return vectors if vectors.dtype in (np.float32, np.float64) else vectors.astype(np.float32)


def check_finite(vectors: np.ndarray, slot: str, names: pd.Index) -> None:
    """Refuse rows with NaN or infinite values, and name the first of them."""
    broken = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(broken):
        message = (
            f"{slot} has NaN or infinite values in {len(broken)} of {len(vectors)} rows, first in {names[broken[0]]!r};"
            " leave these out (adata[...].copy()), or compute it again"
        )
        raise InputError(message)


def read_groups(adata: AnnData, argument: str, key: str, rows: np.ndarray) -> np.ndarray:
    """A column of ``obs`` as strings, in the given rows; none may be missing."""
    column = column_of(adata, key, argument).iloc[rows]
    if column.isna().any():
        message = f"obs[{key!r}] is missing for {column.isna().sum()} labelled cells; fill it in, or leave these out"
        raise InputError(message)
    return column.astype(str).to_numpy(dtype=object).astype(str)


def read_counts(adata: AnnData, *, layer: str | None = None, use_raw: bool = False) -> tuple[sparse.csr_matrix, bool]:
    """The matrix for the baselines, and whether it holds counts (whole numbers); what is no gene is left empty.

    Raises
    ------
    tahoe.errors.InputError
        If it has negative or missing values.
    """
    matrix = choose_matrix(adata, layer=layer, use_raw=use_raw)
    are_genes = gene_columns(matrix.var).are_genes
    counts = sparse.csr_matrix(sparse.vstack(list(matrix.checked_blocks(are_genes))))
    counts.data[~are_genes[counts.indices]] = 0
    counts.eliminate_zeros()
    whole = bool((counts.data == np.rint(counts.data)).all())
    if not whole:
        message = (
            f"{matrix.slot} does not hold whole numbers, so the baselines take it as log-normalised already; pass"
            " layer= or use_raw= if there are counts"
        )
        warn(message)
    return counts, whole
