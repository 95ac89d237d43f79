"""What any representation has to beat, made from the very data that it is judged on."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from anndata import AnnData
    from scipy import sparse

N_COMPONENTS = 50


def log_normalised(counts: sparse.csr_matrix, are_counts: bool = True) -> AnnData:
    """Each cell scaled to the median total and logged, with scanpy's defaults."""
    import scanpy as sc
    from anndata import AnnData

    adata = AnnData(counts.copy())
    if are_counts:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Some cells have zero counts", UserWarning)
            sc.pp.normalize_total(adata)
        sc.pp.log1p(adata)
    return adata


def pca(counts: sparse.csr_matrix, are_counts: bool = True, seed: int = 0) -> np.ndarray:
    """Up to 50 principal components of log-normalised counts: cells × components."""
    return _with_pca(counts, are_counts, seed).obsm["X_pca"]


def pca_loadings(counts: sparse.csr_matrix, are_counts: bool = True, seed: int = 0) -> np.ndarray:
    """Loading of each gene on these components, times the component's standard deviation: genes × components."""
    adata = _with_pca(counts, are_counts, seed)
    return adata.varm["PCs"] * np.sqrt(adata.uns["pca"]["variance"])


def _with_pca(counts: sparse.csr_matrix, are_counts: bool, seed: int) -> AnnData:
    import scanpy as sc

    adata = log_normalised(counts, are_counts)
    sc.pp.pca(adata, n_comps=min(N_COMPONENTS, min(adata.shape) - 1), random_state=seed)
    return adata


def cell_totals(counts: sparse.csr_matrix, are_counts: bool = True) -> np.ndarray:
    """What is known of a cell without its genes: log total, number of genes, mean expression; each standardised."""
    expression = log_normalised(counts, are_counts).X
    totals = np.asarray(counts.sum(axis=1)).ravel()
    return _standardised(np.log1p(totals), np.diff(counts.indptr), np.asarray(expression.mean(axis=1)).ravel())


def gene_expression(counts: sparse.csr_matrix, are_counts: bool = True) -> np.ndarray:
    """Mean log expression of each gene and the share of cells that express it, as they are: genes × 2."""
    expression = log_normalised(counts, are_counts).X
    detected = np.bincount(counts.indices[counts.data > 0], minlength=counts.shape[1]) / counts.shape[0]
    return np.stack([np.asarray(expression.mean(axis=0)).ravel(), detected], axis=1)


def noise(n_rows: int, seed: int = 0) -> np.ndarray:
    """Random numbers: rows × 50."""
    return np.random.default_rng(seed).standard_normal((n_rows, N_COMPONENTS))


def _standardised(*columns: np.ndarray) -> np.ndarray:
    values = np.stack(columns, axis=1).astype(np.float64)
    spread = values.std(axis=0)
    return (values - values.mean(axis=0)) / np.where(spread > 0, spread, 1)
