"""Cells that carry a drug token, against the reference vectors of a model with a drug encoder."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

import tahoe
from tahoe.errors import InputError, TahoeWarning

NONEMPTY = np.arange(64) != 5


@pytest.fixture
def model(reference):
    return tahoe.load_model(reference / "drug-model", device="cpu")


@pytest.fixture
def cells(reference, read_cells):
    cells = read_cells(reference / "drug-input.npz")
    cells.var["tahoe_gene"] = cells.var_names
    # the authors' loader silently takes a drug that it does not know for none; here that is an error
    assert "not_a_known_drug" in set(cells.obs["drugs"])
    cells.obs["drugs"] = cells.obs["drugs"].where(cells.obs["drugs"] != "not_a_known_drug", None)
    return cells


def embed(cells, model, **options):
    with pytest.warns(TahoeWarning, match="1 of 64 cells"):
        tahoe.tl.embed(cells, model, normalize=False, **options)
    return cells.obsm["X_tahoe"][NONEMPTY]


@pytest.mark.parametrize(("drug_key", "result"), [("drugs", "with_drug"), (None, "no_drug"), ("none", "drug_id_0")])
def test_matches_the_reference(cells, model, reference, drug_key, result):
    cells.obs["none"] = pd.Categorical([None] * 64)
    truth = np.load(reference / f"drug-{result}.npz")["cell_emb_raw"][NONEMPTY]
    np.testing.assert_allclose(embed(cells, model, drug_key=drug_key), truth, atol=1e-5, rtol=0)
    assert cells.uns["X_tahoe"].get("drug_key") == drug_key


def test_gene_vectors_match_the_reference(cells, model, reference):
    truth = np.load(reference / "drug-with_drug.npz")
    start, stop = truth["indptr"][13:15]
    vectors = tahoe.get.gene_embeddings(cells, model, cell=13, drug_key="drugs")
    tokens = model.vocabulary.tokens_of(vectors.index)
    place = {token: i for i, token in enumerate(truth["genes"][start:stop])}
    expected = truth["gene_emb_13"][[place[token] for token in tokens]]
    np.testing.assert_allclose(vectors.to_numpy(), expected, atol=1e-5, rtol=0)
    tahoe.tl.embed_genes(cells, model, drug_key="drugs")
    tokens = model.vocabulary.tokens_of(cells.var_names)
    seen = (tokens >= 0) & (cells.varm["tahoe_n_cells"][:, 0] > 0)
    np.testing.assert_allclose(cells.varm["tahoe"][seen], truth["mean_gene_emb"][tokens[seen]], atol=1e-5, rtol=0)


def test_each_block_of_cells_has_its_own_drugs(cells, model, monkeypatch):
    at_once = embed(cells, model, drug_key="drugs")
    monkeypatch.setattr("tahoe._cells.rows.BLOCK_CELLS", 10)
    np.testing.assert_array_equal(embed(cells, model, drug_key="drugs"), at_once)


def test_drugs_from_a_mapping_or_a_file(cells, model, tmp_path):
    expected = embed(cells, model, drug_key="drugs")
    known, model.drugs = model.drugs, {}
    with pytest.raises(InputError, match="does not name its drugs; pass drugs="):
        tahoe.tl.embed(cells, model, drug_key="drugs")
    np.testing.assert_array_equal(embed(cells, model, drug_key="drugs", drugs=known), expected)
    path = tmp_path / "drugs.json"
    path.write_text(json.dumps(known))
    np.testing.assert_array_equal(embed(cells, model, drug_key="drugs", drugs=path), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"drug_key": "nothing"}, "drug_key='nothing' is not a column of adata.obs"),
        ({"drug_key": "typo"}, r"1 drugs that the model does not know: 'drug_o1' \(near: 'drug_"),
        ({"drugs": {"a": 1}}, "drugs= is given, but drug_key= is not"),
        ({"drug_key": "drugs", "drugs": {"a": 99}}, "'a' has id 99; the model has 40 drugs"),
    ],
)
def test_bad_drugs(cells, model, options, message):
    cells.obs["typo"] = ["drug_o1"] * 64
    with pytest.raises(InputError, match=message):
        tahoe.tl.embed(cells, model, **options)
    assert "X_tahoe" not in cells.obsm


def test_a_model_without_drugs_refuses(tiny, cells):
    with pytest.raises(InputError, match="has no drug encoder"):
        tahoe.tl.embed(cells, tiny, drug_key="drugs")


@pytest.mark.parametrize("verb", ["embed_genes", "attention", "predict_expression"])
def test_all_verbs_know_drugs(cells, model, tiny, verb):
    function = getattr(tahoe.tl, verb)
    cells.obs["typo"] = ["drug_o1"] * 64
    with pytest.raises(InputError, match=r"1 drugs that the model does not know: 'drug_o1' \(near: 'drug_"):
        function(cells, model, drug_key="typo")
    with pytest.raises(InputError, match="has no drug encoder"):
        function(cells, tiny, drug_key="drugs")
    assert not cells.uns
    function(cells, model, drug_key="drugs", key_added="tahoe_with")
    assert cells.uns["tahoe_with"]["drug_key"] == "drugs"


def test_genes_attend_to_the_drug(cells, model):
    with_drug = tahoe.get.attention(cells, model, cell=13, drug_key="drugs")
    assert with_drug.index[:2].tolist() == ["<cls>", "<drug>"]
    assert (with_drug["<drug>"] > 0).all()
