from __future__ import annotations

from dataclasses import replace

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

import tahoe
from tahoe.errors import InputError
from tahoe.model import Batch
from tahoe.model.network.attention import Spans

ANSWERS = {"expression": "expr_preds", "mvc": "mvc_output"}
NAME = "tahoe_expression"


def check_against(truth, cells, model, decoder):
    tokens = model.vocabulary.tokens_of(cells.var_names)
    column_of = {token: column for column, token in enumerate(tokens.tolist()) if token >= 0}
    ours = cells.layers[NAME].toarray()
    n_entries = 0
    for cell in range(cells.n_obs):
        here = slice(*truth["indptr"][cell : cell + 2])
        genes = [i for i, token in enumerate(truth["genes"][here].tolist()) if token in column_of]
        columns = [column_of[token] for token in truth["genes"][here][genes].tolist()]
        np.testing.assert_allclose(ours[cell, columns], truth[ANSWERS[decoder]][here][genes], atol=5e-5, rtol=0)
        n_entries += len(genes)
    assert cells.layers[NAME].nnz == n_entries > 20_000


@pytest.mark.parametrize("decoder", ANSWERS)
def test_observed_genes_match_the_reference(tiny, tiny_cells, reference, decoder):
    tahoe.tl.predict_expression(tiny_cells, tiny, decoder=decoder)
    check_against(np.load(reference / "tiny-golden.npz"), tiny_cells, tiny, decoder)
    assert tiny_cells.layers[NAME].dtype == np.float32
    assert tiny_cells.uns[NAME]["decoder"] == decoder


@pytest.mark.parametrize("decoder", ANSWERS)
@pytest.mark.parametrize(("drug_key", "result"), [("drugs", "with_drug"), (None, "no_drug"), ("none", "drug_id_0")])
def test_drugs_match_the_reference(reference, read_cells, decoder, drug_key, result):
    model = tahoe.load_model(reference / "drug-model")
    cells = read_cells(reference / "drug-input.npz")
    cells.var["tahoe_gene"] = cells.var_names
    cells.obs["drugs"] = cells.obs["drugs"].where(cells.obs["drugs"] != "not_a_known_drug", None)
    cells.obs["none"] = pd.Categorical([None] * 64)
    tahoe.tl.predict_expression(cells, model, decoder=decoder, drug_key=drug_key)
    check_against(np.load(reference / f"drug-{result}.npz"), cells, model, decoder)


@pytest.mark.parametrize("decoder", ANSWERS)
def test_hidden_genes_and_their_scores(tiny, full_cells, decoder):
    tahoe.tl.predict_expression(full_cells, tiny, mask_fraction=0.4, decoder=decoder)
    predicted = full_cells.layers[NAME]
    tokens = tiny.tokenize(full_cells.X, tiny.vocabulary.tokens_of(full_cells.var_names))
    column_of = dict(zip(tiny.vocabulary.tokens_of(full_cells.var_names), range(1600), strict=True))
    for cell in (1, 30, 47):
        columns = predicted[cell].indices
        here = slice(tokens.bounds[cell] + 1, tokens.bounds[cell + 1])
        bins = pd.Series(tokens.values[here], index=[column_of[token] for token in tokens.ids[here]])
        assert len(columns) == len(bins) * 4 // 10 == full_cells.obs[f"{NAME}_n_hidden"].iloc[cell]
        values, targets = predicted[cell].data, bins[columns]
        scores = full_cells.obs.iloc[cell]
        assert scores[f"{NAME}_pearson"] == pytest.approx(stats.pearsonr(values, targets).statistic, abs=1e-6)
        assert scores[f"{NAME}_spearman"] == pytest.approx(stats.spearmanr(values, targets).statistic, abs=1e-6)
        assert scores[f"{NAME}_mse"] == pytest.approx(((values - targets) ** 2).mean(), rel=1e-6)
    # a cell of one gene hides none of it
    assert full_cells.obs[f"{NAME}_n_hidden"].min() == 0
    assert full_cells.obs[f"{NAME}_mse"].isna().sum() == (full_cells.obs[f"{NAME}_n_hidden"] == 0).sum()


