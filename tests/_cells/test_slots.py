"""Slots: what is overwritten, what may not collide, and names that several columns bear."""

from __future__ import annotations

import warnings

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import tahoe
from tahoe.errors import InputError, TahoeWarning


def few(cells):
    return cells[:6].copy()


VERBS = {
    "embed": (tahoe.tl.embed, {}, {"obsm": "own", "obs": "own_n_genes"}),
    "embed_genes": (tahoe.tl.embed_genes, {}, {"varm": "own", "uns": "own"}),
    "embed_genes by group": (tahoe.tl.embed_genes, {"groupby": "kind"}, {"varm": "own_a"}),
    "counts of cells": (tahoe.tl.embed_genes, {}, {"varm": "own_n_cells"}),
    "attention": (tahoe.tl.attention, {"min_cells": 1}, {"varp": "own", "var": "own_from_cell"}),
    "predict_expression": (tahoe.tl.predict_expression, {"mask_fraction": 0.2}, {"layers": "own", "obs": "own_mse"}),
    "asked": (tahoe.tl.predict_expression, {"genes": "asked"}, {"obsm": "own"}),
    "record": (tahoe.tl.embed, {}, {"uns": "own"}),
}


def foreign(cells, slot):
    n, m = cells.shape
    return {
        "obs": np.ones(n),
        "var": np.ones(m),
        "obsm": np.zeros((n, 2)),
        "varm": np.zeros((m, 2)),
        "varp": sparse.csr_matrix((m, m)),
        "layers": sparse.csr_matrix((n, m)),
        "uns": {"params": {"n_neighbors": 15}},
    }[slot]


@pytest.mark.parametrize("case", VERBS)
def test_slots_are_overwritten_with_one_warning_where_they_were_not_ours(tiny, full_cells, case):
    verb, options, slots = VERBS[case]
    cells = few(full_cells)
    cells.obs["kind"] = "a"
    if "genes" in options:
        options = {"genes": cells.var_names[tiny.vocabulary.tokens_of(cells.var_names) >= 0][:1].tolist()}
    clean = verb(cells, tiny, key_added="own", copy=True, **options)
    for slot, name in slots.items():
        getattr(cells, slot)[name] = foreign(cells, slot)
    with pytest.warns(TahoeWarning) as warned:
        verb(cells, tiny, key_added="own", **options)
    assert len(warned) == 1
    assert warned[0].filename == __file__
    text = str(warned[0].message)
    assert text.startswith(" and ".join(f"{slot}['{name}']" for slot, name in slots.items()) + " will be overwritten")
    for slot, name in slots.items():
        ours, expected = getattr(cells, slot)[name], getattr(clean, slot)[name]
        assert type(ours) is type(expected)
        assert np.shape(ours) == np.shape(expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        verb(cells, tiny, key_added="own", **options)  # now they are


def test_embedded_again_after_concat(tiny, full_cells):
    """anndata.concat drops uns, and with it the record of what was written."""
    first, second = full_cells[:4].copy(), full_cells[4:9].copy()
    for part in (first, second):
        tahoe.tl.embed(part, tiny)
    both = anndata.concat([first, second], merge="same")
    both.obsm["X_tahoe"][:] = 0
    with pytest.warns(TahoeWarning, match=r"obsm\['X_tahoe'\] will be overwritten") as warned:
        tahoe.tl.embed(both, tiny)
    assert len(warned) == 1
    np.testing.assert_array_equal(both.obsm["X_tahoe"][:4], first.obsm["X_tahoe"])
    assert both.obs["tahoe_n_genes"].tolist() == [*first.obs["tahoe_n_genes"], *second.obs["tahoe_n_genes"]]
    assert both.uns["X_tahoe"]["n_cells"] == 9


def test_an_error_leaves_what_would_have_been_overwritten(tiny, full_cells):
    full_cells.obsm["X_pca"] = np.ones((63, 2))
    with pytest.warns(TahoeWarning, match="will be overwritten"), pytest.raises(InputError, match="does not exist"):
        tahoe.tl.embed(full_cells, tiny, key_added="X_pca", layer="nothing")
    assert full_cells.obsm["X_pca"].shape == (63, 2)


def test_each_embedding_has_its_own_numbers_of_genes(tiny, tiny_cells, full_cells, tmp_path):
    """A second one, of other genes, leaves those of the first as they were."""
    cells = few(full_cells)
    half = np.arange(cells.n_vars) < 700
    tahoe.tl.embed(cells, tiny)
    first = cells.obs["tahoe_n_genes"].copy()
    tahoe.tl.embed(cells, tiny, mask_var=half, key_added="X_half")
    pd.testing.assert_series_equal(cells.obs["tahoe_n_genes"], first)
    assert (cells.obs["half_n_genes"] < first).all()
    assert list(cells.obs) == ["tahoe_n_genes", "half_n_genes"]
    cells.write_h5ad(tmp_path / "cells.h5ad")
    tahoe.embed_file(tmp_path / "cells.h5ad", tmp_path / "third.zarr", tiny, key_added="X_third", keep_metadata=True)
    store = anndata.read_zarr(tmp_path / "third.zarr")
    assert list(store.obs) == ["tahoe_n_genes", "half_n_genes", "third_n_genes"]
    assert store.obs["third_n_genes"].tolist() == first.tolist()
    cells = tiny_cells[4:6].copy()  # the second is empty
    with pytest.warns(TahoeWarning, match=r"adata\[adata.obs\['half_n_genes'\] > 0\]"):
        tahoe.tl.embed(cells, tiny, key_added="X_half")


@pytest.mark.parametrize("group", ["n_cells", "n/cells"])
def test_a_group_keeps_its_vectors_or_is_refused(tiny, full_cells, group):
    cells = few(full_cells)
    cells.obs["kind"] = np.where(np.arange(6) % 2, group, "other")
    with pytest.raises(InputError, match=f"the group '{group}' of obs\\['kind'\\] would go to 'tahoe_n_cells'"):
        tahoe.tl.embed_genes(cells, tiny, groupby="kind")
    assert not cells.varm
    tahoe.tl.attention(cells, tiny, min_cells=1, groupby="kind")
    assert len(cells.varp) == 2


def test_names_that_several_columns_of_obs_or_var_bear(tiny, full_cells):
    """As pandas.concat of two tables leaves them."""
    cells = few(full_cells)
    cells.obs = pd.DataFrame([["a", "b"]] * 6, index=cells.obs_names, columns=["kind", "kind"])
    with pytest.raises(InputError, match="obs has 2 columns of the name 'kind'; rename or drop all but one"):
        tahoe.tl.embed_genes(cells, tiny, groupby="kind")
    cells.var = cells.var[["tahoe_gene", "tahoe_gene"]]
    with pytest.raises(InputError, match="var has 2 columns of the name 'tahoe_gene'"):
        tahoe.tl.embed(cells, tiny)
    pbmc = tahoe.datasets.pbmc68k()[:5].copy()
    expected = tahoe.pp.map_genes(pbmc, copy=True)
    names = pbmc.var_names.to_numpy(dtype=object)
    pbmc.var = pd.DataFrame({0: names, 1: names}, index=pbmc.var_names).set_axis(["symbol", "symbol"], axis=1)
    with pytest.raises(InputError, match="gene_key='symbol' is the name of several columns"):
        tahoe.pp.map_genes(pbmc, gene_key="symbol")
    tahoe.pp.map_genes(pbmc)
    assert pbmc.var["tahoe_gene"].tolist() == expected.var["tahoe_gene"].tolist()
