"""What the cells of a run add up to: sums that take one batch after another, and may be merged from several places.

An accumulator holds arrays and no model, so that it can come back from another process. `groups` and `first` count the
cells from the start of the data, not of the batch.
"""

from __future__ import annotations

import operator
import os
from abc import ABC, abstractmethod
from copy import copy
from dataclasses import dataclass, field, fields
from functools import partial
from typing import TYPE_CHECKING, Self, TypeVar

import numpy as np
from scipy import sparse

from tahoe._run.batches import check_finite
from tahoe.errors import InputError

if TYPE_CHECKING:
    import torch

    from tahoe._run.batches import CellBatches
    from tahoe.model import TahoeModel, Tokens


class Accumulator(ABC):
    """What can be added up over cells: a dataclass, whose fields that it is not made with hold the sums."""

    @abstractmethod
    def add(self, model: TahoeModel, first: int, tokens: Tokens) -> None:
        """Take one batch of cells, the first of which has the number `first`: all of it, or in an error nothing."""

    def merge(self, other: Self) -> None:
        """Take what another one added up, from the cells that come next: numbers are added, lists joined."""
        for name in _sums(self):
            setattr(self, name, operator.iadd(getattr(self, name), getattr(other, name)))


A = TypeVar("A", bound=Accumulator)


def aggregate(model: TahoeModel, cells: CellBatches, accumulator: A) -> A:
    """Add the cells up, batch by batch, and give the accumulator back."""
    cells.each(model, partial(accumulator.add, model))
    return accumulator


def copied(accumulator: A) -> A:
    """The same sums, to be added to without changing these; what they were made with is shared."""
    other = copy(accumulator)
    for name in _sums(accumulator):
        setattr(other, name, copy(getattr(accumulator, name)))
    return other


def _sums(accumulator: Accumulator) -> list[str]:
    return [each.name for each in fields(accumulator) if not each.init]  # type: ignore[arg-type]


@dataclass
class GeneMeans(Accumulator):
    """Mean contextual embedding of each column's gene, in each group of cells, summed in float64."""

    column_tokens: np.ndarray
    """Token id of each column, -1 for columns that are left out."""
    groups: np.ndarray
    """Group of each cell."""
    n_groups: int
    vocab_size: int
    width: int
    """d_model."""
    sums: np.ndarray = field(init=False)
    n_cells: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self._place_of = places_of(self.column_tokens, self.vocab_size)
        self.sums = np.zeros((self.n_groups, len(self.column_tokens), self.width))
        self.n_cells = np.zeros(self.sums.shape[:2], dtype=np.int64)

    def add(self, model: TahoeModel, first: int, tokens: Tokens) -> None:
        """Take one batch of cells."""
        outputs = model.embed_tokens(tokens).cpu().numpy()
        check_finite(outputs, first, model)
        for cell in range(len(tokens)):
            here = slice(*tokens.bounds[cell : cell + 2])
            columns = self._place_of[tokens.ids[here]]
            genes, group = columns >= 0, self.groups[first + cell]
            # a cell has each gene once, so no sum is written twice
            self.sums[group, columns[genes]] += outputs[here][genes]
            self.n_cells[group, columns[genes]] += 1

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        """Means (groups, columns, d_model) float32, NaN for genes that no cell has, and numbers of cells, int64."""
        with np.errstate(invalid="ignore"):  # zero by zero is NaN
            return (self.sums / self.n_cells[..., None]).astype(np.float32), self.n_cells


