"""Exact search is what float64 says, however the rows are cut, stored or ordered."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tahoe._reference.embeddings import Embeddings, unit
from tahoe._reference.exact import nearest


def brute(queries, rows, k):
    squares = np.square(queries.astype(np.float64)[:, None] - rows.astype(np.float64)[None]).sum(axis=-1)
    order = np.argsort(squares, axis=1, kind="stable")[:, :k]
    return order, np.sqrt(np.take_along_axis(squares, order, 1))


def draw(n, width, seed, dtype=np.float32):
    return unit(np.random.default_rng(seed).standard_normal((n, width))).astype(dtype)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("k", [1, 7, 400])
def test_it_is_brute_force(dtype, k):
    rows, queries = draw(400, 24, 0, dtype), draw(30, 24, 1)
    found, distances = nearest(queries, Embeddings([rows]), k)
    expected, exactly = brute(queries, rows, k)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(distances, exactly, rtol=1e-12)


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(2, 90),
    block=st.integers(1, 100),
    cut=st.integers(1, 80),
    k=st.integers(1, 20),
    seed=st.integers(0, 99),
)
def test_blocks_and_shards_change_nothing(n, block, cut, k, seed):
    rows = draw(n, 8, seed, np.float16)[np.random.default_rng(seed).integers(0, n, n)]  # with equal ones
    rows[seed % n] = np.nan
    queries, k = np.concatenate([draw(5, 8, seed + 1), rows[:1].astype(np.float32)]), min(k, n - 1)
    whole = nearest(queries, Embeddings([rows]), k)
    cut = min(cut, n - 1)
    parts = nearest(queries, Embeddings([rows[:cut], rows[cut:]]), k, rows_at_once=block)
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_array_equal(one, other)
    alone = [nearest(query[None], Embeddings([rows]), k)[1][0] for query in queries]
    np.testing.assert_array_equal(alone, whole[1])


def test_equal_distances_go_by_row():
    """More of them than there are candidates at first."""
    rows = np.repeat(draw(1, 16, 0), 500, axis=0)
    found, distances = nearest(rows[:1], Embeddings([rows]), 3)
    assert found.tolist() == [[0, 1, 2]]
    assert distances.tolist() == [[0, 0, 0]]


def test_the_order_of_the_rows_changes_only_their_numbers():
    rows, queries, order = draw(300, 12, 0), draw(9, 12, 1), np.random.default_rng(2).permutation(300)
    found, distances = nearest(queries, Embeddings([rows]), 10)
    again, same = nearest(queries, Embeddings([rows[order]]), 10)
    np.testing.assert_array_equal(order[again], found)
    np.testing.assert_array_equal(same, distances)


def test_what_is_missing_is_neither_found_nor_finds():
    rows, queries = draw(20, 6, 0), draw(3, 6, 1)
    rows[4], queries[1] = np.nan, np.nan
    found, distances = nearest(queries, Embeddings([rows]), 20)
    assert (found[1] == -1).all()
    assert np.isinf(distances[1]).all()
    assert 4 not in found[0]
    assert found[0, -1] == -1
    assert len(set(found[0])) == 20


def test_the_own_group_is_passed_over():
    rows, groups = draw(60, 6, 0), np.arange(60) % 3
    found, _ = nearest(rows[:10], Embeddings([rows]), 50, group_of_query=groups[:10], group_of_row=groups)
    assert (found[:, :40] >= 0).all()
    assert (found[:, 40:] == -1).all()
    assert not (groups[found[:, :40]] == groups[:10, None]).any()


def test_rounded_products_change_nothing():
    rows, queries = draw(500, 32, 0), draw(10, 32, 1)
    expected = nearest(queries, Embeddings([rows]), 10)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", torch.bfloat16):
            found = nearest(queries, Embeddings([rows]), 10)
    finally:
        torch.set_float32_matmul_precision(before)
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_array_equal(one, other)


def test_unit_vectors():
    vectors = unit(np.array([[3, 4], [0, 0], [np.nan, 1], [np.inf, 1], [-1e-30, 0]]))
    np.testing.assert_allclose(vectors[[0, 4]], [[0.6, 0.8], [-1, 0]], rtol=1e-6)
    assert np.isnan(vectors[1:4]).all()
