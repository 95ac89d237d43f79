"""Real cells to try things on, without a download."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import os

    from anndata import AnnData

    from tahoe._reference.reference import Reference

__all__ = ["pbmc68k", "pbmc68k_reference"]


def pbmc68k() -> AnnData:
    """700 blood cells with their counts :cite:p:`Zheng2017`.

    scanpy ships these cells as `scanpy.datasets.pbmc68k_reduced`, scaled in ``X`` and log-normalised in ``raw``, for
    765 highly variable genes. The counts come back exactly from ``raw`` and the cells' totals: undoing the logarithm
    and the normalisation gives whole numbers but for rounding.

    Returns
    -------
    700 cells × 765 genes, counts in ``X`` (CSR, float32), gene symbols as names. ``obs["bulk_labels"]`` has ten cell
    types, ``obs["n_counts"]`` the total over all genes of the original data, of which these are about a fifth.

    Examples
    --------
    >>> import tahoe
    >>> adata = tahoe.datasets.pbmc68k()
    >>> adata.shape
    (700, 765)
    """
    import warnings

    import anndata
    import numpy as np
    import pandas as pd
    import scanpy as sc
    from scipy import sparse

    with warnings.catch_warnings():
        # The file is older than anndata's current format, and scanpy reads it with warnings.
        warnings.simplefilter("ignore")
        scaled = sc.datasets.pbmc68k_reduced()
    normalised = sparse.csr_matrix(scaled.raw.X)
    totals = scaled.obs["n_counts"].to_numpy(dtype=np.float64)
    per_entry = np.repeat(totals, np.diff(normalised.indptr))
    counts = np.rint(np.expm1(normalised.data.astype(np.float64)) * per_entry / 1e4).astype(np.float32)
    matrix = sparse.csr_matrix((counts, normalised.indices, normalised.indptr), shape=normalised.shape)
    obs = scaled.obs[["bulk_labels", "n_genes", "n_counts", "percent_mito", "phase"]].copy()
    return anndata.AnnData(matrix, obs=obs, var=pd.DataFrame(index=scaled.raw.var_names))


def pbmc68k_reference(path: str | os.PathLike[str]) -> Reference:
    """Make a small reference of `pbmc68k` with the demo model, for trying out label transfer: not for science.

    Parameters
    ----------
    path
        Folder to write; if it is there already, it is opened.

    Returns
    -------
    A reference of 700 cells, with their ``bulk_labels`` (ten cell types) and cell cycle ``phase``. Making it takes some
    ten seconds.

    Raises
    ------
    tahoe.errors.InputError
        If `path` is something else, or cannot be written.

    Examples
    --------
    >>> import tahoe, tempfile
    >>> blood = tahoe.datasets.pbmc68k_reference(tempfile.mkdtemp() + "/blood.tahoe")
    >>> len(blood.labels("bulk_labels"))
    10
    """
    from pathlib import Path

    from tahoe._reference.build import build_reference
    from tahoe._reference.reference import load_reference
    from tahoe.tl import embed

    if Path(path).exists():
        return load_reference(path)
    adata = pbmc68k()
    embed(adata, "demo")
    return build_reference(adata, path, obs_keys=["bulk_labels", "phase"])
