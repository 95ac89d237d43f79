"""Labelled cells as tokens and embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tahoe._run.batches import CellBatches, check_finite
from tahoe.model import Tokens

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from scipy import sparse

    from tahoe._run.inputs import Inputs

# Cells of a batch go through the network in parts of about so many tokens; their gradients are added up.
TOKENS_AT_ONCE = 1 << 13


@dataclass(frozen=True)
class Cells:
    """Some cells of the data, as the network reads them."""

    embeddings: np.ndarray
    """As the untrained model embeds them, (cells, d_model) float32, not normalised."""
    n_genes: np.ndarray
    """How many genes of the vocabulary each expresses."""
    tokens: Tokens | None
    """Their tokens, if the network is to be trained on them."""

    def some(self, rows: np.ndarray) -> Tokens:
        """The tokens of some of them."""
        assert self.tokens is not None
        return Tokens.joined([self.tokens.cells(row, row + 1) for row in rows.tolist()])

    def parts(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        """Cut cells into what goes through the network at once."""
        assert self.tokens is not None
        passes = self.tokens.lengths[rows].cumsum() // TOKENS_AT_ONCE
        yield from np.split(rows, np.flatnonzero(np.diff(passes)) + 1)


def read_cells(inputs: Inputs, rows: np.ndarray, *, max_length: int, seed: int, keep_tokens: bool) -> Cells:
    """Read and embed the cells of some rows, whose numbers rise."""
    model = inputs.model
    blocks = _of_rows(inputs.matrix.checked_blocks(inputs.column_tokens >= 0), rows)
    drugs = None if inputs.drugs is None else inputs.drugs[rows]
    options = (len(rows), max_length, seed, inputs.token_budget, drugs)
    embeddings = np.empty((len(rows), model.config.d_model), dtype=np.float32)
    n_genes, kept = np.zeros(len(rows), dtype=np.int64), []

    def take(first: int, tokens: Tokens) -> None:
        found = model.embed_cells(tokens).cpu().numpy()
        check_finite(found, first, model)
        embeddings[first : first + len(tokens)] = found
        n_genes[first : first + len(tokens)] = tokens.n_genes
        if keep_tokens:
            kept.append(tokens)

    CellBatches(blocks, inputs.column_tokens, *options).each(model, take)
    return Cells(embeddings, n_genes, Tokens.joined(kept) if kept else None)


def _of_rows(blocks: Iterable[sparse.csr_array], rows: np.ndarray) -> Iterator[sparse.csr_array]:
    start = 0
    for block in blocks:
        stop = start + block.shape[0]
        here = rows[np.searchsorted(rows, start) : np.searchsorted(rows, stop)] - start
        if len(here):
            yield block[here]
        start = stop
