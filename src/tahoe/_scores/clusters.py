"""Leiden clusters of a representation, and how well they agree with labels."""

from __future__ import annotations

import importlib.util
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from scipy import sparse

RESOLUTIONS = tuple(step / 5 for step in range(1, 11))
NEEDS_IGRAPH = 'Leiden clusters need igraph: pip install "tahoe-anndata[leiden]"'


def has_leiden() -> bool:
    """Whether the extra ``leiden`` is installed."""
    return importlib.util.find_spec("igraph") is not None


def neighbor_graph(vectors: np.ndarray, seed: int = 0) -> sparse.csr_matrix:
    """The weighted graph of neighbours that scanpy makes with its defaults."""
    import scanpy as sc
    from anndata import AnnData

    adata = AnnData(obsm={"X": vectors})
    sc.pp.neighbors(adata, use_rep="X", random_state=seed)
    return adata.obsp["connectivities"]


def leiden(graph: sparse.csr_matrix, resolution: float = 1.0, seed: int = 0) -> np.ndarray:
    """Number of each cell's cluster."""
    import scanpy as sc
    from anndata import AnnData

    adata = AnnData(np.zeros((graph.shape[0], 1), dtype=np.float32))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a note on the optimiser, of igraph's binding
        sc.tl.leiden(
            adata, resolution, adjacency=graph, flavor="igraph", n_iterations=2, random_state=seed, key_added="cluster"
        )
    return adata.obs["cluster"].astype(int).to_numpy()


def agreement(labels: Any, clusters: Any) -> dict[str, float]:
    """Adjusted Rand index and normalised mutual information."""
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    return {"ARI": adjusted_rand_score(labels, clusters), "NMI": normalized_mutual_info_score(labels, clusters)}


def best_agreement(vectors: np.ndarray, labels: np.ndarray, seed: int) -> tuple[dict[str, float], str]:
    """Agreement at the one of ten resolutions, 0.2 to 2, that has the highest NMI, and which one that is.

    It is chosen by the labels themselves, for every representation alike.
    """
    graph = neighbor_graph(vectors, seed)
    best, detail = {"ARI": np.nan, "NMI": -np.inf}, ""
    for resolution in RESOLUTIONS:
        clusters = leiden(graph, resolution, seed)
        scores = agreement(labels, clusters)
        if scores["NMI"] > best["NMI"]:
            best, detail = scores, f"resolution {resolution:g}, {len(np.unique(clusters))} clusters"
    return best, detail
