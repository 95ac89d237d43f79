from __future__ import annotations

import numpy as np
import pytest

import tahoe
from tahoe.errors import InputError, ModelError, TahoeWarning


@pytest.fixture(scope="module")
def demo():
    return tahoe.load_model("demo", device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def blood(demo):
    """Embedded blood cells."""
    cells = tahoe.datasets.pbmc68k()[:160].copy()
    tahoe.tl.embed(cells, demo, max_length=300)
    return cells


@pytest.fixture(scope="module")
def atlas(blood, tmp_path_factory):
    """A reference of the first 120 of them."""
    path = tmp_path_factory.mktemp("reference") / "blood.tahoe"
    return tahoe.build_reference(blood[:120].copy(), path, obs_keys=["bulk_labels", "phase"])


def test_it_is_brute_force(blood, atlas):
    cells = blood[120:].copy()
    tahoe.tl.search(cells, atlas, k=7)
    stored = np.concatenate(atlas.vectors.shards).astype(np.float64)
    unit = cells.obsm["X_tahoe"] / np.linalg.norm(cells.obsm["X_tahoe"], axis=1, keepdims=True)
    distances = np.sqrt(np.square(unit[:, None] - stored[None]).sum(axis=-1))
    order = np.argsort(distances, axis=1)[:, :7]
    np.testing.assert_array_equal(cells.obsm["tahoe_neighbors"], order)
    expected = np.take_along_axis(distances, order, 1)
    np.testing.assert_allclose(cells.obsm["tahoe_neighbors_distances"], expected, rtol=1e-5)
    record = cells.uns["tahoe_neighbors"]
    names = dict(zip(record["rows"], record["ids"], strict=True))
    assert names[order[0, 0]] == blood.obs_names[order[0, 0]]
    assert record["exact"]


def test_cells_are_embedded_as_the_reference_was(blood, atlas):
    cells = tahoe.datasets.pbmc68k()[120:130].copy()
    tahoe.tl.search(cells, atlas.folder, k=3)
    np.testing.assert_array_equal(cells.obsm["X_tahoe"], blood.obsm["X_tahoe"][120:130])
    assert cells.uns["X_tahoe"]["max_length"] == 300
    assert cells.obsm["tahoe_neighbors"].shape == (10, 3)


def test_they_survive_files(blood, atlas, tmp_path, write_zarr):
    import anndata

    cells = blood[120:].copy()
    tahoe.tl.search(cells, atlas, k=3)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    write_zarr(cells, tmp_path / "cells.zarr")
    for again in (anndata.read_h5ad(tmp_path / "cells.h5ad"), anndata.read_zarr(tmp_path / "cells.zarr")):
        np.testing.assert_array_equal(again.obsm["tahoe_neighbors"], cells.obsm["tahoe_neighbors"])
        assert list(again.uns["tahoe_neighbors"]["ids"]) == list(cells.uns["tahoe_neighbors"]["ids"])


def test_lazy_embeddings(blood, atlas):
    dask = pytest.importorskip("dask.array")
    cells = blood[120:].copy()
    tahoe.tl.search(cells, atlas, k=3)
    lazy = blood[120:].copy()
    lazy.obsm["X_tahoe"] = dask.from_array(lazy.obsm["X_tahoe"], chunks=(11, -1))
    tahoe.tl.search(lazy, atlas, k=3)
    np.testing.assert_array_equal(lazy.obsm["tahoe_neighbors"], cells.obsm["tahoe_neighbors"])


def test_another_embedding_is_refused_by_name(blood, atlas, tiny, tmp_path):
    cells = blood[120:].copy()
    for name, value, kind, told in (
        ("model_sha256", "c" * 64, ModelError, r"weights of model 'demo' \(sha256 cccccccccccc"),
        ("vocabulary_sha256", "d" * 64, ModelError, "vocabulary of model"),
        ("max_length", 2048, InputError, "max_length=2048, not 300"),
        ("seed", 1, InputError, "seed=1, not 0"),
        ("mask_var", "highly_variable", InputError, "mask_var='highly_variable', not None"),
        ("drug_key", "drug", InputError, "drug_key='drug', not None"),
    ):
        other = cells.copy()
        other.uns["X_tahoe"] = {**cells.uns["X_tahoe"], name: value}
        with pytest.raises(kind, match=told):
            tahoe.tl.search(other, atlas)
        assert "tahoe_neighbors" not in other.obsm
    unmarked = cells.copy()
    del unmarked.uns["X_tahoe"]
    with pytest.raises(InputError, match="adata has no record"):
        tahoe.tl.search(unmarked, atlas)
    bare = tahoe.datasets.pbmc68k()[:3].copy()
    with pytest.raises(ModelError, match="'tiny-model' is not the one .* 'demo'"):
        tahoe.tl.search(bare, atlas, k=3, model=tiny)
    assert "X_tahoe" not in bare.obsm


def test_bad_arguments(blood, atlas):
    cells = blood[120:].copy()
    for k in (0, 121):
        with pytest.raises(InputError, match=rf"k={k}, and the reference 'blood.tahoe' has 120 cells"):
            tahoe.tl.search(cells, atlas, k=k)
    with pytest.raises(InputError, match="neither|does not exist"):
        tahoe.tl.search(cells, "no such folder")


def test_a_cell_without_a_vector(blood, atlas):
    cells = blood[120:].copy()
    cells.obsm["X_tahoe"][1] = np.nan
    with pytest.warns(TahoeWarning, match="1 of 40 cells have no embedding"):
        tahoe.tl.search(cells, atlas, k=3)
    assert (cells.obsm["tahoe_neighbors"][1] == -1).all()
    assert np.isnan(cells.obsm["tahoe_neighbors_distances"][1]).all()
