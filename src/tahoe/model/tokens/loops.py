"""The tokenizer's loops, compiled by numba: the same tokens as those of numpy in `tokenizer`, several times as fast.

An entry of a cell is one whole number, a «key»: its token above the 32 bits of its value.
"""

from __future__ import annotations

from typing import Any

import numba
import numba.extending
import numpy as np

from tahoe.model.cpu.compiling import compiled

# Whole values below this are sorted by counting them.
COUNTING_LIMIT = 4096
LOWER_32_BITS = np.uint64(0xFFFFFFFF)
BITS_OF_VALUE = np.uint64(32)
intrinsic: Any = numba.extending.intrinsic


@compiled()
def tokenize_cells(
    indptr: Any,
    indices: Any,
    data: Any,
    column_tokens: Any,
    quantiles: Any,
    n_special: int,
    max_genes: int,
    seed: Any,
    ids: Any,
    bins: Any,
    bounds: Any,
    n_genes: Any,
) -> None:
    """Write token and bin of each gene after the special tokens of its cell, and where each cell ends."""
    longest, token_bits = np.int64(1), np.int64(1)
    for cell in range(len(indptr) - 1):
        longest = max(longest, indptr[cell + 1] - indptr[cell])
    for token in column_tokens:
        while token >> token_bits > 0:
            token_bits += 1
    keys, spare, order = np.empty(longest, np.uint64), np.empty(longest, np.uint64), np.empty(longest, np.uint64)
    values = np.empty(longest, np.float32)
    value_bits, bin_bits = values.view(np.uint32), bins.view(np.uint32)
    counts, edges = np.zeros(COUNTING_LIMIT, np.int32), np.empty(len(quantiles), np.float32)
    end = 0
    for cell in range(len(indptr) - 1):
        n, rising, whole = _take_genes(indptr[cell], indptr[cell + 1], indices, data, column_tokens, keys, values)
        if not rising:
            keys, spare = _radix_sort(keys, spare, n, 32, 32 + token_bits)
            for i in range(n):
                value_bits[i] = keys[i] & LOWER_32_BITS
        here = end + n_special
        if whole:
            _bin_counts(values, n, counts, quantiles, edges, bins[here:])
        else:
            for i in range(n):
                order[i] = np.uint64(value_bits[i]) << BITS_OF_VALUE | np.uint64(i)
            order, spare = _radix_sort(order, spare, n, 32, 63)
            _bin_values(values, order, n, quantiles, edges, bins[here:])
        n_genes[cell] = n
        if n > max_genes:
            n = _keep_by_hash(keys, spare, n, max_genes, seed, bins[here:], bin_bits[here:])
        for i in range(n):
            ids[here + i] = keys[i] >> BITS_OF_VALUE
        end = here + n
        bounds[cell + 1] = end


@compiled()
def _take_genes(start: int, stop: int, indices: Any, data: Any, column_tokens: Any, keys: Any, values: Any) -> Any:
    """Keep genes of the vocabulary that are not zero; say if tokens rise, and if all values are small and whole."""
    n, rising, whole, last = 0, True, True, np.int64(-1)
    bits = data.view(np.uint32)
    for entry in range(start, stop):
        token, value = column_tokens[indices[entry]], data[entry]
        if token >= 0 and value != 0:
            keys[n], values[n] = np.uint64(token) << BITS_OF_VALUE | np.uint64(bits[entry]), value
            n += 1
            rising &= token > last
            last = token
            whole &= value < COUNTING_LIMIT and value == np.floor(value)
    return n, rising, whole


@compiled()
def _radix_sort(keys: Any, spare: Any, n: int, first_bit: int, last_bit: int) -> Any:
    """Sort keys by some of their bits, eight at a time; the second array that comes back is free."""
    places = np.empty(257, np.int64)
    for bit in range(first_bit, last_bit, 8):
        shift = np.uint64(bit)
        places[:] = 0
        for i in range(n):
            places[1 + np.int64(keys[i] >> shift & np.uint64(255))] += 1
        for digit in range(256):
            places[digit + 1] += places[digit]
        for i in range(n):
            own = np.int64(keys[i] >> shift & np.uint64(255))
            spare[places[own]] = keys[i]
            places[own] += 1
        keys, spare = spare, keys
    return keys, spare


