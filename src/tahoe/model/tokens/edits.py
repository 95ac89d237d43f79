"""Tokens that hide their value from the network, which is to predict it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tahoe.model.tokens.tokenizer import Tokens, hash_ranks


def hide_share(tokens: Tokens, share: float, seed: int = 0) -> np.ndarray:
    """Choose which genes of each cell to hide: a boolean for each token.

    A share of each cell's genes, rounded down, as in training. The choice depends on `seed` and on which genes the cell
    has; not on their values, so that it is the same for counts and for their logarithms.
    """
    hidden = np.zeros(len(tokens.ids), dtype=bool)
    genes = np.flatnonzero(tokens.is_gene)
    if len(genes):
        cells = tokens.cell_of_token[genes]
        n_hidden = np.floor(np.bincount(cells, minlength=len(tokens)) * share)
        hidden[genes] = hash_ranks(cells, tokens.ids[genes], np.zeros(len(genes), np.float32), seed) < n_hidden[cells]
    return hidden


def without(tokens: Tokens, genes: np.ndarray) -> Tokens:
    """Remove these genes from the cells that have them."""
    kept = ~np.isin(tokens.ids, genes)
    bounds = np.concatenate([[0], np.cumsum(kept)])[tokens.bounds]
    return replace(tokens, ids=tokens.ids[kept], values=tokens.values[kept], bounds=bounds)


def with_queries(tokens: Tokens, genes: np.ndarray, mask_value: float) -> tuple[Tokens, np.ndarray]:
    """Add masked tokens of some genes that the cells do not have, after the tokens of each cell.

    Returns
    -------
    The tokens, and a boolean for each: whether it was added.
    """
    added = len(genes) * np.arange(len(tokens) + 1)
    is_query = np.ones(len(tokens.ids) + added[-1], dtype=bool)
    is_query[np.arange(len(tokens.ids)) + added[tokens.cell_of_token]] = False
    ids = np.empty(len(is_query), dtype=tokens.ids.dtype)
    values = np.full(len(is_query), mask_value, dtype=tokens.values.dtype)
    ids[is_query] = np.tile(genes, len(tokens))
    ids[~is_query], values[~is_query] = tokens.ids, tokens.values
    return replace(tokens, ids=ids, values=values, bounds=tokens.bounds + added), is_query
