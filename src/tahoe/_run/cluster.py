"""The engine under dask: cells in blocks, on the workers, each of which loads the model once, by its name."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, fields, replace
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from tqdm.auto import tqdm

from tahoe._cells.matrix import NO_REMEDY, check_values
from tahoe._cells.rows import by_rows, row_blocks
from tahoe._run.batches import CellBatches, embed_cells
from tahoe._run.means import Accumulator, aggregate, copied
from tahoe.errors import ModelError
from tahoe.model import TahoeModel, load_model

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from scipy import sparse

A = TypeVar("A", bound=Accumulator)

# What this process has loaded because it was referred to.
_loaded: dict[ModelReference, TahoeModel] = {}
_loading = Lock()


@dataclass(frozen=True)
class ModelReference:
    """What a worker needs to load a model by itself: weights do not travel."""

    model: str
    """A registered name, or an absolute folder that all workers see; empty for a model that was never written."""
    revision: str | None
    fingerprint: str
    """What must be found there: another model may have been saved to the folder since."""
    device: str | None
    dtype: str | None
    attention: str | None
    held: TahoeModel | None = field(default=None, compare=False, repr=False)
    """The model itself, in the process that made the reference."""

    @classmethod
    def to(cls, model: TahoeModel, *, device: Any = None, dtype: Any = None, attention: str | None = None) -> Any:
        """Refer to a model; what is None is for the worker to choose."""
        folder = str(model.folder.resolve()) if model.folder else ""
        where = model.name if model.is_registered else folder
        fingerprint = model.fingerprint() if where else ""
        return cls(where, model.revision, fingerprint, _plain(device), _plain(dtype), attention, held=model)

    def __getstate__(self) -> dict[str, Any]:
        return {each.name: getattr(self, each.name) for each in fields(self)} | {"held": None}

    def load(self) -> TahoeModel:
        """The model, loaded at the first call in this process."""
        if self.held is not None:
            return self.held
        if not self.model:
            message = "the model was never written, so workers cannot load it; call model.save(folder) first"
            raise ModelError(message)
        with _loading:
            if self not in _loaded:
                loaded = load_model(self.model, revision=self.revision, **self.where())
                if loaded.fingerprint() != self.fingerprint:
                    message = (
                        f"the model in {self.model!r} is not the one that was meant: it was replaced or changed since"
                        " that was loaded, or this machine has other files there; load it again, or save it elsewhere"
                    )
                    raise ModelError(message)
                # what lay in that folder before is not needed any more
                for older in [each for each in _loaded if replace(each, fingerprint=self.fingerprint) == self]:
                    del _loaded[older]
                _loaded[self] = loaded
            return _loaded[self]

    def where(self) -> dict[str, Any]:
        """Device, precision and attention: to load it with, and for the provenance."""
        return {"device": self.device, "dtype": self.dtype, "attention": self.attention}

    def resolve(self) -> ModelReference:
        """The same reference, with what this process chose for what was left open."""
        model = self.load()
        dtype = str(model.dtype).removeprefix("torch.")
        return replace(self, device=str(model.device), dtype=dtype, attention=model.attention)


def _plain(value: Any) -> str | None:
    """A device or precision as a word."""
    return None if value is None else str(value).removeprefix("torch.")


@dataclass(frozen=True)
class EmbeddingTask:
    """How cells become embeddings: all that a worker needs beside the cells."""

    model: ModelReference
    column_tokens: np.ndarray
    slot: str
    max_length: int
    seed: int
    token_budget: int | None = None
    drugs: np.ndarray | None = None
    """Drug of each cell of the data."""
    normalize: bool = True

    def cell_batches(
        self, blocks: Iterator[sparse.csr_array], start: int, stop: int, bar: tqdm | None = None
    ) -> CellBatches:
        """The cells from `start` to `stop`, which `blocks` gives."""
        drugs = None if self.drugs is None else self.drugs[start:stop]
        return CellBatches(
            self._checked(blocks),
            self.column_tokens,
            stop - start,
            self.max_length,
            self.seed,
            self.token_budget,
            drugs,
            first_cell=start,
            # a worker draws no bar
            bar=tqdm(disable=True) if bar is None else bar,
        )

    def embed(
        self, blocks: Iterator[sparse.csr_array], start: int, stop: int, bar: tqdm | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Embeddings of the cells, and how many genes of the vocabulary each expresses."""
        return embed_cells(self.model.load(), self.cell_batches(blocks, start, stop, bar), normalize=self.normalize)

    def _checked(self, blocks: Iterator[sparse.csr_array]) -> Iterator[sparse.csr_array]:
        for block in blocks:
            check_values(block, self.column_tokens >= 0, self.slot, lambda: NO_REMEDY)
            yield block


