from __future__ import annotations

import logging

import anndata
import numpy as np
import pandas as pd
import pytest
import torch

import tahoe
from tahoe._perturbation import screen as screen_module
from tahoe.errors import InputError, ModelError, TahoeWarning
from tahoe.model.tokens.edits import without

GOAL = ("state", "a", "b")


@pytest.fixture
def cells(full_cells):
    """Cells in two states, of three donors that have both. None has so few genes that one is much of it."""
    cells = full_cells[np.diff(full_cells.X.tocsr().indptr) > 100][:40].copy()
    cells.obs["state"] = np.tile(["a", "b"], 20)
    cells.obs["donor"] = np.tile(["x", "x", "y", "y", "z", "z"], 7)[:40]
    cells.obs["type"] = np.repeat(["one", "two"], 20)
    return cells


@pytest.fixture
def common(cells, tiny):
    """Names of genes that many cells express, the most frequent first."""
    known = tiny.vocabulary.tokens_of(cells.var_names) >= 0
    n_cells = np.asarray((cells.X > 0).sum(0)).ravel() * known
    return cells.var_names[np.argsort(-n_cells, kind="stable")]


def table_of(cells, **options):
    tahoe.tl.perturb(cells, **options)
    return cells.uns["tahoe_perturb"]["table"].set_index("gene")


def unit_vectors(model, tokens):
    vectors = model.embed_cells(tokens).numpy().astype(np.float64)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_exact_deletions_are_embeddings_of_the_edited_tokens(tiny, cells, common):
    """The change of each cell is that between its tokens with and without the gene, to the last bit."""
    gene = common[0]
    table = table_of(cells, model=tiny, genes=[gene], method="exact", n_cells=200)
    columns = tiny.vocabulary.tokens_of(cells.var_names)
    tokens = tiny.tokenize(cells.X, columns, max_length=2048)
    token = columns[cells.var_names == gene]
    change = unit_vectors(tiny, without(tokens, token)) - unit_vectors(tiny, tokens)
    expressing = np.asarray((cells[:, gene].X > 0).todense()).ravel()
    found = cells.obsm["tahoe_perturb"]
    np.testing.assert_array_equal(found[expressing], change[expressing].astype(np.float32))
    assert np.isnan(found[~expressing]).all()
    assert table.loc[gene, "n_cells"] == expressing.sum()
    assert table.loc[gene, "shift"] == pytest.approx((0.5 * (change[expressing] ** 2).sum(1)).mean())


@pytest.mark.parametrize("kind", ["delete", "maximum", "activate"])
def test_first_order_and_exact_edits_agree(tiny, cells, common, kind):
    genes = list(common[:12]) if kind != "activate" else list(common[200:212])
    options = {"model": tiny, "genes": genes, "kind": kind, "goal": GOAL}
    table = table_of(cells, **options, n_exact=12)
    exact = table_of(cells, **options, method="exact").loc[table.index]
    for name in ("toward", "projection"):
        np.testing.assert_allclose(table[f"{name}_exact"], exact[name], rtol=1e-9)
        # of a random network of two layers, in which one strong token is much; of trained ones it is above 0.95
        assert np.corrcoef(table[name], exact[name])[0, 1] > (0.7 if kind == "maximum" else 0.9)
    assert cells.uns["tahoe_perturb"]["n_units"] == 1


def test_shifts_are_told_from_random_directions(tiny, cells, common):
    genes = list(common[:30])
    table = table_of(cells, model=tiny, genes=genes, n_exact=30, n_projections=16, n_cells=20)
    assert (table["shift"] > 0).all()
    assert np.corrcoef(table["shift"], table["shift_exact"])[0, 1] > 0.9
    record = cells.uns["tahoe_perturb"]
    assert record["agreement_median"] > 0.5
    assert record["agreement_cells"] > 5
    assert "toward" not in table


def test_all_genes_at_once(tiny, cells):
    table = table_of(cells, model=tiny, goal=GOAL, min_cells=4, n_exact=3, n_cells=12)
    assert len(table) > 100
    assert (table["n_cells"] >= 4).all()
    assert table["percentile"].between(0, 100).all()
    assert table["percentile"].mean() == pytest.approx(50, abs=5)
    assert table["z"].mean() == pytest.approx(0, abs=0.2)
    assert table["p"].isna().all()
    assert 3 <= table["projection_exact"].notna().sum() <= 3
    assert set(table.index[table["projection_exact"].notna()]) == set(
        table["projection"].abs().sort_values(ascending=False).index[:3]
    )
    tokens = tiny.vocabulary.tokens_of(table["ensembl_id"].astype(str))
    assert (tokens >= 0).all()


