"""Plan, encode, collect: cells through a network, a bounded number of tokens at a time. Knows no AnnData."""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy import sparse
from tqdm.auto import tqdm

from tahoe.errors import InputError, ModelError
from tahoe.settings import settings

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

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


def mean_gene_vectors(
    model: TahoeModel, stream: Stream, groups: np.ndarray, n_groups: int
) -> tuple[np.ndarray, np.ndarray]:
    """Mean contextual vector of each column's gene in each group of cells, in one pass.

    Returns
    -------
    The means (groups, columns, d_model) float32, NaN where no cell of the group expresses the gene, and over how many
    cells they go (groups, columns) int64.
    """
    n_columns, width = len(stream.column_tokens), model.config.d_model
    column_of = np.full(model.config.vocab_size, -1)
    known = np.flatnonzero(stream.column_tokens >= 0)
    column_of[stream.column_tokens[known]] = known
    sums = torch.zeros(n_groups * n_columns, width, dtype=torch.float64)
    n_cells = np.zeros(n_groups * n_columns, dtype=np.int64)
    for first, tokens in stream.batches(model):
        output = model.embed_tokens(tokens).cpu()
        check_finite(output.numpy(), first, model)
        columns = column_of[tokens.ids]
        cells = np.repeat(groups[first : first + len(tokens)], tokens.lengths)
        genes = columns >= 0
        places = (cells * n_columns + columns)[genes]
        sums.index_add_(0, torch.from_numpy(places), output[torch.from_numpy(genes)].double())
        np.add.at(n_cells, places, 1)
    sums /= torch.from_numpy(n_cells)[:, None]  # zero by zero is NaN
    return sums.float().numpy().reshape(n_groups, n_columns, width), n_cells.reshape(n_groups, n_columns)


def mean_attention(
    model: TahoeModel,
    stream: Stream,
    columns: np.ndarray,
    groups: np.ndarray,
    n_groups: int,
    *,
    layers: tuple[int, ...],
    heads: tuple[int, ...],
    top_k: int | None = None,
) -> tuple[list[sparse.csr_matrix], np.ndarray]:
    """Mean attention among the genes of some columns, in each group of cells.

    One cell's weights of one layer are held at a time.

    Returns
    -------
    For each group a matrix (all columns × all columns), and the attention of the cells' own tokens (columns, groups).
    """
    n_columns, n_chosen = len(stream.column_tokens), len(columns)
    place_of = np.full(model.config.vocab_size, -1)
    place_of[stream.column_tokens[columns]] = np.arange(n_chosen)
    sums, n_cells = np.zeros((n_groups, n_chosen, n_chosen)), np.zeros((n_groups, n_chosen, n_chosen), dtype=np.int32)
    from_cell = np.zeros((n_groups, n_chosen))
    for first, tokens in stream.batches(model):
        places = place_of[tokens.ids]

        def add(
            layer: int,
            cell: int,
            weights_HNN: torch.Tensor,
            first: int = first,
            places: np.ndarray = places,
            tokens: Tokens = tokens,
        ) -> None:
            here = places[tokens.bounds[cell] : tokens.bounds[cell + 1]]
            seen, group = np.flatnonzero(here >= 0), groups[first + cell]
            mean = weights_HNN[list(heads)].double().mean(0).cpu().numpy()
            sums[group][np.ix_(here[seen], here[seen])] += mean[np.ix_(seen, seen)]
            from_cell[group][here[seen]] += mean[0, seen]
            if layer == layers[0]:
                n_cells[group][np.ix_(here[seen], here[seen])] += 1

        model.observe(tokens, layers, add)
    expressing = np.einsum("gii->gi", n_cells) * len(layers)
    with np.errstate(invalid="ignore"):  # zero by zero is NaN
        own = np.full((n_columns, n_groups), np.nan, dtype=np.float32)
        own[columns] = (from_cell / expressing).T
    matrices = [
        _spread(sums[group], n_cells[group] * len(layers), columns, n_columns, top_k) for group in range(n_groups)
    ]
    return matrices, own


def _spread(
    sums: np.ndarray, n_terms: np.ndarray, columns: np.ndarray, n_columns: int, top_k: int | None
) -> sparse.csr_matrix:
    """Means of the pairs that were seen, as a sparse matrix over all columns."""
    kept = n_terms > 0
    means = np.divide(sums, n_terms, out=np.zeros_like(sums), where=kept)
    if top_k is not None and top_k < len(columns):
        ranked = np.argsort(np.where(kept, -means, np.inf), axis=1, kind="stable")
        strongest = np.zeros_like(kept)
        np.put_along_axis(strongest, ranked[:, :top_k], True, axis=1)
        kept &= strongest
    rows, others = np.nonzero(kept)
    entries = means[rows, others].astype(np.float32)
    return sparse.csr_matrix((entries, (columns[rows], columns[others])), shape=(n_columns, n_columns))


def check_fits(n_bytes: int, what: str) -> None:
    """Refuse a result that would take more than half of the machine's memory."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 2**63
    if n_bytes > memory / 2:
        message = f"the result would need {n_bytes / 2**30:,.1f} GiB of memory for {what}"
        raise InputError(message)


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
