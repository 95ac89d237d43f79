"""What `tahoe demo` does: 700 real cells are embedded, compared with PCA, annotated and perturbed."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scanpy as sc

import tahoe
from tahoe.errors import InputError
from tahoe.evaluate._baselines import pca
from tahoe.evaluate._classifiers import nearest_neighbor_accuracy
from tahoe.evaluate._clusters import agreement, has_leiden, leiden
from tahoe.evaluate._folds import make_folds

if TYPE_CHECKING:
    from anndata import AnnData

LABELS = "bulk_labels"
GOAL = (LABELS, "CD8+ Cytotoxic T", "CD56+ NK")
NOTICE = (
    "The demo model is small and was trained on some 26,000 cells; it is for trying the package, not for science."
    " For that use model='70m', '1b' or '3b'."
)


def run(output: str) -> None:
    """Embed, compare, annotate, perturb; write ``tahoe-demo.png`` and ``tahoe-demo.h5ad`` into a folder."""
    folder = Path(output)
    if not folder.is_dir():
        message = f"the folder {output!r} does not exist; make it first, or choose another with --output"
        raise InputError(message)
    if not has_leiden():
        message = 'the demo clusters with Leiden, which needs igraph: pip install "tahoe-anndata[leiden]"'
        raise InputError(message)
    adata = tahoe.datasets.pbmc68k()
    tahoe.pp.map_genes(adata)
    model = tahoe.load_model("demo")
    tahoe.tl.embed(adata, model)
    table = score_table(adata)
    sc.tl.umap(adata, neighbors_key="X_tahoe_neighbors", random_state=0)
    print(f"\n{adata.n_obs} cells (pbmc68k, never seen in training), ten cell types:\n{table.round(3).to_string()}\n")
    print(annotate_half(adata))
    tahoe.tl.perturb(adata, model, goal=GOAL, method="first_order", n_cells=50, n_null=20)
    genes = tahoe.get.perturbation(adata)["gene"]
    print(
        f"{len(genes)} genes deleted, one at a time, from {GOAL[1]} cells. Towards {GOAL[2]}: {', '.join(genes[:6])};"
        f" away: {', '.join(genes[:-7:-1])}.\n"
    )
    print(NOTICE)
    _draw(adata, folder / "tahoe-demo.png")
    adata.write_h5ad(folder / "tahoe-demo.h5ad")
    print(f"Wrote {folder / 'tahoe-demo.png'} and {folder / 'tahoe-demo.h5ad'}")


def score_table(adata: AnnData) -> pd.DataFrame:
    """How well ``obsm["X_tahoe"]`` keeps the cell types apart, beside PCA of the same counts."""
    adata.obsm["X_pca"] = pca(adata.X)
    slots = {"tahoe demo": "X_tahoe", "PCA-50": "X_pca"}
    return pd.DataFrame({name: _scores(adata, slot) for name, slot in slots.items()}).T


def _scores(adata: AnnData, slot: str) -> dict[str, float]:
    """How well a representation keeps the cell types apart; Leiden runs with scanpy's default resolution."""
    vectors, labels = adata.obsm[slot], adata.obs[LABELS].astype(str).to_numpy()
    sc.pp.neighbors(adata, use_rep=slot, key_added=f"{slot}_neighbors", random_state=0)
    clusters = leiden(adata.obsp[f"{slot}_neighbors_connectivities"])
    adata.obs[f"{slot}_leiden"] = pd.Categorical(clusters.astype(str), [str(i) for i in range(clusters.max() + 1)])
    return {
        "kNN accuracy": nearest_neighbor_accuracy(vectors, labels, make_folds(labels, None, n_folds=5, seed=0)),
        **agreement(labels, clusters),
        "clusters": len(np.unique(clusters)),
    }


def annotate_half(adata: AnnData) -> str:
    """How well one half of the cells, as a reference, tells the types of the other half."""
    known = np.arange(adata.n_obs) % 2 == 0
    with tempfile.TemporaryDirectory() as folder:
        reference = tahoe.build_reference(adata[known].copy(), Path(folder) / "half", obs_keys=LABELS)
        others = tahoe.tl.transfer_labels(adata[~known].copy(), reference, obs_key=LABELS, k=15, copy=True)
    told, truth = (others.obs[key].astype(str).to_numpy() for key in (f"{LABELS}_tahoe", LABELS))
    unknown = told == "unknown"
    return (
        f"{len(told)} cells annotated by the other half: {(told == truth)[~unknown].mean():.1%} of"
        f" {(~unknown).sum()} right, {unknown.sum()} unknown."
    )


def _draw(adata: AnnData, path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, (cells, genes) = plt.subplots(1, 2, figsize=(12, 4.5), width_ratios=[1.5, 1], layout="constrained")
    sc.pl.umap(adata, color=LABELS, title="700 blood cells, Tahoe-x1 demo model", ax=cells, show=False, frameon=False)
    tahoe.pl.perturbation(adata, n_genes=8, ax=genes)
    genes.set_title(f"genes deleted from {GOAL[1]},\ntowards {GOAL[2]}", fontsize="medium", loc="left")
    figure.savefig(path, dpi=150)
    plt.close(figure)