def test_groups_are_screens_of_their_own(tiny, cells):
    whole = table_of(cells, model=tiny, groupby="type", min_cells=5, method="first_order")
    assert set(whole["group"]) == {"one", "two"}
    for group in ("one", "two"):
        part = cells[cells.obs["type"] == group].copy()
        tahoe.tl.perturb(part, tiny, min_cells=5, method="first_order")
        alone = part.uns["tahoe_perturb"]["table"].set_index("gene")
        here = whole[whole["group"] == group].loc[alone.index]
        np.testing.assert_allclose(here["shift"], alone["shift"], rtol=1e-9)
        np.testing.assert_allclose(here["z"], alone["z"], rtol=1e-6)


def test_replicates_give_p_values(tiny, cells, caplog):
    with caplog.at_level(logging.INFO, logger="tahoe"):
        table = table_of(
            cells, model=tiny, goal=GOAL, replicate_key="donor", min_cells=5, method="first_order", n_cells=60
        )
    assert "3 replicates: no p-value can be below 0.25" in caplog.text
    assert table["p"].min() >= 0.25
    assert table["p"].notna().mean() > 0.9
    assert (table["q"] >= table["p"])[table["p"].notna()].all()
    assert cells.uns["tahoe_perturb"]["n_units"] == 3


def test_combinations_are_edited_together(tiny, cells, common):
    a, b = common[:2]
    table = table_of(cells, model=tiny, genes=[a, b, (a, b)], goal=GOAL)
    assert list(table.index) == sorted([a, b]) + [f"{a}+{b}"] or set(table.index) == {a, b, f"{a}+{b}"}
    both = np.asarray(((cells[:, a].X > 0).multiply(cells[:, b].X > 0)).todense()).ravel()
    assert 0 < table.loc[f"{a}+{b}", "n_cells"] <= both.sum()
    assert np.isnan(table.loc[f"{a}+{b}", "percentile"])
    assert table["toward_exact"].notna().all()


def test_a_state_to_be_avoided(tiny, cells):
    cells.obs["state"] = np.tile(["a", "b", "c"], 14)[:40]
    table = table_of(cells, model=tiny, goal=GOAL, alternative="c", method="first_order", min_cells=3)
    assert table["away"].notna().all()
    assert not np.allclose(table["away"], table["toward"])


def test_what_is_at_the_top_already_is_not_moved(tiny, cells):
    tokens = tiny.tokenize(cells.X, tiny.vocabulary.tokens_of(cells.var_names))
    gene = tokens.ids[np.flatnonzero(tokens.values == 50)[0]]
    name = {token: name for name, token in tiny.vocabulary.ids.items()}[int(gene)]
    at_top = [
        cell for cell in range(cells.n_obs) if (tokens.values[slice(*tokens.bounds[cell : cell + 2])] == 50).any()
    ]
    for cell in at_top:
        here = slice(*tokens.bounds[cell : cell + 2])
        if tokens.values[here][tokens.ids[here] == gene].tolist() == [50]:
            one = cells[[cell]].copy()
            table = table_of(one, model=tiny, genes=[name], kind="maximum", min_cells=1)
            assert table.loc[name, "shift"] == table.loc[name, "shift_exact"] == 0
            np.testing.assert_array_equal(one.obsm["tahoe_perturb"], 0)
            return
    pytest.fail("no cell has it at the top")


def test_cells_do_not_depend_on_each_other_or_on_storage(tiny, cells, common, tmp_path):
    genes, cells = list(common[:5]), cells[:12].copy()
    cells.write_h5ad(tmp_path / "cells.h5ad")
    whole = table_of(cells, model=tiny, genes=genes, n_exact=0, n_projections=2)
    backed = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    pd.testing.assert_frame_equal(table_of(backed, model=tiny, genes=genes, n_exact=0, n_projections=2), whole)
    tahoe.tl.perturb(cells, tiny, genes=genes[:1], method="exact")
    one = cells[[7]].copy()
    tahoe.tl.perturb(one, tiny, genes=genes[:1], method="exact")
    np.testing.assert_array_equal(one.obsm["tahoe_perturb"][0], cells.obsm["tahoe_perturb"][7])
    order = np.random.default_rng(0).permutation(cells.n_obs)
    shuffled = table_of(cells[order].copy(), model=tiny, genes=genes, n_exact=0, n_projections=2).loc[whole.index]
    np.testing.assert_allclose(shuffled["shift"], whole["shift"], rtol=1e-9)


