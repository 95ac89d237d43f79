"""The index of a large reference, by the library faiss: inverted lists over the vectors, in one file a shard.

The lists are told apart by centres that all shards share, so shards are made independently and searched with the same
choice of lists. An index finds candidates; which of them are nearest is decided by the stored vectors.
"""

from __future__ import annotations

import importlib.util
import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from tahoe._reference.folder import INDEX, VECTORS, open_arrays, shard_file
from tahoe._reference.vectors import Vectors
from tahoe.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

log = logging.getLogger(__name__)

LIBRARY = "faiss"
# From here on an index pays: exact search takes some ten milliseconds a cell.
LARGE = 1_000_000
CENTRES, SUFFIX = "centres.faiss", ".faiss"
# Lists that are looked into, and candidates for each neighbour that is wanted.
PROBES, CANDIDATES = 64, 2
# Vectors that the centres of each list are learned from.
LEARNED_FROM = 64
ROWS_AT_ONCE = 16_384


def wanted(index: str | bool, n_cells: int) -> bool:
    """Whether to make an index.

    Raises
    ------
    tahoe.errors.InputError
        If one is asked for, and the library is not installed.
    """
    if index not in ("auto", True, False):
        message = f"index={index!r}; it must be True, False or 'auto'"
        raise InputError(message)
    if index is False or (index == "auto" and n_cells < LARGE):
        return False
    if importlib.util.find_spec(LIBRARY) is None:
        if index == "auto":
            log.warning("no index is made, since faiss is not installed (pip install 'tahoe-anndata[search]')")
            return False
        raise InputError(_missing("index=True"))
    return True


def build(place: Path, vectors: Vectors, seed: int, client: Any = None) -> dict[str, Any]:
    """Write the index of all shards, those that are not there yet; gives what the manifest says of it."""
    import faiss

    centres = place / INDEX / CENTRES
    n_lists = n_lists_for(len(vectors))
    if not centres.exists():
        (place / INDEX).mkdir(exist_ok=True)
        generator = np.random.default_rng(seed)
        rows = np.sort(generator.choice(len(vectors), min(len(vectors), LEARNED_FROM * n_lists), replace=False))
        learned = vectors.take(rows)
        learned = np.ascontiguousarray(learned[np.isfinite(learned[:, 0])])
        empty = faiss.index_factory(vectors.width, f"IVF{n_lists},SQ8", faiss.METRIC_INNER_PRODUCT)
        empty.cp.seed, empty.cp.min_points_per_centroid = seed, 1
        empty.train(learned)
        _write(empty, centres)
    numbers = range(len(vectors.shards))
    if client is None:
        for number in numbers:
            _build_shard(place, number)
    else:
        futures = client.map(_build_shard, [place] * len(numbers), numbers, pure=False)
        client.gather(futures)
    return {"library": LIBRARY, "version": faiss.__version__, "lists": n_lists, "probes": min(PROBES, n_lists)}


def n_lists_for(n_cells: int) -> int:
    """How many inverted lists so many cells get: about four times the square root."""
    return max(1, min(2 ** round(np.log2(4 * np.sqrt(n_cells))), n_cells // 4))


def _build_shard(place: Path, number: int) -> None:
    import faiss

    file = shard_file(place, INDEX, number, SUFFIX)
    if file.exists():
        return
    vectors = Vectors(open_arrays(place, VECTORS))
    part, first = Vectors([vectors.shards[number]]), int(vectors.starts[number])
    index = faiss.read_index(str(place / INDEX / CENTRES))
    for start, block in part.blocks(ROWS_AT_ONCE):
        there = np.isfinite(block[:, 0])
        rows = first + start + np.flatnonzero(there)
        index.add_with_ids(np.ascontiguousarray(block[there]), rows)
    _write(index, file)


def _write(index: Any, file: Path) -> None:
    import faiss

    new = file.with_name(f"{file.name}.new")
    faiss.write_index(index, str(new))
    new.replace(file)


def search(folder: Path, index: dict[str, Any], queries: np.ndarray, k: int) -> np.ndarray:
    """Candidates for the `k` nearest of each query (queries × candidates), -1 where there are not so many.

    Raises
    ------
    tahoe.errors.InputError
        If the library is not installed.
    """
    if importlib.util.find_spec(LIBRARY) is None:
        raise InputError(_missing(f"the reference {folder.name!r} has an index"))
    import faiss

    usable = np.flatnonzero(np.isfinite(queries).all(axis=1))
    asked, n = np.ascontiguousarray(queries[usable]), CANDIDATES * k
    best = np.full((len(usable), n), -np.inf, dtype=np.float32)
    rows = np.full((len(usable), n), -1, dtype=np.int64)
    lists = None
    for number in range(len(list((folder / INDEX).glob(f"[0-9]*{SUFFIX}")))):
        # mapped: only the lists that are looked into are read
        file = str(shard_file(folder, INDEX, number, SUFFIX))
        shard = faiss.read_index(file, faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)
        shard.nprobe = index["probes"]
        if lists is None:
            products, lists = shard.quantizer.search(asked, shard.nprobe)
        scores, found = shard.search_preassigned(asked, n, lists, products)
        scores[found < 0] = -np.inf
        best, rows = np.concatenate([best, scores], axis=1), np.concatenate([rows, found], axis=1)
        order = np.argsort(-best, axis=1, kind="stable")[:, :n]
        best, rows = np.take_along_axis(best, order, 1), np.take_along_axis(rows, order, 1)
    candidates = np.full((len(queries), n), -1, dtype=np.int64)
    candidates[usable] = rows
    return candidates


def _missing(why: str) -> str:
    return (
        f'{why}, which needs faiss: pip install "tahoe-anndata[search]"; or do without (index=False where it is built,'
        " exact=True where it is searched)"
    )
