from __future__ import annotations

import re
import subprocess
import sys

import anndata
import pytest

from tahoe import cli


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
    assert ours[0] > 0.65
    assert ours[1] > 0.2
    assert ours[2] > 0.4
    assert pca[0] > 0.75
    assert "not for science" in printed


def test_demo_leaves_a_picture_and_an_anndata(demo):
    _, folder = demo
    assert (folder / "tahoe-demo.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "tahoe-demo.png").stat().st_size > 20_000
    adata = anndata.read_h5ad(folder / "tahoe-demo.h5ad")
    assert {"X_tahoe", "X_pca", "X_umap"} <= set(adata.obsm)
    assert adata.uns["X_tahoe"]["model"] == "demo"
    assert adata.uns["tahoe_genes"]["n_mapped"] > 750


def test_an_error_is_one_line(tmp_path, capsys):
    assert cli.main(["demo", "--output", str(tmp_path / "nowhere")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("tahoe: the folder")
    assert error.count("\n") == 1


def test_debug_shows_where(tmp_path):
    from tahoe.errors import InputError

    with pytest.raises(InputError, match="does not exist"):
        cli.main(["--debug", "demo", "--output", str(tmp_path / "nowhere")])


def test_help_needs_neither_torch_nor_scanpy():
    code = (
        "import sys, tahoe.cli\n"
        "try: tahoe.cli.main(['demo', '--help'])\n"
        "except SystemExit: print(sorted({'torch', 'scanpy'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "tahoe-demo.png" in run.stdout
    assert run.stdout.strip().endswith("[]")
