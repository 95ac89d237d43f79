from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from tahoe import _genes
from tahoe._adata import to_change, write
from tahoe._matrix import choose_matrix
from tahoe._objects import check_adata
from tahoe.errors import InputError, TahoeWarning

if TYPE_CHECKING:
    import numpy as np
    from anndata import AnnData


def map_genes(
    adata: AnnData, *, gene_key: str | None = None, organism: str = "human", copy: bool = False
) -> AnnData | None:
    """Find the Ensembl gene that each column stands for.

    Works offline, with the gene table of this package. Ensembl ids are recognised with and without version; symbols
    may be current, previous or alias symbols, or names that Ensembl has given up; names that R, pandas, scanpy, Excel
    or a genome prefix have changed are repaired. A name that may mean several genes gets none. Of several columns for
    one gene, the one with the most certain name keeps it, then the one with most counts. No column is dropped or moved.

    Parameters
    ----------
    adata
        The data. Its values are only summed over the cells, and may be counts or any non-negative transform of them.
    gene_key
        Column of ``adata.var`` with the identifiers, or ``"var_names"``; `None` takes the one that resolves most genes.
    organism
        ``"human"``, or ``"mouse"`` to replace each mouse gene by its human ortholog, which is an approximation.
    copy
        Return a changed copy instead of changing `adata`.

    Returns
    -------
    `None`, or the changed copy if ``copy=True``. Sets these fields:

    ``adata.var["tahoe_gene"]``
        Ensembl id of each column, an empty string where it has none.
    ``adata.var["tahoe_match"]``
        How it was found: ``ensembl``, ``symbol``, ``previous``, ``alias``, ``retired`` or ``ortholog``; or why not:
        ``ambiguous``, ``duplicate`` or ``unmapped``.
    ``adata.uns["tahoe_genes"]``
        The report: genes and shares of the counts by match and in the vocabulary of the released models, and the most
        expressed genes that were lost.

    Raises
    ------
    tahoe.errors.InputError
        If `adata` is no AnnData, `gene_key` is not a column, or `organism` is unknown.
    tahoe.errors.GeneError
        If not a single gene is found.

    Warns
    -----
    tahoe.errors.TahoeWarning
        If much of the counts is in genes that the released models do not know.

    Examples
    --------
    >>> import tahoe
    >>> adata = tahoe.datasets.pbmc68k()
    >>> tahoe.pp.map_genes(adata)
    >>> adata.var.loc["CD3D", "tahoe_gene"]
    'ENSG00000167286'
    >>> adata.uns["tahoe_genes"]["n_in_vocabulary"] > 750
    True
    """
    check_adata(adata)
    adata = to_change(adata, copy)
    totals, slot = _totals(adata)
    mapping = _genes.map_genes(adata.var, totals, gene_key=gene_key, organism=organism)
    report = mapping.report
    if slot:
        report["counts_from"] = slot
    if report["hint"]:
        warnings.warn(report["summary"], TahoeWarning, stacklevel=2)
    write(adata, mapping=mapping)
    return adata if copy else None


def _totals(adata: AnnData) -> tuple[np.ndarray | None, str]:
    """Sum of each gene and the slot it comes from: X, or a layer with counts where X is scaled or missing."""
    for layer in (None, *(name for name in adata.layers if "count" in name.lower())):
        try:
            matrix = choose_matrix(adata, layer=layer)
            totals = _genes.usable_totals(matrix.totals)
        except InputError:  # no X, no cells, storage that cannot be read by rows: names alone can still be mapped
            continue
        if totals is not None:
            return totals, matrix.slot
    return None, ""
