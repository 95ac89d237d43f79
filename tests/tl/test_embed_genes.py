from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
import torch

import tahoe
from tahoe.errors import InputError


def test_means_match_the_reference(tiny, tiny_cells, reference):
    truth = np.load(reference / "tiny-golden.npz")
    tahoe.tl.embed_genes(tiny_cells, tiny)
    tokens = tiny.vocabulary.tokens_of(tiny_cells.var_names)
    ours, n_cells = tiny_cells.varm["tahoe"], tiny_cells.varm["tahoe_n_cells"][:, 0]
    known = tokens >= 0
    np.testing.assert_array_equal(n_cells[known], truth["mean_gene_count"][tokens[known]])
    assert (n_cells[~known] == 0).all()
    seen = n_cells > 0
    np.testing.assert_allclose(ours[seen], truth["mean_gene_emb"][tokens[seen]], atol=1e-5, rtol=0)
    assert np.isnan(ours[~seen]).all()
    assert ours.dtype == np.float32
    assert tiny_cells.uns["tahoe"]["context"] is True


def test_groups_are_their_cells_alone(tiny, full_cells):
    full_cells.obs["kind"] = pd.Categorical(np.where(np.arange(63) % 3 == 0, "a", "b"), categories=["z", "b", "a"])
    tahoe.tl.embed_genes(full_cells, tiny, groupby="kind")
    assert full_cells.uns["tahoe"]["groups"] == ["b", "a"]
    assert full_cells.uns["tahoe"]["group_sizes"] == [42, 21]
    assert "tahoe" not in full_cells.varm
    for number, group in enumerate(["b", "a"]):
        alone = full_cells[full_cells.obs["kind"] == group].copy()
        del alone.varm
        tahoe.tl.embed_genes(alone, tiny)
        np.testing.assert_array_equal(full_cells.varm[f"tahoe_{group}"], alone.varm["tahoe"])
        np.testing.assert_array_equal(full_cells.varm["tahoe_n_cells"][:, number], alone.varm["tahoe_n_cells"][:, 0])


def test_groups_with_slashes_survive_a_file(tiny, full_cells, tmp_path):
    full_cells.obs["kind"] = ["CD4+/CD45RO+"] * 30 + ["B"] * 33
    tahoe.tl.embed_genes(full_cells, tiny, groupby="kind")
    assert full_cells.uns["tahoe"]["groups"] == ["B", "CD4+/CD45RO+"]
    full_cells.write_h5ad(tmp_path / "cells.h5ad")
    again = anndata.read_h5ad(tmp_path / "cells.h5ad")
    np.testing.assert_array_equal(again.varm["tahoe_CD4+_CD45RO+"], full_cells.varm["tahoe_CD4+_CD45RO+"])
    full_cells.obs["kind"] = ["a/b"] * 30 + ["a_b"] * 33
    with pytest.raises(InputError, match="differ only by"):
        tahoe.tl.embed_genes(full_cells, tiny, groupby="kind", key_added="other")


def test_mean_of_single_cells_in_float64(tiny, full_cells):
    cells = full_cells[:20].copy()
    sums, n_cells = np.zeros((cells.n_vars, 64)), np.zeros(cells.n_vars)
    for cell in cells.obs_names:
        vectors = tahoe.get.gene_embeddings(cells, tiny, cell=cell)
        places = cells.var_names.get_indexer(vectors.index)
        assert (np.diff(places) > 0).all()
        sums[places] += vectors
        n_cells[places] += 1
    tahoe.tl.embed_genes(cells, tiny)
    seen = n_cells > 0
    np.testing.assert_allclose(cells.varm["tahoe"][seen], sums[seen] / n_cells[seen, None], atol=1e-6, rtol=0)
    with tahoe.settings.override(token_budget=5000):
        tahoe.tl.embed_genes(cells, tiny)
    np.testing.assert_allclose(cells.varm["tahoe"][seen], sums[seen] / n_cells[seen, None], atol=3e-6, rtol=0)


