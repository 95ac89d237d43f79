"""Several modalities in one matrix: only gene expression takes part, whatever the others are called."""

from __future__ import annotations

import logging

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import tahoe
from tahoe._genes.columns import gene_columns
from tahoe.errors import GeneError, InputError, TahoeWarning

pytestmark = pytest.mark.filterwarnings("ignore:Variable names are not unique")
OTHERS = ["CD3D", "CD8A", "CD79A", "MS4A1", "NKG7"]


@pytest.fixture
def rna() -> anndata.AnnData:
    cells = tahoe.datasets.pbmc68k()[:12].copy()
    return anndata.AnnData(cells.X.copy(), obs=cells.obs[[]].copy(), var=pd.DataFrame(index=cells.var_names.to_list()))


def joined(rna, label="Antibody Capture", *, key="feature_types", expression="Gene Expression", names=OTHERS):
    """The cells with columns of another modality that bear the names of genes, and much higher values."""
    more = sparse.csr_matrix(np.random.default_rng(0).integers(500, 900, (rna.n_obs, len(names))).astype(np.float32))
    var = pd.DataFrame({key: [expression] * rna.n_vars + [label] * len(names)}, index=[*rna.var_names, *names])
    return anndata.AnnData(sparse.hstack([rna.X, more], format="csr"), obs=rna.obs.copy(), var=var)


def vectors(adata, **options):
    tahoe.tl.embed(adata, "demo", **options)
    return adata.obsm["X_tahoe"].tobytes()


@pytest.mark.parametrize(
    ("key", "expression", "label"),
    [
        ("feature_types", "Gene Expression", "Antibody Capture"),
        ("feature_types", "Gene Expression", "CRISPR Guide Capture"),
        ("feature_types", "Gene Expression", "Peaks"),
        ("feature_types", "Gene Expression", "Something New"),
        ("feature_types", b"Gene Expression", b"Custom"),
        ("feature_types", "b'Gene Expression'", "b'Antibody Capture'"),
        ("feature_types", "Gene Expression\r", "\ufeffPeaks\u00a0"),
        ("feature_types", "GEX", "ADT"),
        ("feature_type", "Gene Expression", "Negative Control Probe"),
        ("feature_type", "gene", "protein"),
        ("modality", "rna", "prot"),
        ("Feature Type", "gene expression", "Antibody Capture"),
    ],
)
def test_other_modalities_never_take_the_place_of_a_gene(rna, key, expression, label):
    both = joined(rna, label, key=key, expression=expression)
    want = vectors(rna)
    assert vectors(both) == want
    assert both.var["tahoe_match"].tolist()[-5:] == ["modality"] * 5
    assert (both.var["tahoe_gene"].iloc[-5:] == "").all()
    assert both.var["tahoe_gene"].tolist()[:-5] == rna.var["tahoe_gene"].tolist()


def test_the_report_the_log_and_the_provenance_say_so(rna, caplog):
    both = joined(rna)
    with caplog.at_level(logging.INFO, logger="tahoe"):
        tahoe.pp.map_genes(both)
    report = both.uns["tahoe_genes"]
    told = 'var["feature_types"] has other features than gene expression, which take no part: 5 Antibody Capture'
    assert report["left_out"] == told
    assert told in caplog.text
    alone = tahoe.pp.map_genes(rna, copy=True).uns["tahoe_genes"]
    # their counts, which are most of the counts, are in no share
    assert {key: report[key] for key in ("n_genes", "counts", "share_in_vocabulary", "lost")} == {
        key: alone[key] for key in ("n_genes", "counts", "share_in_vocabulary", "lost")
    }
    assert report["genes"] == alone["genes"] | {"modality": 5}
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="tahoe"):
        tahoe.tl.embed(both, "demo")
    assert caplog.text.count(told) == 1
    assert both.uns["X_tahoe"]["left_out"] == told
    assert tahoe.pl.gene_mapping(both) is not None


def test_values_of_other_modalities_may_be_anything(rna, tmp_path):
    want = vectors(rna)
    both = joined(rna)
    values = both.X.toarray()
    values[:, -5:] -= 700
    values[3, -1] = np.nan
    both.X = values
    both.write_h5ad(tmp_path / "cells.h5ad")
    assert vectors(both) == want
    tahoe.embed_file(tmp_path / "cells.h5ad", tmp_path / "out.zarr", "demo")
    assert np.asarray(anndata.read_zarr(tmp_path / "out.zarr").obsm["X_tahoe"]).tobytes() == want
    both.layers["counts"] = both.X.copy()
    tahoe.pp.map_genes(both)
    assert both.uns["tahoe_genes"]["counts_from"] == "X"


def test_a_gene_is_asked_for_by_the_name_that_an_antibody_bears_too(rna):
    both = joined(rna)
    for adata in (both, rna):
        tahoe.tl.predict_expression(adata, "demo", genes=["CD3D", "CD3E"])
        tahoe.tl.attention(adata, "demo", min_cells=1, genes=["CD3D", "CD3E"])
    np.testing.assert_array_equal(both.obsm["tahoe_expression"], rna.obsm["tahoe_expression"])
    assert both.varp["tahoe_attention"].sum() == rna.varp["tahoe_attention"].sum() > 0


