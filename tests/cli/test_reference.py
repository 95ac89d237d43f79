from __future__ import annotations

import warnings

import anndata
import numpy as np
import pandas as pd
import pytest

import tahoe
from tahoe import cli

# of rare types among 150 cells
pytestmark = pytest.mark.filterwarnings("ignore:.*can hardly win")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Embedded cells with labels, and others without an embedding."""
    place = tmp_path_factory.mktemp("cells")
    cells = tahoe.datasets.pbmc68k()
    cells[:150].copy().write_h5ad(place / "labelled.h5ad")
    del cells.obs["bulk_labels"]
    cells[150:200].copy().write_h5ad(place / "new.h5ad")
    with tahoe.settings.override(progress=False, device="cpu", dtype="float32"):
        tahoe.embed_file(place / "labelled.h5ad", place / "embedded.h5ad", "demo", max_length=300)
    return place


@pytest.fixture(scope="module")
def atlas(folder):
    source, output = folder / "embedded.h5ad", folder / "blood.tahoe"
    with tahoe.settings.override(progress=False, device="cpu", dtype="float32"):
        status = cli.main(["-q", "reference", "build", str(source), "-o", str(output), "--obs-key", "bulk_labels"])
    assert status == 0
    return output


@pytest.fixture(scope="module")
def expected(folder, atlas):
    cells = anndata.read_h5ad(folder / "new.h5ad")
    with tahoe.settings.override(progress=False, device="cpu", dtype="float32"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tahoe.tl.transfer_labels(cells, atlas, obs_key="bulk_labels", k=10, alpha=0.1)
    return cells


def annotate(folder, atlas, output, *more, source="new.h5ad"):
    call = ["annotate", folder / source, "--reference", atlas, "--key", "bulk_labels", "-o", output]
    return cli.main([*map(str, call), "-k", "10", "--alpha", "0.1", *more])


def same(result, expected):
    for name in ("bulk_labels_tahoe", "bulk_labels_tahoe_confidence", "bulk_labels_tahoe_novelty_p"):
        assert result.obs[name].tolist() == expected.obs[name].tolist()
    for name in ("bulk_labels_tahoe_shares", "bulk_labels_tahoe_set", "X_tahoe"):
        np.testing.assert_array_equal(result.obsm[name], expected.obsm[name])
    assert list(result.uns["bulk_labels_tahoe"]["labels"]) == list(expected.uns["bulk_labels_tahoe"]["labels"])


def test_a_store(folder, atlas, expected, tmp_path):
    assert annotate(folder, atlas, tmp_path / "new.zarr") == 0
    result = anndata.read_zarr(tmp_path / "new.zarr")
    same(result, expected)
    assert result.obs["phase"].tolist() == expected.obs["phase"].tolist()
    assert [path.name for path in tmp_path.iterdir()] == ["new.zarr"]
    # once more, from what is embedded and labelled already
    assert annotate(tmp_path, atlas, tmp_path / "again.zarr", source="new.zarr") == 0
    same(anndata.read_zarr(tmp_path / "again.zarr"), expected)


def test_a_file_in_memory(folder, atlas, expected, tmp_path):
    assert annotate(folder, atlas, tmp_path / "new.h5ad") == 0
    result = anndata.read_h5ad(tmp_path / "new.h5ad")
    same(result, expected)
    assert result.X.shape == expected.X.shape


def test_a_table(folder, atlas, expected, tmp_path):
    assert annotate(folder, atlas, tmp_path / "new.csv") == 0
    table = pd.read_csv(tmp_path / "new.csv", index_col="cell")
    assert table.index.tolist() == expected.obs_names.tolist()
    assert table["bulk_labels_tahoe"].tolist() == expected.obs["bulk_labels_tahoe"].tolist()
    np.testing.assert_allclose(
        table["bulk_labels_tahoe_confidence"], expected.obs["bulk_labels_tahoe_confidence"], 1e-3
    )
    labels = np.array(expected.uns["bulk_labels_tahoe"]["labels"])
    assert table["bulk_labels_tahoe_set"].iloc[0] == " | ".join(labels[expected.obsm["bulk_labels_tahoe_set"][0]])
    assert [path.name for path in tmp_path.iterdir()] == ["new.csv"]


def test_a_file_of_mostly_known_cells(folder, atlas, expected, tmp_path):
    """The same as in memory; what is not about novelty stays."""
    assert annotate(folder, atlas, tmp_path / "new.zarr", "--mostly-known") == 0
    assert annotate(folder, atlas, tmp_path / "new.h5ad", "--mostly-known") == 0
    result, in_memory = anndata.read_zarr(tmp_path / "new.zarr"), anndata.read_h5ad(tmp_path / "new.h5ad")
    same(result, in_memory)
    np.testing.assert_array_equal(
        result.obs["bulk_labels_tahoe_novelty_p"], in_memory.obs["bulk_labels_tahoe_novelty_p"]
    )
    assert (result.obs["bulk_labels_tahoe_novelty_p"] != expected.obs["bulk_labels_tahoe_novelty_p"]).any()
    assert result.uns["bulk_labels_tahoe"]["mostly_known"]


def test_an_interrupted_run_goes_on(folder, atlas, expected, tmp_path, monkeypatch):
    from tahoe.cli import annotate as code

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(code, "_write_store", stop)
        assert annotate(folder, atlas, tmp_path / "new.zarr") == 130
    assert not (tmp_path / "new.zarr").exists()
    assert annotate(folder, atlas, tmp_path / "new.zarr") == 1
    with monkeypatch.context() as guarded:
        guarded.setattr(code, "embed_file", stop)  # no cell is embedded twice
        assert annotate(folder, atlas, tmp_path / "new.zarr", "--resume") == 0
    same(anndata.read_zarr(tmp_path / "new.zarr"), expected)


def test_what_cannot_be(folder, atlas, tmp_path, capsys):
    (tmp_path / "there.csv").touch()
    for output, told in (("x.txt", "must end in"), ("there.csv", "exists"), ("no/x.csv", "does not exist")):
        assert annotate(folder, atlas, tmp_path / output) == 1
        assert told in capsys.readouterr().err
    assert annotate(folder, folder, tmp_path / "x.csv") == 1
    assert "is no reference" in capsys.readouterr().err


def test_info(atlas, capsys):
    assert cli.main(["reference", "info", str(atlas), "--check"]) == 0
    told = capsys.readouterr().out
    assert "150 × 128, float32" in told
    assert "10 labels" in told
    assert "as when it was built" in told


def test_search(folder, atlas, tmp_path):
    cells = anndata.read_h5ad(folder / "embedded.h5ad")
    call = ["reference", "search", folder / "embedded.h5ad", "-r", atlas, "-o", tmp_path / "found.csv", "-k", "3"]
    assert cli.main([*map(str, call), "--cell", cells.obs_names[7], "--cell", cells.obs_names[2]]) == 0
    table = pd.read_csv(tmp_path / "found.csv")
    assert table["cell"].tolist() == [cells.obs_names[7]] * 3 + [cells.obs_names[2]] * 3
    assert table["found"].iloc[[0, 3]].tolist() == [cells.obs_names[7], cells.obs_names[2]]
    assert table["bulk_labels"].iloc[0] == cells.obs["bulk_labels"].iloc[7]
    assert cli.main([*map(str, call[:6]), str(tmp_path / "all.csv"), "-k", "1"]) == 0
    everyone = pd.read_csv(tmp_path / "all.csv")
    assert everyone["row"].tolist() == list(range(150))
