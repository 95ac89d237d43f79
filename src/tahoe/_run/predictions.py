"""Predicted values of genes, cell by cell: accumulators as in `means`, whose cells come one behind the other."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import sparse

from tahoe._run.batches import check_finite, plan
from tahoe._run.means import Accumulator, places_of
from tahoe.model.tokens.edits import hide_share, with_queries, without

if TYPE_CHECKING:
    from tahoe.model import TahoeModel, Tokens

# How many genes are queried in one pass, where they do not see each other.
GENES_AT_ONCE = 1024


@dataclass
class ObservedPredictions(Accumulator):
    """Predictions for the genes that a cell expresses; the network sees their values."""

    column_tokens: np.ndarray
    """Token id of each column, -1 for columns that are left out."""
    vocab_size: int
    decoder: str
    rows: list[sparse.csr_matrix] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self._place_of = places_of(self.column_tokens, self.vocab_size)

    def add(self, model: TahoeModel, first: int, tokens: Tokens) -> None:
        """Take one batch of cells."""
        predicted = model.predict(tokens, self.decoder).cpu().numpy()
        check_finite(predicted, first, model)
        self.rows.append(_as_rows(predicted, tokens.is_gene, tokens, self._place_of, len(self.column_tokens)))

    def result(self) -> sparse.csr_matrix:
        """Cells × columns, float32."""
        return sparse.vstack(self.rows, format="csr")


@dataclass
class HiddenPredictions(Accumulator):
    """Predictions for a share of the genes that a cell expresses, whose values the network does not see."""

    column_tokens: np.ndarray
    """Token id of each column, -1 for columns that are left out."""
    vocab_size: int
    decoder: str
    share: float
    seed: int
    rows: list[sparse.csr_matrix] = field(init=False, default_factory=list)
    truth: list[sparse.csr_matrix] = field(init=False, default_factory=list)
    sums: np.ndarray = field(init=False)
    """Sum of each column's visible values, and how many there are."""

    def __post_init__(self) -> None:
        self._place_of = places_of(self.column_tokens, self.vocab_size)
        self.sums = np.zeros((2, len(self.column_tokens)))

    def add(self, model: TahoeModel, first: int, tokens: Tokens) -> None:
        """Take one batch of cells."""
        hidden = hide_share(tokens, self.share, self.seed)
        predicted = model.predict(tokens, self.decoder, hidden).cpu().numpy()
        check_finite(predicted, first, model)
        n_columns = len(self.column_tokens)
        self.rows.append(_as_rows(predicted, hidden, tokens, self._place_of, n_columns))
        self.truth.append(_as_rows(tokens.values, hidden, tokens, self._place_of, n_columns))
        visible = tokens.is_gene & ~hidden
        here, values = self._place_of[tokens.ids[visible]], tokens.values[visible]
        self.sums += [np.bincount(here, weights=weights, minlength=n_columns) for weights in (values, None)]

    def result(self) -> tuple[sparse.csr_matrix, pd.DataFrame]:
        """Predictions, cells × columns, float32; and how good they are, a row for each cell."""
        predicted, truth = (sparse.vstack(rows, format="csr") for rows in (self.rows, self.truth))
        total, n_visible = self.sums
        # a gene that is nowhere visible is given the mean of all
        means = np.full(len(total), total.sum() / max(n_visible.sum(), 1))
        np.divide(total, n_visible, out=means, where=n_visible > 0)
        return predicted, scores(predicted, truth, means)


@dataclass
class QueriedPredictions(Accumulator):
    """Predictions for some genes in each cell, whether it expresses them or not; their values are never seen."""

    genes: np.ndarray
    """Their token ids, each once."""
    decoder: str
    rows: list[np.ndarray] = field(init=False, default_factory=list)

    def add(self, model: TahoeModel, first: int, tokens: Tokens) -> None:
        """Take one batch of cells."""
        # genes that see each other are queried together, since they change each other's predictions
        at_once = GENES_AT_ONCE if model.config.hide_masked else len(self.genes)
        lots = [self.genes[start : start + at_once] for start in range(0, len(self.genes), at_once)]
        visible = without(tokens, self.genes)
        predicted = np.concatenate([self._predict(model, visible, lot) for lot in lots], axis=1)
        check_finite(predicted, first, model)
        predicted[tokens.n_genes == 0] = np.nan
        self.rows.append(predicted)

    def _predict(self, model: TahoeModel, tokens: Tokens, genes: np.ndarray) -> np.ndarray:
        """One lot of genes in all cells of a batch, in passes of no more tokens than the batch, or one cell, has."""
        all_tokens, asking = with_queries(tokens, genes, model.config.mask_value)
        bounds, values = all_tokens.bounds, []
        for start, stop in plan(bounds, len(tokens.ids)):
            here = asking[bounds[start] : bounds[stop]]
            values.append(model.predict(all_tokens.cells(start, stop), self.decoder, here).cpu().numpy()[here])
        return np.concatenate(values).reshape(len(tokens), len(genes))

    def result(self) -> np.ndarray:
        """Cells × genes, float32; NaN for cells that express no gene of the vocabulary."""
        return np.concatenate(self.rows)


def scores(predicted: sparse.csr_matrix, truth: sparse.csr_matrix, means: np.ndarray) -> pd.DataFrame:
    """Compare two matrices with the same entries, row by row; NaN where a row has too few, or they are all alike.

    Beside the error of `predicted` stands that of `means`, one value for each column.
    """
    n_hidden = np.diff(truth.indptr)
    rows = np.repeat(np.arange(len(n_hidden)), n_hidden)
    values, targets = predicted.data.astype(np.float64), truth.data.astype(np.float64)

    def mean(terms: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):  # zero by zero is NaN
            return np.bincount(rows, weights=terms, minlength=len(n_hidden)) / n_hidden

    def correlation(left: np.ndarray, right: np.ndarray) -> np.ndarray:
        left, right = left - mean(left)[rows], right - mean(right)[rows]
        with np.errstate(invalid="ignore", divide="ignore"):
            return mean(left * right) / np.sqrt(mean(left**2) * mean(right**2))

    ranks = [pd.Series(each).groupby(rows).rank().to_numpy() for each in (values, targets)]
    return pd.DataFrame(
        {
            "n_hidden": n_hidden.astype(np.int64),
            "pearson": correlation(values, targets),
            "spearman": correlation(*ranks),
            "mse": mean((values - targets) ** 2),
            "mse_gene_mean": mean((means[truth.indices] - targets) ** 2),
        }
    )


def _as_rows(
    values: np.ndarray, kept: np.ndarray, tokens: Tokens, columns: np.ndarray, n_columns: int
) -> sparse.csr_matrix:
    """Values of some tokens as rows over all columns, which have a place for each token."""
    indptr = np.concatenate([[0], np.cumsum(np.bincount(tokens.cell_of_token[kept], minlength=len(tokens)))])
    entries = (values[kept].astype(np.float32), columns[tokens.ids[kept]], indptr)
    rows = sparse.csr_matrix(entries, shape=(len(tokens), n_columns))
    rows.sort_indices()
    return rows