def test_the_error_of_gene_means(tiny, full_cells):
    tahoe.tl.predict_expression(full_cells, tiny, mask_fraction=0.4)
    hidden = full_cells.layers[NAME].astype(bool).toarray()
    tokens = tiny.tokenize(full_cells.X, tiny.vocabulary.tokens_of(full_cells.var_names))
    column_of = dict(zip(tiny.vocabulary.tokens_of(full_cells.var_names), range(1600), strict=True))
    bins = np.full(hidden.shape, np.nan)
    genes = tokens.is_gene
    bins[tokens.cell_of_token[genes], [column_of[token] for token in tokens.ids[genes]]] = tokens.values[genes]
    visible = pd.DataFrame(np.where(hidden, np.nan, bins))
    means = visible.mean().fillna(visible.stack().mean()).to_numpy()
    expected = pd.DataFrame(np.where(hidden, (bins - means) ** 2, np.nan)).mean(axis=1)
    np.testing.assert_allclose(full_cells.obs[f"{NAME}_mse_gene_mean"], expected, rtol=1e-6)


def test_same_for_every_order_and_storage_of_the_cells(tiny, full_cells):
    tahoe.tl.predict_expression(full_cells, tiny, mask_fraction=0.3)
    generator = np.random.default_rng(0)
    rows, columns = generator.permutation(full_cells.n_obs), generator.permutation(full_cells.n_vars)
    other = anndata.AnnData(
        4 * full_cells.X[rows][:, columns].toarray(),
        obs=full_cells.obs[[]].iloc[rows],
        var=full_cells.var[["tahoe_gene"]].iloc[columns],
    )
    with tahoe.settings.override(token_budget=3000):
        tahoe.tl.predict_expression(other, tiny, mask_fraction=0.3)
    expected = full_cells.layers[NAME][rows][:, columns].toarray()
    np.testing.assert_allclose(other.layers[NAME].toarray(), expected, rtol=0, atol=2e-5)
    other_scores = other.obs.loc[full_cells.obs_names, f"{NAME}_mse"]
    np.testing.assert_allclose(other_scores, full_cells.obs[f"{NAME}_mse"], rtol=1e-5)


def test_asked_genes_are_hidden_and_do_not_see_each_other(tiny, full_cells):
    cells = full_cells[20:30].copy()
    known = cells.var_names[tiny.vocabulary.tokens_of(cells.var_names) >= 0]
    genes = list(known[[700, 3, 90]])
    tahoe.tl.predict_expression(cells, tiny, genes=genes)
    together = cells.obsm[NAME]
    assert together.columns.to_list() == genes
    assert together.index.equals(cells.obs_names)
    assert not np.isnan(together).any(axis=None)
    for gene in genes:
        # of each cell only the genes that are not asked for are seen
        blind = tahoe.tl.predict_expression(cells, tiny, genes=gene, copy=True)
        np.testing.assert_allclose(blind.obsm[NAME][gene], predicted_by_hand(cells, tiny, gene), rtol=0, atol=2e-5)
    unexpressed = [gene for gene in known if cells[:, gene].X.sum() == 0][:2]
    tahoe.tl.predict_expression(cells, tiny, genes=unexpressed[:1])
    alone = cells.obsm[NAME]
    tahoe.tl.predict_expression(cells, tiny, genes=unexpressed)
    np.testing.assert_allclose(cells.obsm[NAME][unexpressed[0]], alone[unexpressed[0]], rtol=0, atol=2e-5)


