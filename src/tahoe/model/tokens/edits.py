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
    """Take these genes away from the cells that have them."""
    kept = ~np.isin(tokens.ids, genes)
    bounds = np.concatenate([[0], np.cumsum(kept)])[tokens.bounds]
    return replace(tokens, ids=tokens.ids[kept], values=tokens.values[kept], bounds=bounds)


def with_queries(tokens: Tokens, genes: np.ndarray, mask_value: float) -> tuple[Tokens, np.ndarray]:
    """Add hidden tokens of some genes that the cells do not have, behind the tokens of each cell.

    Returns
    -------
    The tokens, and a boolean for each: whether it was added.
    """
    added = len(genes) * np.arange(len(tokens) + 1)
    asking = np.ones(len(tokens.ids) + added[-1], dtype=bool)
    asking[np.arange(len(tokens.ids)) + added[tokens.cell_of_token]] = False
    ids = np.empty(len(asking), dtype=tokens.ids.dtype)
    values = np.full(len(asking), mask_value, dtype=tokens.values.dtype)
    ids[asking] = np.tile(genes, len(tokens))
    ids[~asking], values[~asking] = tokens.ids, tokens.values
    return replace(tokens, ids=ids, values=values, bounds=tokens.bounds + added), asking
