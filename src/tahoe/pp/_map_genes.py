from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tahoe._cells.genes import genes_are_rows, hint_if_transposed
from tahoe._cells.matrix import choose_matrix, in_memory, named_layers
from tahoe._cells.objects import check_adata
from tahoe._cells.slots import copy_or_self, write
from tahoe._genes.columns import gene_columns
from tahoe._genes.mapping import map_genes as find_genes
from tahoe._genes.report import non_negative_totals
from tahoe._run.parameters import document_parameters
from tahoe.errors import InputError, warn

if TYPE_CHECKING:
    from anndata import AnnData


@document_parameters
def map_genes(
    adata: AnnData,
    *,
    gene_key: str | None = None,
    organism: str = "human",
    duplicates: str = "best",
    copy: bool = False,
) -> AnnData | None:
    """Find the Ensembl gene that each column stands for.

    Works offline, with the gene table of this package. Ensembl ids are recognised with and without version; symbols
    may be current, previous or alias symbols, or names that Ensembl has given up; names that R, pandas, scanpy, Excel
    or a genome prefix have changed are repaired. A name that may mean several genes gets none. No column is dropped or
    moved.

    Columns that ``adata.var["feature_types"]`` (or ``feature_type``, ``modality``) calls antibodies, peaks, guides or
    anything but gene expression take no part.

    Parameters
    ----------
    adata
        Annotated data matrix, cells × genes. Its values are only summed over the cells, and may be counts or any
        non-negative transform of them.
    organism
        ``"human"``, or ``"mouse"`` to replace each mouse gene by its human ortholog, which is an approximation.
    duplicates
        What becomes of several columns of one gene. With ``"best"`` the one with the most certain name keeps it, then
        the one with most counts, and the others count for nothing. ``"sum"`` adds their counts to that one whenever
        cells are read, as probes of a targeted panel ask for; `adata.X` stays as it is. It needs counts, or counts that
        were only normalised by cell: not logarithms.

    Returns
    -------
    `None`, or the changed copy if ``copy=True``. Sets these fields:

    ``adata.var["tahoe_gene"]``
        Ensembl id of each column, an empty string where it has none. Several columns have the same one only with
        ``duplicates="sum"``.
    ``adata.var["tahoe_match"]``
        How it was found: ``ensembl``, ``symbol``, ``previous``, ``alias``, ``retired`` or ``ortholog``; or why not:
        ``ambiguous``, ``duplicate``, ``unmapped`` or ``modality``. ``summed`` columns are added to another column of
        their gene.
    ``adata.uns["tahoe_genes"]``
        The report: genes and shares of the counts by match and in the vocabulary of the released models, the most
        expressed genes that were lost, what became of duplicates, and which columns took no part.

    Raises
    ------
    tahoe.errors.InputError
        If `adata` is no AnnData, `gene_key` is not a column, or `organism` or `duplicates` is unknown.
    tahoe.errors.GeneError
        If not a single gene is found.

    Warns
    -----
    tahoe.errors.TahoeWarning
        If much of the counts is in genes that the released models do not know, or if two columns of names contradict
        each other.

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
    adata = copy_or_self(adata, copy)
    totals, slot = _totals(adata)
    with hint_if_transposed(adata, organism):
        mapping = find_genes(in_memory(adata.var), totals, gene_key=gene_key, organism=organism, duplicates=duplicates)
    report = mapping.report
    if slot:
        report["counts_from"] = slot
    if report["hint"]:
        message = f"{report['summary']} {genes_are_rows(adata, organism)}".strip()
        warn(message)
    if report["contradiction"]:
        warn(report["contradiction"])
    write(adata, mapping=mapping)
    return adata if copy else None


def _totals(adata: AnnData) -> tuple[np.ndarray | None, str]:
    """Sum of each gene and the slot it comes from: X, or a layer with counts where X is scaled or missing."""
    for layer in (None, *(name for name in named_layers(adata) if "count" in name.lower())):
        try:
            matrix = choose_matrix(adata, layer=layer)
            are_genes = gene_columns(matrix.var).are_genes
            totals = non_negative_totals(np.where(are_genes, matrix.totals, 0))
        except InputError:  # no X, no cells, storage that cannot be read by rows: names alone can still be mapped
            continue
        if totals is not None:
            return totals, str(matrix.slot)
    return None, ""
