"""Every storage gives the same bits and the same provenance."""

from __future__ import annotations

import warnings

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import zarr
from scipy import sparse

import tahoe
from tahoe.errors import InputError, TahoeWarning

da = pytest.importorskip("dask.array")
pytest.importorskip("xarray")


@pytest.fixture(scope="module")
def cells(heart):
    """Real cells, with the matrix in every slot that a verb reads."""
    cells = heart[:24].copy()
    cells.layers["counts"] = cells.X.copy()
    cells.raw = cells.copy()
    return cells


@pytest.fixture(scope="module")
def files(cells, tmp_path_factory, write_zarr):
    """The same cells in files of each kind."""
    folder = tmp_path_factory.mktemp("storages")
    cells.write_h5ad(folder / "csr.h5ad")
    dense = cells.copy()
    dense.X = cells.X.toarray()
    dense.write_h5ad(folder / "dense.h5ad")
    columns = cells.copy()
    columns.X = cells.X.tocsc()
    columns.write_h5ad(folder / "csc.h5ad")
    for version in (2, 3):
        write_zarr(cells, folder / f"v{version}.zarr", version)
        write_zarr(columns, folder / f"csc{version}.zarr", version)
    return folder


def with_matrix(cells, matrix):
    return anndata.AnnData(matrix, obs=cells.obs.copy(), var=cells.var.copy())


def from_zarr(cells, path):
    return with_matrix(cells, anndata.io.sparse_dataset(zarr.open_group(path, mode="r")["X"]))


def lazy(path):
    return anndata.experimental.read_lazy(path)


def int64_indices(cells):
    matrix = cells.X.copy()
    matrix.indices, matrix.indptr = matrix.indices.astype(np.int64), matrix.indptr.astype(np.int64)
    return with_matrix(cells, matrix)


STORAGES = {
    "csr_matrix": lambda cells, _: cells.copy(),
    "csr_array": lambda cells, _: with_matrix(cells, sparse.csr_array(cells.X)),
    "csc_matrix": lambda cells, _: with_matrix(cells, cells.X.tocsc()),
    "csc_array": lambda cells, _: with_matrix(cells, sparse.csc_array(cells.X)),
    "int64 indices": lambda cells, _: int64_indices(cells),
    "ndarray": lambda cells, _: with_matrix(cells, cells.X.toarray()),
    "uint16": lambda cells, _: with_matrix(cells, cells.X.toarray().astype(np.uint16)),
    "view": lambda cells, _: anndata.concat({"a": cells, "b": cells}, index_unique="-", merge="same")[: cells.n_obs],
    "backed csr": lambda _, files: anndata.read_h5ad(files / "csr.h5ad", backed="r"),
    "backed dense": lambda _, files: anndata.read_h5ad(files / "dense.h5ad", backed="r"),
    "zarr v2": lambda cells, files: from_zarr(cells, files / "v2.zarr"),
    "zarr v3": lambda cells, files: from_zarr(cells, files / "v3.zarr"),
    "lazy h5ad": lambda _, files: lazy(files / "csr.h5ad"),
    "lazy dense h5ad": lambda _, files: lazy(files / "dense.h5ad"),
    "lazy zarr v2": lambda _, files: lazy(files / "v2.zarr"),
    "lazy zarr v3": lambda _, files: lazy(files / "v3.zarr"),
    "dask of csr": lambda cells, _: with_matrix(cells, da.from_array(cells.X, chunks=(7, -1))),
    "dask of csr_array": lambda cells, _: with_matrix(cells, da.from_array(sparse.csr_array(cells.X), chunks=(9, -1))),
    "dask, columns too": lambda cells, _: with_matrix(cells, da.from_array(cells.X.toarray(), chunks=(11, 1000))),
}
SLOTS = {"X": {}, "layer": {"layer": "counts"}, "raw": {"use_raw": True}}


