"""Cells as tokens that lie end to end, without padding."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tahoe.errors import InputError


@dataclass(frozen=True, eq=False)
class Tokens:
    """Cells as packed tokens, in the order of the rows they came from."""

    ids: np.ndarray
    """Token ids (int64), (tokens,). In each cell: CLS, the drug token if there is one, genes by rising id."""
    values: np.ndarray
    """Bins, or log-transformed values, and the padding value for the special tokens (float32), (tokens,)."""
    bounds: np.ndarray
    """Cell ``i`` is ``bounds[i]:bounds[i + 1]`` (int64), (cells + 1,)."""
    n_genes: np.ndarray
    """How many genes of the vocabulary each cell expresses, dropped ones included (int64), (cells,)."""
    drugs: np.ndarray | None = None
    """Drug of each cell (int64), (cells,); the second token of each cell is then the drug token."""

    def __len__(self) -> int:
        return len(self.n_genes)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each cell."""
        return np.diff(self.bounds)

    @property
    def cell_of_token(self) -> np.ndarray:
        """Number of the cell of each token."""
        return np.repeat(np.arange(len(self)), self.lengths)

    @property
    def is_gene(self) -> np.ndarray:
        """Which tokens are genes: neither the CLS token nor that of the drug."""
        genes = np.ones(len(self.ids), dtype=bool)
        genes[self.bounds[:-1]] = False
        if self.drugs is not None:
            genes[self.bounds[:-1] + 1] = False
        return genes

    @classmethod
    def joined(cls, parts: list[Tokens]) -> Tokens:
        """Several sets of cells, one after the other; all with a drug token, or none."""
        if len({part.drugs is None for part in parts}) > 1:
            message = (
                "some of these cells carry a drug token and others do not; tokenize all of them with drugs=, 0 for none"
            )
            raise InputError(message)
        ids, values, lengths, n_genes = (
            np.concatenate([getattr(part, name) for part in parts]) for name in ("ids", "values", "lengths", "n_genes")
        )
        drugs = None if parts[0].drugs is None else np.concatenate([part.drugs for part in parts])
        return cls(ids, values, np.concatenate([[0], np.cumsum(lengths)]), n_genes, drugs)

    def cells(self, start: int, stop: int) -> Tokens:
        """Some of the cells, as a view."""
        first, last = self.bounds[start], self.bounds[stop]
        bounds = self.bounds[start : stop + 1] - first
        drugs = None if self.drugs is None else self.drugs[start:stop]
        return Tokens(self.ids[first:last], self.values[first:last], bounds, self.n_genes[start:stop], drugs)
