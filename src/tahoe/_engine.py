"""Plan, encode, collect: cells through a network, a bounded number of tokens at a time. Knows no AnnData."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm.auto import tqdm

from tahoe.errors import ModelError
from tahoe.settings import settings

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from scipy import sparse

    from tahoe.model import TahoeModel, Tokens

# Tokens in one forward pass. On a CPU nothing is gained by packing, so each cell goes alone: then its vector does not
# depend on its neighbours by a single bit, since matrix products of another height may round otherwise.
TOKEN_BUDGET = {"cuda": 1 << 16, "mps": 1 << 14, "cpu": 1}


def plan(bounds: np.ndarray, token_budget: int) -> list[tuple[int, int]]:
    """Cut cells, in their order, into batches of at most `token_budget` tokens; a longer cell goes alone."""
    cuts = [0]
    n_cells = len(bounds) - 1
    while cuts[-1] < n_cells:
        start = cuts[-1]
        fits = int(np.searchsorted(bounds, bounds[start] + token_budget, side="right")) - 1
        cuts.append(max(fits, start + 1))
    return list(itertools.pairwise(cuts))


@dataclass(frozen=True)
class Stream:
    """Cells as they come from storage, and how they are to become batches of tokens."""

    blocks: Iterable[sparse.csr_array]
    column_tokens: np.ndarray
    """Token id of each column, -1 for columns that are left out."""
    n_cells: int
    max_length: int
    seed: int = 0
    token_budget: int | None = None
    """Most tokens in one pass; None is the default of the device."""
    drugs: np.ndarray | None = None
    """Drug of each cell."""

    def batches(self, model: TahoeModel) -> Iterator[tuple[int, Tokens]]:
        """The number of the first cell, and the tokens, of each batch."""
        budget = self.token_budget or TOKEN_BUDGET[model.device.type]
        done = 0
        with tqdm(total=self.n_cells, unit="cell", disable=not settings.progress) as bar:
            for block in self.blocks:
                drugs = None if self.drugs is None else self.drugs[done : done + block.shape[0]]
                tokens = model.tokenize(
                    block, self.column_tokens, max_length=self.max_length, seed=self.seed, drugs=drugs
                )
                for start, stop in plan(tokens.bounds, budget):
                    yield done + start, tokens.cells(start, stop)
                    bar.update(stop - start)
                done += len(tokens)


def embed_cells(model: TahoeModel, stream: Stream, *, normalize: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Embed the cells of a stream.

    Returns
    -------
    The embeddings (cells, d_model) float32, NaN for cells that express no gene of the vocabulary, and how many such
    genes each cell expresses (int64).
    """
    embeddings = np.full((stream.n_cells, model.config.d_model), np.nan, dtype=np.float32)
    n_genes = np.zeros(stream.n_cells, dtype=np.int64)
    for first, tokens in stream.batches(model):
        here = slice(first, first + len(tokens))
        n_genes[here] = tokens.n_genes
        embeddings[here] = model.embed_cells(tokens).cpu().numpy()
        check_finite(embeddings[here], first, model)
    embeddings[n_genes == 0] = np.nan
    return _unit_length(embeddings) if normalize else embeddings, n_genes


def check_finite(vectors: np.ndarray, first: int, model: TahoeModel) -> None:
    """Refuse what a network never gives unless its weights are damaged or its precision overflows."""
    if np.isfinite(vectors).all():
        return
    dtype = str(model.dtype).removeprefix("torch.")
    message = (
        f"the network gave NaN or infinite values for cell {first} (counted from 0) or one of those behind it, in"
        f" {dtype}; try dtype='float32', and if that fails too the checkpoint is damaged"
    )
    raise ModelError(message)


def _unit_length(vectors: np.ndarray) -> np.ndarray:
    lengths = torch.linalg.vector_norm(torch.from_numpy(vectors), dim=1, keepdim=True).clamp(min=1e-12)
    return vectors / lengths.numpy()
