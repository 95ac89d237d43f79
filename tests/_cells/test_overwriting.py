"""Slots that are there already: overwritten, as scanpy does, with one warning if no record says that they are ours."""

from __future__ import annotations

import warnings

import anndata
import numpy as np
import pytest
from scipy import sparse

import tahoe
from tahoe import cli
from tahoe.errors import InputError, TahoeWarning


@pytest.fixture
def model():
    return tahoe.load_model("demo", device="cpu", dtype="float32")


@pytest.fixture
def cells():
    cells = tahoe.datasets.pbmc68k()[:10].copy()
    cells.obs["half"] = np.resize(["a", "b"], 10)
    tahoe.pp.map_genes(cells)
    return cells


def embed(adata, model, **options):
    tahoe.tl.embed(adata, model, **options)
    return adata.obsm["X_tahoe"]


def told(call, *arguments, **options):
    """The warnings of a call, and that they point to the line of whoever called."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", TahoeWarning)
        call(*arguments, **options)
    return [(str(each.message), each.filename) for each in caught if issubclass(each.category, TahoeWarning)]


def test_again_after_concat(cells, model):
    """anndata.concat keeps obsm and leaves uns out."""
    whole = embed(cells.copy(), model)
    halves = [cells[:5].copy(), cells[5:].copy()]
    for half in halves:
        embed(half, model)
    joined = anndata.concat(halves)
    assert "X_tahoe" in joined.obsm
    assert "X_tahoe" not in joined.uns
    (message, where), *more = told(tahoe.tl.embed, joined, model)
    assert not more
    assert message.startswith("obsm['X_tahoe'] will be overwritten, and uns['X_tahoe'] has no record that tahoe wrote")
    assert where == __file__
    np.testing.assert_array_equal(joined.obsm["X_tahoe"], whole)
    assert not told(tahoe.tl.embed, joined, model)


VERBS = {
    "obsm": (tahoe.tl.embed, {}),
    "varm": (tahoe.tl.embed_genes, {"groupby": "half"}),
    "varp": (tahoe.tl.attention, {"top_k": 5, "min_cells": 1}),
    "layers": (tahoe.tl.predict_expression, {}),
    "obs": (tahoe.tl.predict_expression, {"mask_fraction": 0.2}),
}


@pytest.mark.parametrize("slot", VERBS)
def test_every_verb_overwrites_with_one_warning(cells, model, slot):
    verb, options = VERBS[slot]
    expected = cells.copy()
    assert not told(verb, expected, model, key_added="mine", **options)
    name = {"varm": "mine_a", "obs": "mine_mse"}.get(slot, "mine")
    shape = {"varm": (cells.n_vars, 3), "varp": (cells.n_vars,) * 2, "layers": cells.shape}.get(slot, (10, 3))
    theirs = {"varp": sparse.csr_matrix(shape), "obs": np.zeros(10)}.get(slot, np.zeros(shape))
    getattr(cells, slot)[name] = theirs
    cells.uns["mine"] = {"params": {}}
    (message, where), *more = told(verb, cells, model, key_added="mine", **options)
    assert not more
    assert message.startswith(f"{slot}[{name!r}] and uns['mine'] will be overwritten")
    assert where == __file__
    ours, wanted = (getattr(each, slot)[name] for each in (cells, expected))
    assert type(ours) is type(wanted)
    dense = [each.toarray() if sparse.issparse(each) else np.asarray(each) for each in (ours, wanted)]
    np.testing.assert_array_equal(*dense)
    assert "tahoe_version" in cells.uns["mine"]


def test_a_record_says_what_it_is_about(cells, model):
    """Verbs with the same key_added share uns[key_added], which never describes what another one wrote."""
    tahoe.tl.embed(cells, model, key_added="mine")
    assert cells.uns["mine"]["slots"] == ["obsm/mine", "obs/mine_n_genes"]
    (message, where), *more = told(tahoe.tl.embed_genes, cells, model, key_added="mine", groupby="half")
    assert not more
    assert message.startswith("uns['mine'], the record of obsm['mine'], obs['mine_n_genes'], will be overwritten")
    assert where == __file__
    assert cells.uns["mine"]["slots"] == ["varm/mine_a", "varm/mine_b", "varm/mine_n_cells"]
    # the same verb, with fewer results than before
    (message, _), *more = told(tahoe.tl.embed_genes, cells, model, key_added="mine", context=False)
    assert not more
    assert message.startswith("uns['mine'], the record of varm['mine_a'], varm['mine_b'], varm['mine_n_cells'], will")
    assert not told(tahoe.tl.embed_genes, cells, model, key_added="mine", context=False)
    # what is there beside our own result is not ours
    cells.obsm["mine"] = np.ones((10, 2))
    first, second = told(tahoe.tl.embed, cells, model, key_added="mine")
    assert first[0].startswith("obsm['mine'] and obs['mine_n_genes'] will be overwritten")
    assert second[0].startswith("uns['mine'], the record of varm['mine'], will be overwritten")


def test_a_plot_reads_no_record_of_another_verb(cells, model):
    pytest.importorskip("matplotlib")
    tahoe.tl.attention(cells, model, key_added="mine")
    with pytest.warns(TahoeWarning, match="will be overwritten"):
        tahoe.tl.embed_genes(cells, model, key_added="mine", groupby="half")
    tahoe.pl.attention(cells, key="mine")


def test_an_error_overwrites_nothing(cells, model):
    cells.obsm["X_tahoe"] = np.ones((10, 2))
    cells.X.data[0] = -1
    with pytest.warns(TahoeWarning, match="will be overwritten"), pytest.raises(InputError, match="negative"):
        tahoe.tl.embed(cells, model)
    np.testing.assert_array_equal(cells.obsm["X_tahoe"], np.ones((10, 2)))
    assert "X_tahoe" not in cells.uns


def test_the_layer_that_is_read_is_not_overwritten(cells, model):
    cells.layers["counts"] = cells.X.copy()
    with pytest.raises(InputError, match="key_added='counts' is the layer that is read"):
        tahoe.tl.predict_expression(cells, model, layer="counts", key_added="counts")
    # asked genes go to obsm, where it is in nobody's way
    tahoe.tl.predict_expression(cells, model, layer="counts", genes=["CD3D"], key_added="counts")
    np.testing.assert_array_equal(cells.layers["counts"].toarray(), cells.X.toarray())


def test_groups_without_their_record(cells, model):
    """The record of the groups is in uns, which anndata.concat leaves out."""
    pytest.importorskip("matplotlib")
    tahoe.tl.embed_genes(cells, model, groupby="half")
    del cells.uns["tahoe"]
    with pytest.raises(InputError, match=r"uns\['tahoe'\] has no record of groups; call tahoe.tl.embed_genes"):
        tahoe.pl.gene_neighbors(cells, "CD3D", group="a")


def test_a_file_without_its_record(cells, model, tmp_path, capsys):
    embed(cells, model)
    del cells.uns["X_tahoe"]
    cells.write_h5ad(tmp_path / "cells.h5ad")
    assert cli.main(["info", str(tmp_path / "cells.h5ad")]) == 1
    assert "anndata.concat leaves uns out" in capsys.readouterr().err
