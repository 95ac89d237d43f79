"""The columns of a matrix: which take part, which are added up, and whether another matrix has better ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from tahoe._cells.matrix import NO_REMEDY, choose_matrix, one_column
from tahoe._genes.columns import gene_columns
from tahoe._genes.report import FEW_GENES
from tahoe.errors import GeneError, InputError, listed, warn

if TYPE_CHECKING:
    from scipy import sparse

    from tahoe._cells.matrix import Matrix

# raw is pointed to if it has so many times the genes of a small matrix, or such a share of its counts in genes that are
# zero in the other. Removal of ambient RNA leaves far less.
MORE_GENES, SHARE_IN_RAW = 2, 0.01


def used_columns(matrix: Matrix, mask_var: str | np.ndarray | None) -> tuple[np.ndarray, str]:
    """Which columns take part: gene expression, and of that what `mask_var` selects; and in words what does not."""
    columns = gene_columns(matrix.var)
    used = selected_genes(matrix, mask_var) & columns.are_genes
    if not used.any():
        message = f"{columns.left_out}; no column is left. Pass the AnnData, or the modality, with the RNA"
        raise GeneError(message)
    return used, columns.left_out


def selected_genes(matrix: Matrix, mask_var: str | np.ndarray | None) -> np.ndarray:
    """Which columns `mask_var` selects, as booleans."""
    n_genes = len(matrix.var)
    if mask_var is None:
        return np.ones(n_genes, dtype=bool)
    if isinstance(mask_var, str) and mask_var not in matrix.var:
        message = f"mask_var={mask_var!r} is not a column of var, which has {listed(matrix.var)}"
        raise InputError(message)
    name = f"var[{mask_var!r}]" if isinstance(mask_var, str) else "mask_var"
    given = one_column(matrix.var, mask_var, "var") if isinstance(mask_var, str) else mask_var
    if isinstance(given, pd.Series) and not given.index.equals(matrix.var.index):
        message = f"{name} is a Series with another index than var; pass mask_var[adata.var_names], or its values"
        raise InputError(message)
    if pd.isna(given).any():
        message = f"{name} has missing values; fill them with True or False"
        raise InputError(message)
    mask = np.asarray(given)
    if mask.dtype == object and set(mask.tolist()) <= {True, False}:
        mask = mask.astype(bool)
    if mask.dtype != bool or mask.shape != (n_genes,) or not mask.any():
        seen = (
            f"{mask.dtype} of shape {mask.shape}"
            if mask.dtype != bool or mask.ndim != 1
            else f"{mask.sum()} of {len(mask)}"
        )
        message = f"{name} is {seen}; it must be {n_genes} booleans, one for each gene, not all of them False"
        raise InputError(message)
    return mask


def one_column_each(column_tokens: np.ndarray, summed: np.ndarray) -> np.ndarray:
    """For each column with a token the one at which results of that token stand, else -1.

    That is the first one that is not itself to be added to another.
    """
    places = np.full(len(column_tokens), -1)
    known = np.flatnonzero(column_tokens >= 0)
    order = known[np.argsort(summed[known], kind="stable")]
    _, first, token = np.unique(column_tokens[order], return_index=True, return_inverse=True)
    places[order] = order[first][token]
    return places


def warn_of_sums(block: sparse.csr_array, slot: str, places: np.ndarray) -> None:
    """Warn if values are to be added up that look like logarithms."""
    sizes = np.bincount(places[places >= 0], minlength=len(places))
    added = (places >= 0) & (sizes[places] > 1)
    values = block.data[added[block.indices]]
    if (values != np.rint(values)).any():
        message = (
            f"{added.sum():,} columns of {slot} are added up to {(sizes > 1).sum():,} genes, and their values are not"
            " whole numbers: of logarithms that is not the sum of the counts. Pass layer= with the counts, or map the"
            ' genes with duplicates="best"; counts that were only normalised by cell may be added'
        )
        warn(message)


def warn_of_better_matrix(matrix: Matrix, wanted: np.ndarray) -> None:
    """Warn if another matrix has counts of the wanted columns that this one lacks, or if raw has many more genes."""
    if not matrix.totals.any():
        remedy = matrix.remedy()
        message = f"{matrix.slot} holds only zeros. {remedy}" if remedy != NO_REMEDY else ""
    else:
        message = "" if matrix.slot.kind == "raw" else _describe_raw(matrix, wanted & (matrix.totals == 0))
    if message:
        warn(message)


def _describe_raw(matrix: Matrix, zero: np.ndarray) -> str:
    """Say what raw has beyond a matrix in which some of the wanted columns are zero, "" if it is nothing much."""
    few = len(matrix.var) < FEW_GENES
    try:
        if matrix.adata.raw is None or not (few or zero.any()):
            return ""
        raw = choose_matrix(matrix.adata, use_raw=True)
        block = next(raw.checked_blocks(np.ones(len(raw.var), dtype=bool)))
    except InputError:  # raw is no better
        return ""
    counts = np.bincount(block.indices, weights=block.data, minlength=len(raw.var))
    marked = zero & _is_filtered(matrix)
    only_in_raw = (counts > 0) & raw.var.index.isin(matrix.var.index[zero])
    n_marked = int((only_in_raw & raw.var.index.isin(matrix.var.index[marked])).sum())
    if n_marked or counts[only_in_raw].sum() > SHARE_IN_RAW * counts.sum():
        which = ' (var["feature_is_filtered"] marks such genes)' if n_marked else ""
        seen = f"{only_in_raw.sum():,} genes are zero in {matrix.slot} and counted in raw.X{which}"
    elif few and len(raw.var) > MORE_GENES * len(matrix.var):
        seen = f"{matrix.slot} has {len(matrix.var):,} genes and raw.X {len(raw.var):,}"
    else:
        return ""
    return (
        f"{seen}; the models were trained on whole cells. To read raw.X, pass use_raw=True, or, to a function without"
        " use_raw=, adata.raw.to_adata()"
    )


def _is_filtered(matrix: Matrix) -> np.ndarray:
    """Which columns CELLxGENE's schema marks as left out of this matrix, but not of raw."""
    if "feature_is_filtered" not in matrix.var:
        return np.zeros(len(matrix.var), dtype=bool)
    return matrix.var["feature_is_filtered"].astype(str).str.lower().to_numpy() == "true"
