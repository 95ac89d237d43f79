"""Matrices of 10x Genomics in HDF5 are read by rows, as scanpy reads them whole."""

from __future__ import annotations

import anndata
import h5py
import numpy as np
import pytest
import scanpy as sc

import tahoe
from tahoe._cells.opening import open_source
from tahoe.errors import InputError


def features_of(cells):
    symbols = [f"SYMBOL{i}" for i in range(cells.n_vars)]
    return {
        "id": list(cells.var_names),
        "name": symbols,
        "feature_type": ["Gene Expression"] * cells.n_vars,
        "genome": ["GRCh38"] * cells.n_vars,
    }


def write_matrix(group, cells):
    group["barcodes"] = np.array(cells.obs_names, dtype="S")
    group["data"] = cells.X.data.astype(np.int32)
    group["indices"], group["indptr"] = cells.X.indices.astype(np.int64), cells.X.indptr.astype(np.int64)
    group["shape"] = np.array(cells.shape[::-1], dtype=np.int32)


def version_3(path, cells):
    with h5py.File(path, "w") as file:
        write_matrix(file.create_group("matrix"), cells)
        for name, values in features_of(cells).items():
            file[f"matrix/features/{name}"] = np.array(values, dtype="S")
        file["matrix/features/_all_tag_keys"] = np.array(["genome"], dtype="S")


def version_2(path, cells):
    with h5py.File(path, "w") as file:
        write_matrix(file.create_group("GRCh38"), cells)
        features = features_of(cells)
        file["GRCh38/genes"] = np.array(features["id"], dtype="S")
        file["GRCh38/gene_names"] = np.array(features["name"], dtype="S")


@pytest.fixture
def cells(heart):
    return heart[:9].copy()


@pytest.fixture(params=[version_3, version_2])
def matrix(request, cells, tmp_path):
    request.param(tmp_path / "filtered.h5", cells)
    return tmp_path / "filtered.h5"


def test_it_is_what_scanpy_reads(matrix):
    expected = sc.read_10x_h5(matrix, gex_only=False)
    with open_source(matrix) as source:
        assert source.obs.index.equals(expected.obs_names)
        assert source.var.index.equals(expected.var_names)
        assert set(source.var) == set(expected.var)
        for column in source.var:
            assert source.var[column].tolist() == expected.var[column].tolist()
        whole = source.to_memory()
    np.testing.assert_array_equal(whole.X.toarray(), expected.X.toarray())


@pytest.mark.parametrize("kind", ["zarr", "h5ad"])
def test_the_same_vectors(matrix, cells, tmp_path, kind):
    output = tmp_path / f"out.{kind}"
    options = {"cells_per_shard": 4} if kind == "zarr" else {}
    tahoe.embed_file(matrix, output, "demo", max_length=200, **options)
    found = anndata.read_zarr(output) if kind == "zarr" else anndata.read_h5ad(output)
    tahoe.tl.embed(cells, "demo", max_length=200)
    np.testing.assert_array_equal(found.obsm["X_tahoe"], cells.obsm["X_tahoe"])
    assert found.obs_names.tolist() == cells.obs_names.tolist()
    assert found.var["tahoe_gene"].tolist() == cells.var["tahoe_gene"].tolist()


def test_columns_come_along(matrix, cells, tmp_path):
    tahoe.embed_file(matrix, tmp_path / "out.zarr", "demo", max_length=200, keep_metadata=True)
    found = anndata.read_zarr(tmp_path / "out.zarr")
    assert found.var["gene_ids"].tolist() == cells.var_names.tolist()


def test_the_report_of_genes(matrix, capsys):
    from tahoe import cli

    assert cli.main(["-q", "map-genes", str(matrix)]) == 0
    assert "ensembl" in capsys.readouterr().out


def damaged(path, cells, damage):
    version_3(path, cells)
    with h5py.File(path, "r+") as file:
        damage(file)
    return path


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda f: f.__delitem__("matrix/features"), "is a 10x matrix without the names of its genes"),
        (lambda f: f.__delitem__("matrix/features/name"), "the features cannot be read"),
        (lambda f: f.__delitem__("matrix/data"), "X cannot be read"),
        (lambda f: f.__delitem__("matrix/shape"), "X cannot be read"),
        (lambda f: f["matrix/shape"].__setitem__(..., [3, 3]), "says that its shape is"),
        (lambda f: f["matrix/indices"].__setitem__(0, 10**6), "is a damaged sparse matrix"),
    ],
)
def test_what_is_damaged_is_named(cells, tmp_path, damage, told):
    path = damaged(tmp_path / "cut.h5", cells, damage)
    with pytest.raises(InputError, match=told):
        tahoe.embed_file(path, tmp_path / "out.zarr", "demo")
    assert [each.name for each in tmp_path.iterdir()] == ["cut.h5"]


def test_several_genomes_are_a_choice(cells, tmp_path):
    path = tmp_path / "two.h5"
    version_2(path, cells)
    with h5py.File(path, "r+") as file:
        file.copy("GRCh38", "mm10")
    with pytest.raises(InputError, match=r"several genomes \(GRCh38, mm10\); take one of them: sc.read_10x_h5"):
        tahoe.embed_file(path, tmp_path / "out.zarr", "demo")
