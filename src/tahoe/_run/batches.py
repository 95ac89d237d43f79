"""Plan, encode, collect: cells through a network, a bounded number of tokens at a time. Knows no AnnData."""

from __future__ import annotations

import itertools
import logging
import math
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from tqdm.auto import tqdm

from tahoe.errors import DeviceError, ModelError
from tahoe.model.cuda.transfers import start_copy
from tahoe.settings import settings

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator

    from scipy import sparse

    from tahoe.model import TahoeModel, Tokens

log = logging.getLogger(__name__)
T = TypeVar("T")

# Maximum number of tokens in one forward pass; less where the memory of the device is small.
TOKEN_BUDGET = {"cuda": 1 << 16, "mps": 1 << 14, "cpu": 1 << 16}

# Entries of a matrix that are tokenised at once, four times the largest budget. A block of cells with many genes has
# more, and tokenising takes about a hundred bytes for each.
ENTRIES_AT_ONCE = 1 << 18


def plan(bounds: np.ndarray, token_budget: int) -> list[tuple[int, int]]:
    """Cut cells, in their order, into batches of at most `token_budget` tokens; a longer cell goes alone."""
    cuts = [0]
    n_cells = len(bounds) - 1
    while cuts[-1] < n_cells:
        cuts.append(_next_cut(bounds, cuts[-1], token_budget))
    return list(itertools.pairwise(cuts))


def _next_cut(bounds: np.ndarray, start: int, token_budget: int) -> int:
    """End of the next batch: what is left is cut into as few batches as possible, of about the same size.

    A small batch at the end would take a GPU nearly as long as a full one.
    """
    left = bounds[-1] - bounds[start]
    fair = bounds[start] + left / max(1, math.ceil(left / token_budget))
    near = int(np.searchsorted(bounds, fair))
    fits = int(np.searchsorted(bounds, bounds[start] + token_budget, side="right")) - 1
    return max(min(near, fits), start + 1)


