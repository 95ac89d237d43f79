"""The index of a large reference, by the library faiss: inverted lists of the vectors in 8 bits, in a mapped file.

All shards share the centres of the lists. So each is made by itself, and a build goes on where it was stopped; at the
end they are merged. An index finds candidates; which of them are nearest is decided by the stored vectors.
"""

from __future__ import annotations

import importlib.util
import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from tahoe._reference.embeddings import Embeddings
from tahoe._reference.folder import INDEX, VECTORS, open_arrays, shard_file
from tahoe.errors import InputError, check_choice

if TYPE_CHECKING:
    from pathlib import Path

log = logging.getLogger(__name__)

LIBRARY = "faiss"
# From here on an index pays: exact search takes some ten milliseconds a cell.
LARGE = 1_000_000
CENTRES, LISTS, LISTS_DATA, SUFFIX = "centres.faiss", "lists.faiss", "lists.ivfdata", ".faiss"
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
        If one is wanted, and the library is not installed.
    """
    check_choice(index=(index, ("auto", True, False)))
    if index is False or (index == "auto" and n_cells < LARGE):
        return False
    if importlib.util.find_spec(LIBRARY) is None:
        if index == "auto":
            log.warning("no index is made, since faiss is not installed (pip install 'tahoe-anndata[search]')")
            return False
        raise InputError(_missing("index=True"))
    return True


def build(place: Path, vectors: Embeddings, seed: int, client: Any = None) -> dict[str, Any]:
    """Write the index, of what is not there yet; gives what the manifest says of it."""
    import faiss
    from faiss.contrib.ondisk import merge_ondisk

    folder, n_lists = place / INDEX, n_lists_for(len(vectors))
    if not (folder / CENTRES).exists():
        folder.mkdir(exist_ok=True)
        _write(_trained(vectors, n_lists, seed), folder / CENTRES)
    shards = [shard_file(place, INDEX, number, SUFFIX) for number in range(len(vectors.shards))]
    if not (folder / LISTS).exists():
        if client is None:
            for number in range(len(shards)):
                _build_shard(place, number)
        else:
            client.gather(client.map(_build_shard, [place] * len(shards), range(len(shards)), pure=False))
        merged = faiss.read_index(str(folder / CENTRES))
        # the vectors of each list behind each other, in a file that is mapped
        merge_ondisk(merged, [str(shard) for shard in shards], str(folder / LISTS_DATA))
        # by its name alone: the folder will have another one
        faiss.downcast_InvertedLists(merged.invlists).filename = LISTS_DATA
        _write(merged, folder / LISTS)
    for file in (folder / CENTRES, *shards):
        file.unlink(missing_ok=True)
    return {"library": LIBRARY, "version": faiss.__version__, "lists": n_lists, "probes": min(PROBES, n_lists)}


def _trained(vectors: Embeddings, n_lists: int, seed: int) -> Any:
    """An empty index, whose centres were learned from some of the vectors."""
    import faiss

    rows = np.random.default_rng(seed).choice(len(vectors), min(len(vectors), LEARNED_FROM * n_lists), replace=False)
    learned = vectors.take(np.sort(rows))
    there = np.isfinite(learned[:, 0])
    empty = faiss.index_factory(vectors.width, f"IVF{n_lists},SQ8", faiss.METRIC_INNER_PRODUCT)
    empty.cp.seed, empty.cp.min_points_per_centroid = seed, 1
    empty.train(learned if there.all() else learned[there])  # a copy only if there must be one
    return empty


def n_lists_for(n_cells: int) -> int:
    """How many inverted lists so many cells get: about four times the square root."""
    return max(1, min(2 ** round(np.log2(4 * np.sqrt(n_cells))), n_cells // 4))


def _build_shard(place: Path, number: int) -> None:
    import faiss

    file = shard_file(place, INDEX, number, SUFFIX)
    if file.exists():
        return
    vectors = Embeddings(open_arrays(place, VECTORS))
    part, first = Embeddings([vectors.shards[number]]), int(vectors.starts[number])
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
    present, n = np.ascontiguousarray(queries[usable]), CANDIDATES * k
    opened = faiss.read_index(str(folder / INDEX / LISTS), faiss.IO_FLAG_SKIP_IVF_DATA)
    lists = faiss.downcast_InvertedLists(opened.invlists)
    lists.filename, lists.read_only = str(folder / INDEX / LISTS_DATA), True
    lists.do_mmap()  # only the lists that are looked into are read
    opened.nprobe = index["probes"]
    _, rows = opened.search(present, n)
    candidates = np.full((len(queries), n), -1, dtype=np.int64)
    candidates[usable] = rows
    return candidates


def _missing(why: str) -> str:
    return (
        f'{why}, which needs faiss: pip install "tahoe-anndata[search]"; or do without (index=False where it is built,'
        " exact=True where it is searched)"
    )
