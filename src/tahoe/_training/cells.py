"""Cells for training, from files larger than memory: mixed in given shares, shuffled in blocks, the same at each try.

Which cells a step has is a function of the seed and of the step alone, so nothing of it needs to be saved.
"""

from __future__ import annotations

import math
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from tahoe._cells.rows import canonical_csr
from tahoe.model.tokens.packed import Tokens
from tahoe.model.training.objective import mask_by

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence
    from fractions import Fraction

    from tahoe._run.inputs import Inputs
    from tahoe.model import TahoeModel

# Rows that are read together, and blocks whose rows are shuffled together: what is held of a source, twice.
BLOCK_ROWS, WINDOW_BLOCKS = 128, 32
# Rows that are held out together, so that reading them is no search.
HELD_OUT_ROWS = 16


@dataclass(frozen=True)
class Order:
    """The order in which the cells of one source come: each once an epoch, blocks shuffled, and rows within windows."""

    n_rows: int
    held_out: np.ndarray
    """Rows that never come, sorted."""
    seed: tuple[int, ...]
    block_rows: int = BLOCK_ROWS
    window_blocks: int = WINDOW_BLOCKS

    @property
    def n_cells(self) -> int:
        """Cells of an epoch."""
        return self.n_rows - len(self.held_out)

    def rows(self, first: int, last: int) -> np.ndarray:
        """Rows of the places `first` to `last` in the endless order of all epochs."""
        return np.concatenate([self.window(*key)[place] for key, place in self.windows(first, last)]).astype(int)

    def windows(self, first: int, last: int) -> Iterator[tuple[tuple[int, int], slice]]:
        """The windows, as (epoch, number), that these places fall into, and which of their rows."""
        while first < last:
            epoch, place = divmod(first, self.n_cells)
            ends = self._ends(epoch)
            number = int(np.searchsorted(ends, place, side="right"))
            start = int(ends[number - 1]) if number else 0
            stop = min(int(ends[number]), place + last - first)
            yield (epoch, number), slice(place - start, stop - start)
            first += stop - place

    def following(self, epoch: int, number: int) -> tuple[int, int]:
        """The window that comes behind one."""
        return (epoch, number + 1) if number + 1 < len(self._ends(epoch)) else (epoch + 1, 0)

    def window(self, epoch: int, number: int) -> np.ndarray:
        """Rows of a window, in the order in which they come."""
        starts = self.blocks(epoch, number) * self.block_rows
        rows = (starts[:, None] + np.arange(self.block_rows)).ravel()
        rows = rows[rows < self.n_rows]
        rows = rows[~np.isin(rows, self.held_out)]
        return np.random.default_rng([*self.seed, 1, epoch, number]).permutation(rows)

    def blocks(self, epoch: int, number: int) -> np.ndarray:
        """Blocks of rows that make up a window, in rising order."""
        return np.sort(self._blocks(epoch)[number * self.window_blocks : (number + 1) * self.window_blocks])

    def _blocks(self, epoch: int) -> np.ndarray:
        return _permutation((*self.seed, 0, epoch), math.ceil(self.n_rows / self.block_rows))

    def _ends(self, epoch: int) -> np.ndarray:
        """Places in the epoch at which its windows end; empty ones have the place of the one before."""
        blocks = self._blocks(epoch)
        sizes = np.minimum((blocks + 1) * self.block_rows, self.n_rows) - blocks * self.block_rows
        sizes = sizes - np.bincount(self.held_out // self.block_rows, minlength=len(blocks))[blocks]
        return np.cumsum(np.add.reduceat(sizes, np.arange(0, len(sizes), self.window_blocks)))


@lru_cache(maxsize=16)
def _permutation(seed: tuple[int, ...], n: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(n)


def held_out_rows(n_rows: int, n_held_out: int, seed: Sequence[int]) -> np.ndarray:
    """Rows that are not trained on, sorted: short runs by chance, so that they come from everywhere in a file."""
    n_runs = math.ceil(n_rows / HELD_OUT_ROWS)
    runs = np.random.default_rng([*seed, 2]).permutation(n_runs)[: math.ceil(n_held_out / HELD_OUT_ROWS)]
    rows = (np.sort(runs)[:, None] * HELD_OUT_ROWS + np.arange(HELD_OUT_ROWS)).ravel()
    return rows[rows < n_rows][:n_held_out]


def drawn(share: Fraction, n_steps: int, cells_per_step: int) -> int:
    """Cells of a source that the first steps have taken: its share of all, rounded up."""
    return math.ceil(share * cells_per_step * n_steps)


@dataclass
class Source:
    """Cells of one source, read by windows; the window that comes next is read meanwhile."""

    inputs: Inputs
    order: Order
    share: Fraction
    _held: dict[tuple[int, int], Future[Any]] = field(default_factory=dict)
    _reader: ThreadPoolExecutor | None = None

    def rows(self, first: int, last: int) -> tuple[sparse.csr_array, np.ndarray]:
        """The rows at these places of the order, and their numbers in the source."""
        parts, numbers = [], []
        for key, places in self.order.windows(first, last):
            matrix, rows = self._window(key)
            parts.append(matrix[places])
            numbers.append(rows[places])
        return sparse.vstack(parts, format="csr"), np.concatenate(numbers)

    def _window(self, key: tuple[int, int]) -> tuple[sparse.csr_array, np.ndarray]:
        if self._reader is None:
            self._reader = ThreadPoolExecutor(1, thread_name_prefix="tahoe-reader")
        following = self.order.following(*key)
        for each in (key, following):
            if each not in self._held:
                self._held[each] = self._reader.submit(self._read, each)
        for each in set(self._held) - {key, following}:
            del self._held[each]
        return self._held[key].result()

    def _read(self, key: tuple[int, int]) -> tuple[sparse.csr_array, np.ndarray]:
        """Rows of a window, shuffled."""
        matrix, size, known = self.inputs.matrix, self.order.block_rows, self.inputs.column_tokens >= 0
        rows = self.order.window(*key)
        starts, parts = [], list[sparse.csr_array]()
        for block in self.order.blocks(*key):
            start, stop = block * size, min((block + 1) * size, matrix.n_cells)
            starts.append(np.arange(start, stop))
            parts.extend(matrix.checked_blocks(known, int(start), int(stop)))
        present = np.concatenate(starts)
        together = canonical_csr(sparse.vstack(parts, format="csr"))
        return together[np.searchsorted(present, rows)], rows

    def close(self) -> None:
        """Read nothing more."""
        if self._reader is not None:
            self._reader.shutdown(wait=True, cancel_futures=True)
        self._held.clear()

    def tokens(
        self, model: TahoeModel, block: sparse.csr_array, rows: np.ndarray, max_length: int, seed: int
    ) -> Tokens:
        """Tokens of some rows; with a drug token if cells have one."""
        drugs = None if self.inputs.drugs is None else self.inputs.drugs[rows]
        return model.tokenize(block, self.inputs.column_tokens, max_length=max_length, seed=seed, drugs=drugs)


@dataclass(frozen=True)
class TrainingCells:
    """Several sources, mixed: the cells of each step, and which of their tokens are masked."""

    model: TahoeModel
    sources: list[Source]
    cells_per_step: int
    max_length: int
    mask_share: float
    seed: int
    rank: int = 0
    n_ranks: int = 1

    def step(self, step: int) -> tuple[Tokens, np.ndarray]:
        """Cells of a step that fall to this process; each process has every n-th."""
        parts, numbers, place = [], [], 0
        # another choice of genes in each step, where a cell has too many
        seed = int(np.random.default_rng([self.seed, 3, step]).integers(2**62))
        for source in self.sources:
            first, last = (drawn(source.share, n, self.cells_per_step) for n in (step, step + 1))
            mine = np.arange(first, last)[(np.arange(place, place + last - first) % self.n_ranks) == self.rank]
            if len(mine):
                block, rows = source.rows(first, last)
                block, rows = block[mine - first], rows[mine - first]
                parts.append(source.tokens(self.model, block, rows, self.max_length, seed))
                numbers.extend((place + mine - first).tolist())
            place += last - first
        tokens = Tokens.joined(parts)
        return tokens, masks(tokens, numbers, (self.seed, 4, step), self.mask_share)

    def lots(self, first: int, n_steps: int) -> Generator[tuple[Tokens, np.ndarray], None, None]:
        """All steps from one on; the next one is prepared in a thread."""
        with ThreadPoolExecutor(1, thread_name_prefix="tahoe-cells") as worker:
            coming = worker.submit(self.step, first)
            for step in range(first, n_steps):
                lot = coming.result()
                if step + 1 < n_steps:
                    coming = worker.submit(self.step, step + 1)
                yield lot

    def validation(self, cells_at_once: int = 256) -> list[tuple[Tokens, np.ndarray]]:
        """The cells that are held out, in lots, with masks that stay the same."""
        lots = []
        for number, source in enumerate(self.sources):
            held_out, matrix = source.order.held_out, source.inputs.matrix
            known = source.inputs.column_tokens >= 0
            for start in range(0, len(held_out), cells_at_once):
                rows = held_out[start : start + cells_at_once]
                runs = np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1)
                blocks = [
                    block for run in runs for block in matrix.checked_blocks(known, int(run[0]), int(run[-1]) + 1)
                ]
                block = canonical_csr(sparse.vstack(blocks, format="csr"))
                tokens = source.tokens(self.model, block, rows, self.max_length, self.seed)
                masked = masks(tokens, rows.tolist(), (self.seed, 5, number), self.mask_share)
                if masked.any():
                    lots.append((tokens, masked))
        return lots

    def close(self) -> None:
        """Read nothing more."""
        for source in self.sources:
            source.close()


def masks(tokens: Tokens, numbers: Sequence[int], seed: tuple[int, ...], share: float) -> np.ndarray:
    """Which tokens are masked: a function of seed and the number of each cell, whichever cells are beside it."""
    draws = [
        np.random.default_rng([*seed, number]).random(length)
        for number, length in zip(numbers, tokens.lengths.tolist(), strict=True)
    ]
    return mask_by(tokens, np.concatenate(draws), share)
