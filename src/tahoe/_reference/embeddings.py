"""The embeddings of a reference: in shards, each a file that is mapped into memory, and read where they are needed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


def unit(vectors: Any) -> np.ndarray:
    """Embeddings of length one, float32; NaN in the place of those without a direction."""
    vectors = np.asarray(vectors, dtype=np.float64)
    length = np.sqrt(np.square(vectors).sum(axis=1, keepdims=True))
    usable = np.isfinite(length) & (length > 0)
    return np.where(usable, vectors / np.where(usable, length, 1), np.nan).astype(np.float32)


@dataclass(frozen=True)
class Embeddings:
    """Embeddings, one behind the other in arrays that may be mapped."""

    shards: Sequence[np.ndarray]

    @cached_property
    def starts(self) -> np.ndarray:
        """First row of each shard, and the number of rows."""
        return np.cumsum([0, *(len(shard) for shard in self.shards)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def width(self) -> int:
        """Coordinates of an embedding."""
        return self.shards[0].shape[1]

    def blocks(self, size: int) -> Iterator[tuple[int, np.ndarray]]:
        """All rows in their order, float32, and the number of the first in each block. They are copies, not the map."""
        for first, shard in zip(self.starts, self.shards, strict=False):
            for start in range(0, len(shard), size):
                yield int(first) + start, np.array(shard[start : start + size], dtype=np.float32)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Some rows, float32, in the shape of their numbers; NaN for a number below 0."""
        flat = rows.ravel()
        taken = np.full((len(flat), self.width), np.nan, dtype=np.float32)
        of_shard = np.searchsorted(self.starts, flat, side="right") - 1
        for number in np.unique(of_shard[flat >= 0]):
            here = of_shard == number
            taken[here] = self.shards[number][flat[here] - self.starts[number]]
        return taken.reshape(*rows.shape, self.width)
