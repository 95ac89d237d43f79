from __future__ import annotations

import pickle
from functools import partial

import numpy as np
import pandas as pd
import pytest

from tahoe._run.batches import CellBatches
from tahoe._run.means import AttentionMeans, GeneMeans, aggregate
from tahoe._run.predictions import HiddenPredictions, ObservedPredictions, QueriedPredictions


def stream_of(cells, model, start, stop):
    block = cells.X[start:stop].tocsr()
    return CellBatches([block], model.vocabulary.tokens_of(cells.var_names), stop - start, max_length=2048)


@pytest.fixture
def parts(tiny, full_cells):
    """For each accumulator: how to make one for some cells, given their groups."""
    tokens = tiny.vocabulary.tokens_of(full_cells.var_names)
    columns = np.flatnonzero(tokens >= 0)[::3]
    size = tiny.config.vocab_size
    return {
        "genes": partial(GeneMeans, tokens, n_groups=2, vocab_size=size, width=64),
        "attention": partial(AttentionMeans, tokens, columns, n_groups=2, vocab_size=size, layers=(0, 1), heads=(0, 2)),
    }


@pytest.mark.parametrize("kind", ["genes", "attention"])
def test_two_halves_give_the_whole(tiny, full_cells, parts, kind):
    groups = np.arange(30) % 3 // 2
    whole = aggregate(tiny, stream_of(full_cells, tiny, 0, 30), parts[kind](groups=groups))
    first, second = (
        # as they come back from another process
        pickle.loads(
            pickle.dumps(aggregate(tiny, stream_of(full_cells, tiny, *rows), parts[kind](groups=groups[slice(*rows)])))
        )
        for rows in ((0, 13), (13, 30))
    )
    first.merge(second)
    for sums in ("sums", "n_cells"):
        np.testing.assert_allclose(getattr(first, sums), getattr(whole, sums), rtol=1e-12, atol=1e-12)
    merged, expected = first.result(), whole.result()
    if kind == "genes":
        np.testing.assert_allclose(merged[0], expected[0], rtol=0, atol=1e-6)
    else:
        np.testing.assert_allclose(merged[1], expected[1], rtol=0, atol=1e-7)
        for ours, theirs in zip(merged[0], expected[0], strict=True):
            assert ours.nnz == theirs.nnz > 0
            np.testing.assert_allclose(ours.toarray(), theirs.toarray(), rtol=0, atol=1e-7)


@pytest.mark.parametrize("kind", ["observed", "hidden", "asked"])
def test_predictions_of_two_halves_are_those_of_the_whole(tiny, full_cells, kind):
    tokens = tiny.vocabulary.tokens_of(full_cells.var_names)
    size = tiny.config.vocab_size
    make = {
        "observed": lambda: ObservedPredictions(tokens, size, "mvc"),
        "hidden": lambda: HiddenPredictions(tokens, size, "expression", share=0.3, seed=1),
        "asked": lambda: QueriedPredictions(np.array([5, 900, 1500]), "expression"),
    }[kind]
    whole = aggregate(tiny, stream_of(full_cells, tiny, 0, 30), make()).result()
    first, second = (
        pickle.loads(pickle.dumps(aggregate(tiny, stream_of(full_cells, tiny, *rows), make())))
        for rows in ((0, 13), (13, 30))
    )
    first.merge(second)
    merged = first.result()
    if kind == "hidden":
        pd.testing.assert_frame_equal(merged[1], whole[1], rtol=1e-5)
        merged, whole = merged[0], whole[0]
    if kind != "asked":
        merged, whole = merged.toarray(), whole.toarray()
    np.testing.assert_allclose(merged, whole, rtol=0, atol=2e-5)
