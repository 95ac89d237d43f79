"""Genes of an AnnData with their embeddings, and lists of genes to compare them with."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import rankdata

from tahoe._genes.mapping import map_genes, resolve
from tahoe._scores.baselines import gene_expression, noise, pca_loadings
from tahoe._scores.table import BASELINE, GIVEN
from tahoe.errors import InputError, warn
from tahoe.evaluate._inputs import names_of, read_counts, read_representation

if TYPE_CHECKING:
    from anndata import AnnData

EXPRESSION, LOADINGS, RANDOM, CONSTANT = "mean expression and detection", "PCA loadings", "random", "constant"
BASELINES = (EXPRESSION, LOADINGS, RANDOM, CONSTANT)


@dataclass(frozen=True)
class Genes:
    """The genes that take part, in the order of their Ensembl ids."""

    ids: np.ndarray
    vectors: dict[str, np.ndarray]
    """Each representation, genes × dimensions: those that were passed, then our baselines."""
    given: list[str]
    expression_rank: np.ndarray
    """Rank of each gene by mean log expression among all genes of the data, from 0 to 1."""

    def kind(self, name: str) -> str:
        return GIVEN if name in self.given else BASELINE


def read_genes(adata: AnnData, use_rep: str | Sequence[str], wanted: set[str], layer: str | None, seed: int) -> Genes:
    """The wanted genes (Ensembl ids) that each representation has, and their baselines.

    Raises
    ------
    tahoe.errors.InputError
        If a representation does not exist or has single missing values, or no gene is left.
    """
    names = names_of(use_rep, BASELINES)
    vectors = {name: read_representation(adata, "varm", name) for name in names}
    ids = ids_of(adata)
    rows = np.flatnonzero(np.isin(ids, sorted(wanted)))
    if not len(rows):
        message = f"none of the {len(wanted)} genes of the list is among the {adata.n_vars} genes of adata"
        raise InputError(message)
    rows = rows[np.argsort(ids[rows])]
    is_known = np.ones(len(rows), dtype=bool)
    for name in names:
        is_known &= _is_known(vectors[name][rows], name, adata.var_names[rows])
    if not is_known.all():
        message = f"{(~is_known).sum()} of {len(rows)} genes are missing in one of {names} and are left out everywhere"
        warn(message)
    rows = rows[is_known]
    counts, are_counts = read_counts(adata, layer=layer)
    expression = gene_expression(counts, are_counts)
    ranks = rankdata(expression[:, 0]) / len(expression)
    baselines = {
        EXPRESSION: expression[rows],
        LOADINGS: pca_loadings(counts, are_counts, seed)[rows],
        RANDOM: noise(len(rows), seed),
    }
    return Genes(ids[rows], {name: vectors[name][rows] for name in names} | baselines, names, ranks[rows])


def ids_of(adata: AnnData) -> np.ndarray:
    """Ensembl id of each column, as `tahoe.pp.map_genes` found it or would find it; "" where there is none."""
    if "tahoe_gene" in adata.var:
        return adata.var["tahoe_gene"].fillna("").astype(str).to_numpy(dtype=object).astype(str)
    return map_genes(adata.var, None).gene.astype(str)


def _is_known(vectors: np.ndarray, name: str, genes: Sequence[str]) -> np.ndarray:
    """Which genes have one; those that no cell expresses are NaN throughout."""
    finite = np.isfinite(vectors)
    partly = np.flatnonzero(finite.any(axis=1) & ~finite.all(axis=1))
    if len(partly):
        message = (
            f"varm[{name!r}] has single NaN or infinite values in {len(partly)} genes, one of them {genes[partly[0]]!r}"
        )
        raise InputError(message)
    return finite.all(axis=1)


def read_gmt(gmt: str | os.PathLike[str] | Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Names of the genes in each set.

    Raises
    ------
    tahoe.errors.InputError
        If the file cannot be read, or is none of gene sets.
    """
    if isinstance(gmt, Mapping):
        return {str(name): list(genes) for name, genes in gmt.items()}
    try:
        lines = Path(gmt).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        message = f"gmt={os.fspath(gmt)!r} cannot be read: {error}; MSigDB has such files (Hallmark, symbols)"
        raise InputError(message) from error
    sets = {}
    for number, line in enumerate(filter(str.strip, lines), start=1):
        name, *rest = line.rstrip("\n").split("\t")
        if len(rest) < 2:
            message = (
                f"gmt={os.fspath(gmt)!r}, line {number}: a name, a description and genes are needed, with tabs between"
            )
            raise InputError(message)
        sets[name] = [gene for gene in rest[1:] if gene]
    return sets


def resolved(names: Sequence[str]) -> dict[str, str]:
    """Ensembl id of each name that has one."""
    ids = resolve(list(names))[0]
    return {name: str(id_) for name, id_ in zip(names, ids, strict=True) if id_}


def family(symbol: str) -> str:
    """The letters with which a symbol begins: RPL for RPL3 and RPL10A, HLA for HLA-DRA."""
    found = re.match(r"[A-Z]+", symbol.upper())
    return found[0] if found else symbol
