from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import tahoe
from tahoe.errors import InputError, TahoeWarning

NAMES = ["CD3E", "SEPT7", "HLA.A", "ENSG00000141510.18", "TP53", "Y_RNA", "GFP"]
GENES = ["ENSG00000198851", "ENSG00000122545", "ENSG00000206503", "ENSG00000141510", "", "", ""]
MATCHES = ["symbol", "previous", "symbol", "ensembl", "duplicate", "ambiguous", "unmapped"]


@pytest.fixture
def adata() -> anndata.AnnData:
    counts = np.array([[50, 30, 10, 5, 3, 1, 1], [50, 30, 10, 5, 3, 1, 1]], dtype=np.float32)
    return anndata.AnnData(sparse.csr_matrix(counts), var=pd.DataFrame(index=NAMES))


def test_writes_its_three_slots_and_nothing_else(adata):
    before = adata.copy()
    assert tahoe.pp.map_genes(adata) is None
    assert adata.var["tahoe_gene"].tolist() == GENES
    assert adata.var["tahoe_match"].tolist() == MATCHES
    assert adata.uns["tahoe_genes"]["share_in_vocabulary"] == pytest.approx(0.95)
    assert adata.uns["tahoe_genes"]["lost"] == ["TP53", "GFP", "Y_RNA"]
    assert adata.uns["tahoe_genes"]["counts_from"] == "X"
    assert list(adata.var) == ["tahoe_gene", "tahoe_match"]
    assert list(adata.uns) == ["tahoe_genes"]
    assert adata.var_names.equals(before.var_names)
    assert (adata.X != before.X).nnz == 0


def test_copy_leaves_the_original_alone(adata):
    changed = tahoe.pp.map_genes(adata, copy=True)
    assert "tahoe_gene" in changed.var
    assert "tahoe_gene" not in adata.var
    assert "tahoe_genes" not in adata.uns


def test_twice_is_once(adata):
    tahoe.pp.map_genes(adata)
    once = adata.copy()
    tahoe.pp.map_genes(adata)
    pd.testing.assert_frame_equal(adata.var, once.var)
    assert adata.uns["tahoe_genes"] == once.uns["tahoe_genes"]


@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
def test_the_report_survives_the_disk(adata, kind, tmp_path, write_zarr):
    tahoe.pp.map_genes(adata)
    path = tmp_path / f"cells.{kind}"
    write_zarr(adata, path) if kind == "zarr" else adata.write_h5ad(path)
    back = getattr(anndata, f"read_{kind}")(path)
    assert back.var["tahoe_gene"].tolist() == GENES
    assert back.var["tahoe_match"].tolist() == MATCHES
    report, expected = back.uns["tahoe_genes"], adata.uns["tahoe_genes"]
    assert report.keys() == expected.keys()
    for key, value in expected.items():
        assert list(report[key]) == value if isinstance(value, list) else report[key] == value
    tahoe.pp.map_genes(back)
    assert back.uns["tahoe_genes"] == expected


def test_backed_data_is_mapped_where_it_lies(adata, tmp_path):
    adata.write_h5ad(tmp_path / "cells.h5ad")
    backed = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    tahoe.pp.map_genes(backed)
    assert backed.isbacked
    assert backed.uns["tahoe_genes"]["share_in_vocabulary"] == pytest.approx(0.95)


def test_x_among_the_layers(adata):
    """anndata 0.13 shows X as ``layers[None]``; here it is put there for the older ones too."""
    adata.layers["counts"] = adata.X.copy()
    adata.X = adata.layers[None] = adata.X.toarray() - 20
    tahoe.pp.map_genes(adata)
    assert adata.uns["tahoe_genes"]["counts_from"] == 'layers["counts"]'


def test_scaled_values_give_way_to_a_layer_with_counts(adata):
    adata.layers["counts"] = adata.X.copy()
    adata.X = adata.X.toarray() - 20
    tahoe.pp.map_genes(adata)
    assert adata.uns["tahoe_genes"]["counts_from"] == 'layers["counts"]'
    assert adata.uns["tahoe_genes"]["share_in_vocabulary"] == pytest.approx(0.95)


