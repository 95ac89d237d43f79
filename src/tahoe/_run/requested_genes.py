"""Genes and drugs that a user names, as the model knows them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from tahoe._genes.mapping import resolve
from tahoe._genes.name_repair import find_id
from tahoe._run.inputs import known_drugs
from tahoe.errors import InputError, similar_names

if TYPE_CHECKING:
    from tahoe._run.inputs import Inputs


def tokens_of_genes(inputs: Inputs, genes: list[str]) -> np.ndarray:
    """Token id of each gene: by its column, or of any other gene of the model by its Ensembl id or symbol.

    Raises
    ------
    tahoe.errors.InputError
        If the model does not know one, or several columns with different genes bear its name.
    """
    names = inputs.matrix.var.index
    queried = names.isin(genes)
    # of columns with one name, those that count: an antibody or the second probe of a gene is no other gene
    counting = pd.Series(inputs.column_tokens, names)[queried & (inputs.column_tokens >= 0)]
    counting = counting[~counting.reset_index().duplicated().to_numpy()]
    twice = counting.index[counting.index.duplicated()].tolist()
    if twice:
        message = f"genes={twice[:5]}: names that several columns bear; call adata.var_names_make_unique() first"
        raise InputError(message)
    ids = [found[0] if (found := find_id(gene)) else gene for gene in genes]
    is_column = pd.Index(genes).isin(names[queried])
    tokens = np.where(
        is_column, counting.reindex(genes, fill_value=-1).to_numpy(), inputs.model.vocabulary.tokens_of(ids)
    )
    absent = np.flatnonzero(~is_column & (tokens < 0))
    if len(absent):
        tokens[absent] = inputs.model.vocabulary.tokens_of(resolve([genes[i] for i in absent])[0])
    unknown = [gene for gene, token in zip(genes, tokens, strict=True) if token < 0]
    if unknown:
        hint = f" (near: {similar_names(unknown[0], names[inputs.column_tokens >= 0])})"
        if resolve(unknown[:1])[0][0]:
            hint = f"; {unknown[0]!r} is a gene, but the model was not made with it"
        message = f"genes={unknown[:5]}: not among the genes of the model {inputs.model.name!r}{hint}"
        raise InputError(message)
    return tokens


def edits_of(
    inputs: Inputs, requested: list[tuple[str, ...]] | None, *, vocabulary: bool
) -> tuple[dict[tuple[int, ...], str], list[tuple[int, ...]] | None, np.ndarray]:
    """Names of the edits that were requested, their token ids, and the genes that may be compared with."""
    known = inputs.column_tokens[inputs.column_tokens >= 0]
    if requested is None:
        everything = inputs.model.vocabulary.tokens_of(inputs.model.vocabulary.genes)
        return {}, None, np.unique(everything if vocabulary else known)
    flat = sorted({gene for edit in requested for gene in edit})
    token = dict(zip(flat, tokens_of_genes(inputs, flat).tolist(), strict=True))
    names: dict[tuple[int, ...], str] = {}
    for edit in requested:
        ids = tuple(sorted(token[gene] for gene in edit))
        if ids in names or len(set(ids)) < len(ids):
            message = f"genes={edit}: the same gene under two names; name each once"
            raise InputError(message)
        names[ids] = "+".join(edit)
    return names, list(names), np.unique(known)


def drug_edits(inputs: Inputs, drugs: Any) -> tuple[dict[tuple[int, ...], str], list[tuple[int, ...]], Inputs]:
    """Names and ids of the drugs, and the cells with the token of no drug."""
    names = [drugs] if isinstance(drugs, str) and drugs in inputs.model.drugs else drugs
    table = None if isinstance(names, list | tuple) else names
    known = known_drugs(inputs.model, table, "kind='drug'")
    chosen = list(known) if table is not None else [str(name) for name in names]
    unknown = [name for name in chosen if name not in known]
    if unknown or not chosen:
        near = similar_names(unknown[0], known) if unknown else "none"
        message = f"drugs={unknown[:5]}: not known to the model (near: {near})"
        raise InputError(message)
    ids: dict[tuple[int, ...], str] = {(int(known[name]),): name for name in chosen if known[name] != 0}
    nobody = np.zeros(inputs.matrix.n_cells, dtype=np.int64)
    return ids, list(ids), replace(inputs, drugs=nobody)
