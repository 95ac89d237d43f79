"""The order of cells in training: each once an epoch, in the shares that were asked for, the same at every try."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tahoe._training.cells import Order, drawn, held_out_rows

ORDERS = st.builds(
    lambda n, share, seed, size, blocks: Order(n, held_out_rows(n, int(share * n), (seed,)), (seed,), size, blocks),
    st.integers(1, 400),
    st.floats(0, 0.9),
    st.integers(0, 5),
    st.integers(1, 50),
    st.integers(1, 6),
)


@given(ORDERS, st.integers(0, 2))
def test_each_cell_comes_once_an_epoch(order, epoch):
    n = order.n_cells
    rows = order.rows(epoch * n, (epoch + 1) * n)
    assert sorted([*rows, *order.held_out]) == list(range(order.n_rows))


@given(ORDERS, st.lists(st.integers(1, 150), min_size=1, max_size=8))
def test_how_it_is_asked_for_does_not_matter(order, sizes):
    ends = np.cumsum([0, *sizes])
    parts = [order.rows(first, last) for first, last in zip(ends[:-1], ends[1:], strict=True)]
    assert np.array_equal(np.concatenate(parts), order.rows(0, int(ends[-1])))


@given(ORDERS)
def test_windows_follow_each_other(order):
    keys = [key for key, _ in order.windows(0, 2 * order.n_cells)]
    key = keys[0]
    for expected in keys[1:]:
        key = order.following(*key)
        while not len(order.window(*key)):  # all of it is held out
            key = order.following(*key)
        assert key == expected


def test_it_is_shuffled():
    order = Order(1000, np.array([], dtype=int), (0,), 16, 8)
    first, second = order.rows(0, 1000), order.rows(1000, 2000)
    assert not np.array_equal(first, second)
    for rows in (first, second):
        assert np.corrcoef(rows, np.arange(1000))[0, 1] < 0.3
        assert (np.abs(np.diff(rows)) == 1).mean() < 0.1


@given(st.lists(st.integers(1, 100), min_size=1, max_size=6), st.integers(12, 600), st.integers(1, 500))
def test_shares_are_as_asked(parts, cells_per_step, n_steps):
    shares = [Fraction(part, sum(parts)) for part in parts]
    for share in shares:
        taken = [drawn(share, n, cells_per_step) for n in (0, n_steps, n_steps + 1)]
        assert taken[0] == 0
        assert 0 <= taken[1] - share * n_steps * cells_per_step < 1
    for n in (0, n_steps):
        size = sum(drawn(share, n + 1, cells_per_step) - drawn(share, n, cells_per_step) for share in shares)
        assert abs(size - cells_per_step) < len(parts)


@given(st.integers(1, 3000), st.floats(0, 1), st.integers(0, 9))
def test_held_out_rows_are_as_many_as_asked(n, share, seed):
    rows = held_out_rows(n, int(share * n), (seed,))
    assert len(set(rows.tolist())) == len(rows) <= int(share * n)
    assert len(rows) >= int(share * n) - 16
    assert (np.diff(rows) > 0).all()
