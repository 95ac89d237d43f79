"""From cells to tokens: a block of CSR rows in, packed gene ids and binned values out, without a loop over cells."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from tahoe.errors import InputError
from tahoe.model.cpu.linear import has_numba
from tahoe.model.tokens.packed import Tokens
from tahoe.model.tokens.rows import add_columns, refuse_unsafe

if TYPE_CHECKING:
    from collections.abc import Callable

    from tahoe.model.config import ModelConfig
    from tahoe.model.tokens.vocabulary import Vocabulary

# What torch.linspace(0, 1, 50) gives on CPUs with AVX2. It differs in the last bit elsewhere, and a rank that falls
# just below a whole number moves counts to another bin: so the quantiles that the models were trained with stand here.
# fmt: off
QUANTILES = np.array([
    0.0, 0.020408163, 0.040816326, 0.06122449, 0.08163265, 0.10204081, 0.12244898, 0.14285713,
    0.1632653, 0.18367347, 0.20408162, 0.2244898, 0.24489796, 0.26530612, 0.28571427, 0.30612245,
    0.3265306, 0.34693876, 0.36734694, 0.3877551, 0.40816325, 0.42857143, 0.4489796, 0.46938774,
    0.48979592, 0.5102041, 0.53061223, 0.55102044, 0.5714286, 0.59183675, 0.6122449, 0.63265306,
    0.6530612, 0.6734694, 0.6938776, 0.71428573, 0.7346939, 0.75510204, 0.7755102, 0.79591835,
    0.81632656, 0.8367347, 0.85714287, 0.877551, 0.8979592, 0.9183673, 0.93877554, 0.9591837,
    0.97959185, 1.0,
], dtype=np.float32)
# fmt: on


def tokenize(
    indptr: np.ndarray,
    indices: np.ndarray,
    data: np.ndarray,
    column_tokens: np.ndarray,
    *,
    config: ModelConfig,
    vocabulary: Vocabulary,
    max_length: int | None = 2048,
    seed: int = 0,
    drugs: np.ndarray | None = None,
) -> Tokens:
    """Tokenise a block of CSR rows.

    Parameters
    ----------
    indptr, indices, data
        The rows, without duplicate entries; values are finite and not negative.
    column_tokens
        Token id of each column, -1 for columns that are not genes of the vocabulary. Columns with the same one are
        added up.
    config, vocabulary
        Of the checkpoint.
    max_length
        Maximum number of tokens per cell, special tokens included; `None` is no limit. Cells with more keep a subset of
        their genes that depends only on `seed` and on the cell's own genes and bins.
    seed
        Random seed for that subset.
    drugs
        Drug of each row, for checkpoints with a drug encoder; `None` omits the drug token.

    Raises
    ------
    tahoe.errors.InputError
        If the three arrays are no rows, or a value of a gene is negative or not a number: compiled code relies on that.
        If `drugs` are given to a checkpoint without a drug token.
    """
    if drugs is not None and vocabulary.drug is None:
        message = "drugs= is given, but the vocabulary of this checkpoint has no drug token; omit it"
        raise InputError(message)
    refuse_unsafe(indptr, indices, data, column_tokens)
    indptr, indices, data = add_columns(indptr, indices, data, column_tokens)
    n_special = 1 if drugs is None else 2
    max_genes = None if max_length is None else max_length - n_special
    compiled = _compiled() if config.binning else None
    genes = (indptr, indices, data, column_tokens)
    if compiled is None:
        ids, values, bounds, n_genes = _by_numpy(*genes, config, n_special, max_genes, seed)
    else:
        ids, values, bounds, n_genes = _by_numba(compiled, *genes, n_special, max_genes, seed)
    starts = bounds[:-1]
    ids[starts], values[starts] = vocabulary.cell, config.pad_value
    if drugs is not None:
        ids[starts + 1], values[starts + 1] = vocabulary.drug, config.pad_value
    return Tokens(ids, values, bounds, n_genes, drugs)


def _compiled() -> Callable[..., None] | None:
    """The compiled loops, where numba can compile. It comes with scanpy, and takes a moment to import."""
    if not has_numba():
        return None
    from tahoe.model.tokens.loops import tokenize_cells

    return tokenize_cells


def _by_numba(
    compiled: Callable[..., None],
    indptr: np.ndarray,
    indices: np.ndarray,
    data: np.ndarray,
    column_tokens: np.ndarray,
    n_special: int,
    max_genes: int | None,
    seed: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Tokens, bins, bounds and numbers of genes; the places of the special tokens are still to be filled."""
    n_cells = len(indptr) - 1
    bounds, n_genes = np.zeros(n_cells + 1, np.int64), np.zeros(n_cells, np.int64)
    room = len(data) + n_special * n_cells
    ids, bins = np.empty(room, np.int64), np.empty(room, np.float32)
    if n_cells:
        # One type of each array, so that there is one thing to compile.
        types = (np.int64, np.int32, np.float32, np.int64)
        arrays = (
            np.ascontiguousarray(a, t) for a, t in zip((indptr, indices, data, column_tokens), types, strict=True)
        )
        limit = np.iinfo(np.int64).max if max_genes is None else max_genes
        compiled(*arrays, QUANTILES, n_special, limit, np.uint64(int(seed) % 2**64), ids, bins, bounds, n_genes)
    return ids[: bounds[-1]], bins[: bounds[-1]], bounds, n_genes