def cluster() -> Any:
    """The client of a dask.distributed cluster, if there is one."""
    if "distributed" not in sys.modules:
        return None
    import distributed

    try:
        return distributed.get_client()
    except ValueError:
        return None


def resolve_on(client: Any, reference: ModelReference) -> ModelReference:
    """What a worker chooses for what the reference leaves open; the choice then holds for all of them."""
    return client.submit(ModelReference.resolve, reference, pure=False).result()


def embed_lazily(values: Any, task: EmbeddingTask, width: int) -> Any:
    """Dask array of the embeddings (cells, width), one chunk for each chunk of cells; computed when it is needed."""
    import dask

    values = values.rechunk({1: -1})
    return values.map_blocks(
        _embed_chunk,
        task=dask.delayed(task),
        dtype=np.float32,
        chunks=(values.chunks[0], (width,)),
        meta=np.empty((0, 0), dtype=np.float32),
    )


def _embed_chunk(chunk: Any, task: EmbeddingTask, block_info: Any = None) -> np.ndarray:
    start, stop = block_info[0]["array-location"][0]
    return task.embed(row_blocks(by_rows(chunk), 0, chunk.shape[0]), start, stop)[0]


def aggregate_on_workers(client: Any, values: Any, task: EmbeddingTask, accumulator: A) -> A:
    """Add up the cells of a lazy matrix on the workers of a cluster, and merge what each of them has, in order."""
    import dask

    values = values.rechunk({1: -1})
    chunks = [block[0] for block in values.to_delayed()]
    starts = np.cumsum([0, *values.chunks[0]]).tolist()
    empty = {each.name: getattr(accumulator, each.name) for each in fields(accumulator) if each.init}  # type: ignore[arg-type]
    shared, made = dask.delayed(task), dask.delayed(empty)
    n_parts = min(len(chunks), max(1, sum(client.nthreads().values())))
    sums = []
    for part in np.array_split(np.arange(len(chunks)), n_parts):
        # A chain, so that a worker holds one chunk and one sum, not all chunks of its part.
        total = dask.delayed(_fresh)(type(accumulator), made)
        for number in part:
            total = dask.delayed(_add)(total, chunks[number], starts[number], shared)
        sums.append(total)
    futures = client.compute(sums)
    try:
        for future in futures:
            accumulator.merge(future.result())
            future.release()
    except BaseException:
        # a traceback that somebody keeps would keep them, and their work, alive
        client.cancel(futures)
        raise
    return accumulator


def on_workers(client: Any, work: Any, numbers: Sequence[int]) -> Iterator[int]:
    """Results of ``work.one(number)`` on the workers of a cluster, in the order in which they are done."""
    from distributed import as_completed

    # `work` goes to each worker once, not with each of thousands of shards
    shared = client.submit(replace, work, pure=False)
    futures = client.map(type(work).one, [shared] * len(numbers), numbers, pure=False)
    try:
        for _, result in as_completed(futures, with_results=True):
            yield result
    finally:
        client.cancel(futures)


def _fresh(kind: type[A], arguments: dict[str, Any]) -> A:
    return kind(**arguments)


def _add(total: A, chunk: Any, start: int, task: EmbeddingTask) -> A:
    """A sum with the cells of one more chunk; the old one stays, since dask may give it to a task again."""
    blocks = row_blocks(by_rows(chunk), 0, chunk.shape[0])
    return aggregate(task.model.load(), task.cell_batches(blocks, start, start + chunk.shape[0]), copied(total))
