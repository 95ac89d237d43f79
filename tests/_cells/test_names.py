"""Names of cells and genes, and columns of text, in every dtype of pandas and every encoding of anndata."""

from __future__ import annotations

from importlib.metadata import version

import anndata
import numpy as np
import pandas as pd
import pytest
import zarr
from packaging.version import Version

import tahoe
from tahoe import cli
from tahoe.errors import InputError

# Storage and missing value of pandas' strings, or another dtype.
TEXT = {
    "object": object,
    "nullable": ("python", pd.NA),
    "nullable, Arrow": ("pyarrow", pd.NA),
    "str of pandas 3": ("python", np.nan),
    "str of pandas 3, Arrow": ("pyarrow", np.nan),
    "Arrow": "large_string[pyarrow]",
    "categories": "category",
}
WRITTEN = [kind for kind in TEXT if kind != "Arrow"]  # which anndata cannot write
OLD = Version(version("anndata")) < Version("0.12.7")
FORMATS = ("h5ad", "v2.zarr", "v3.zarr")


def dtype_of(kind):
    if "Arrow" in kind:
        pytest.importorskip("pyarrow")
        if OLD:
            pytest.skip("anndata writes them since 0.12.7")
    if not isinstance(TEXT[kind], tuple):
        return TEXT[kind]
    storage, missing = TEXT[kind]
    if missing is pd.NA:
        return pd.StringDtype(storage)
    if Version(pd.__version__) < Version("2.3"):
        pytest.skip("these came with pandas 2.3")
    return pd.StringDtype(storage, na_value=missing)


def named(cells, dtype):
    """The cells with names and columns of text of a dtype."""
    obs = pd.DataFrame({"donor": pd.Series(np.resize(["ann", "bob", "cy"], cells.n_obs).astype(object)).astype(dtype)})
    obs.index = pd.Index(cells.obs_names.to_numpy(dtype=object), dtype=dtype)
    var = pd.DataFrame({"ensembl": pd.Series(cells.var_names.to_numpy(dtype=object)).astype(dtype)})
    var.index = pd.Index([f"gene {i}" for i in range(cells.n_vars)], dtype=dtype)
    return anndata.AnnData(cells.X.copy(), obs=obs, var=var)


@pytest.fixture
def write(tmp_path, write_zarr):
    """Writer of a file of one of the formats, which says where it is."""

    def write(adata, form):
        path = tmp_path / f"cells.{form}"
        with anndata.settings.override(allow_write_nullable_strings=True):
            adata.write_h5ad(path) if form == "h5ad" else write_zarr(adata, path, int(form[1]))
        return path

    return write


@pytest.fixture(scope="module")
def cells(heart):
    return heart[:12, ::4].copy()