@pytest.mark.filterwarnings("ignore::tahoe.errors.TahoeWarning")  # 4 of 7 genes is little
def test_names_alone_are_enough(adata):
    scaled = adata.copy()
    scaled.X = scaled.X.toarray() - 20
    for without in (scaled, anndata.AnnData(var=adata.var), adata[:0].copy()):
        tahoe.pp.map_genes(without)
        assert without.var["tahoe_gene"].tolist() == GENES
        assert "counts" not in without.uns["tahoe_genes"]
        assert "counts_from" not in without.uns["tahoe_genes"]


def test_mouse_data_is_recognised():
    mouse = anndata.AnnData(np.ones((1, 4), dtype=np.float32), var=pd.DataFrame(index=["Actb", "Cd3e", "Gapdh", "C3"]))
    with pytest.warns(TahoeWarning, match='organism="mouse"'):
        tahoe.pp.map_genes(mouse)
    tahoe.pp.map_genes(mouse, organism="mouse")
    assert mouse.var["tahoe_match"].tolist() == ["ortholog"] * 4


def test_genes_as_rows_are_told():
    adata = tahoe.datasets.pbmc68k()[:40].copy().T
    for call in (tahoe.pp.map_genes, lambda adata: tahoe.tl.embed(adata, "demo")):
        with pytest.raises(InputError, match=r"none of the 40 names.* genes as rows; .* adata\.T"):
            call(adata)
    # one name that happens to be a gene does not hide it
    adata.var_names = ["CD3E", *adata.var_names[1:]]
    with pytest.warns(TahoeWarning, match=r"adata\.T"):
        tahoe.pp.map_genes(adata)
    with pytest.raises(InputError, match=r"adata\.T"):
        tahoe.tl.embed(adata, "demo")
    adata = tahoe.datasets.pbmc68k()[:40].copy()
    adata.var_names = [f"nothing of {place}" for place in range(adata.n_vars)]
    with pytest.raises(InputError, match=r"none of the 765 names") as caught:
        tahoe.pp.map_genes(adata)
    assert "adata.T" not in str(caught.value)


def test_names_that_contradict_each_other_are_told_once():
    adata = tahoe.datasets.pbmc68k()[:20].copy()
    ids = tahoe.pp.map_genes(adata, copy=True).var["tahoe_gene"].to_numpy()
    adata.var["gene_ids"] = np.roll([gene or f"none{place}" for place, gene in enumerate(ids)], 3)
    mapped = adata.copy()
    for call in (tahoe.pp.map_genes, lambda adata: tahoe.tl.embed(adata, "demo")):
        with pytest.warns(TahoeWarning, match="gene_ids and var_names name different genes") as told:
            call(mapped if call is tahoe.pp.map_genes else adata)
        assert len(told) == 1
    tahoe.tl.embed(mapped, "demo")
    tahoe.pp.map_genes(mapped, gene_key="var_names")
    assert mapped.var["tahoe_gene"].tolist() == ids.tolist()


def test_an_error_leaves_the_data_as_it_was(adata):
    with pytest.raises(InputError):
        tahoe.pp.map_genes(adata, gene_key="symbol")
    assert adata.var.empty
    assert not adata.uns


def test_columns_of_any_kind_beside_the_names():
    adata = tahoe.datasets.pbmc68k()
    expected = tahoe.pp.map_genes(adata, copy=True).var["tahoe_gene"]
    adata.var["symbols"] = pd.Categorical(adata.var_names)
    adata.var["synonyms"] = [[name, "x"] for name in adata.var_names]
    adata.var["mixed"] = ["A1BG", 1.5, None] * 255
    adata.var["var_names"] = [f"probe{i}" for i in range(adata.n_vars)]
    tahoe.pp.map_genes(adata)
    assert adata.uns["tahoe_genes"]["gene_key"] == "var_names"
    assert adata.var["tahoe_gene"].equals(expected)
    adata.var_names = [f"{i}" for i in range(adata.n_vars)]
    del adata.var["tahoe_gene"], adata.var["tahoe_match"]
    tahoe.pp.map_genes(adata)
    assert adata.uns["tahoe_genes"]["gene_key"] == "symbols"
    assert adata.var["tahoe_gene"].tolist() == expected.tolist()


def test_a_small_selection_with_few_known_genes_is_hinted_at():
    adata = tahoe.datasets.pbmc68k()
    adata.var_names = [f"thing{i}x" if i % 3 else name for i, name in enumerate(adata.var_names)]
    with pytest.warns(TahoeWarning, match="With 765 genes it may be a selection of variable ones"):
        tahoe.pp.map_genes(adata)
