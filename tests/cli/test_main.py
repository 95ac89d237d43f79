from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest

import tahoe
from tahoe import cli

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """Output of `tahoe demo`, and the folder that it wrote to."""
    folder = tmp_path_factory.mktemp("demo")
    command = [sys.executable, "-m", "tahoe.cli", "demo", "--output", str(folder)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return run.stdout, folder


def test_demo_prints_a_comparison(demo):
    printed, _ = demo
    rows = dict(re.findall(r"^(tahoe demo|PCA-50) +([\d.]+ +[\d.]+ +[\d.]+)", printed, flags=re.MULTILINE))
    ours, pca = ([float(x) for x in rows[name].split()] for name in ("tahoe demo", "PCA-50"))
    # far better than the commonest type (0.34) and than chance, on cells that were never seen
    assert ours[0] > 0.76
    assert ours[1] > 0.3
    assert ours[2] > 0.52
    assert pca[0] > 0.75
    assert "not for science" in printed


def test_demo_annotates_and_perturbs(demo):
    printed, folder = demo
    right = re.search(r"350 cells annotated by the other half: ([\d.]+)% of (\d+) right", printed)
    assert float(right[1]) > 70
    assert int(right[2]) > 280
    away = re.search(r"Towards CD56\+ NK: .*; away: (.*)\.$", printed, flags=re.MULTILINE)[1].split(", ")
    assert {"GNLY", "GZMB"} <= set(away)
    assert "tahoe_perturb" in anndata.read_h5ad(folder / "tahoe-demo.h5ad").uns


@pytest.mark.parametrize("page", ["README.md", "src/tahoe/data/demo-model/README.md"])
def test_pages_quote_what_the_demo_prints(demo, page):
    """Other releases of scikit-learn and igraph may move the last digits."""
    tables = [re.findall(r"^(?:tahoe demo|PCA-50) +(.*)$", text, flags=re.MULTILINE) for text in
              (demo[0], (ROOT / page).read_text())]  # fmt: skip
    ours, quoted = (np.array([row.split() for row in table], dtype=float) for table in tables)
    np.testing.assert_allclose(quoted[:, 0], ours[:, 0], atol=0.01)
    np.testing.assert_allclose(quoted[:, 1:3], ours[:, 1:3], atol=0.05)


def test_demo_leaves_a_picture_and_an_anndata(demo):
    _, folder = demo
    assert (folder / "tahoe-demo.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "tahoe-demo.png").stat().st_size > 20_000
    adata = anndata.read_h5ad(folder / "tahoe-demo.h5ad")
    assert {"X_tahoe", "X_pca", "X_umap"} <= set(adata.obsm)
    assert adata.uns["X_tahoe"]["model"] == "demo"
    assert adata.uns["tahoe_genes"]["n_mapped"] > 750


@pytest.fixture(scope="module")
def cells(tmp_path_factory, heart):
    """A small h5ad file."""
    path = tmp_path_factory.mktemp("cells") / "cells.h5ad"
    part = heart[:12, ::4].copy()
    part.layers["counts"] = part.X.copy()
    part.write_h5ad(path)
    return path


FAST = ["--model", "demo", "--dtype", "float32", "--max-length", "100"]


def run(*arguments) -> int:
    return cli.main(["--quiet", *map(str, arguments)])


@pytest.fixture(scope="module")
def vectors(cells):
    adata = anndata.read_h5ad(cells)
    with tahoe.settings.override(progress=False, device="cpu"):
        tahoe.tl.embed(adata, "demo", dtype="float32", max_length=100)
    return adata.obsm["X_tahoe"]


def test_embed_into_a_store(cells, vectors, tmp_path, capsys):
    output = tmp_path / "out.zarr"
    assert run("embed", cells, "-o", output, *FAST, "--keep-metadata") == 0
    assert capsys.readouterr().out == f"{output}\n"
    store = anndata.read_zarr(output)
    np.testing.assert_array_equal(store.obsm["X_tahoe"], vectors)
    assert "cell_type" in store.obs


def test_embed_into_a_file(cells, vectors, tmp_path):
    output = tmp_path / "out.h5ad"
    assert run("embed", cells, "-o", output, *FAST, "--layer", "counts", "--key-added", "X_other") == 0
    adata = anndata.read_h5ad(output)
    np.testing.assert_array_equal(adata.obsm["X_other"], vectors)
    assert adata.X.nnz == anndata.read_h5ad(cells).X.nnz
    assert adata.uns["X_other"]["input"] == 'layers["counts"]'
    assert [path.name for path in tmp_path.iterdir()] == ["out.h5ad"]


@pytest.mark.parametrize("kind", ["zarr", "h5ad"])
def test_like_repeats_a_run(cells, tmp_path, kind):
    first, again = tmp_path / f"first.{kind}", tmp_path / "again.zarr"
    options = ["--layer", "counts", "--seed", "3", "--no-normalize", "--key-added", "X_mine", "--organism", "human"]
    options += ["--attention", "eager", "--token-budget", "3000"]
    assert run("embed", cells, "-o", first, *FAST, *options) == 0
    assert (tahoe.settings.attention, tahoe.settings.token_budget) == (None, None)
    assert run("embed", "--like", first, "-o", again) == 0
    before = anndata.read_zarr(first) if kind == "zarr" else anndata.read_h5ad(first)
    after = anndata.read_zarr(again)
    np.testing.assert_array_equal(after.obsm["X_mine"], before.obsm["X_mine"])
    for key, value in before.uns["X_mine"].items():
        np.testing.assert_array_equal(after.uns["X_mine"][key], value)
    assert after.uns["X_mine"]["attention"] == "eager"
    assert after.uns["X_mine"]["token_budget"] == 3000
    # what is given wins
    other = tmp_path / "other.zarr"
    assert run("embed", "--like", first, "-o", other, "--seed", "4") == 0
    assert anndata.read_zarr(other).uns["X_mine"]["seed"] == 4
    assert (anndata.read_zarr(other).obsm["X_mine"] != after.obsm["X_mine"]).any()


def test_like_refuses_other_weights(cells, tiny, tmp_path, capsys):
    tiny.save(tmp_path / "model")
    adata = anndata.read_h5ad(cells)
    genes = tiny.vocabulary.genes
    adata = adata[:, : len(genes)].copy()
    adata.var["tahoe_gene"] = genes[: adata.n_vars]
    adata.write_h5ad(tmp_path / "cells.h5ad")
    first = tmp_path / "first.zarr"
    assert run("embed", tmp_path / "cells.h5ad", "-o", first, "--model", tmp_path / "model") == 0
    tiny.network.norm.weight[0] += 1
    tiny.save(tmp_path / "model")
    assert run("embed", "--like", first, "-o", tmp_path / "again.zarr") == 1
    assert "are not those of that run" in capsys.readouterr().err


def test_resume(cells, vectors, tmp_path, monkeypatch, capsys):
    from tahoe._run.shards import Store

    output, written = tmp_path / "out.zarr", Store.write

    def interrupted(self, shard, *arrays):
        if shard == 1:
            raise KeyboardInterrupt
        written(self, shard, *arrays)

    monkeypatch.setattr(Store, "write", interrupted)
    command = ["embed", cells, "-o", output, *FAST, "--cells-per-shard", "5"]
    assert run(*command) == 130
    assert "interrupted" in capsys.readouterr().err
    monkeypatch.undo()
    assert run(*command) == 1
    assert "--resume" in capsys.readouterr().err
    assert run(*command, "--resume") == 0
    np.testing.assert_array_equal(anndata.read_zarr(output).obsm["X_tahoe"], vectors)


def test_workers(cells, vectors, tmp_path):
    """In a process of its own, as the command runs; worker processes of another would inherit what pytest has."""
    output = tmp_path / "out.zarr"
    command = ["-q", "embed", str(cells), "-o", str(output), *FAST, "--cells-per-shard", "3", "--workers", "2"]
    done = subprocess.run([sys.executable, "-m", "tahoe.cli", *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(anndata.read_zarr(output).obsm["X_tahoe"], vectors, atol=2e-6, rtol=0)


def test_map_genes_prints_the_report(cells, tmp_path, capsys):
    assert run("map-genes", cells, "-o", tmp_path / "genes.csv") == 0
    printed, told = capsys.readouterr()
    assert told == ""
    assert re.search(r"^ensembl +\d+ +\d+\.\d+%$", printed, flags=re.MULTILINE)
    assert "are in the vocabulary of the released models" in printed
    table = pd.read_csv(tmp_path / "genes.csv", index_col="gene", keep_default_na=False)
    assert (table["tahoe_gene"] == table.index).mean() > 0.9


def test_info(cells, tmp_path, capsys):
    assert run("info") == 0
    printed = capsys.readouterr().out
    assert f"torch            {version('torch')}" in printed
    assert "model 70m" in printed
    assert run("info", "demo") == 0
    printed = capsys.readouterr().out
    assert tahoe.load_model("demo").weights_sha256 in printed
    assert run("embed", cells, "-o", tmp_path / "out.zarr", *FAST) == 0
    capsys.readouterr()
    assert run("info", tmp_path / "out.zarr") == 0
    printed = capsys.readouterr().out
    record = anndata.read_zarr(tmp_path / "out.zarr").uns["X_tahoe"]
    for key in record:
        assert re.search(rf"^{key} ", printed, flags=re.MULTILINE), key
    assert f"tahoe embed --like {tmp_path / 'out.zarr'}" in printed
    assert run("info", cells) == 1
    assert "has no result of tahoe" in capsys.readouterr().err


def test_info_of_a_model_that_is_not_there_downloads_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with tahoe.settings.override(cache_dir=tmp_path):
        assert run("info", "3b") == 0
    assert re.search(r"^cached +no$", capsys.readouterr().out, flags=re.MULTILINE)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["embed", "CELLS", "-o", "out.txt"], 2, "must end in .zarr or .h5ad"),
        (["embed", "-o", "out.zarr"], 2, "Missing argument 'SOURCE'"),
        (["embed", "CELLS"], 2, "Missing option"),
        (["embed", "CELLS", "-o", "out.zarr", "--seed", "x"], 2, "not a valid integer"),
        (["embed", "CELLS", "-o", "out.zarr", "--token-budget", "0"], 2, "not in the range x>=1"),
        (["embed", "nothing.h5ad", "-o", "out.zarr"], 1, "'nothing.h5ad' does not exist"),
        (["embed", "nothing.h5ad", "-o", "out.h5ad"], 1, "'nothing.h5ad' does not exist"),
        (["embed", "CELLS", "-o", "out.zarr", "--model", "dem"], 1, "did you mean 'demo'"),
        (["embed", "CELLS", "-o", "out.h5ad", "--resume"], 1, "--resume goes with a zarr store"),
        (["embed", "CELLS", "-o", "out.zarr", "--workers", "2", "--scheduler", "x"], 1, "pass only one of them"),
        (["embed", "--like", "CELLS", "-o", "out.zarr"], 1, "no embedding with provenance"),
        (["map-genes", "nothing.h5ad"], 1, "does not exist"),
        (["map-genes", "CELLS", "-o", "no/where.csv"], 1, "--output no/where.csv cannot be written"),
        (["download", "7b"], 2, "is not one of"),
        (["info", "nothing"], 1, "does not exist"),
        (["nothing"], 2, "No such command"),
    ],
)
def test_errors_are_short(cells, arguments, status, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(*(cells if argument == "CELLS" else argument for argument in arguments)) == status
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert status == 2 or error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_an_error_is_one_line(tmp_path, capsys):
    assert cli.main(["demo", "--output", str(tmp_path / "nowhere")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("tahoe: the folder")
    assert error.count("\n") == 1


def test_debug_shows_where(tmp_path):
    from tahoe.errors import InputError

    with pytest.raises(InputError, match="does not exist"):
        cli.main(["--debug", "demo", "--output", str(tmp_path / "nowhere")])


@pytest.mark.parametrize("command", ["embed", "map-genes", "download", "info", "demo"])
def test_help_needs_neither_torch_nor_scanpy(command):
    code = (
        "import sys, tahoe.cli.main\n"
        f"tahoe.cli.main(['{command}', '--help'])\n"
        "print(sorted({'torch', 'scanpy', 'numpy', 'pandas', 'anndata'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Usage:" in done.stdout
    assert done.stdout.strip().endswith("[]")