def _by_numpy(
    indptr: np.ndarray,
    indices: np.ndarray,
    data: np.ndarray,
    column_tokens: np.ndarray,
    config: ModelConfig,
    n_special: int,
    max_genes: int | None,
    seed: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The same without numba, and for checkpoints that take values instead of bins."""
    rows, tokens, values = _expressed(indptr, indices, data, column_tokens)
    n_cells = len(indptr) - 1
    n_genes = np.bincount(rows, minlength=n_cells)
    if config.binning:
        values = _bins(rows, values, n_genes)
    elif config.log_transform:
        sums = np.bincount(rows, weights=values, minlength=n_cells).astype(np.float32)
        values = np.log1p(values / (sums[rows] + np.float32(1e-9)) * np.float32(config.target_sum))
    if max_genes is not None:
        kept = _keep_by_hash(rows, tokens, values, n_genes, max_genes, seed)
        rows, tokens, values = rows[kept], tokens[kept], values[kept]
    bounds = np.concatenate([[0], np.cumsum(n_special + np.bincount(rows, minlength=n_cells))])
    ids, packed = np.empty(bounds[-1], dtype=np.int64), np.empty(bounds[-1], dtype=np.float32)
    places = np.arange(len(rows)) + n_special * (rows + 1)
    ids[places], packed[places] = tokens, values
    return ids, packed, bounds, n_genes


def _expressed(
    indptr: np.ndarray, indices: np.ndarray, data: np.ndarray, column_tokens: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row, token and value of each entry that is a gene of the vocabulary and not zero, by row and then by token.

    Sorting by token makes the result the same, bit for bit, whatever the order of the columns.
    """
    rows = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
    tokens = column_tokens[indices]
    values = data.astype(np.float32)
    kept = (tokens >= 0) & (values != 0)
    rows, tokens, values = rows[kept], tokens[kept], values[kept]
    keys = rows * (column_tokens.max(initial=0) + 1) + tokens
    if (np.diff(keys) < 0).any():
        order = np.argsort(keys)
        rows, tokens, values = rows[order], tokens[order], values[order]
    return rows, tokens, values


def _bins(rows: np.ndarray, values: np.ndarray, n_genes: np.ndarray) -> np.ndarray:
    """Bin of each value: one more than the number of the cell's quantile edges that lie strictly below it."""
    starts = np.cumsum(n_genes) - n_genes
    # The bits of positive floats rise with their value, so one sort of whole numbers sorts all cells at once.
    keys = rows.astype(np.uint64) << np.uint64(32) | values.view(np.uint32)
    order = np.argsort(keys)
    keys, ranked = keys[order], values[order]
    cells = np.flatnonzero(n_genes)
    edges = _edges(ranked, starts[cells], n_genes[cells])
    edge_keys = cells[:, None].astype(np.uint64) << np.uint64(32) | edges.view(np.uint32)
    # The first value above an edge, and all later ones of the cell, lie one bin higher.
    steps = np.bincount(np.searchsorted(keys, edge_keys.ravel(), side="right"), minlength=len(keys) + 1)[:-1]
    # All edges of the cells before lie at or before a cell's first value, and do not count for it.
    before = len(QUANTILES) * (np.cumsum(n_genes > 0) - 1)
    bins = np.empty_like(values)
    bins[order] = 1 + np.cumsum(steps) - before[rows]
    return bins


def _edges(ranked: np.ndarray, starts: np.ndarray, n_genes: np.ndarray) -> np.ndarray:
    """Fifty quantiles of each cell's sorted values, (cells, 50), in float32 throughout, as the models were trained."""
    ranks = QUANTILES * (n_genes - 1).astype(np.float32)[:, None]
    low = np.floor(ranks)
    below = ranked[starts[:, None] + low.astype(np.int64)]
    above = ranked[starts[:, None] + np.ceil(ranks).astype(np.int64)]
    # numpy has no fused interpolation, and rounding twice gives other edges
    return torch.lerp(*map(torch.from_numpy, (below, above, ranks - low))).numpy()


def _keep_by_hash(
    rows: np.ndarray, tokens: np.ndarray, values: np.ndarray, n_genes: np.ndarray, limit: int, seed: int
) -> np.ndarray | slice:
    """Which entries stay where cells have more than `limit` genes: those with the smallest hashes of their cell."""
    long = n_genes > limit
    if not long.any():
        return slice(None)
    candidates = np.flatnonzero(long[rows])
    ranks = hash_ranks(rows[candidates], tokens[candidates], values[candidates], seed)
    kept = ~long[rows]
    kept[candidates] = ranks < limit
    return kept


def hash_ranks(cells: np.ndarray, tokens: np.ndarray, values: np.ndarray, seed: int) -> np.ndarray:
    """Rank of each entry within its cell, by a hash of seed, entry, and all entries of the cell.

    The entries of a cell lie together, and cells rise. Neither other cells nor the order within a cell play a part.
    """
    content = _mix_bits(tokens.astype(np.uint64) << np.uint64(32) | values.view(np.uint32))
    starts = np.flatnonzero(np.diff(cells, prepend=-1))
    sizes = np.diff(np.append(starts, len(cells)))
    # A sum does not depend on the order, and wraps around.
    fingerprints = np.repeat(np.add.reduceat(content, starts), sizes)
    keys = _mix_bits(content ^ _mix_bits(fingerprints + np.uint64(int(seed) % 2**64)))
    # One sort of whole numbers again: the cell in the upper bits, as much of the hash as fits below it.
    cell_bits = np.uint64(int(cells[-1]).bit_length())
    order = np.argsort(cells.astype(np.uint64) << np.uint64(64) - cell_bits | keys >> cell_bits)
    ranks = np.empty(len(cells), dtype=np.int64)
    ranks[order] = np.arange(len(cells)) - np.repeat(starts, sizes)
    return ranks


def _mix_bits(keys: np.ndarray) -> np.ndarray:
    """Spread the bits of 64-bit keys (the finaliser of SplitMix64, Steele et al. 2014)."""
    keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return keys ^ (keys >> np.uint64(31))