def predicted_by_hand(cells, model, gene):
    """One hidden token behind each cell, straight into the network."""
    predictions = []
    tokens = model.tokenize(cells.X, model.vocabulary.tokens_of(cells.var_names))
    token = model.vocabulary.ids[gene]
    for cell in range(cells.n_obs):
        here = slice(*tokens.bounds[cell : cell + 2])
        kept = tokens.ids[here] != token
        ids = torch.tensor([*tokens.ids[here][kept], token])
        values = torch.tensor([*tokens.values[here][kept], -1.0])
        masked = ids == token
        batch = Batch(ids, values, Spans.of([0, len(ids)], model.device), masked)
        with torch.inference_mode():
            predictions.append(model.network.decode(model.network(batch, "eager"))[-1].item())
    return predictions


def test_many_genes_go_in_several_passes(tiny, full_cells, monkeypatch):
    cells = full_cells[20:24].copy()
    known = list(cells.var_names[tiny.vocabulary.tokens_of(cells.var_names) >= 0][:40])
    for decoder in ANSWERS:
        tahoe.tl.predict_expression(cells, tiny, genes=known, decoder=decoder)
        whole = cells.obsm[NAME]
        with monkeypatch.context() as patch:
            patch.setattr("tahoe._run.predictions.GENES_AT_ONCE", 7)
            with tahoe.settings.override(token_budget=500):
                tahoe.tl.predict_expression(cells, tiny, genes=known, decoder=decoder)
        # a gene is hidden also from the passes in which others are asked for
        np.testing.assert_allclose(cells.obsm[NAME], whole, rtol=0, atol=2e-5)


def test_with_full_attention_all_are_asked_together(tiny, full_cells, monkeypatch):
    tiny.network.config = replace(tiny.config, hide_masked=False)
    cells = full_cells[20:24].copy()
    known = list(cells.var_names[tiny.vocabulary.tokens_of(cells.var_names) >= 0][:40])
    tahoe.tl.predict_expression(cells, tiny, genes=known)
    whole = cells.obsm[NAME]
    monkeypatch.setattr("tahoe._run.predictions.GENES_AT_ONCE", 7)
    tahoe.tl.predict_expression(cells, tiny, genes=known)
    np.testing.assert_array_equal(cells.obsm[NAME], whole)
    tahoe.tl.predict_expression(cells, tiny, genes=known[:7])
    assert np.abs(cells.obsm[NAME][known[0]] - whole[known[0]]).max() > 1e-3


def test_genes_that_were_not_measured(tmp_path):
    cells = tahoe.datasets.pbmc68k()[:12].copy()
    cells.obs_names = [f"cell{i}" for i in range(12)]
    genes = ["CD14", "ENSG00000170458", "CD3D"]
    tahoe.tl.predict_expression(cells, "demo", genes=genes)
    predicted = cells.obsm[NAME]
    assert "CD14" not in cells.var_names
    np.testing.assert_array_equal(predicted["CD14"], predicted["ENSG00000170458"])
    assert 0 < predicted["CD14"].min() < predicted["CD14"].max() < 51
    cells.write_h5ad(tmp_path / "cells.h5ad")
    again = anndata.read_h5ad(tmp_path / "cells.h5ad")
    pd.testing.assert_frame_equal(again.obsm[NAME], predicted)
    assert list(again.uns[NAME]["genes"]) == genes