def test_raw_has_its_own_modalities(rna):
    both = joined(rna)
    both.raw = both.copy()
    assert vectors(both, use_raw=True) == vectors(rna)


def test_nothing_but_another_modality_is_refused(rna):
    rna.var["feature_types"] = "Antibody Capture"
    for call in (tahoe.pp.map_genes, lambda adata: tahoe.tl.embed(adata, "demo")):
        with pytest.raises(GeneError, match=r'var\["feature_types"\].*765 Antibody Capture.*with the RNA'):
            call(rna)
    assert "tahoe_gene" not in rna.var


@pytest.mark.parametrize(
    "types",
    [
        ["protein_coding", "lncRNA", "snRNA", "misc_RNA"],  # CELLxGENE: types of genes
        ["gene", "pseudogene", "ncRNA_gene", "gene"],
        ["Gene Expression", "Gene Expression", None, ""],  # an outer join with cells that do not say
        ["", None, "nan", "nan"],
        [1, 2, 3, 4],
    ],
)
def test_types_of_genes_and_missing_types_leave_nothing_out(types):
    for column in (pd.Series(types, dtype=object), pd.Series(types).astype("category")):
        columns = gene_columns(pd.DataFrame({"feature_type": column}))
        assert columns.are_genes.all()
        assert columns.left_out == ""


def test_a_column_without_a_type_gives_way(rna):
    """As after anndata.concat(axis="var") of RNA, which says what it is, and antibodies, which do not."""
    both = joined(rna, None)
    both.var_names_make_unique()
    with pytest.warns(TahoeWarning, match="it does not know CD"):  # all of its counts are said to be lost
        assert vectors(both, min_coverage=0) == vectors(rna)
    assert both.var["tahoe_match"].tolist()[-5:] == ["duplicate"] * 5


def test_a_mapping_from_before_the_types_is_refused(rna):
    both = joined(rna)
    types = both.var.pop("feature_types")
    tahoe.pp.map_genes(both)
    both.var["feature_types"] = types
    with pytest.raises(InputError, match=r"tahoe.pp.map_genes\(adata\) again"):
        tahoe.tl.embed(both, "demo")
    tahoe.pp.map_genes(both)
    assert vectors(both) == vectors(rna)


def test_a_mask_may_take_the_place_of_types(rna):
    """Columns that are not selected are not judged, and do not compete for a gene."""
    want = vectors(rna)
    both = joined(rna)
    both.var["rna"] = both.var.pop("feature_types") == "Gene Expression"
    both.var_names_make_unique()
    both.X = both.X.toarray()
    both.X[:, -5:] = np.random.default_rng(0).normal(0, 1, (12, 5))
    both.X[0, -1], both.X[1, -1] = np.inf, np.nan
    assert vectors(both, mask_var="rna") == want


@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf])
def test_columns_that_no_model_reads_are_not_judged(rna, bad, tmp_path):
    want = vectors(rna)
    more = anndata.AnnData(
        np.hstack([rna.X.toarray(), np.full((12, 2), bad, dtype=np.float32)]),
        obs=rna.obs,
        var=pd.DataFrame(index=[*rna.var_names, "CD3 (UCHT1)", "GFP"]),
    )
    more.write_h5ad(tmp_path / "cells.h5ad")
    assert vectors(more) == want
    weights = tahoe.get.attention(more, "demo", cell=0)
    assert np.isfinite(weights.to_numpy()).all()
    tahoe.embed_file(tmp_path / "cells.h5ad", tmp_path / "out.zarr", "demo")
    assert np.asarray(anndata.read_zarr(tmp_path / "out.zarr").obsm["X_tahoe"]).tobytes() == want
    lazy = pytest.importorskip("dask.array").from_array(more.X, chunks=(5, -1))
    assert vectors_of_lazy(more, lazy) == want


def vectors_of_lazy(more, matrix):
    adata = anndata.AnnData(matrix, obs=more.obs.copy(), var=more.var[[]].copy())
    tahoe.tl.embed(adata, "demo")
    return adata.obsm["X_tahoe"].compute().tobytes()


def test_a_released_model_is_not_loaded_for_values_that_will_not_do(rna, monkeypatch):
    """A download must not come before an error about values."""
    monkeypatch.setattr("tahoe._run.inputs.load_model", lambda *_, **__: pytest.fail("loaded"))
    rna.X = rna.X.toarray() - 1
    with pytest.raises(InputError, match="negative values"):
        tahoe.tl.embed(rna, "70m")


def with_raw(rna, hidden):
    """Cells as CELLxGENE has them: some genes are zero in X, and counted in raw."""
    rna.raw = rna.copy()
    values = rna.X.toarray()
    values[:, hidden] = 0
    rna.X = values
    rna.var["feature_is_filtered"] = hidden
    return rna


