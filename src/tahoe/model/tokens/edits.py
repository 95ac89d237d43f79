"""Changed tokens: values that are hidden, genes that are removed, raised or added.

E edits of one cell, each of P tokens or genes.
"""

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


def deleted(cell: Tokens, places_EP: np.ndarray) -> Tokens:
    """Copies of one cell, each without some of its tokens; bins and choice of the other genes stay."""
    n_edits, n_gone = places_EP.shape
    kept = np.ones((n_edits, len(cell.ids)), dtype=bool)
    np.put_along_axis(kept, places_EP, False, axis=1)
    shape = (n_edits, len(cell.ids) - n_gone)
    ids, values = (np.broadcast_to(each, kept.shape)[kept].reshape(shape) for each in (cell.ids, cell.values))
    return _copies(cell, ids, values, -n_gone)


def with_values(cell: Tokens, places_EP: np.ndarray, value: float) -> Tokens:
    """Copies of one cell, in each of which some of its tokens have another value."""
    ids, values = (np.tile(each, (len(places_EP), 1)) for each in (cell.ids, cell.values))
    np.put_along_axis(values, places_EP, np.float32(value), axis=1)
    return _copies(cell, ids, values, 0)


def with_genes(cell: Tokens, genes_EP: np.ndarray, value: float) -> Tokens:
    """Copies of one cell, in each of which some genes that it lacks stand among the others, by rising id."""
    n_edits, n_more = genes_EP.shape
    ids = np.concatenate([np.tile(cell.ids, (n_edits, 1)), genes_EP], axis=1)
    values = np.concatenate(
        [np.tile(cell.values, (n_edits, 1)), np.full(genes_EP.shape, value, cell.values.dtype)], axis=1
    )
    first = 1 if cell.drugs is None else 2  # the special tokens stay in front
    order = np.argsort(ids[:, first:], axis=1, kind="stable") + first
    for each in (ids, values):
        each[:, first:] = np.take_along_axis(each, order, axis=1)
    return _copies(cell, ids, values, n_more)


def with_drugs(cell: Tokens, drugs: np.ndarray) -> Tokens:
    """Copies of one cell that has a drug token, each with another drug."""
    ids, values = (np.tile(each, (len(drugs), 1)) for each in (cell.ids, cell.values))
    return replace(_copies(cell, ids, values, 0), drugs=np.asarray(drugs, dtype=np.int64))


def _copies(cell: Tokens, ids_EN: np.ndarray, values_EN: np.ndarray, n_more: int) -> Tokens:
    """Cells of one length as packed tokens."""
    n_edits, length = ids_EN.shape
    drugs = None if cell.drugs is None else np.repeat(cell.drugs, n_edits)
    n_genes = np.repeat(cell.n_genes, n_edits) + n_more
    return Tokens(ids_EN.ravel(), values_EN.ravel(), length * np.arange(n_edits + 1), n_genes, drugs)
