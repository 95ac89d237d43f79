"""Gene identifiers: which Ensembl gene each column of a matrix stands for, told offline by name."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from tahoe._gene_debris import as_text
from tahoe._gene_names import Resolved, resolve_names
from tahoe._gene_report import check_coverage, describe, refuse_unknown, usable_totals
from tahoe._gene_table import AMBIGUOUS, DUPLICATE, MATCHES, load_table
from tahoe.errors import InputError

__all__ = ["MATCHES", "GeneMapping", "check_coverage", "map_genes", "resolve", "usable_totals"]

ORGANISMS = ("human", "mouse")
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class GeneMapping:
    """What `map_genes` found."""

    gene: np.ndarray
    """For each column its Ensembl id, "" where it has none."""
    match: pd.Categorical
    """For each column how it was matched: one of `MATCHES`."""
    report: dict[str, Any]
    """Numbers of genes and shares of counts: plain values that go into ``uns["tahoe_genes"]``."""


def map_genes(
    var: pd.DataFrame, totals: np.ndarray | None, *, gene_key: str | None = None, organism: str = "human"
) -> GeneMapping:
    """Find the Ensembl gene of each row of `var`.

    Parameters
    ----------
    var
        The genes, as in ``adata.var``.
    totals
        Sum of each gene over all cells, or `None`. They settle which of several columns keeps a gene, and give the
        shares of counts in the report; negative or missing values are left out of account.
    gene_key
        Column of `var` with the identifiers; `None` takes the index or the column that most genes resolve with.
    organism
        ``"human"``, or ``"mouse"`` to go through orthologs.

    Raises
    ------
    tahoe.errors.InputError
        If `organism` is unknown or `gene_key` is not a column.
    tahoe.errors.GeneError
        If not a single gene is found.
    """
    key, names, resolved = _choose_names(var, gene_key, organism)
    usable = usable_totals(totals)
    tiers = _settle_duplicates(resolved, names, np.zeros(len(names)) if usable is None else usable)
    if not (resolved.genes[tiers < AMBIGUOUS] > 0).any():
        refuse_unknown(names, organism, key)
    gene = _as_ids(np.where(tiers < AMBIGUOUS, resolved.genes, 0))
    match = pd.Categorical(np.array(MATCHES, dtype=object)[tiers], categories=list(MATCHES))
    annotations = load_table(organism).annotations
    annotation = annotations[resolved.annotation] if resolved.annotation is not None else ""
    report = describe(names, gene, tiers, usable, organism=organism, gene_key=key, annotation=annotation)
    logger.info("%s", report["summary"])
    return GeneMapping(gene, match, report)


def resolve(names: Any, organism: str = "human") -> tuple[np.ndarray, np.ndarray]:
    """Find what each name means by itself.

    Returns
    -------
    The Ensembl id of each name, "" where there is none, and how it was matched: two arrays of strings.
    """
    resolved = resolve_names(_as_strings(names), organism)
    return _as_ids(resolved.genes), np.array(MATCHES, dtype=object)[resolved.tiers]


def _choose_names(var: pd.DataFrame, gene_key: str | None, organism: str) -> tuple[str, np.ndarray, Resolved]:
    """The identifiers to go by, where they lie, and what they mean."""
    if organism not in ORGANISMS:
        message = f"organism={organism!r} is not known; it can be {' or '.join(map(repr, ORGANISMS))}"
        raise InputError(message)
    if gene_key is not None and gene_key not in (*var.columns, "var_names"):
        columns = ", ".join(map(repr, var.columns)) or "none"
        message = f"gene_key={gene_key!r} is not a column of adata.var, which has: {columns}. None picks the best."
        raise InputError(message)
    if gene_key is not None and gene_key != "var_names":
        options = {gene_key: var[gene_key]}
    else:
        options = {"var_names": pd.Series(var.index)}
        if gene_key is None:
            # the index is var_names, whatever a column is called
            named = [key for key in var.columns if key != "var_names" and _may_name_genes(str(key), var[key])]
            options |= {str(key): var[key] for key in named}
    names = {key: _as_strings(column) for key, column in options.items()}
    key = next(iter(names))
    if len(names) > 1:
        # Exact names usually tell; only where they find little is each column worth the repairs.
        for repair in (False, True):
            found = {key: _genes_of_models(resolve_names(names[key], organism, repair=repair)) for key in names}
            key = max(found, key=found.__getitem__)  # the first of several: var_names
            if found[key] > len(var) / 2:
                break
    return key, names[key], resolve_names(names[key], organism)


def _may_name_genes(key: str, column: pd.Series) -> bool:
    """Whether a column holds strings, most of them different; what this package wrote itself does not count."""
    if key.startswith("tahoe_"):
        return False
    values = column.cat.categories if isinstance(column.dtype, pd.CategoricalDtype) else column
    if not pd.api.types.is_string_dtype(values) and not pd.api.types.is_object_dtype(values):
        return False
    present = column.dropna()
    # lists and other objects are no names, and cannot be counted
    if not all(isinstance(name, str | bytes) for name in present):
        return False
    return present.nunique() > len(column) / 2


def _as_strings(values: Any) -> np.ndarray:
    """Names as an array of Python strings, "" where one is missing."""
    return np.array([as_text(name) for name in np.array(values, dtype=object)], dtype=object)


def _genes_of_models(resolved: Resolved) -> int:
    """How many genes, each counted once, the released models know."""
    return int(np.isin(load_table("human").vocabulary, resolved.genes).sum())


def _settle_duplicates(resolved: Resolved, names: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Tiers in which only one column keeps each gene: the most certain one, then the one with most counts."""
    tiers = resolved.tiers.copy()
    places = np.flatnonzero(resolved.genes > 0)
    _, group, sizes = np.unique(resolved.genes[places], return_inverse=True, return_counts=True)
    places, group = places[sizes[group] > 1], group[sizes[group] > 1]
    # Names break what ties remain, so that the order of the columns says nothing.
    order = np.lexsort((names[places].astype(str), -weights[places], resolved.certainty[places], group))
    places, group = places[order], group[order]
    tiers[places[1:][group[1:] == group[:-1]]] = DUPLICATE
    return tiers


def _as_ids(genes: np.ndarray) -> np.ndarray:
    return np.array([f"ENSG{gene:011d}" if gene else "" for gene in genes.tolist()], dtype=object)
