from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import tahoe
from tahoe.errors import InputError


@pytest.mark.parametrize("cell", [9, 13, 48, 60])
def test_gene_embeddings_match_the_reference(tiny, tiny_cells, reference, cell):
    truth = np.load(reference / "tiny-golden.npz")
    start, stop = truth["indptr"][cell : cell + 2]
    vectors = tahoe.get.gene_embeddings(tiny_cells, tiny, cell=cell)
    tokens = tiny.vocabulary.tokens_of(vectors.index)
    assert set(tokens) == set(truth["genes"][start + 1 : stop])
    place = {token: i for i, token in enumerate(truth["genes"][start:stop])}
    expected = truth[f"gene_emb_{cell}"][[place[token] for token in tokens]]
    np.testing.assert_allclose(vectors.to_numpy(), expected, atol=1e-5, rtol=0)


def test_names_and_numbers_mean_the_same_cell(tiny, tiny_cells):
    by_name = tahoe.get.gene_embeddings(tiny_cells, tiny, cell="cell9")
    assert by_name.equals(tahoe.get.gene_embeddings(tiny_cells, tiny, cell=9))
    assert by_name.shape == (1, 64)
    assert "X_tahoe" not in tiny_cells.obsm
    assert "tahoe_match" not in tiny_cells.var


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("cel9", r"cell='cel9' is the name of 0 cells.*near: 'cell9'"),
        (64, "cell=64 is out of range; adata has 64 cells"),
        (-1, "out of range"),
        (5, "cell=5 expresses no gene"),
    ],
)
def test_no_such_cell(tiny, tiny_cells, cell, message):
    with pytest.raises(InputError, match=message):
        tahoe.get.gene_embeddings(tiny_cells, tiny, cell=cell)


def test_attention_matches_the_reference(tiny, tiny_cells, reference):
    truth = np.load(reference / "tiny-golden.npz")
    for layer in (0, 1):
        for heads in (0, 3, None):
            ours = tahoe.get.attention(tiny_cells, tiny, cell=48, network_layer=layer, heads=heads)
            expected = truth["attn_48"][layer]
            check_attention(ours, expected.mean(0) if heads is None else expected[heads], truth, 48, tiny)
    ours = tahoe.get.attention(tiny_cells, tiny, cell="cell48", network_layer=None, heads=[0, 2])
    check_attention(ours, truth["attn_48"][:, [0, 2]].mean((0, 1)), truth, 48, tiny)


@pytest.mark.parametrize(("drug_key", "result"), [("drugs", "with_drug"), (None, "no_drug")])
def test_attention_with_drugs_matches_the_reference(reference, read_cells, drug_key, result):
    model = tahoe.load_model(reference / "drug-model")
    cells = read_cells(reference / "drug-input.npz")
    cells.var["tahoe_gene"] = cells.var_names
    cells.obs["drugs"] = cells.obs["drugs"].where(cells.obs["drugs"] != "not_a_known_drug", None)
    truth = np.load(reference / f"drug-{result}.npz")
    for layer in (0, 1):
        ours = tahoe.get.attention(cells, model, cell=7, network_layer=layer, drug_key=drug_key)
        assert ("<drug>" in ours.index) == (drug_key is not None)
        check_attention(ours, truth["attn_7"][layer].mean(0), truth, 7, model)


def check_attention(ours, expected, truth, cell, model):
    start, stop = truth["indptr"][cell : cell + 2]
    place = {token: i for i, token in enumerate(truth["genes"][start:stop])}
    order = [place[model.vocabulary.ids[name]] for name in ours.index]
    np.testing.assert_allclose(ours.to_numpy(), expected[np.ix_(order, order)], atol=1e-6, rtol=0)
    assert sorted(order) == list(range(stop - start))
    assert (ours.index == ours.columns).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_of_attention_sum_to_one(heart, dtype):
    model, cells = tahoe.load_model("demo", dtype=dtype), heart[:2].copy()
    tahoe.pp.map_genes(cells)
    for layer in range(3):
        for head in range(4):
            weights = tahoe.get.attention(cells, model, cell=0, network_layer=layer, heads=head, max_length=600)
            assert len(weights) == 600
            np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-5, rtol=0)
    genes = weights.index[1:]
    assert (np.diff(heart.var_names.get_indexer(genes)) > 0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"network_layer": 2}, "network_layer=2: the network has 2 layers"),
        ({"heads": 4}, "heads=4: the network has 4 heads"),
        ({"layer": "counts"}, "does not exist"),
        ({"drug_key": "drug"}, "no drug encoder"),
    ],
)
def test_no_such_layer_or_head(tiny, tiny_cells, options, message):
    with pytest.raises(InputError, match=message):
        tahoe.get.attention(tiny_cells, tiny, cell=48, **options)


@pytest.fixture(scope="module")
def screened():
    adata = tahoe.datasets.pbmc68k()
    with tahoe.settings.override(progress=False, device="cpu", dtype="float32"):
        tahoe.tl.perturb(adata, "demo", genes=["CD3D", "CD3E", "NKG7"], groupby="phase", n_cells=9, n_exact=0)
    return adata


def test_a_screen_is_sorted_and_filtered(screened):
    before = screened.uns["tahoe_perturb"]["table"].copy()
    table = tahoe.get.perturbation(screened)
    assert table["shift"].is_monotonic_decreasing
    assert "q" not in table
    part = tahoe.get.perturbation(screened, group="S", sort_by="n_cells", ascending=True, min_edited=2)
    assert set(part["group"]) == {"S"}
    assert part["n_cells"].is_monotonic_increasing
    assert (part["n_cells"] >= 2).all()
    pd.testing.assert_frame_equal(screened.uns["tahoe_perturb"]["table"], before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"key": "nothing"}, r"uns\['nothing'\] has no table of a perturbation screen"),
        ({"group": "T"}, "group='T' is not a group of"),
        ({"sort_by": "height"}, "sort_by='height' is not a column"),
        ({"max_q": 0.1}, "there are no q-values"),
    ],
)
def test_bad_questions_to_a_screen(screened, options, message):
    with pytest.raises(InputError, match=message):
        tahoe.get.perturbation(screened, **options)