@pytest.mark.parametrize("as_text", [False, True])
def test_counts_that_only_raw_has_are_pointed_to(rna, as_text, tmp_path):
    want = vectors(rna.copy())
    hidden = np.zeros(rna.n_vars, dtype=bool)
    hidden[np.argsort(-np.asarray(rna.X.sum(axis=0)).ravel())[:30]] = True
    cells = with_raw(rna, hidden)
    if as_text:
        cells.var["feature_is_filtered"] = cells.var["feature_is_filtered"].astype(str).astype("category")
    cells.write_h5ad(tmp_path / "cells.h5ad")
    told = r'30 genes are zero in X and counted in raw.X \(var\["feature_is_filtered"\].*use_raw=True'
    with pytest.warns(TahoeWarning, match=told):
        tahoe.tl.embed(cells, "demo")
    with pytest.warns(TahoeWarning, match=told):
        tahoe.embed_file(tmp_path / "cells.h5ad", tmp_path / "out.zarr", "demo")
    assert vectors(cells, use_raw=True) == want


def test_counts_that_only_raw_has_are_found_without_the_mark(rna):
    hidden = np.zeros(rna.n_vars, dtype=bool)
    hidden[np.argsort(-np.asarray(rna.X.sum(axis=0)).ravel())[:30]] = True
    cells = with_raw(rna, hidden)
    del cells.var["feature_is_filtered"]
    with pytest.warns(TahoeWarning, match=r"30 genes are zero in X and counted in raw.X; "):
        tahoe.tl.embed(cells, "demo")
    # as where ambient RNA was removed
    cells = rna.raw.to_adata()
    cells.raw = cells.copy()
    cells.X = cells.X.toarray()
    cells.X[:, np.flatnonzero(np.asarray(cells.X.sum(axis=0)).ravel() == 1)[:5]] = 0
    tahoe.tl.embed(cells, "demo")


def test_a_matrix_of_zeros_beside_one_with_counts(rna):
    want = vectors(rna.copy())
    rna.layers["zeros"], rna.layers["counts"] = rna.X * 0, rna.X.copy()
    rna.X = rna.X * 0
    with pytest.warns(TahoeWarning) as told:
        tahoe.tl.embed(rna, "demo")
    assert any('X holds only zeros. layers["counts"] would do' in str(each.message) for each in told)
    assert vectors(rna, layer="counts") == want


def test_filtered_genes_that_raw_does_not_count_either_are_no_news(rna):
    hidden = np.zeros(rna.n_vars, dtype=bool)
    hidden[:30] = True
    cells = with_raw(rna, hidden)
    cells.raw = cells.copy()
    tahoe.tl.embed(cells, "demo")
    cells.raw = None
    tahoe.tl.embed(cells, "demo")


def test_a_selection_of_genes_beside_a_whole_raw_is_pointed_to(rna):
    rna.raw = rna.copy()
    few = rna[:, :300].copy()
    with pytest.warns(TahoeWarning, match=r"X has 300 genes and raw.X 765; .* pass use_raw=True"):
        tahoe.tl.embed(few, "demo")
    scaled = anndata.AnnData(few.X, obs=few.obs, var=few.var[[]])
    scaled.raw = anndata.AnnData(rna.X.toarray() - 1, obs=rna.obs, var=rna.var[[]])
    tahoe.tl.embed(scaled, "demo")  # raw is no better


def test_a_mapping_of_raw_that_has_gaps_is_made_anew(rna):
    want = vectors(rna)
    raw = rna.copy()
    raw.var.loc[raw.var_names[:40], "tahoe_gene"] = np.nan
    rna.raw = raw
    assert vectors(rna, use_raw=True) == want


@pytest.mark.parametrize("duplicates", ["best", "sum"])
def test_a_column_without_a_type_is_never_added(rna, duplicates):
    both = joined(rna, None)
    both.var_names_make_unique()
    with pytest.warns(TahoeWarning):
        tahoe.pp.map_genes(both, duplicates=duplicates)
    assert both.var["tahoe_match"].tolist()[-5:] == ["duplicate"] * 5
    typed = joined(rna)
    tahoe.pp.map_genes(typed, duplicates=duplicates)
    assert typed.var["tahoe_match"].tolist()[-5:] == ["modality"] * 5


def test_genes_without_a_mapping_are_not_dropped(rna):
    first, second = rna[:6, :600].copy(), rna[6:, 500:].copy()
    for part in (first, second):
        tahoe.pp.map_genes(part)
    both = anndata.concat([first, second], join="outer", merge="first")
    with pytest.raises(InputError, match=r"missing for 165 of 765 genes.*tahoe.pp.map_genes\(adata\) again"):
        tahoe.tl.embed(both, "demo")
    # those that take no part need none
    among = both.var["tahoe_gene"].notna().to_numpy()
    tahoe.tl.embed(both, "demo", mask_var=among)
    fresh = anndata.AnnData(both.X.copy(), obs=both.obs[[]], var=both.var[[]])
    tahoe.pp.map_genes(both)
    assert vectors(both) == vectors(fresh)
