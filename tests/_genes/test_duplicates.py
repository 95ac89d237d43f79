"""Several columns of one gene, whose counts are added up: as if the matrix had been added up before."""

from __future__ import annotations

import logging

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import tahoe
from tahoe.cli.main import main
from tahoe.errors import InputError, TahoeWarning
from tahoe.model.tokens.rows import add_columns
from tahoe.model.tokens.tokenizer import tokenize

pytestmark = pytest.mark.filterwarnings("ignore:Variable names are not unique")
N_SPLIT = 60


@pytest.fixture
def whole() -> anndata.AnnData:
    """Cells with one column a gene, mapped."""
    cells = tahoe.datasets.pbmc68k()[:14].copy()
    cells = anndata.AnnData(cells.X.copy(), obs=cells.obs[["bulk_labels"]].copy(), var=cells.var[[]].copy())
    tahoe.pp.map_genes(cells)
    # clear of genes that have several columns already
    return cells[:, (cells.var["tahoe_gene"] != "").to_numpy()].copy()


@pytest.fixture
def probes(whole) -> anndata.AnnData:
    """The same counts in a matrix in which some genes have two or three columns, in another order."""
    counts = whole.X.toarray()
    rng = np.random.default_rng(0)
    second, third = (rng.binomial(counts[:, :N_SPLIT].astype(int), share).astype(np.float32) for share in (0.3, 0.2))
    third = np.minimum(third, counts[:, :N_SPLIT] - second)[:, : N_SPLIT // 2]
    first = counts.copy()
    first[:, :N_SPLIT] -= second
    first[:, : N_SPLIT // 2] -= third
    symbols = [*whole.var_names, *whole.var_names[:N_SPLIT], *whole.var_names[: N_SPLIT // 2]]
    var = pd.DataFrame({"symbol": symbols}, index=[f"probe{place}" for place in range(len(symbols))])
    adata = anndata.AnnData(sparse.csr_matrix(np.hstack([first, second, third])), obs=whole.obs.copy(), var=var)
    return adata[:, rng.permutation(adata.n_vars)].copy()


@pytest.fixture
def summed(probes) -> anndata.AnnData:
    tahoe.pp.map_genes(probes, duplicates="sum")
    return probes


def with_matrix(adata, matrix):
    changed = anndata.AnnData(matrix, obs=adata.obs.copy(), var=adata.var.copy())
    changed.uns.update(adata.uns)
    return changed


def vectors(adata, **options):
    tahoe.tl.embed(adata, "demo", **options)
    return np.asarray(adata.obsm["X_tahoe"])


def test_the_mapping_says_which_columns_are_added(summed, whole):
    match, genes = summed.var["tahoe_match"], summed.var["tahoe_gene"]
    report = summed.uns["tahoe_genes"]
    assert (match == "summed").sum() == report["genes"]["summed"] == N_SPLIT + N_SPLIT // 2
    assert report["duplicates"] == "sum"
    assert report["genes"]["duplicate"] == 0
    assert "summed 90" in report["summary"]
    assert report["share_in_vocabulary"] == pytest.approx(whole.uns["tahoe_genes"]["share_in_vocabulary"], abs=0.01)
    # of each gene one column is not added to another
    own = genes[match != "summed"]
    assert own.is_unique
    assert set(genes) == set(own)
    for gene, columns in summed.var.groupby("tahoe_gene").groups.items():
        totals = np.asarray(summed[:, columns].X.sum(axis=0)).ravel()
        assert totals[(match[columns] != "summed").to_numpy()].max() == totals.max(), gene


def test_best_stays_the_rule(probes):
    tahoe.pp.map_genes(probes)
    assert probes.uns["tahoe_genes"]["duplicates"] == "best"
    assert (probes.var["tahoe_match"] == "duplicate").sum() == N_SPLIT + N_SPLIT // 2
    with pytest.raises(InputError, match="duplicates='mean' is unknown; choose from 'best', 'sum'"):
        tahoe.pp.map_genes(probes, duplicates="mean")


STORAGES = {
    "csr": lambda adata: adata,
    "csc": lambda adata: with_matrix(adata, adata.X.tocsc()),
    "dense": lambda adata: with_matrix(adata, adata.X.toarray()),
    "uint8": lambda adata: with_matrix(adata, adata.X.toarray().astype(np.uint8)),
    "view": lambda adata: adata[:, np.arange(adata.n_vars)],
    "layer": lambda adata: adata,
}


@pytest.mark.parametrize("storage", STORAGES)
def test_cells_are_those_of_the_matrix_that_was_added_up(summed, whole, storage):
    expected = vectors(whole)
    adata = STORAGES[storage](summed).copy()
    before = adata.X.copy()
    options = {}
    if storage == "layer":
        adata.layers["counts"], options = adata.X.copy(), {"layer": "counts"}
    np.testing.assert_array_equal(vectors(adata, **options), expected)
    assert abs(adata.X - before).sum() == 0
    assert adata.uns["X_tahoe"]["duplicates"] == "sum"
    assert adata.uns["X_tahoe"]["n_genes_in_vocabulary"] == whole.uns["X_tahoe"]["n_genes_in_vocabulary"]
    assert adata.obs["tahoe_n_genes"].tolist() == whole.obs["tahoe_n_genes"].tolist()
    assert "duplicates" not in whole.uns["X_tahoe"]


def test_files_and_lazy_data(summed, whole, tmp_path):
    expected = vectors(whole)
    summed.write_h5ad(tmp_path / "cells.h5ad")
    tahoe.embed_file(tmp_path / "cells.h5ad", tmp_path / "out.zarr", "demo", cells_per_shard=5)
    store = anndata.read_zarr(tmp_path / "out.zarr")
    np.testing.assert_array_equal(store.obsm["X_tahoe"], expected)
    assert (store.var["tahoe_match"] == "summed").sum() == N_SPLIT + N_SPLIT // 2
    assert store.uns["tahoe_genes"]["duplicates"] == store.uns["X_tahoe"]["duplicates"] == "sum"
    np.testing.assert_array_equal(vectors(anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")), expected)
    dask = pytest.importorskip("dask.array")
    np.testing.assert_array_equal(vectors(with_matrix(summed, dask.from_array(summed.X, chunks=(5, -1)))), expected)


def test_files_that_are_not_mapped_yet(probes, whole, tmp_path, capsys):
    expected = vectors(whole)
    path = tmp_path / "cells.h5ad"
    probes.write_h5ad(path)
    command = ["-q", "embed", str(path), "-m", "demo", "--duplicates", "sum", "-o"]
    for name in ("out.zarr", "out.h5ad"):
        assert main([*command, str(tmp_path / name)]) == 0
        read = anndata.read_zarr if name.endswith("zarr") else anndata.read_h5ad
        np.testing.assert_array_equal(read(tmp_path / name).obsm["X_tahoe"], expected)
        assert main(["-q", "embed", "--like", str(tmp_path / name), "-o", str(tmp_path / f"again_{name}")]) == 0
        np.testing.assert_array_equal(read(tmp_path / f"again_{name}").obsm["X_tahoe"], expected)
    capsys.readouterr()
    assert main(["-q", "map-genes", str(path), "--duplicates", "sum"]) == 0
    assert "summed" in capsys.readouterr().out


def test_raw_follows_the_mapping_of_the_data(summed, whole):
    raw = summed.copy()
    del raw.var["tahoe_gene"], raw.var["tahoe_match"]
    summed.raw = raw
    np.testing.assert_array_equal(vectors(summed, use_raw=True), vectors(whole))


def own_column(summed):
    """Name of the column of each gene at which its results stand."""
    own = summed.var[summed.var["tahoe_match"] != "summed"]
    return pd.Series(own.index, index=own["tahoe_gene"])


def test_gene_vectors_stand_at_one_column_of_each_gene(summed, whole):
    for context in (True, False):
        for adata in (summed, whole):
            tahoe.tl.embed_genes(adata, "demo", context=context, key_added=f"genes_{context}")
        places = summed.var_names.get_indexer(own_column(summed)[whole.var["tahoe_gene"]])
        got = summed.varm[f"genes_{context}"]
        np.testing.assert_array_equal(got[places], whole.varm[f"genes_{context}"])
        assert np.isnan(np.delete(got, places, axis=0)).all()


def test_attention_stands_at_one_column_of_each_gene(summed, whole):
    for adata in (summed, whole):
        tahoe.tl.attention(adata, "demo", min_cells=1)
    places = summed.var_names.get_indexer(own_column(summed)[whole.var["tahoe_gene"]])
    got = summed.varp["tahoe_attention"]
    assert abs(got[places][:, places] - whole.varp["tahoe_attention"]).max() == 0
    assert got.nnz == whole.varp["tahoe_attention"].nnz
    # whichever of its columns a gene is asked for by
    asked = summed.var_names[(summed.var["tahoe_match"] == "summed").to_numpy()][:8]
    tahoe.tl.attention(summed, "demo", min_cells=1, genes=list(asked), key_added="asked")
    assert 0 < summed.varp["asked"].nnz <= 64


def test_predictions_stand_at_one_column_of_each_gene(summed, whole):
    for adata in (summed, whole):
        tahoe.tl.predict_expression(adata, "demo")
        tahoe.tl.predict_expression(adata, "demo", mask_fraction=0.3, key_added="hidden")
    places = summed.var_names.get_indexer(own_column(summed)[whole.var["tahoe_gene"]])
    for key in ("tahoe_expression", "hidden"):
        assert abs(summed.layers[key][:, places] - whole.layers[key]).max() == 0
        assert summed.layers[key].nnz == whole.layers[key].nnz
    np.testing.assert_allclose(summed.obs["hidden_mse"], whole.obs["hidden_mse"])
    gene = whole.var["tahoe_gene"].iloc[0]
    names = summed.var_names[(summed.var["tahoe_gene"] == gene).to_numpy()]
    tahoe.tl.predict_expression(summed, "demo", genes=list(names), key_added="asked")
    table = summed.obsm["asked"]
    assert (table.to_numpy() == table.to_numpy()[:, :1]).all()


def test_columns_that_bear_one_name_are_one_gene(summed, whole):
    gene = whole.var_names[0]
    summed.var_names = summed.var["symbol"].to_numpy()
    for adata in (summed, whole):
        tahoe.tl.predict_expression(adata, "demo", genes=[gene], key_added="asked")
    np.testing.assert_array_equal(summed.obsm["asked"], whole.obsm["asked"])


def test_single_cells(summed, whole):
    got = tahoe.get.gene_embeddings(summed, "demo", cell=3)
    expected = tahoe.get.gene_embeddings(whole, "demo", cell=3)
    names = own_column(summed)[whole.var.loc[expected.index, "tahoe_gene"]]
    np.testing.assert_array_equal(got.loc[names], expected)
    assert len(tahoe.get.attention(summed, "demo", cell=3)) == len(expected) + 1


def test_a_mask_adds_up_what_it_selects(summed, whole):
    first = (summed.var["tahoe_match"] != "summed").to_numpy()
    alone = summed[:, first].copy()
    np.testing.assert_array_equal(vectors(summed, mask_var=first), vectors(alone))
    # what is left of these genes without the column that the others were to be added to
    rest = summed[:, ~first].copy()
    assert np.isfinite(vectors(rest)).all()
    assert rest.uns["X_tahoe"]["n_genes_in_vocabulary"] <= N_SPLIT


def test_columns_are_joined_only_if_the_mapping_says_so(summed):
    del summed.var["tahoe_match"]
    with pytest.raises(InputError, match=r'in several columns.*duplicates="sum"'):
        tahoe.tl.embed(summed, "demo")


def test_logarithms_are_not_added_without_a_word(summed):
    summed.layers["counts"] = summed.X.copy()
    summed.X = summed.X.log1p()
    with pytest.warns(TahoeWarning, match=r"columns of X are added up to \d+ genes, and their values are not whole"):
        tahoe.tl.embed(summed, "demo")
    tahoe.tl.embed(summed, "demo", layer="counts")
    tahoe.pp.map_genes(summed)
    tahoe.tl.embed(summed, "demo")


def test_the_log_names_the_sum(probes, caplog):
    with caplog.at_level(logging.INFO, logger="tahoe"):
        tahoe.pp.map_genes(probes, duplicates="sum")
    assert "summed 90" in caplog.text


def test_rows_are_added_without_making_them_dense():
    rows = sparse.csr_array(np.array([[1, 0, 2, 3, 0], [0, 0, 0, 0, 0], [0, 4, 0, 0, -1]], dtype=np.float32))
    tokens = np.array([7, 7, 3, 7, -1])
    indptr, indices, data = add_columns(rows.indptr, rows.indices, rows.data, tokens)
    added = sparse.csr_array((data, indices, indptr), shape=rows.shape).toarray()
    assert added.tolist() == [[4, 0, 2, 0, 0], [0, 0, 0, 0, 0], [4, 0, 0, 0, -1]]
    assert len(data) == 4
    alone = np.array([7, -1, 3, 8, -1])
    assert add_columns(rows.indptr, rows.indices, rows.data, alone)[2] is rows.data


@pytest.mark.parametrize("compiled", [True, False])
def test_the_tokenizer_adds_columns_of_one_token(tiny, monkeypatch, compiled):
    if not compiled:
        monkeypatch.setattr("tahoe.model.tokens.tokenizer._compiled", lambda: None)
    rng = np.random.default_rng(0)
    rows = sparse.csr_array(rng.poisson(1.0, (5, 40)).astype(np.float32))
    tokens = np.concatenate([np.arange(3, 23), np.arange(3, 23)])
    added = sparse.csr_array(rows.toarray()[:, :20] + rows.toarray()[:, 20:])
    how = {"config": tiny.config, "vocabulary": tiny.vocabulary}
    got = tokenize(rows.indptr, rows.indices, rows.data, tokens, **how)
    expected = tokenize(added.indptr, added.indices, added.data, tokens[:20], **how)
    for name in ("ids", "values", "bounds", "n_genes"):
        np.testing.assert_array_equal(getattr(got, name), getattr(expected, name))
