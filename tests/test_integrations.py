"""The examples of ``docs/guide/ecosystem.md`` and ``state.md`` run, and do what the pages say."""

from __future__ import annotations

import re
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path

import anndata
import numpy as np
import pytest
from packaging.version import Version

import tahoe

PAGE = Path(__file__).parents[1] / "docs" / "guide" / "ecosystem.md"


def run(heading: str) -> dict:
    """Run the Python below a heading of the page, and return its names."""
    section = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    (code,) = re.findall(r"^```python\n(.*?)^```", section[1], re.MULTILINE | re.DOTALL)
    names: dict = {}
    exec(compile(code, f"{PAGE.name}, {heading}", "exec"), names)
    return names


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    """Embeddings of the cells of the examples."""
    cells = tahoe.datasets.pbmc68k()
    with tahoe.settings.override(progress=False):
        tahoe.tl.embed(cells, model="demo", device="cpu", dtype="float32")
    return cells.obsm["X_tahoe"]


@pytest.mark.slow  # pynndescent and umap compile what they do
@pytest.mark.skipif(Version(version("pynndescent")) >= Version("0.7"), reason="scanpy.tl.ingest fails with 0.7")
@pytest.mark.filterwarnings("default")  # those of scanpy and umap are not ours to mend
def test_ingest_labels_cells_by_their_neighbours_among_the_embeddings(vectors):
    names = run("Map new cells onto labelled ones")
    labelled, new = names["labelled"], names["new"]
    true = names["cells"].obs["bulk_labels"].to_numpy()[1::2]
    accuracy = np.mean(new.obs["bulk_labels"].to_numpy() == true)
    commonest = labelled.obs["bulk_labels"].value_counts(normalize=True).iloc[0]
    assert accuracy > commonest + 0.2
    np.testing.assert_array_equal(new.obsm["rep"], vectors[1::2])
    assert new.obsm["X_umap"].shape == (350, 2)


@pytest.mark.filterwarnings("ignore:From 0.4 .update:FutureWarning")  # of mudata 0.3, on a default to come
@pytest.mark.filterwarnings("ignore::DeprecationWarning:mudata")  # what mudata 0.4 asks of pandas 3.1
def test_a_modality_of_mudata(vectors, tmp_path):
    mudata = pytest.importorskip("mudata")
    mdata = run("MuData")["mdata"]
    np.testing.assert_array_equal(mdata["rna"].obsm["X_tahoe"], vectors)
    assert not mdata["protein"].obsm
    assert "X_tahoe" not in mdata.obsm
    mdata.write(tmp_path / "cells.h5mu")
    again = mudata.read_h5mu(tmp_path / "cells.h5mu")
    np.testing.assert_array_equal(again["rna"].obsm["X_tahoe"], vectors)
    assert again["rna"].uns["X_tahoe"]["model"] == mdata["rna"].uns["X_tahoe"]["model"]


@pytest.mark.filterwarnings("default")  # those of JAX and of plotting are not ours to mend
def test_scib_metrics(vectors):
    pytest.importorskip("scib_metrics")
    names = run("scib-metrics")
    # its Benchmarker moves last bits of the vectors that it is given
    np.testing.assert_allclose(names["cells"].obsm["X_tahoe"], vectors, rtol=0, atol=1e-7)
    results = names["benchmarker"].get_results(min_max_scale=False).drop("Metric Type")
    assert set(results.index) == {"X_tahoe", "X_pca"}
    assert results.astype(float).notna().all(axis=None)


@pytest.mark.skipif(
    not shutil.which("state"), reason="State has an environment of its own; put its command on the PATH"
)
def test_state_takes_the_embedding_and_its_predictions_are_judged(vectors, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (PAGE.parent / "state.md").read_text(encoding="utf-8")
    names: dict = {}
    for language, code in re.findall(r"^```(python|bash)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        if language == "python":
            exec(compile(code, "state.md", "exec"), names)
        else:
            assert "training.max_steps=300" in code
            commands = code.replace("training.max_steps=300", "training.max_steps=3")
            done = subprocess.run(["bash", "-e"], input=commands, capture_output=True, text=True, check=False)
            assert not done.returncode, done.stderr[-3000:]
    predicted, cells = names["predicted"], names["cells"]
    np.testing.assert_array_equal(anndata.read_h5ad("cells/cells.h5ad").obsm["X_tahoe"], vectors)
    assert predicted.obsm["X_tahoe"].shape == ((names["treated"] & names["held_out"]).sum(), vectors.shape[1])
    assert predicted.n_vars == cells.n_vars
    table = names["table"]
    assert set(table["representation"]) == {"State", "control mean", "perturbation mean", "linear"}
    told = table[(table["representation"] == "State") & (table["metric"] != "discrimination score")]
    assert np.isfinite(told["value"]).all()  # one perturbation in one type has nothing to be told from


def test_the_accessor_calls_the_functions(vectors):
    try:
        cells = run("An accessor")["cells"]
        np.testing.assert_array_equal(cells.obsm["X_tahoe"], vectors)
        assert cells.tahoe.embed_genes("demo", context=False, copy=True).varm["tahoe"].shape[0] == cells.n_vars
        with pytest.raises(AttributeError, match="no attribute 'nothing'"):
            cells.tahoe.nothing  # noqa: B018
    finally:
        del anndata.AnnData.tahoe
