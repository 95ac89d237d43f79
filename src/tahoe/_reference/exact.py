"""The nearest vectors, exactly: products in float32 find candidates, distances in float64 decide among them.

So what comes out depends neither on how the rows are cut into blocks, nor on the other queries. Equal distances
are settled by the number of the row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from tahoe.model.cpu.linear import rounded_to

if TYPE_CHECKING:
    from tahoe._reference.embeddings import Embeddings

QUERIES_AT_ONCE, ROWS_AT_ONCE = 2048, 16_384
# Candidates beyond those that are wanted.
SPARE = 32
# Bytes of the candidates' vectors that are held at once.
COMPARED_AT_ONCE = 1 << 26


def nearest(
    queries: np.ndarray,
    vectors: Embeddings,
    k: int,
    *,
    device: torch.device | str = "cpu",
    group_of_query: np.ndarray | None = None,
    group_of_row: np.ndarray | None = None,
    rows_at_once: int = ROWS_AT_ONCE,
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the `k` nearest vectors of each query, from the nearest on, and their distances.

    Parameters
    ----------
    queries
        Embeddings (queries × width), float32; one with NaN finds nothing.
    vectors
        Those that are searched. Rows with NaN are never found.
    k
        How many are wanted.
    device
        Where the products are computed.
    group_of_query, group_of_row
        Rows of the query's own group are passed over.
    rows_at_once
        Size of the blocks, which changes no result.

    Returns
    -------
    Row numbers (queries × k, int64), -1 where there are not so many, and Euclidean distances (float64), infinite there.
    """
    rows = np.full((len(queries), k), -1, dtype=np.int64)
    distances = np.full((len(queries), k), np.inf)
    usable = np.flatnonzero(np.isfinite(queries).all(axis=1))
    for start in range(0, len(usable), QUERIES_AT_ONCE):
        todo, n_candidates = usable[start : start + QUERIES_AT_ONCE], k + SPARE
        while len(todo):
            own = None if group_of_query is None else group_of_query[todo]
            found, lowest = _candidates(
                queries[todo], vectors, min(n_candidates, len(vectors)), device, own, group_of_row, rows_at_once
            )
            found, squares = by_distance(queries[todo], vectors, found)
            # what is no candidate is at least so far away, but for the rounding of the products
            reach = np.square(queries[todo].astype(np.float64)).sum(axis=1) - 2 * (lowest + _rounding(vectors.width))
            complete = (n_candidates >= len(vectors)) | ~np.isfinite(lowest)
            if k <= squares.shape[1]:
                complete |= squares[:, k - 1] < reach
            done = todo[complete]
            rows[done, : found.shape[1]] = found[complete, :k]
            distances[done, : found.shape[1]] = np.sqrt(squares[complete, :k])
            todo, n_candidates = todo[~complete], n_candidates * 4
    return rows, distances


def by_distance(queries: np.ndarray, vectors: Embeddings, candidates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The candidates of each query in the order of their distance, and the squares of these, in float64."""
    squares = np.full(candidates.shape, np.inf)
    at_once = max(1, COMPARED_AT_ONCE // (8 * candidates.shape[1] * vectors.width))
    for start in range(0, len(queries), at_once):
        part = slice(start, start + at_once)
        there = vectors.take(candidates[part]).astype(np.float64)
        squares[part] = np.square(there - queries[part, None]).sum(axis=-1)
    squares[~np.isfinite(squares) | (candidates < 0)] = np.inf
    candidates = np.where(np.isinf(squares), -1, candidates)
    order = np.lexsort((candidates, squares), axis=-1)
    return np.take_along_axis(candidates, order, 1), np.take_along_axis(squares, order, 1)


@torch.inference_mode()
def _candidates(
    queries: np.ndarray,
    vectors: Embeddings,
    n: int,
    device: torch.device | str,
    own: np.ndarray | None,
    group_of_row: np.ndarray | None,
    rows_at_once: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the `n` best products with each query, -1 where there are not so many, and the least of the products."""
    precision = torch.float64 if rounded_to(torch.device(device)) else torch.float32
    query = torch.from_numpy(queries).to(device, precision)
    groups = None if own is None else torch.from_numpy(own).to(device)[:, None]
    best = torch.empty((len(queries), 0), device=device, dtype=precision)
    rows = torch.empty((len(queries), 0), device=device, dtype=torch.int64)
    with torch.autocast(query.device.type, enabled=False):
        for start, block in vectors.blocks(rows_at_once):
            there = torch.from_numpy(block).to(device, precision)
            # half the square of the distance, less a constant of the query; NaN is infinitely far
            half = there.square().sum(dim=1).div_(2).nan_to_num_(nan=torch.inf)
            scores = (query @ there.nan_to_num_().T).sub_(half)
            if groups is not None and group_of_row is not None:
                of_block = torch.from_numpy(np.ascontiguousarray(group_of_row[start : start + len(block)])).to(device)
                scores.masked_fill_(groups == of_block, -torch.inf)
            top, at = scores.topk(min(n, len(block)), dim=1)
            best, order = torch.cat([best, top], dim=1).topk(min(n, best.shape[1] + top.shape[1]), dim=1)
            rows = torch.cat([rows, at.add_(start)], dim=1).gather(1, order)
    rows.masked_fill_(best == -torch.inf, -1)
    return rows.cpu().numpy(), best[:, -1].cpu().double().numpy()


def _rounding(width: int) -> float:
    """How far a product of unit vectors in float32 may be off."""
    return 2 * (width + 2) * 2.0**-24