@compiled()
def _bin_counts(values: Any, n: int, counts: Any, quantiles: Any, edges: Any, bins: Any) -> None:
    """Bins of small whole values. `counts` is zero before and after."""
    largest = np.int64(0)
    for i in range(n):
        count = np.int64(values[i])
        counts[count] += 1
        largest = max(largest, count)
    below, seen = np.int64(0), np.int64(0)
    for grade in range(len(quantiles) if n else 0):
        rank = quantiles[grade] * np.float32(n - 1)
        low = np.int64(rank)
        while seen <= low:
            below += 1
            seen += counts[below]
        above = below
        if rank > low and seen == low + 1:
            above += 1
            while counts[above] == 0:
                above += 1
        edges[grade] = _interpolate(np.float32(below), np.float32(above), rank - np.float32(low))
    edge = 0
    for whole in range(1, largest + 1):
        while edge < len(edges) and edges[edge] < whole:
            edge += 1
        counts[whole] = 1 + edge
    for i in range(n):
        bins[i] = counts[np.int64(values[i])]
    counts[: largest + 1] = 0


@compiled()
def _bin_values(values: Any, order: Any, n: int, quantiles: Any, edges: Any, bins: Any) -> None:
    """Bins of any values, where the lower halves of `order` say which is the first, the second …."""
    for grade in range(len(quantiles)):
        rank = quantiles[grade] * np.float32(n - 1)
        low = np.int64(rank)
        below, above = values[order[low] & LOWER_32_BITS], values[order[np.int64(np.ceil(rank))] & LOWER_32_BITS]
        edges[grade] = _interpolate(below, above, rank - np.float32(low))
    edge = 0
    for i in range(n):
        place = order[i] & LOWER_32_BITS
        while edge < len(edges) and edges[edge] < values[place]:
            edge += 1
        bins[place] = 1 + edge


@compiled()
def _interpolate(below: Any, above: Any, share: Any) -> Any:
    """Interpolate as torch.lerp does: from the nearer side, and rounding once."""
    if share < np.float32(0.5):
        return _multiply_add(share, above - below, below)
    return _multiply_add(share - np.float32(1), above - below, above)


@intrinsic
def _multiply_add(_: Any, a: Any, b: Any, c: Any) -> Any:
    """``a * b + c`` in float32, rounded once."""
    return numba.float32(a, b, c), lambda _, builder, __, arguments: builder.fma(*arguments)


@compiled()
def _keep_by_hash(keys: Any, hashes: Any, n: int, limit: int, seed: Any, bins: Any, bin_bits: Any) -> int:
    """Move the entries with the smallest hashes to the front, in their order, as `tokenizer.hash_ranks` ranks them."""
    total = seed
    for i in range(n):
        hashes[i] = _mix_bits(keys[i] & ~LOWER_32_BITS | np.uint64(bin_bits[i]))
        total += hashes[i]
    total = _mix_bits(total)
    for i in range(n):
        hashes[i] = _mix_bits(hashes[i] ^ total)
    last = _nth_smallest(hashes, n, limit)
    kept = 0
    for i in range(n):
        if hashes[i] <= last and kept < limit:
            keys[kept], bins[kept] = keys[i], bins[i]
            kept += 1
    return kept


@compiled()
def _nth_smallest(hashes: Any, n: int, rank: int) -> Any:
    """Find the hash at this rank, from 1, by counting their upper bits: few then share those of the one sought."""
    counts, shift = np.zeros(4096, np.int32), np.uint64(52)
    for i in range(n):
        counts[np.int64(hashes[i] >> shift)] += 1
    upper = 0
    while counts[upper] < rank:
        rank -= counts[upper]
        upper += 1
    last = np.uint64(0)
    for _ in range(rank):
        following = ~np.uint64(0)
        for i in range(n):
            if np.int64(hashes[i] >> shift) == upper and last < hashes[i] < following:
                following = hashes[i]
        last = following
    return last


@compiled()
def _mix_bits(key: Any) -> Any:
    """Spread the bits of a key, as `tokenizer._mix_bits` does."""
    key = (key ^ (key >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    key = (key ^ (key >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return key ^ (key >> np.uint64(31))
