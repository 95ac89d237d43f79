"""Whatever is no AnnData, or no path of one: one error that says what to pass."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import tahoe
from tahoe.cli.main import main
from tahoe.errors import InputError

# what mudata 0.4 asks of pandas 3.1
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:mudata")


def modalities():
    mudata = pytest.importorskip("mudata")
    cells = tahoe.datasets.pbmc68k()[:6].copy()
    cells.obs, cells.uns, cells.obsm = cells.obs[[]], {}, {}
    protein = cells[:, :5].copy()
    protein.var_names = "protein " + protein.var_names
    # mudata 0.3 has a function for it
    override = mudata.settings.override if hasattr(mudata, "settings") else mudata.set_options
    with override(pull_on_update=False):
        return mudata.MuData({"gex": cells, "prot": protein})


def with_raw():
    cells = tahoe.datasets.pbmc68k()[:3].copy()
    cells.raw = cells
    return cells.raw


NOT_ADATA = {
    "MuData": (
        modalities,
        r'of type MuData, not an AnnData; pass the modality with the RNA, as mdata\["gex"\].*\'prot\'',
    ),
    "path": (lambda: "cells.h5ad", r"the path 'cells.h5ad'.*anndata.read_h5ad\('cells.h5ad'\)"),
    "Path": (lambda: Path("cells.h5ad"), "tahoe.embed_file"),
    "list": (lambda: [tahoe.datasets.pbmc68k()], r"of type list.*anndata.concat"),
    "dict": (dict, r"of type dict.*anndata.concat"),
    "Raw": (with_raw, r"adata.raw.to_adata\(\)"),
    "None": (lambda: None, r"adata is None.*in place"),
    "DataFrame": (lambda: pd.DataFrame({"CD3E": [1.0]}), r"of type DataFrame.*anndata.AnnData\(table\)"),
    "array": (lambda: np.ones((2, 3)), r"of type ndarray.*anndata.AnnData\(matrix"),
    "sparse": (lambda: sparse.csr_matrix(np.ones((2, 3))), r"anndata.AnnData\(matrix"),
    "anything": (SimpleNamespace, "of type SimpleNamespace, not an AnnData; pass an AnnData"),
}
CALLS = {
    "pp.map_genes": tahoe.pp.map_genes,
    "tl.embed": lambda given: tahoe.tl.embed(given, "demo"),
    "tl.embed_genes": lambda given: tahoe.tl.embed_genes(given, "demo"),
    "tl.attention": lambda given: tahoe.tl.attention(given, "demo"),
    "tl.predict_expression": lambda given: tahoe.tl.predict_expression(given, "demo"),
    "get.gene_embeddings": lambda given: tahoe.get.gene_embeddings(given, "demo", cell=0),
    "get.attention": lambda given: tahoe.get.attention(given, "demo", cell=0),
    "pl.gene_mapping": tahoe.pl.gene_mapping,
    "pl.gene_neighbors": lambda given: tahoe.pl.gene_neighbors(given, "CD3E"),
    "pl.attention": tahoe.pl.attention,
}


@pytest.mark.parametrize("given", NOT_ADATA)
def test_every_function_says_what_to_pass(given):
    make, told = NOT_ADATA[given]
    thing = make()
    for call in CALLS.values():
        with pytest.raises(InputError, match=told):
            call(thing)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: None, "source is None; pass one path"),
        (lambda: ["a.h5ad", "b.h5ad"], "source is of type list"),
        (tahoe.datasets.pbmc68k, r"source is of type AnnData.*tahoe.tl.embed\(adata\)"),
        (modalities, r'source is of type MuData.*tahoe.tl.embed\(mdata\["gex"\]\)'),
        (lambda: np.ones(3), "source is of type ndarray"),
    ],
)
def test_a_file_is_given_by_its_path(tmp_path, make, told):
    with pytest.raises(InputError, match=told):
        tahoe.embed_file(make(), tmp_path / "out.zarr", "demo")
    with pytest.raises(InputError, match="output is"):
        tahoe.embed_file(tmp_path / "cells.h5ad", None, "demo")
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("suffix", ["h5mu", "zarr"])
def test_a_file_of_modalities_says_how_to_take_one(tmp_path, capsys, suffix):
    path = tmp_path / f"cells.{suffix}"
    mdata = modalities()
    mdata.write_h5mu(path) if suffix == "h5mu" else mdata.write_zarr(path)
    with pytest.raises(InputError, match=r'a MuData with the modalities .*tahoe.tl.embed\(mdata\["gex"\]\)'):
        tahoe.embed_file(path, tmp_path / "out.zarr", "demo")
    for arguments in (["embed", str(path), "-o", str(tmp_path / "o.h5ad"), "-m", "demo"], ["map-genes", str(path)]):
        assert main(arguments) == 1
        assert 'mdata["gex"].write_h5ad' in capsys.readouterr().err


def test_an_anndata_by_another_name_is_taken():
    class Cells(anndata.AnnData):
        pass

    cells = Cells(tahoe.datasets.pbmc68k()[:3].copy())
    tahoe.pp.map_genes(cells)
    assert "tahoe_gene" in cells.var
