"""Effects of token edits over many cells: accumulators as in `means`, by units of cells.

A unit is a set of cells whose effects are averaged together: the cells of a group, or of one replicate of it.
Shapes are written as suffixes: U units, J directions, G genes, E edits.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import spearmanr

from tahoe._perturbation.edit_effects import estimate, exact, is_editable, of_length_one
from tahoe._run.batches import check_finite
from tahoe._run.means import Accumulator, places_of
from tahoe.model.cpu.threads import parallel_for

if TYPE_CHECKING:
    from collections.abc import Callable

    from tahoe._perturbation.edit_effects import Question
    from tahoe.model import TahoeModel, Tokens


@dataclass
class UnitMeans(Accumulator):
    """Mean embedding of each unit of cells, each cell at length 1; cells without a gene of the model do not count."""

    units: np.ndarray
    n_units: int
    width: int
    sums: np.ndarray = field(init=False)
    n_cells: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.sums, self.n_cells = np.zeros((self.n_units, self.width)), np.zeros(self.n_units, dtype=np.int64)

    def add(self, model: TahoeModel, first: int, tokens: Tokens) -> None:
        """Take one batch of cells."""
        embeddings = of_length_one(model.embed_cells(tokens))
        check_finite(embeddings, first, model)
        units = self.units[first : first + len(tokens)]
        with_genes = tokens.n_genes > 0
        np.add.at(self.sums, units[with_genes], embeddings[with_genes])
        self.n_cells += np.bincount(units[with_genes], minlength=self.n_units)

    def result(self) -> np.ndarray:
        """Means (units, d_model), NaN for a unit without cells."""
        return _means(self.sums, self.n_cells)


@dataclass
class GeneCounts(Accumulator):
    """In how many cells of each unit a gene is expressed, and its mean bin there."""

    units: np.ndarray
    n_units: int
    vocab_size: int
    n_cells: np.ndarray = field(init=False)
    n_expressing: np.ndarray = field(init=False)
    bins: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.n_cells = np.zeros(self.n_units, dtype=np.int64)
        self.n_expressing = np.zeros((self.n_units, self.vocab_size), dtype=np.int64)
        self.bins = np.zeros((self.n_units, self.vocab_size))

    def add(self, model: TahoeModel, first: int, tokens: Tokens) -> None:
        """Take one batch of cells."""
        units = self.units[first : first + len(tokens)]
        self.n_cells += np.bincount(units, minlength=self.n_units)
        genes = tokens.is_gene
        here = units[tokens.cell_of_token[genes]], tokens.ids[genes]
        np.add.at(self.n_expressing, here, 1)
        np.add.at(self.bins, here, tokens.values[genes])


@dataclass
class FirstOrder(Accumulator):
    """Effects of editing each gene by itself, to first order, summed over the cells of each unit."""

    question: Question
    vocab_size: int
    sums: np.ndarray = field(init=False)
    n_cells: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        question = self.question
        self._place_of = places_of(question.candidates, self.vocab_size)
        self.sums = np.zeros((question.n_units, len(question.names), len(question.candidates)))
        self.n_cells = np.zeros((question.n_units, len(question.candidates)), dtype=np.int64)

    def add(self, model: TahoeModel, first: int, tokens: Tokens) -> None:
        """Take one batch of cells."""
        question, found = self.question, [np.empty(0)] * len(tokens)
        genes = [question.genes_in(tokens.cells(cell, cell + 1)) for cell in range(len(tokens))]

        def work(cell: int) -> None:
            one = tokens.cells(cell, cell + 1)
            if is_editable(one, question.kind) and len(genes[cell]):
                found[cell] = estimate(model, question, one, question.units[first + cell], genes[cell])

        _each_cell(model, len(tokens), work)
        for cell, effects in enumerate(found):
            check_finite(effects, first + cell, model)
        for cell, effects in enumerate(found):
            if effects.size:
                unit, places = question.units[first + cell], self._place_of[genes[cell]]
                self.sums[unit][:, places] += effects
                self.n_cells[unit, places] += 1

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        """Means (U, J, G), NaN where no cell was edited, and numbers of cells (U, G)."""
        return _means(self.sums, self.n_cells), self.n_cells


@dataclass
class ExactEdits(Accumulator):
    """Effects of edits, exactly, summed over the cells of each unit; a cell at a time (``token_budget=1``)."""

    question: Question
    edits: list[tuple[int, ...]]
    """Token ids of the genes of each edit, rising; of a drug its id."""
    width: int
    keep_changes: bool = False
    """Whether the change of each cell's embedding is kept, for one edit."""
    sums: np.ndarray = field(init=False)
    n_cells: np.ndarray = field(init=False)
    changes: list[np.ndarray] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        question = self.question
        self.sums = np.zeros((question.n_units, len(question.exact_names), len(self.edits)))
        self.n_cells = np.zeros((question.n_units, len(self.edits)), dtype=np.int64)

    def add(self, model: TahoeModel, first: int, tokens: Tokens) -> None:
        """Take cells one by one."""
        for cell in range(len(tokens)):
            self._add_cell(model, first + cell, tokens.cells(cell, cell + 1))

    def _add_cell(self, model: TahoeModel, number: int, cell: Tokens) -> None:
        question, unit = self.question, self.question.units[number]
        sums = np.zeros(self.sums.shape[1:])
        change = np.full((1, self.width), np.nan)
        possible = self._possible(cell)
        for size in {len(self.edits[edit]) for edit in possible}:
            here = [edit for edit in possible if len(self.edits[edit]) == size]
            genes_EP = np.array([self.edits[edit] for edit in here])
            sums[:, here], change = exact(model, question, cell, unit, genes_EP)
        check_finite(sums, number, model)
        self.sums[unit] += sums
        self.n_cells[unit, possible] += 1
        if self.keep_changes:
            self.changes.append(change.astype(np.float32))

    def _possible(self, cell: Tokens) -> list[int]:
        """Edits that can be made in a cell."""
        question = self.question
        if question.kind == "drug":
            return list(range(len(self.edits))) if is_editable(cell, "drug") else []
        genes = set(question.genes_in(cell).tolist())
        return [
            number
            for number, edit in enumerate(self.edits)
            if genes.issuperset(edit) and is_editable(cell, question.kind, len(edit))
        ]

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        """Means (U, 1 + J, E), NaN where no cell was edited, and numbers of cells (U, E)."""
        return _means(self.sums, self.n_cells), self.n_cells