def test_lazy_cells(tiny, cells, common, tmp_path, write_zarr):
    pytest.importorskip("dask")
    pytest.importorskip("xarray")
    write_zarr(cells, tmp_path / "cells.zarr")
    genes = list(common[:5])
    whole = table_of(cells, model=tiny, genes=genes, n_exact=0, n_cells=10)
    lazy = anndata.experimental.read_lazy(tmp_path / "cells.zarr")
    pd.testing.assert_frame_equal(table_of(lazy, model=tiny, genes=genes, n_exact=0, n_cells=10), whole)


@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
def test_the_result_survives_files(tiny, cells, common, tmp_path, kind, write_zarr):
    tahoe.tl.perturb(cells, tiny, genes=[*common[:6], (common[0], common[1])], groupby="type", goal=GOAL, n_cells=6)
    path = tmp_path / f"cells.{kind}"
    cells.write_h5ad(path) if kind == "h5ad" else write_zarr(cells, path)
    found = getattr(anndata, f"read_{kind}")(path)
    pd.testing.assert_frame_equal(tahoe.get.perturbation(found), tahoe.get.perturbation(cells))
    assert found.uns["tahoe_perturb"]["kind"] == "delete"
    assert list(found.uns["tahoe_perturb"]["goal"]) == list(GOAL)
    assert list(found.uns["tahoe_perturb"]["agreement_poor_cells"]) == list(
        cells.uns["tahoe_perturb"]["agreement_poor_cells"]
    )


def test_an_interrupt_leaves_everything_as_it_was(tiny, cells, monkeypatch):
    before = cells.copy()

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(screen_module.Screen, "_agreement", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tahoe.tl.perturb(cells, tiny, min_cells=5, n_exact=2, n_cells=5)
    assert not cells.uns
    assert not cells.obsm
    pd.testing.assert_frame_equal(cells.var, before.var)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"genes": ["ENSG00000000000"]}, r"genes=\['ENSG00000000000'\]: not among the genes"),
        ({"genes": []}, r"genes=\[\]: name at least one gene"),
        ({"genes": ["A", "A"]}, "each once"),
        ({"genes": "vocabulary"}, "goes with kind='activate'"),
        ({"kind": "knockout"}, "kind='knockout' is unknown; choose from 'delete'"),
        ({"method": "fast"}, "method='fast' is unknown"),
        ({"goal": ("stat", "a", "b")}, "the column of goal='stat' is not a column of adata.obs, which has 'state'"),
        ({"goal": "state"}, "it must be a column of adata.obs and two of its values"),
        ({"goal": ("state", "a", "bb")}, r"obs\['state'\] has no 'bb' \(near: 'b'"),
        ({"goal": ("state", "a", "a")}, "the states must differ"),
        ({"goal": ("rare", "x", "y")}, r"obs\['rare'\] is 'y' in 4 cells; a state needs at least 10"),
        ({"alternative": "b"}, "goes with a goal="),
        ({"groupby": "nothing"}, "groupby='nothing'"),
        ({"replicate_key": "nothing"}, "replicate_key='nothing'"),
        ({"replicate_key": "same"}, "has one replicate only, 'all'"),
        ({"goal": GOAL, "replicate_key": "state"}, "come from one replicate only"),
        ({"kind": "drug"}, "name them with drugs="),
        ({"kind": "drug", "drugs": ["imatinib"]}, "has no drug encoder"),
        ({"n_cells": 1}, "n_cells=1: it must be at least 2"),
        ({"min_cells": 61}, "no gene can be edited in min_cells=61"),
    ],
)
def test_bad_arguments(tiny, cells, options, message):
    cells.obs["rare"] = np.where(np.arange(40) < 4, "y", "x")
    cells.obs["same"] = "all"
    with pytest.raises(InputError, match=message):
        tahoe.tl.perturb(cells, tiny, **options)
    assert not cells.uns
    assert not cells.obsm