@pytest.fixture(scope="module")
def demo():
    return tahoe.load_model("demo", device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def truth(cells, demo):
    adata = named(cells, object)
    tahoe.tl.embed(adata, demo, max_length=100)
    return adata


@pytest.mark.parametrize("kind", TEXT)
def test_in_memory(cells, demo, truth, kind):
    adata = named(cells, dtype_of(kind))
    index = adata.obs_names.copy(), adata.var_names.copy()
    tahoe.tl.embed(adata, demo, max_length=100)
    np.testing.assert_array_equal(adata.obsm["X_tahoe"], truth.obsm["X_tahoe"])
    assert adata.uns["tahoe_genes"] == truth.uns["tahoe_genes"]
    assert adata.var["tahoe_gene"].tolist() == truth.var["tahoe_gene"].tolist()
    pd.testing.assert_index_equal(adata.obs_names, index[0])
    pd.testing.assert_index_equal(adata.var_names, index[1])


@pytest.mark.parametrize("kind", TEXT)
def test_what_names_point_to(cells, demo, kind):
    """Groups, genes and cells are found by their names, and results carry them."""
    adata, plain = named(cells, dtype_of(kind)), named(cells, object)
    genes = [f"gene {i}" for i in range(cells.n_vars) if cells.var_names[i] in demo.vocabulary.genes][:50]
    for each in (adata, plain):
        tahoe.tl.embed_genes(each, demo, groupby="donor", max_length=60)
        tahoe.tl.attention(each, demo, min_cells=1, genes=genes, max_length=60)
        tahoe.tl.predict_expression(each, demo, genes=genes[:2], max_length=60)
    assert sorted(adata.varm) == sorted(plain.varm) == ["tahoe_ann", "tahoe_bob", "tahoe_cy", "tahoe_n_cells"]
    np.testing.assert_array_equal(adata.varm["tahoe_ann"], plain.varm["tahoe_ann"])
    np.testing.assert_array_equal(adata.varp["tahoe_attention"].data, plain.varp["tahoe_attention"].data)
    asked, expected = adata.obsm["tahoe_expression"], plain.obsm["tahoe_expression"]
    np.testing.assert_array_equal(asked.to_numpy(), expected.to_numpy())
    assert asked.columns.tolist() == expected.columns.tolist()
    for look in (tahoe.get.gene_embeddings, tahoe.get.attention):
        by_name, by_number = (look(adata, demo, cell=cell, max_length=60) for cell in ("cell3", 3))
        pd.testing.assert_frame_equal(by_name, by_number)
        assert by_name.index.tolist() == look(plain, demo, cell=3, max_length=60).index.tolist()


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("kind", WRITTEN)
def test_in_a_file(cells, demo, truth, tmp_path, write, kind, form):
    path = write(named(cells, dtype_of(kind)), form)
    tahoe.embed_file(path, tmp_path / "out.zarr", demo, max_length=100, keep_metadata=True)
    before = anndata.read_h5ad(path) if form == "h5ad" else anndata.read_zarr(path)
    after = anndata.read_zarr(tmp_path / "out.zarr")
    np.testing.assert_array_equal(after.obsm["X_tahoe"], truth.obsm["X_tahoe"])
    pd.testing.assert_frame_equal(after.obs.drop(columns="tahoe_n_genes"), before.obs)
    pd.testing.assert_frame_equal(after.var[["ensembl"]], before.var)


@pytest.mark.skipif(OLD, reason="anndata reads names of all kinds lazily since 0.12.7")
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("kind", WRITTEN)
def test_lazily(cells, demo, truth, write, kind, form):
    path = write(named(cells, dtype_of(kind)), form)
    lazy = anndata.experimental.read_lazy(path)
    tahoe.tl.embed(lazy, demo, max_length=100)
    np.testing.assert_array_equal(lazy.obsm["X_tahoe"].compute(), truth.obsm["X_tahoe"])


def test_zarr_strings_of_one_length(cells, demo, truth, tmp_path, write_zarr):
    """zarr 3 has no specification of such strings, so they become ordinary ones."""
    adata, path = named(cells, object), tmp_path / "cells.zarr"
    write_zarr(adata, path, 2)
    store = zarr.open_group(path, mode="r+", use_consolidated=False)
    for frame, names in (("obs", adata.obs_names), ("var", adata.var_names)):
        attributes = dict(store[frame]["_index"].attrs)
        del store[frame]["_index"]
        store[frame].create_array("_index", data=names.to_numpy(dtype=str), attributes=attributes)
    zarr.consolidate_metadata(path)
    tahoe.embed_file(path, tmp_path / "out.zarr", demo, max_length=100)
    after = anndata.read_zarr(tmp_path / "out.zarr")
    np.testing.assert_array_equal(after.obsm["X_tahoe"], truth.obsm["X_tahoe"])
    assert after.obs_names.tolist() == adata.obs_names.tolist()
    assert zarr.open_group(tmp_path / "out.zarr", mode="r")["obs"]["_index"].dtype.kind in "OT"


@pytest.mark.parametrize("form", FORMATS)
def test_what_was_read_is_written_again(cells, truth, tmp_path, write, form):
    """A file with strings that may be missing goes through memory into another: anndata 0.12 must be told to."""
    path = write(named(cells, "string[python]"), form)
    options = ["--model", "demo", "--dtype", "float32", "--max-length", "100"]
    assert cli.main(["--quiet", "embed", str(path), "-o", str(tmp_path / "out.h5ad"), *options]) == 0
    after = anndata.read_h5ad(tmp_path / "out.h5ad")
    np.testing.assert_array_equal(after.obsm["X_tahoe"], truth.obsm["X_tahoe"])
    assert after.obs_names.tolist() == truth.obs_names.tolist()
    assert after.obs["donor"].tolist() == truth.obs["donor"].tolist()


@pytest.mark.parametrize("kind", ["nullable", "nullable, Arrow"])
@pytest.mark.parametrize("form", FORMATS)
def test_names_and_columns_with_missing_values(cells, demo, truth, tmp_path, write, kind, form):
    """They stay missing; a gene without a name is a gene that is not known."""
    adata = named(cells, dtype_of(kind))
    adata.obs["donor"] = adata.obs["donor"].where(np.arange(adata.n_obs) != 2)
    cell_names, genes = adata.obs_names.to_series().reset_index(drop=True), adata.var_names.to_series()
    adata.obs_names = pd.Index(cell_names.where(cell_names != "cell4"), dtype=adata.obs_names.dtype)
    adata.var_names = pd.Index(genes.where(genes != "gene 7").array, dtype=adata.var_names.dtype)
    path = write(adata, form)
    tahoe.embed_file(path, tmp_path / "out.zarr", demo, max_length=100, keep_metadata=True)
    after = anndata.read_zarr(tmp_path / "out.zarr")
    np.testing.assert_array_equal(after.obsm["X_tahoe"], truth.obsm["X_tahoe"])
    assert np.flatnonzero(after.obs["donor"].isna()).tolist() == [2]
    assert np.flatnonzero(after.obs_names.isna()).tolist() == [4]
    assert np.flatnonzero(after.var_names.isna()).tolist() == [7]
    tahoe.tl.embed(adata, demo, max_length=100)
    np.testing.assert_array_equal(adata.obsm["X_tahoe"], truth.obsm["X_tahoe"])
    assert tahoe.get.gene_embeddings(adata, demo, cell="cell3", max_length=60).shape[0] > 10
    with pytest.raises(InputError, match=r"near: 'cell11'"):
        tahoe.get.gene_embeddings(adata, demo, cell="cell111")
    with pytest.raises(InputError, match=r"near: .*'gene 9"):
        tahoe.tl.attention(adata, demo, min_cells=1, genes=["gene  9"])