@dataclass
class Agreement(Accumulator):
    """Rank correlation, in each cell, of the first order with exact edits of some of its genes."""

    question: Question
    n_genes: int
    """How many genes of each cell, drawn at random."""
    found: list[float] = field(init=False, default_factory=list)

    def add(self, model: TahoeModel, first: int, tokens: Tokens) -> None:
        """Take cells one by one."""
        for cell in range(len(tokens)):
            one, unit = tokens.cells(cell, cell + 1), self.question.units[first + cell]
            genes = self.question.genes_in(one)
            content = zlib.crc32(one.ids.tobytes() + one.values.tobytes())
            generator = np.random.default_rng([self.question.seed % 2**32, content, 1])
            genes = np.sort(generator.choice(genes, min(self.n_genes, len(genes)), replace=False))
            correlation = np.nan
            if len(genes) > 4 and is_editable(one, self.question.kind):
                estimated = estimate(model, self.question, one, unit, genes)[0]
                edited = exact(model, self.question, one, unit, genes[:, None])[0]
                edited = edited[0 if self.question.directions_UJD is None else 1]
                if np.ptp(estimated) > 0 and np.ptp(edited) > 0:
                    correlation = float(spearmanr(estimated, edited)[0])
            self.found.append(correlation)

    def result(self) -> np.ndarray:
        """One correlation for each cell, NaN where there were too few genes."""
        return np.array(self.found)


def _means(sums: np.ndarray, n_cells: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # zero by zero is NaN
        return sums / n_cells[:, None]


def _each_cell(model: TahoeModel, n_cells: int, work: Callable[[int], None]) -> None:
    """Call `work` with the number of each cell: on a CPU a core takes one at a time."""
    if model.device.type == "cpu":
        parallel_for(work, range(n_cells))
    else:
        for cell in range(n_cells):
            work(cell)