def default_budget(model: TahoeModel) -> int:
    """Tokens that fit into four fifths of the memory that is free on the device, up to `TOKEN_BUDGET`."""
    most = TOKEN_BUDGET[model.device.type]
    if model.device.type != "cuda":
        return most
    free, _ = torch.cuda.mem_get_info(model.device)
    config, size = model.config, model.dtype.itemsize
    # The widest moment of a layer: the residual stream, its norm and a sum in float32; all else in `size` bytes.
    bytes_per_token = config.d_model * (12 + (6 + 2 * config.expansion_ratio) * size)
    return max(1, min(most, int(0.8 * free) // bytes_per_token))


def prefetch(items: Iterable[T]) -> Generator[T]:
    """Iterate in a thread, one item ahead of whoever takes them."""
    iterator, end = iter(items), object()
    with ThreadPoolExecutor(1, thread_name_prefix="tahoe-reader") as reader:
        coming = reader.submit(next, iterator, end)
        while (item := coming.result()) is not end:
            coming = reader.submit(next, iterator, end)
            yield item  # type: ignore[misc]


@dataclass
class CellBatches:
    """Cells as they come from storage, and how they are to become batches of tokens."""

    blocks: Iterable[sparse.csr_array]
    column_tokens: np.ndarray
    """Token id of each column, -1 for columns that are left out."""
    n_cells: int
    max_length: int
    seed: int = 0
    token_budget: int | None = None
    """Maximum number of tokens in one pass; None is what fits the device. Halved when its memory runs out."""
    drugs: np.ndarray | None = None
    """Drug of each cell."""
    first_cell: int = 0
    """Number of the first of these cells in the data."""
    bar: tqdm | None = field(default=None, repr=False)
    """Where progress is shown; None is a bar of its own."""

    def batches(self, model: TahoeModel) -> Generator[tuple[int, Tokens]]:
        """The number of the first cell, and the tokens, of each batch.

        The next block is read and tokenised in a thread while the device works on this one.
        """
        self.token_budget = self.token_budget or default_budget(model)
        done = self.first_cell
        own = tqdm(total=self.n_cells, unit="cell", disable=self.bar is not None or not settings.progress)
        bar = own if self.bar is None else self.bar
        with own, closing(prefetch(self._tokenised(model))) as lots:
            for tokens in lots:
                start = 0
                while start < len(tokens):
                    stop = _next_cut(tokens.bounds, start, self.token_budget)
                    yield done + start, tokens.cells(start, stop)
                    bar.update(stop - start)
                    start = stop
                done += len(tokens)

    def each(self, model: TahoeModel, take: Callable[[int, Tokens], None]) -> None:
        """Call `take` with each batch, and with halves of it where the memory of the device runs out.

        `take` must be all or nothing: where it fails, it must not have kept anything.
        """
        with closing(self.batches(model)) as batches:
            for first, tokens in batches:
                self._within_memory(take, first, tokens)

    def _tokenised(self, model: TahoeModel) -> Iterator[Tokens]:
        done = 0
        for block in self.blocks:
            for start, stop in plan(block.indptr, ENTRIES_AT_ONCE):
                drugs = None if self.drugs is None else self.drugs[done + start : done + stop]
                rows, length = block[start:stop], self.max_length
                yield model.tokenize(rows, self.column_tokens, max_length=length, seed=self.seed, drugs=drugs)
            done += block.shape[0]

    def _within_memory(self, take: Callable[[int, Tokens], None], first: int, tokens: Tokens) -> None:
        n_cells, n_tokens = len(tokens), len(tokens.ids)
        try:
            take(first, tokens)
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            if n_cells == 1:
                message = (
                    f"cell {first} (counted from 0) has {n_tokens:,} tokens, and these alone do not fit into the memory"
                    " of the device; pass a smaller max_length=, a smaller model, or device='cpu'"
                )
                raise DeviceError(message) from error
            # outside of the handler, whose traceback keeps the tensors alive
        else:
            return
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.token_budget = max(1, n_tokens // 2)
        log.info("out of memory with %d tokens at once; going on with %d", n_tokens, self.token_budget)
        for start, stop in plan(tokens.bounds, self.token_budget):
            self._within_memory(take, first + start, tokens.cells(start, stop))


def _is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch ran out of memory; only on CUDA there is a kind of error for it."""
    return isinstance(error, torch.OutOfMemoryError) or any(
        words in str(error) for words in ("out of memory", "can't allocate memory", "not enough memory")
    )


def embed_cells(model: TahoeModel, cells: CellBatches, *, normalize: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Embed the cells.

    Returns
    -------
    The embeddings (cells, d_model) float32, NaN for cells that express no gene of the vocabulary, and how many such
    genes each cell expresses (int64).
    """
    embeddings = np.full((cells.n_cells, model.config.d_model), np.nan, dtype=np.float32)
    n_genes = np.zeros(cells.n_cells, dtype=np.int64)

    # On a GPU the next batch is under way before the results of the last one are waited for.
    under_way: deque[tuple[int, Callable[[], np.ndarray]]] = deque()

    def take(first: int, tokens: Tokens) -> None:
        under_way.append((first, start_copy(model.embed_cells(tokens))))
        n_genes[first - cells.first_cell :][: len(tokens)] = tokens.n_genes
        if len(under_way) > 1:
            keep(*under_way.popleft())

    def keep(first: int, copied: Callable[[], np.ndarray]) -> None:
        rows = copied()
        embeddings[first - cells.first_cell :][: len(rows)] = rows
        check_finite(rows, first, model)

    cells.each(model, take)
    while under_way:
        keep(*under_way.popleft())
    embeddings[n_genes == 0] = np.nan
    return _unit_length(embeddings) if normalize else embeddings, n_genes


def check_finite(embeddings: np.ndarray, first: int, model: TahoeModel) -> None:
    """Refuse what a network never gives unless its weights are damaged or its precision overflows."""
    if np.isfinite(embeddings).all():
        return
    dtype = str(model.dtype).removeprefix("torch.")
    message = (
        f"the network gave NaN or infinite values for cell {first} (counted from 0) or one of those behind it, in"
        f" {dtype}; try dtype='float32', and if that fails too the checkpoint is damaged"
    )
    raise ModelError(message)


def _unit_length(embeddings: np.ndarray) -> np.ndarray:
    lengths = torch.linalg.vector_norm(torch.from_numpy(embeddings), dim=1, keepdim=True).clamp(min=1e-12)
    return embeddings / lengths.numpy()
