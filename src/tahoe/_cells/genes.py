"""The genes of an AnnData: the mapping that it has or is given, and whether they lie in its rows."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from tahoe._cells.matrix import one_column
from tahoe._genes.columns import gene_columns
from tahoe._genes.mapping import are_genes, map_genes, prefer_model_ids
from tahoe._genes.report import non_negative_totals
from tahoe.errors import GeneError, InputError, warn

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from tahoe._cells.matrix import Matrix
    from tahoe._genes.mapping import GeneMapping

# No annotation has so many genes: names of more cells are not looked at.
MAX_GENES = 200_000


def organism_of(adata: AnnData) -> str:
    """Whose genes the columns are, as far as an earlier mapping tells."""
    return _earlier_setting(adata, "organism", "human")


def _earlier_setting(adata: AnnData, name: str, default: str) -> str:
    """What an earlier mapping was made with."""
    report = adata.uns.get("tahoe_genes")
    return report.get(name, default) if isinstance(report, Mapping) else default


def genes_are_rows(adata: AnnData, organism: str) -> str:
    """Hint that the matrix lies on its side, "" if the cells do not have the names of genes."""
    if adata.n_obs > MAX_GENES or not are_genes(adata.obs_names, organism):
        return ""
    return "adata.obs_names are the names of genes: the matrix has genes as rows; pass the transposed one, adata.T"


@contextmanager
def hint_if_transposed(adata: AnnData, organism: str) -> Iterator[None]:
    """Say with an error about the genes if the cells have their names."""
    try:
        yield
    except GeneError as error:
        hint = genes_are_rows(adata, organism)
        if not hint:
            raise
        message = f"{error} {hint}"
        raise GeneError(message) from error


def mapped_genes(
    adata: AnnData, matrix: Matrix, used: np.ndarray, **how: str | None
) -> tuple[np.ndarray, np.ndarray, GeneMapping | None]:
    """Ensembl id of each column, which columns are to be added to another one, and the mapping if it had to be made.

    A mapping that is there is taken, unless `how` asks for another by ``gene_key``, ``organism`` or ``duplicates``.
    Only the `used` columns must be mapped in it, and they keep a gene before the others in a new one.
    """
    requested = {name: value for name, value in how.items() if value is not None}
    if "tahoe_gene" in matrix.var and not requested:
        try:
            return *_genes_as_mapped(matrix.var, used), None
        except InputError:
            if matrix.slot.kind != "raw":  # which no call maps again
                raise
    totals = matrix.totals if non_negative_totals(matrix.totals) is not None else np.where(used, matrix.totals, 0)
    earlier = {"organism": organism_of(adata), "duplicates": _earlier_setting(adata, "duplicates", "best")}
    requested = earlier | requested
    with hint_if_transposed(adata, requested["organism"]):
        mapping = map_genes(matrix.var, totals, **requested, preferred=used)
    mapping.report["counts_from"] = str(matrix.slot)
    if mapping.report["contradiction"]:
        warn(mapping.report["contradiction"])
    return mapping.gene, np.asarray(mapping.match == "summed"), mapping


def genes_of_model(
    adata: AnnData, matrix: Matrix, genes: np.ndarray, mapping: GeneMapping | None, vocabulary: Container[str]
) -> np.ndarray:
    """The gene of each column as one model knows it; `mapping` is the one that was just made, if it was."""
    match: Any
    if mapping is not None:
        match, key = mapping.match, mapping.report["gene_key"]
    else:
        key = _earlier_setting(adata, "gene_key", "var_names")
        # without it the mapping is the user's own, and taken as it is
        match = matrix.var.get("tahoe_match", None)
    names = matrix.var.index if key == "var_names" else matrix.var.get(key, None)
    if match is None or names is None or names.ndim > 1:
        return genes
    return prefer_model_ids(genes, np.asarray(match, dtype=str), names, lambda: matrix.totals, vocabulary)


def _genes_as_mapped(var: pd.DataFrame, used: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The genes of an earlier mapping, and which columns it adds to another one of the same gene."""
    column = one_column(var, "tahoe_gene", "var")
    again = 'call tahoe.pp.map_genes(adata) again, or pass duplicates="best" to tahoe.embed_file'
    missing = int((column.isna() & used).sum())
    if missing:
        message = (
            f'var["tahoe_gene"] is missing for {missing} of {len(column)} genes, as after anndata.concat(join="outer");'
            f" {again}. A column that is to have no gene has an empty string, ''"
        )
        raise InputError(message)
    genes = column.astype(object).where(column.notna(), "").astype(str)
    elsewhere = ~gene_columns(var).are_genes & (genes != "")
    if not set(genes[elsewhere]) <= set(genes[used]):
        message = (
            f'var["tahoe_gene"] has genes for {elsewhere.sum()} columns that are not gene expression, as if they had'
            f" been mapped before that was known; {again}"
        )
        raise InputError(message)
    summed = np.asarray(var["tahoe_match"] == "summed") if "tahoe_match" in var else np.zeros(len(var), dtype=bool)
    own = genes[used & ~summed & (genes != "")]
    twice = own[own.duplicated()]
    if len(twice):
        message = (
            f'var["tahoe_gene"] has {twice.iloc[0]} in several columns, as after anndata.concat(axis="var"); {again}:'
            ' that settles which column keeps the gene. duplicates="sum" adds them up'
        )
        raise InputError(message)
    return genes.to_numpy(dtype=object), summed
