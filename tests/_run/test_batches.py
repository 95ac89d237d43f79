from __future__ import annotations

import math
import threading

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from tahoe._run.batches import CellBatches, embed_cells, plan, prefetch
from tahoe.errors import DeviceError


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(1, 120))
def test_plan_covers_all_cells_in_order_within_the_budget(lengths, budget):
    bounds = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    batches = plan(bounds, budget)
    assert [cell for start, stop in batches for cell in range(start, stop)] == list(range(len(lengths)))
    for start, stop in batches:
        assert bounds[stop] - bounds[start] <= budget or stop == start + 1
    # as few as can be expected: a batch more for each cell that did not fit
    assert len(batches) <= 2 * math.ceil(bounds[-1] / budget) + 1


def test_plan_leaves_no_small_batch_at_the_end():
    sizes = [stop - start for start, stop in plan(np.arange(0, 1051, 10), 400)]
    assert sizes == [35, 35, 35]


def readers():
    return [thread for thread in threading.enumerate() if thread.name.startswith("tahoe-reader")]


def test_prefetch_gives_all_items_in_order_and_ends_its_thread():
    assert list(prefetch(range(100))) == list(range(100))
    assert list(prefetch([])) == []
    assert not readers()


def test_ahead_reads_one_item_before_it_is_asked_for():
    second = threading.Event()

    def items():
        yield 1
        second.set()
        yield 2

    stream = prefetch(items())
    assert next(stream) == 1
    assert second.wait(timeout=10)
    assert next(stream) == 2
    stream.close()
    assert not readers()


def test_an_error_in_the_reader_surfaces():
    def items():
        yield 1
        message = "the disk is gone"
        raise OSError(message)

    with pytest.raises(OSError, match="the disk is gone"):
        list(prefetch(items()))
    assert not readers()


@pytest.fixture
def stream(full_cells, tiny):
    def make(**options):
        matrix = sparse.csr_array(full_cells.X)
        blocks = [matrix[start : start + 20] for start in range(0, 63, 20)]
        return CellBatches(blocks, tiny.vocabulary.tokens_of(full_cells.var_names), 63, 2048, **options)

    return make


# Even one token would need more than any machine has.
BYTES_PER_TOKEN = 1 << 48


def test_batches_are_halved_until_they_fit(stream, tiny):
    """Real allocations, which fail for a batch of more than 1,600 tokens."""
    seen = []
    truth, _ = embed_cells(tiny, stream(), normalize=False)

    def take(first, tokens):
        if len(tokens.ids) > 1600:
            torch.empty(len(tokens.ids), BYTES_PER_TOKEN, dtype=torch.uint8)
        seen.append((first, len(tokens)))
        np.testing.assert_allclose(tiny.embed_cells(tokens), truth[first : first + len(tokens)], atol=2e-6, rtol=0)

    cells = stream(token_budget=20_000)
    cells.each(tiny, take)
    # every cell once, in order
    assert [cell for first, n in seen for cell in range(first, first + n)] == list(range(63))
    assert cells.token_budget <= 20_000 // 2
    # once the budget is small enough nothing fails any more
    assert max(n for _, n in seen) > 1


def test_one_cell_that_does_not_fit_is_an_error(stream, tiny):
    def take(first, tokens):
        torch.empty(len(tokens.ids), BYTES_PER_TOKEN, dtype=torch.uint8)

    with pytest.raises(DeviceError, match=r"cell 0 .*max_length=") as caught:
        stream(token_budget=4000).each(tiny, take)
    assert "can't allocate memory" in str(caught.value.__cause__)
    assert not readers()


def test_other_errors_pass_through(stream, tiny):
    def take(first, tokens):
        message = "something else"
        raise RuntimeError(message)

    with pytest.raises(RuntimeError, match="something else"):
        stream().each(tiny, take)
    assert not readers()