def test_an_empty_cell(tiny, tiny_cells):
    gene = tiny_cells.var_names[tiny.vocabulary.tokens_of(tiny_cells.var_names) >= 0][0]
    tahoe.tl.predict_expression(tiny_cells, tiny, genes=gene)
    assert tiny_cells.obsm[NAME].isna().to_numpy().nonzero()[0].tolist() == [5]
    tahoe.tl.predict_expression(tiny_cells, tiny, mask_fraction=0.2, key_added="hidden")
    assert tiny_cells.obs["hidden_n_hidden"].iloc[5] == 0
    assert np.isnan(tiny_cells.obs["hidden_mse"].iloc[5])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"genes": ["nothing"]}, r"genes=\['nothing'\]: not among the genes of the model 'tiny-model'"),
        ({"genes": []}, "name at least one gene"),
        ({"genes": ["a", "a"]}, "each once"),
        ({"genes": ["a"], "mask_fraction": 0.1}, "pass only one of them"),
        ({"mask_fraction": 0}, "mask_fraction=0: it must lie between 0 and 1"),
        ({"mask_fraction": 1.0}, "mask_fraction=1.0"),
        ({"decoder": "values"}, "decoder='values' is unknown"),
        ({"layer": "nothing"}, "does not exist"),
        ({"layer": "mine", "key_added": "mine"}, "key_added='mine' is the layer that is read, and would be lost"),
        ({"drug_key": "drug"}, "has no drug encoder"),
        ({"max_length": 1}, "max_length=1"),
    ],
)
def test_bad_arguments(tiny, full_cells, options, message):
    full_cells.layers["mine"] = full_cells.X
    before = {slot: set(getattr(full_cells, slot)) for slot in ("obs", "obsm", "layers", "uns")}
    with pytest.raises(InputError, match=message):
        tahoe.tl.predict_expression(full_cells, tiny, **options)
    assert before == {slot: set(getattr(full_cells, slot)) for slot in before}


def test_a_misspelt_gene(full_cells, tiny):
    gene = full_cells.var_names[tiny.vocabulary.tokens_of(full_cells.var_names) >= 0][0]
    with pytest.raises(InputError, match=rf"near: .*'{gene}'"):
        tahoe.tl.predict_expression(full_cells, tiny, genes=[gene[:-1] + "x"])


def test_a_gene_that_this_model_was_not_made_with():
    pbmc = tahoe.datasets.pbmc68k()[:5].copy()
    with pytest.raises(InputError, match="'OR4F5' is a gene, but the model was not made with it"):
        tahoe.tl.predict_expression(pbmc, "demo", genes=["OR4F5"])


def test_names_that_several_columns_bear(full_cells, tiny):
    known = [gene in tiny.vocabulary for gene in full_cells.var_names]
    first, second = np.flatnonzero(known)[:2]
    names = np.array(full_cells.var_names, dtype=object)
    names[[first, second]] = "twice"
    full_cells.var_names = names
    with pytest.raises(InputError, match="several columns bear"):
        tahoe.tl.predict_expression(full_cells, tiny, genes=["twice"])
    # a column that the model does not read is no second gene
    full_cells.var.iloc[second, full_cells.var.columns.get_loc("tahoe_gene")] = ""
    tahoe.tl.predict_expression(full_cells, tiny, genes=["twice"])
    assert full_cells.obsm["tahoe_expression"].columns.tolist() == ["twice"]


def test_a_model_without_the_decoder(tiny, full_cells):
    tiny.network.config = replace(tiny.config, mvc_decoder=False)
    with pytest.raises(InputError, match="decoder='mvc', but the model 'tiny-model' has none"):
        tahoe.tl.predict_expression(full_cells, tiny, decoder="mvc")


@pytest.mark.parametrize(("options", "bound"), [({}, "take fewer cells"), ({"mask_fraction": 0.5}, "take fewer cells")])
def test_a_result_that_does_not_fit(tiny, full_cells, monkeypatch, options, bound):
    monkeypatch.setattr("os.sysconf", lambda name: 4096 if name == "SC_PAGE_SIZE" else 10)
    with pytest.raises(InputError, match=rf"would need .* GiB .*{bound}"):
        tahoe.tl.predict_expression(full_cells, tiny, **options)
    assert not full_cells.layers


def test_too_many_genes_to_fit(tiny, full_cells, monkeypatch):
    known = full_cells.var_names[tiny.vocabulary.tokens_of(full_cells.var_names) >= 0]
    monkeypatch.setattr("os.sysconf", lambda name: 4096 if name == "SC_PAGE_SIZE" else 10)
    with pytest.raises(InputError, match=r"63 cells × 50 genes; choose fewer with genes="):
        tahoe.tl.predict_expression(full_cells, tiny, genes=known[:50].tolist())
    assert not full_cells.obsm
