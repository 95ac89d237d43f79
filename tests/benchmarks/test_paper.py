"""The paper's benchmarks, end to end on stand-ins, with the demo model."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest

import tahoe

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.skipif(not (ROOT / "benchmarks").is_dir(), reason="the benchmarks are not part of this copy"),
    pytest.mark.filterwarnings("ignore::tahoe.errors.TahoeWarning"),  # of genes that the demo model does not know
]


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    yield lambda name: importlib.import_module(f"benchmarks.paper.{name}")
    for name in [name for name in sys.modules if name.split(".")[0] == "benchmarks"]:
        del sys.modules[name]


def cells(n: int = 120) -> anndata.AnnData:
    return tahoe.datasets.pbmc68k()[:n].copy()


def run(benchmark, name: str, folder: Path):
    return benchmark(name).main(["--model", "demo", "--data", str(folder), "--device", "cpu"])


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("msigdb", "hallmark gene sets"),
        ("depmap", "RNA-seq counts of cell lines"),
        ("tabula_sapiens", "one file a tissue"),
        ("state_transition", "all files with the same genes"),
    ],
)
def test_missing_files_are_named_with_where_to_get_them(benchmark, tmp_path, name, told):
    with pytest.raises(SystemExit) as end:
        run(benchmark, name, tmp_path)
    assert told in str(end.value)
    assert "://" in str(end.value)
    assert not list(tmp_path.iterdir())


def test_wrong_files_are_told(benchmark, tmp_path):
    common = benchmark("common")
    (tmp_path / "a.txt").write_text("a")
    need = common.Needed(("a.txt",), "a letter", "https://example.org", "1 byte", "0" * 64)
    with pytest.raises(SystemExit, match="sha256 is not 0000"):
        common.require(tmp_path, [need])


def test_an_error_ends_with_its_message_alone(benchmark):
    with pytest.raises(SystemExit, match="^model='3c' is neither a registered name nor a folder"):
        benchmark("common").run(lambda: tahoe.load_model("3c"))


def test_msigdb(benchmark, tmp_path, monkeypatch, capsys):
    from tahoe._scores import mlp as _mlp

    monkeypatch.setattr(_mlp, "CONFIGURATIONS", _mlp.CONFIGURATIONS[:2])
    monkeypatch.setattr(_mlp, "MOST_EPOCHS", 3)
    adata = cells()
    adata.write_h5ad(tmp_path / "cells.h5ad")
    sets = [[name for i, name in enumerate(adata.var_names) if i % 4 == k] for k in range(2)]
    (tmp_path / "h.gmt").write_text("".join(f"s{k}\t.\t" + "\t".join(genes) + "\n" for k, genes in enumerate(sets)))
    tables = run(benchmark, "msigdb", tmp_path)
    baselines = {"mean expression and detection", "PCA loadings", "random", "constant"}
    for table in tables.values():
        assert set(table["representation"]) == {"GE", "TE", "EA", *baselines}
    assert (tables["as the authors do"]["replicates"] == 3).all()
    printed = capsys.readouterr().out
    monkeypatch.setattr(tahoe, "load_model", None)  # all is done already
    monkeypatch.setattr(_mlp, "train", None)
    run(benchmark, "msigdb", tmp_path)
    assert capsys.readouterr().out == printed
    (tmp_path / "results" / "demo" / "grouped.csv").unlink()
    run(benchmark, "msigdb", tmp_path)
    assert capsys.readouterr().out == printed


def test_depmap(benchmark, tmp_path):
    adata = cells(60)
    tahoe.pp.map_genes(adata)
    found = adata[:, adata.var["tahoe_gene"].astype(str) != ""].copy()
    counts = pd.DataFrame(found.X.toarray().T, columns=[f"LINE{i}_LUNG" for i in range(60)])
    counts.insert(0, "Description", found.var_names.to_numpy())
    counts.insert(0, "Name", [f"{gene}.3" for gene in found.var["tahoe_gene"]])
    with (tmp_path / "ccle-counts.gct").open("w") as file:
        file.write(f"#1.2\n{len(counts)}\t60\n")
        counts.to_csv(file, sep="\t", index=False)
    lineage = np.where(adata.obs["bulk_labels"].astype(str).str.startswith("CD"), "Lymphoid", "Myeloid")
    lines = {"ModelID": [f"ACH-{i:06d}" for i in range(60)], "CCLEName": counts.columns[2:], "OncotreeLineage": lineage}
    pd.DataFrame(lines).to_csv(tmp_path / "Model_v2.csv", index=False)
    essential = np.where(np.arange(found.n_vars) % 3 == 0, 0.9, 0.1)
    columns = [f"{name} (1)" for name in found.var_names]
    dependencies = pd.DataFrame(np.tile(essential, (55, 1)), index=lines["ModelID"][:55], columns=columns)
    dependencies.iloc[:, 1] = 0.1
    dependencies.iloc[:20, 1] = 0.9  # neither few nor most
    dependencies.iloc[:20, 2] = np.nan
    dependencies.to_csv(tmp_path / "CRISPRGeneDependency.csv")
    labels = benchmark("depmap").essential_genes(
        benchmark("depmap").read_dependencies(tmp_path / "CRISPRGeneDependency.csv")
    )
    assert not {found.var_names[1], found.var_names[2]} & set(labels.index)
    tables = run(benchmark, "depmap", tmp_path)
    assert set(tables["cell lines by tissue"]["n"]) == {55}
    assert "AUROC, matched for expression" in set(tables["essential genes"]["metric"])


def test_tabula_sapiens(benchmark, tmp_path):
    adata = cells(150)
    adata.obs["cell_type"] = np.where(adata.obs["bulk_labels"].astype(str).str.startswith("CD"), "T", "other")
    adata.obs["donor_id"] = [f"d{i % 3}" for i in range(150)]
    adata.write_h5ad(tmp_path / "blood.h5ad")
    table = run(benchmark, "tabula_sapiens", tmp_path)["blood"]
    folds = table[table["metric"] == "logistic regression macro-F1"]
    assert (folds["replicates"] == 3).all()
    assert "kNN purity over chance" in set(table["metric"])


def test_state_transition(benchmark, tmp_path, capsys, monkeypatch):
    import scanpy as sc

    monkeypatch.setattr(benchmark("state_transition"), "N_GENES", 200)
    adata = cells(160)
    adata.layers["counts"] = adata.X.copy()
    sc.pp.normalize_total(adata)
    sc.pp.log1p(adata)
    adata.obs["donor"] = [("Donor1", "Donor2")[i % 2] for i in range(160)]
    adata.obs["cytokine"] = [("PBS", "IL-6", "IL-2", "EGF")[i // 2 % 4] for i in range(160)]
    adata.obs["cell_type"] = "T"
    adata.write_h5ad(tmp_path / "cells.h5ad")
    assert run(benchmark, "state_transition", tmp_path) is None
    printed = capsys.readouterr().out
    assert "state tx train" in printed
    assert "data.kwargs.pert_col=cytokine" in printed
    assert "data.kwargs.control_pert=PBS" in printed
    split = (tmp_path / "results" / "demo" / "split.toml").read_text()
    assert '"parse.Donor1" = "test"' in split
    prepared = anndata.read_h5ad(tmp_path / "results" / "demo" / "prepared" / "cells.h5ad")
    assert prepared.obsm["X_tahoe"].shape == (160, 128)
    assert prepared.obsm["X_hvg"].shape == (160, 200)
    np.testing.assert_array_equal(prepared.obsm["X_hvg"], prepared[:, prepared.var["highly_variable"]].X.toarray())
    (tmp_path / "predicted").mkdir()
    predicted = prepared[prepared.obs["donor"] == "Donor1", prepared.var["highly_variable"]]
    # as State writes it: the genes that it decodes, without their names
    numbered = anndata.AnnData(predicted.obsm["X_hvg"], obs=predicted.obs)
    numbered.write_h5ad(tmp_path / "predicted" / "state.h5ad")
    table = run(benchmark, "state_transition", tmp_path)
    assert list(table["representation"].unique()) == ["state", "control mean", "perturbation mean", "linear"]
    assert (table["n"] == 3).all()
    pearson = table[table["metric"] == "Pearson of the shift"].set_index("representation")["value"]
    assert pearson["state"] == pytest.approx(1)  # the predictions are the truth here


def test_the_hold_outs_are_those_of_the_authors(benchmark):
    tahoe_100m, parse = benchmark("state_transition").DATA_SETS
    assert {name.removeprefix("CVCL_") for name in tahoe_100m.held_out} == {"1097", "1285", "1098", "0334", "0480"}
    assert {name.removeprefix("Donor") for name in parse.held_out} == {"1", "4", "9", "12"}