@dataclass
class AttentionMeans(Accumulator):
    """Mean attention among the genes of some columns, in each group of cells; one cell's weights at a time."""

    column_tokens: np.ndarray
    """Token id of each column, -1 for columns that are left out."""
    columns: np.ndarray
    """Between which columns; each has a token."""
    groups: np.ndarray
    """Group of each cell."""
    n_groups: int
    vocab_size: int
    layers: tuple[int, ...]
    """Over which layers of the network the mean goes, in rising order."""
    heads: tuple[int, ...]
    top_k: int | None = None
    """How many entries of each row are kept in the end."""
    min_cells: int = 1
    """How many cells must express both genes of a pair."""
    sums: np.ndarray = field(init=False)
    n_cells: np.ndarray = field(init=False)
    from_cell: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self._place_of = places_of(self.column_tokens[self.columns], self.vocab_size)
        n_chosen = len(self.columns)
        self.sums = np.zeros((self.n_groups, n_chosen, n_chosen))
        self.n_cells = np.zeros(self.sums.shape, dtype=np.int32)
        self.from_cell = np.zeros((self.n_groups, n_chosen))

    def add(self, model: TahoeModel, first: int, tokens: Tokens) -> None:
        """Take cells one by one; to be all or nothing, a batch must be one cell (``token_budget=1``)."""
        for cell in range(len(tokens)):
            self._add_cell(model, first + cell, tokens.cells(cell, cell + 1))

    def _add_cell(self, model: TahoeModel, number: int, tokens: Tokens) -> None:
        places = self._place_of[tokens.ids]
        seen = np.flatnonzero(places >= 0)
        among, own = np.zeros((len(seen), len(seen))), np.zeros(len(seen))

        def observe(layer: int, cell: int, weights_HNN: torch.Tensor) -> None:
            mean = mean_of_heads(weights_HNN, self.heads)
            check_finite(mean, number, model)
            np.add(among, mean[np.ix_(seen, seen)], out=among)
            np.add(own, mean[0, seen], out=own)

        model.observe(tokens, self.layers, observe)
        group, pairs = self.groups[number], np.ix_(places[seen], places[seen])
        self.sums[group][pairs] += among
        self.from_cell[group][places[seen]] += own
        self.n_cells[group][pairs] += 1

    def result(self) -> tuple[list[sparse.csr_matrix], np.ndarray]:
        """For each group a matrix (columns × columns), and the attention of the CLS tokens (groups, columns)."""
        expressing = np.einsum("gii->gi", self.n_cells)
        means = np.full(expressing.shape, np.nan)
        np.divide(self.from_cell, expressing * len(self.layers), out=means, where=expressing >= self.min_cells)
        own = np.full((self.n_groups, len(self.column_tokens)), np.nan, dtype=np.float32)
        own[:, self.columns] = means
        matrices = [self._matrix(group) for group in range(self.n_groups)]
        return matrices, own

    def _matrix(self, group: int) -> sparse.csr_matrix:
        """Means of the pairs that are kept, as a sparse matrix over all columns."""
        kept = self.n_cells[group] >= self.min_cells
        means = np.zeros(kept.shape)
        np.divide(self.sums[group], self.n_cells[group] * len(self.layers), out=means, where=kept)
        if self.top_k is not None and self.top_k < len(kept):
            ranked = np.argsort(np.where(kept, -means, np.inf), axis=1, kind="stable")
            strongest = np.zeros_like(kept)
            np.put_along_axis(strongest, ranked[:, : self.top_k], True, axis=1)
            kept &= strongest
        rows, others = np.nonzero(kept)
        entries = means[rows, others].astype(np.float32)
        size = len(self.column_tokens)
        return sparse.csr_matrix((entries, (self.columns[rows], self.columns[others])), shape=(size, size))


def places_of(tokens: np.ndarray, vocab_size: int) -> np.ndarray:
    """Table from token id to where it stands among these tokens; -1 for all others."""
    table = np.full(vocab_size, -1, dtype=np.int64)
    known = np.flatnonzero(tokens >= 0)
    table[tokens[known]] = known
    return table


def mean_of_heads(weights_HNN: torch.Tensor, heads: tuple[int, ...]) -> np.ndarray:
    """Mean of some heads in float64, (tokens, tokens); on the host, since Apple's GPUs have no float64."""
    chosen = weights_HNN if len(heads) == len(weights_HNN) else weights_HNN[list(heads)]
    return chosen.cpu().numpy().mean(0, dtype=np.float64)


def check_fits(n_bytes: int, what: str) -> None:
    """Refuse a result that would take more than half of the machine's memory."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 2**63
    if n_bytes > memory / 2:
        message = f"the result would need {n_bytes / 2**30:,.1f} GiB of memory for {what}"
        raise InputError(message)
