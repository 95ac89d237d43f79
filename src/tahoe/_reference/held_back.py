"""Cells of a reference that are queried as if they were not in it, to calibrate confidence, novelty and label sets.

Nothing here knows labels: which rows were held back, and which of the other cells are their neighbours. So they serve
every column, and every number of neighbours up to `MOST_NEIGHBORS`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tahoe._reference.exact import nearest
from tahoe._reference.folder import HELD_BACK, save_array

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tahoe._reference.embeddings import Embeddings

MOST_NEIGHBORS = 200
# Least number of held-back cells of each label, if there are so many: the least p is 1 / (1 + that).
OF_EACH_LABEL = 100


@dataclass(frozen=True)
class HeldBack:
    """Held-back cells and their neighbours among the cells of other groups."""

    rows: np.ndarray
    """Their numbers."""
    is_sample: np.ndarray
    """Whether a cell was drawn by chance from all; the others were added so that rare labels have some."""
    neighbors: np.ndarray
    """Rows of the nearest cells (cells × neighbours), -1 where there are not so many."""
    distances: np.ndarray

    def save(self, folder: Path) -> None:
        """Write it into the folder of a reference."""
        for name in ("rows", "is_sample", "neighbors", "distances"):
            save_array(folder / HELD_BACK / f"{name}.npy", getattr(self, name))

    @classmethod
    def load(cls, folder: Path) -> HeldBack:
        """Read what `save` wrote."""
        names = ("rows", "is_sample", "neighbors", "distances")
        return cls(*(np.load(folder / HELD_BACK / f"{name}.npy", allow_pickle=False) for name in names))


def hold_back(
    vectors: Embeddings, columns: Sequence[np.ndarray], groups: np.ndarray | None, n: int, seed: int
) -> HeldBack:
    """Draw cells, and find their neighbours in other groups; without groups, among all other cells.

    Parameters
    ----------
    vectors
        All embeddings of the reference.
    columns
        Codes of the labels of all cells, of each column.
    groups
        Code of each cell's group, such as its donor.
    n
        How many are drawn by chance, at the most.
    seed
        Of the draw.
    """
    usable = np.flatnonzero(np.concatenate([np.isfinite(shard[:, 0]) for shard in vectors.shards]))
    generator = np.random.default_rng(seed)
    drawn = generator.choice(usable, min(n, len(usable)), replace=False)
    more = [np.empty(0, dtype=np.int64)]
    for codes in columns:
        shuffled = generator.permutation(usable)
        shuffled = shuffled[codes[shuffled] >= 0]
        order = np.argsort(codes[shuffled], kind="stable")
        ordered = codes[shuffled][order]
        place = np.arange(len(order)) - np.searchsorted(ordered, ordered)  # within its label
        more.append(shuffled[order[place < OF_EACH_LABEL]])
    rows = np.unique(np.concatenate([drawn, *more]))
    group_of_row = np.arange(len(vectors)) if groups is None else np.asarray(groups, dtype=np.int64)
    neighbors, distances = nearest(
        vectors.take(rows),
        vectors,
        min(MOST_NEIGHBORS, max(1, len(vectors) - 1)),
        group_of_query=group_of_row[rows],
        group_of_row=group_of_row,
    )
    return HeldBack(rows, np.isin(rows, drawn), neighbors, distances.astype(np.float32))