def embedded(adata, model, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", anndata.ImplicitModificationWarning)  # of a view
        tahoe.tl.embed(adata, model, max_length=300, **options)
    return np.asarray(adata.obsm["X_tahoe"]), adata.uns["X_tahoe"]


def slots_from(kind):
    """What `tl.embed` writes: numbers of genes would need a pass over lazy data."""
    return ["obsm/X_tahoe"] + ["obs/tahoe_n_genes"] * (not kind.startswith(("lazy", "dask")))


@pytest.fixture(scope="module")
def truth(cells):
    with tahoe.settings.override(device="cpu"):
        return embedded(cells.copy(), tahoe.load_model("demo", dtype="float32"))


@pytest.fixture(scope="module")
def demo():
    return tahoe.load_model("demo", device="cpu", dtype="float32")


@pytest.mark.parametrize("kind", STORAGES)
def test_every_storage_gives_the_same(cells, files, demo, truth, kind):
    adata = STORAGES[kind](cells, files)
    vectors, record = embedded(adata, demo)
    np.testing.assert_array_equal(vectors, truth[0])
    assert record == truth[1] | {"slots": slots_from(kind)}


@pytest.mark.parametrize("slot", ["layer", "raw"])
@pytest.mark.parametrize("kind", ["csr_matrix", "backed csr", "lazy h5ad", "lazy zarr v3"])
def test_every_slot_gives_the_same(cells, files, demo, truth, kind, slot):
    adata = STORAGES[kind](cells, files)
    vectors, record = embedded(adata, demo, **SLOTS[slot])
    np.testing.assert_array_equal(vectors, truth[0])
    assert {**record, "input": "X"} == truth[1] | {"slots": slots_from(kind)}


def looked_into(adata, model):
    """What all verbs that look inside write."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", anndata.ImplicitModificationWarning)  # of a view
        genes = adata.var_names[np.isin(adata.var_names, model.vocabulary.genes)][:200].tolist()
        tahoe.tl.embed_genes(adata, model, max_length=120)
        tahoe.tl.attention(adata, model, min_cells=1, max_length=120, genes=genes)
        tahoe.tl.predict_expression(adata, model, max_length=120, mask_fraction=0.2)
        tahoe.tl.predict_expression(adata, model, max_length=120, genes=genes[:3], key_added="asked")
    return {
        "vectors": adata.varm["tahoe"],
        "attention": adata.varp["tahoe_attention"].data,
        "from_cell": np.asarray(adata.var["tahoe_attention_from_cell"]),
        "predicted": adata.layers["tahoe_expression"].toarray(),
        "error": np.asarray(adata.obs["tahoe_expression_mse"]),
        "asked": np.asarray(adata.obsm["asked"]),
        "attention of a cell": tahoe.get.attention(adata, model, cell=3, max_length=120).to_numpy(),
    }


@pytest.fixture(scope="module")
def truth_inside(cells, demo):
    with tahoe.settings.override(device="cpu", progress=False):
        return looked_into(cells.copy(), demo)


@pytest.mark.parametrize("kind", ["csc_array", "ndarray", "view", "backed csr", "zarr v3", "lazy h5ad", "dask of csr"])
def test_looking_inside_gives_the_same(cells, files, demo, truth_inside, kind):
    for name, result in looked_into(STORAGES[kind](cells, files), demo).items():
        np.testing.assert_array_equal(result, truth_inside[name], err_msg=name)


@pytest.mark.parametrize("kind", ["lazy h5ad", "lazy zarr v3", "dask of csr"])
def test_lazy_in_lazy_out(cells, files, demo, kind):
    adata = STORAGES[kind](cells, files)
    tahoe.tl.embed(adata, demo, max_length=300)
    vectors = adata.obsm["X_tahoe"]
    assert isinstance(vectors, da.Array)
    assert vectors.dtype == np.float32
    assert vectors.shape == (cells.n_obs, demo.config.d_model)
    assert isinstance(adata.X, da.Array)
    assert adata.var["tahoe_gene"].shape == (cells.n_vars,)


def test_the_graph_does_not_hold_the_weights(cells, files, demo):
    import cloudpickle

    adata = lazy(files / "csr.h5ad")
    tahoe.tl.embed(adata, demo, max_length=300)
    n_bytes = len(cloudpickle.dumps(adata.obsm["X_tahoe"].__dask_graph__()))
    assert n_bytes < demo.n_parameters / 2


@pytest.mark.parametrize("kind", ["csc.h5ad", "csc2.zarr", "csc3.zarr"])
def test_storage_by_columns_is_refused(cells, files, demo, kind, monkeypatch):
    path = files / kind
    adata = anndata.read_h5ad(path, backed="r") if path.suffix == ".h5ad" else from_zarr(cells, path)
    with pytest.raises(InputError, match=r"by columns \(CSC\).*to_memory\(\)"):
        tahoe.tl.embed(adata, demo)
    assert not adata.obsm
    lazy_columns = lazy(path)
    lazy_columns.X = lazy_columns.X.rechunk((-1, 5000))
    with pytest.raises(InputError, match=r"by columns \(CSC\)"):
        tahoe.tl.embed(lazy_columns, demo)


def test_a_view_of_a_file_does_not_load_its_parent(files, demo, monkeypatch):
    """The rows of a view are refused before a single value is read."""
    adata = anndata.read_h5ad(files / "csr.h5ad", backed="r")
    with monkeypatch.context() as patch:
        patch.setattr(h5py.Dataset, "__getitem__", None)
        with pytest.raises(InputError, match=r"view.*to_memory"):
            tahoe.tl.embed(adata[:3], demo)
    part = tahoe.get.gene_embeddings(adata[:3], demo, cell=1)
    whole = tahoe.get.gene_embeddings(adata, demo, cell=1)
    pd.testing.assert_frame_equal(part, whole)


def test_lazy_values_that_will_not_do_are_refused_when_computed(cells, demo):
    counts = da.from_array(cells.X.toarray(), chunks=(6, -1))
    adata = with_matrix(cells, counts.map_blocks(_spoil_last, dtype="f4"))
    adata.var["tahoe_gene"] = adata.var_names
    with pytest.warns(TahoeWarning, match="the model knows"):
        tahoe.tl.embed(adata, demo)
    with pytest.raises(InputError, match="negative values"):
        adata.obsm["X_tahoe"].compute(scheduler="synchronous")


def _spoil_last(block, block_info=None):
    last = block_info is not None and block_info and block_info[0]["chunk-location"][0] == 3
    return np.where(block > 0, -block, block) if last else block