def test_near_names_and_genes_that_no_cell_expresses(tiny, cells, common):
    with pytest.raises(InputError, match=rf"near: '{common[0]}"):
        tahoe.tl.perturb(cells, tiny, genes=[common[0][:-1] + "x"])
    silent = common[np.asarray(cells[:, common].X.sum(0)).ravel() == 0]
    known = [gene for gene in silent if tiny.vocabulary.tokens_of([gene])[0] >= 0]
    with pytest.raises(InputError, match="nothing to delete"):
        tahoe.tl.perturb(cells, tiny, genes=[common[0], known[0]])
    table = table_of(cells, model=tiny, genes=[known[0]], kind="activate", n_cells=8, n_null=20)
    assert table.loc[known[0], "n_cells"] == 8


def test_the_whole_vocabulary_can_be_switched_on(tiny, cells):
    table = table_of(cells, model=tiny, genes="vocabulary", kind="activate", n_cells=4, min_cells=4, n_exact=0)
    assert 500 < len(table) < len(tiny.vocabulary.genes)
    assert set(table["ensembl_id"]) - set(cells.var_names)
    assert (table["n_cells"] == 4).all()


def test_exact_screens_that_would_take_days(tiny, cells, monkeypatch):
    monkeypatch.setattr(screen_module, "MOST_PASSES", 1000)
    with pytest.raises(InputError, match=r"takes [0-9,]+ forward passes.*method='auto'"):
        tahoe.tl.perturb(cells, tiny, method="exact", min_cells=2)
    assert not cells.uns


def test_combinations_have_no_first_order(tiny, cells, common):
    with pytest.raises(InputError, match="edited exactly"):
        tahoe.tl.perturb(cells, tiny, genes=[tuple(common[:2])], method="first_order")


def test_precisions_without_gradients(cells, reference, common):
    half = tahoe.load_model(reference / "tiny-model", device="cpu", dtype="bfloat16")
    with pytest.warns(TahoeWarning, match="mostly rounding"):
        tahoe.tl.perturb(cells, half, genes=[common[0]], method="exact")
    half.network.is_quantized = True
    with pytest.raises(ModelError, match="no gradients: pass method='exact'"):
        tahoe.tl.perturb(cells, half, genes=[common[0]])


def test_the_default_precision_is_float32(cells, reference, common):
    with tahoe.settings.override(dtype=None):
        tahoe.tl.perturb(cells, reference / "tiny-model", genes=[common[0]], method="exact")
    assert cells.uns["tahoe_perturb"]["dtype"] == "float32"


def test_groups_that_are_left_out(tiny, cells):
    cells.obs["type"] = np.where((cells.obs["state"] == "b") & (np.arange(40) > 9), "one", "few")
    cells.obs.loc[cells.obs_names[:20:2], "type"] = "one"
    with pytest.warns(TahoeWarning, match="1 groups have too few cells in a state and are left out: 'few'"):
        table = table_of(cells, model=tiny, goal=GOAL, groupby="type", method="first_order", min_cells=2)
    assert set(table["group"]) == {"one"}


def test_drugs(reference, read_cells):
    model = tahoe.load_model(reference / "drug-model", device="cpu", dtype="float32")
    cells = read_cells(reference / "drug-input.npz")
    cells.var["tahoe_gene"] = cells.var_names
    table = table_of(cells, model=model, kind="drug", drugs={"first": 1, "second": 2})
    assert set(table.index) == {"first", "second"}
    assert (table["shift_exact"] > 0).all()
    tokens = model.tokenize(
        cells.X, model.vocabulary.tokens_of(cells.var_names), drugs=np.zeros(cells.n_obs, dtype=np.int64)
    )
    none = unit_vectors(model, tokens)
    with_one = tokens.__class__(tokens.ids, tokens.values, tokens.bounds, tokens.n_genes, np.ones_like(tokens.drugs))
    expected = (0.5 * ((unit_vectors(model, with_one) - none) ** 2).sum(1))[tokens.n_genes > 0].mean()
    assert table.loc["first", "shift"] == pytest.approx(expected)
    with pytest.raises(InputError, match=r"drugs=\['third'\]|does not name its drugs"):
        tahoe.tl.perturb(cells, model, kind="drug", drugs=["third"])


def test_torchs_state_changes_nothing(tiny, cells, common):
    genes = list(common[:4])
    truth = table_of(cells, model=tiny, genes=genes, goal=GOAL)
    for state in (torch.inference_mode, torch.no_grad, lambda: torch.autocast("cpu", torch.bfloat16)):
        with state():
            found = table_of(cells, model=tiny, genes=genes, goal=GOAL)
        pd.testing.assert_frame_equal(found, truth)
