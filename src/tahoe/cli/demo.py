"""What `tahoe demo` does: 700 real cells, embedded with the built-in model, beside PCA."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import scanpy as sc

import tahoe
from tahoe.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from anndata import AnnData

LABELS = "bulk_labels"
NOTICE = (
    "The demo model is small and was trained on some 26,000 cells; it is for trying the package, not for science."
    " For that use model='70m', '1b' or '3b'."
)


def run(output: str) -> None:
    """Map, embed, cluster, compare; write ``tahoe-demo.png`` and ``tahoe-demo.h5ad`` into a folder."""
    folder = Path(output)
    if not folder.is_dir():
        message = f"the folder {output!r} does not exist; make it first, or choose another with --output"
        raise InputError(message)
    if importlib.util.find_spec("igraph") is None:
        message = 'the demo clusters with Leiden, which needs igraph: pip install "tahoe-anndata[leiden]"'
        raise InputError(message)
    adata = tahoe.datasets.pbmc68k()
    tahoe.pp.map_genes(adata)
    tahoe.tl.embed(adata, model="demo")
    table = score_table(adata)
    sc.tl.umap(adata, neighbors_key="X_tahoe_neighbors", random_state=0)
    print(f"\n{adata.n_obs} cells (pbmc68k, never seen in training), ten cell types:\n{table.round(3).to_string()}\n")
    print(NOTICE)
    _draw(adata, folder / "tahoe-demo.png")
    adata.write_h5ad(folder / "tahoe-demo.h5ad")
    print(f"Wrote {folder / 'tahoe-demo.png'} and {folder / 'tahoe-demo.h5ad'}")


def score_table(adata: AnnData) -> pd.DataFrame:
    """How well ``obsm["X_tahoe"]`` keeps the cell types apart, beside PCA of the same counts."""
    _add_pca(adata)
    slots = {"tahoe demo": "X_tahoe", "PCA-50": "X_pca"}
    return pd.DataFrame({name: _scores(adata, slot) for name, slot in slots.items()}).T


def _add_pca(adata: AnnData) -> None:
    """PCA of log-normalised counts, the ordinary alternative."""
    normalised = adata.copy()
    sc.pp.normalize_total(normalised)
    sc.pp.log1p(normalised)
    sc.pp.pca(normalised, n_comps=50, random_state=0)
    adata.obsm["X_pca"] = normalised.obsm["X_pca"]


def _scores(adata: AnnData, slot: str) -> dict[str, float]:
    """How well a representation keeps the cell types apart; Leiden runs with scanpy's default resolution."""
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    key = f"{slot}_neighbors"
    sc.pp.neighbors(adata, use_rep=slot, key_added=key, random_state=0)
    with warnings.catch_warnings():
        # a note on the optimiser, of igraph's binding
        warnings.simplefilter("ignore")
        sc.tl.leiden(
            adata, neighbors_key=key, key_added=f"{slot}_leiden", flavor="igraph", n_iterations=2, random_state=0
        )
    labels, clusters = adata.obs[LABELS], adata.obs[f"{slot}_leiden"]
    return {
        "kNN accuracy": nearest_neighbour_accuracy(adata.obsm[slot], labels.to_numpy()),
        "ARI": adjusted_rand_score(labels, clusters),
        "NMI": normalized_mutual_info_score(labels, clusters),
        "clusters": clusters.nunique(),
    }


def nearest_neighbour_accuracy(vectors: np.ndarray, labels: np.ndarray, n_neighbors: int = 15) -> float:
    """Share of the cells whose type is told by their nearest neighbours, in five-fold cross-validation."""
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.neighbors import KNeighborsClassifier

    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    scores = cross_val_score(KNeighborsClassifier(n_neighbors), vectors, labels.astype(str), cv=folds)
    return float(scores.mean())


def _draw(adata: AnnData, path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7.5, 4.5), layout="constrained")
    sc.pl.umap(adata, color=LABELS, title="700 blood cells, Tahoe-x1 demo model", ax=axes, show=False, frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)
