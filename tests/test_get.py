from __future__ import annotations

import numpy as np
import pytest

import tahoe
from tahoe.errors import InputError


@pytest.mark.parametrize("cell", [9, 13, 48, 60])
def test_gene_embeddings_match_the_reference(tiny, tiny_cells, reference, cell):
    truth = np.load(reference / "tiny-golden.npz")
    start, stop = truth["indptr"][cell : cell + 2]
    vectors = tahoe.get.gene_embeddings(tiny_cells, tiny, cell)
    tokens = tiny.vocabulary.tokens_of(vectors.index)
    assert set(tokens) == set(truth["genes"][start + 1 : stop])
    place = {token: i for i, token in enumerate(truth["genes"][start:stop])}
    expected = truth[f"gene_emb_{cell}"][[place[token] for token in tokens]]
    np.testing.assert_allclose(vectors.to_numpy(), expected, atol=1e-5, rtol=0)


def test_names_and_numbers_mean_the_same_cell(tiny, tiny_cells):
    by_name = tahoe.get.gene_embeddings(tiny_cells, tiny, "cell9")
    assert by_name.equals(tahoe.get.gene_embeddings(tiny_cells, tiny, 9))
    assert by_name.shape == (1, 64)
    assert "X_tahoe" not in tiny_cells.obsm
    assert "tahoe_match" not in tiny_cells.var


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("cel9", r"cell='cel9' is the name of 0 cells.*did you mean 'cell9'"),
        (64, "cell=64 is out of range; adata has 64 cells"),
        (-1, "out of range"),
        (5, "cell=5 expresses no gene"),
    ],
)
def test_no_such_cell(tiny, tiny_cells, cell, message):
    with pytest.raises(InputError, match=message):
        tahoe.get.gene_embeddings(tiny_cells, tiny, cell)
