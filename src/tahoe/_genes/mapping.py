"""Gene identifiers: which Ensembl gene each column of a matrix stands for, found offline by its name."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from tahoe._genes.clean import as_text
from tahoe._genes.columns import gene_columns
from tahoe._genes.name_repair import Resolved, find_id, resolve_names
from tahoe._genes.report import describe, non_negative_totals, refuse_unknown
from tahoe._genes.table import AMBIGUOUS, DUPLICATE, ENSEMBL, MATCHES, MODALITY, SUMMED, load_table
from tahoe.errors import GeneError, InputError, check_choice, listed

if TYPE_CHECKING:
    from collections.abc import Callable, Container

ORGANISMS = ("human", "mouse")
DUPLICATES = ("best", "sum")
# Names and ids of one annotation differ in less than one gene of a hundred.
CONTRADICTION, LEAST_CONTRADICTIONS = 0.05, 10
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
    var: pd.DataFrame,
    totals: np.ndarray | None,
    *,
    gene_key: str | None = None,
    organism: str = "human",
    duplicates: str = "best",
    preferred: np.ndarray | None = None,
) -> GeneMapping:
    """Find the Ensembl gene of each row of `var`; `tahoe.pp.map_genes` describes the arguments.

    `totals`, the sum of each gene over the cells, settle which of several columns keeps a gene, and give the shares of
    counts in the report. `preferred` columns keep a gene before all others do, whatever they are called.
    """
    _check_arguments(var, gene_key, organism, duplicates)
    columns = gene_columns(var)
    inside = np.flatnonzero(columns.are_genes)
    if not len(inside):
        message = f"{columns.left_out}; pass the AnnData or the modality with the RNA"
        raise GeneError(message)
    key, names, resolved, contradiction = _choose_names(var.iloc[inside], gene_key, organism)
    usable = non_negative_totals(None if totals is None else np.asarray(totals)[inside])
    first = columns.are_labelled if preferred is None else columns.are_labelled & preferred
    tiers = _settle_duplicates(
        resolved, names, np.zeros(len(names)) if usable is None else usable, first[inside], duplicates
    )
    has_gene = (tiers < AMBIGUOUS) | (tiers == SUMMED)
    if not (resolved.genes[has_gene] > 0).any():
        refuse_unknown(names, organism, key)
    gene = _as_ids(np.where(has_gene, resolved.genes, 0))
    annotations = load_table(organism).annotations
    annotation = annotations[resolved.annotation] if resolved.annotation is not None else ""
    report = describe(
        *(names, gene, tiers, usable),
        n_left_out=len(var) - len(inside),
        organism=organism,
        gene_key=key,
        annotation=annotation,
        duplicates=duplicates,
        left_out=columns.left_out,
        contradiction=contradiction,
    )
    logger.info("%s", report["summary"])
    all_genes, all_tiers = np.full(len(var), "", dtype=object), np.full(len(var), MODALITY)
    all_genes[inside], all_tiers[inside] = gene, tiers
    match = pd.Categorical(np.array(MATCHES, dtype=object)[all_tiers], categories=list(MATCHES))
    return GeneMapping(all_genes, match, report)


def resolve(names: Any, organism: str = "human") -> tuple[np.ndarray, np.ndarray]:
    """Find what each name means by itself.

    Returns
    -------
    The Ensembl id of each name, "" where there is none, and how it was matched: two arrays of strings.
    """
    resolved = resolve_names(as_strings(names), organism)
    return _as_ids(resolved.genes), np.array(MATCHES, dtype=object)[resolved.tiers]


def prefer_model_ids(
    genes: np.ndarray,
    match: np.ndarray,
    names: Any,
    totals: Callable[[], np.ndarray],
    vocabulary: Container[str],
) -> np.ndarray:
    """The gene of each column as one model knows it: an id that stands in its vocabulary is taken as it is.

    The tables give a retired id to its successor, which a model made with the old one does not know. The mapping itself
    belongs to no model, and stays as it is; so do columns that were given another gene by hand. Of several columns with
    one id, the sums that `totals` gives settle which one keeps it.
    """
    names = as_strings(names)
    by_hand = (genes == "") != np.isin(match, MATCHES[AMBIGUOUS:])
    taken, own = set(genes), {}
    for place in np.flatnonzero((match != MATCHES[ENSEMBL]) & (match != MATCHES[MODALITY]) & ~by_hand):
        found = find_id(names[place])
        if found and found[0] in vocabulary and found[0] not in taken:
            own[place] = found
    if not own:
        return genes
    genes, sums = genes.copy(), totals()
    for place in sorted(own, key=lambda place: (own[place][1], -sums[place], names[place])):
        gene, _ = own[place]
        genes[place] = "" if gene in taken else gene
        taken.add(gene)
    logger.info(
        "%d Ensembl ids are taken as they stand in the model's vocabulary", len({id_ for id_, _ in own.values()})
    )
    return genes


def are_genes(names: Any, organism: str) -> bool:
    """Whether most of some names, of which a sample is looked at, are names of genes."""
    sample = as_strings(names[:: max(1, len(names) // 1000)])
    resolved = resolve_names(sample, organism, repair=False)
    return len(sample) > 0 and bool((resolved.genes > 0).mean() > 0.5)


def _check_arguments(var: pd.DataFrame, gene_key: str | None, organism: str, duplicates: str) -> None:
    check_choice(duplicates=(duplicates, DUPLICATES), organism=(organism, ORGANISMS))
    if gene_key is not None and gene_key not in (*var.columns, "var_names"):
        message = f"gene_key={gene_key!r} is not a column of adata.var, which has {listed(var)}. None picks the best."
        raise InputError(message)
    if gene_key is not None and var.columns.tolist().count(gene_key) > 1:
        message = f"gene_key={gene_key!r} is the name of several columns of adata.var; rename or drop all but one"
        raise InputError(message)


def _choose_names(var: pd.DataFrame, gene_key: str | None, organism: str) -> tuple[str, np.ndarray, Resolved, str]:
    """The identifiers to go by, where they lie, what they mean, and what speaks against them."""
    var = var.loc[:, ~var.columns.duplicated(keep=False)]
    if gene_key is not None and gene_key != "var_names":
        options = {gene_key: var[gene_key]}
    else:
        options = {"var_names": pd.Series(var.index)}
        if gene_key is None:
            # the index is var_names, whatever a column is called
            named = [key for key in var.columns if key != "var_names" and _may_name_genes(str(key), var[key])]
            options |= {str(key): var[key] for key in named}
    names = {key: as_strings(column) for key, column in options.items()}
    key, exact = next(iter(names)), {}
    if len(names) > 1:
        exact = {key: resolve_names(names[key], organism, repair=False) for key in names}
        key = max(names, key=lambda key: _genes_of_models(exact[key]))  # the first of several: var_names
        # Exact names usually tell; only where they find little is each column worth the repairs.
        if _genes_of_models(exact[key]) <= len(var) / 2:
            key = max(names, key=lambda key: _genes_of_models(resolve_names(names[key], organism)))
    resolved = resolve_names(names[key], organism)
    against = (_contradiction(key, resolved, other, exact[other], names) for other in exact if other != key)
    return key, names[key], resolved, next(filter(None, against), "")


def _contradiction(key: str, resolved: Resolved, other: str, others: Resolved, names: dict[str, np.ndarray]) -> str:
    """Say that two columns of names mean different genes too often, "" if they do not."""
    both = (resolved.genes > 0) & (others.genes > 0)
    differ = np.flatnonzero(both & (resolved.genes != others.genes))
    if len(differ) < max(LEAST_CONTRADICTIONS, CONTRADICTION * both.sum()):
        return ""
    first = differ[0]
    return (
        f"{key} and {other} name different genes in {len(differ):,} of {both.sum():,} rows of var (in one,"
        f" {names[key][first]!r} and {names[other][first]!r}), as if one of them was in another order; {key} was taken."
        f' Look which one is right, and call tahoe.pp.map_genes(adata, gene_key="{other}"), or gene_key="{key}" to'
        " keep it"
    )


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


def as_strings(values: Any) -> np.ndarray:
    """Names as an array of Python strings, "" where one is missing."""
    return np.array([as_text(name) for name in np.array(values, dtype=object)], dtype=object)


def _genes_of_models(resolved: Resolved) -> int:
    """How many genes, each counted once, the released models know."""
    return int(np.isin(load_table("human").vocabulary, resolved.genes).sum())


def _settle_duplicates(
    resolved: Resolved, names: np.ndarray, weights: np.ndarray, first: np.ndarray, duplicates: str
) -> np.ndarray:
    """Tiers in which only one column keeps each gene: the most certain one, then the one with most counts.

    Those of `first` go before the others, and are never added to them nor they to those.
    """
    tiers = resolved.tiers.copy()
    places = np.flatnonzero(resolved.genes > 0)
    _, group, sizes = np.unique(resolved.genes[places], return_inverse=True, return_counts=True)
    places, group = places[sizes[group] > 1], group[sizes[group] > 1]
    # Names break what ties remain, so that the order of the columns says nothing.
    ranks = (names[places].astype(str), -weights[places], resolved.certainty[places], ~first[places], group)
    order = np.lexsort(ranks)
    places, group = places[order], group[order]
    keeps = np.diff(group, prepend=-1) > 0
    winners = places[keeps][np.cumsum(keeps) - 1]
    alike = first[places] == first[winners]
    tiers[places[~keeps]] = DUPLICATE
    if duplicates == "sum":
        tiers[places[~keeps & alike]] = SUMMED
    return tiers


def _as_ids(genes: np.ndarray) -> np.ndarray:
    return np.array([f"ENSG{gene:011d}" if gene else "" for gene in genes.tolist()], dtype=object)