def test_without_context(tiny, full_cells):
    tahoe.tl.embed_genes(full_cells, tiny, context=False, key_added="input")
    tokens = tiny.vocabulary.tokens_of(full_cells.var_names)
    expected = tiny.network.gene_inputs(torch.from_numpy(tokens[tokens >= 0]))
    np.testing.assert_array_equal(full_cells.varm["input"][tokens >= 0], expected)
    assert np.isnan(full_cells.varm["input"][tokens < 0]).all()
    assert full_cells.uns["input"]["context"] is False


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groupby": "nothing"}, "groupby='nothing' is not a column of adata.obs"),
        ({"groupby": "holes"}, r"obs\['holes'\] is missing for 1 cells"),
        (
            {"groupby": "taken"},
            r"the group 'n_cells' of obs\['taken'\] would go to 'tahoe_n_cells', which holds something",
        ),
        ({"groupby": "alike"}, r"groups of obs\['alike'\] have the same name, or differ only by"),
        ({"groupby": "kind", "context": False}, "with context=False the embeddings are the same in all cells"),
        ({"groupby": "kind", "context": "all"}, "with context='all' the embeddings are the same in all cells"),
        ({"context": "some"}, "context='some' is unknown; choose from True"),
        ({"layer": "nothing"}, "does not exist"),
    ],
)
def test_bad_arguments(tiny, full_cells, options, message):
    full_cells.obs["holes"] = pd.Categorical([None, *["x"] * 62])
    full_cells.obs["kind"] = "a"
    full_cells.obs["taken"] = np.where(np.arange(63) % 2, "n_cells", "a")
    full_cells.obs["alike"] = pd.Categorical([1, "1", "b"] * 21)
    before = set(full_cells.varm), set(full_cells.uns)
    with pytest.raises(InputError, match=message):
        tahoe.tl.embed_genes(full_cells, tiny, **options)
    assert (set(full_cells.varm), set(full_cells.uns)) == before


def test_a_result_that_does_not_fit(tiny, full_cells, monkeypatch):
    monkeypatch.setattr("os.sysconf", lambda name: 4096 if name == "SC_PAGE_SIZE" else 100)
    with pytest.raises(InputError, match=r"would need .* GiB .*choose a groupby= with fewer groups"):
        tahoe.tl.embed_genes(full_cells, tiny)


def written_out(model, ids: torch.Tensor) -> torch.Tensor:
    """Masked tokens `ids`, all of which see each other, in plain torch."""
    network = model.network
    x = network.gene_norm(network.genes.weight[ids]) + network.flag.weight[1]
    for layer in network.layers:
        q, k, v = layer.qkv(layer.attention_norm(x)).chunk(3, dim=-1)
        heads = [t.unflatten(-1, (-1, layer.head_size)).transpose(0, 1) for t in (q, k, v)]
        scores = heads[0] @ heads[1].transpose(1, 2) / layer.head_size**0.5
        x = x + layer.attention_out((scores.softmax(-1) @ heads[2]).transpose(0, 1).flatten(1))
        x = x + layer.down(layer.activation(layer.up(layer.feed_forward_norm(x))))
    return network.norm(x)


@torch.no_grad()
@pytest.mark.parametrize("hide_masked", [True, False])
def test_all_genes_see_each_other_and_no_cell(tiny, full_cells, monkeypatch, hide_masked):
    """In chunks of the vocabulary as its file has it, which need not be in the order of the ids."""
    monkeypatch.setattr("tahoe._run.all_genes.CHUNK", 500)
    object.__setattr__(tiny.network.config, "hide_masked", hide_masked)
    shuffled = np.random.default_rng(0).permutation(list(tiny.vocabulary.ids))
    monkeypatch.setattr(tiny.vocabulary, "ids", {str(name): tiny.vocabulary.ids[name] for name in shuffled})
    tahoe.tl.embed_genes(full_cells, tiny, context="all")
    ids = torch.tensor(list(tiny.vocabulary.ids.values()))
    expected = torch.full((int(ids.max()) + 1, tiny.config.d_model), torch.nan)
    for chunk in ids.split(500):
        expected[chunk] = written_out(tiny, chunk)
    tokens = tiny.vocabulary.tokens_of(full_cells.var_names)
    ours = full_cells.varm["tahoe"]
    np.testing.assert_allclose(ours[tokens >= 0], expected[tokens[tokens >= 0]], atol=1e-5, rtol=0)
    assert np.isnan(ours[tokens < 0]).all()
    assert full_cells.uns["tahoe"]["context"] == "all"
    assert "tahoe_n_cells" not in full_cells.varm
