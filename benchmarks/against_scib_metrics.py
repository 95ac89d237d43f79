"""Our metrics beside those of scib-metrics, on the same vectors, neighbours and labels.

    python benchmarks/against_scib_metrics.py

Needs an environment with scib-metrics (which brings JAX). Prints both numbers, and how they are related where they are
not the same by definition.
"""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import scib_metrics
from scib_metrics.nearest_neighbors import NeighborsResults
from scipy import sparse
from scipy.sparse.csgraph import connected_components

import tahoe
from tahoe._scores import baselines as _baselines
from tahoe._scores import clusters as _clusters
from tahoe._scores import neighbors as _neighbors


def with_self(distances: np.ndarray, neighbors: np.ndarray) -> NeighborsResults:
    """Neighbours as scib-metrics has them: each cell is its own first one."""
    own = np.arange(len(neighbors))[:, None]
    return NeighborsResults(np.hstack([own, neighbors]), np.hstack([0 * own.astype(float), distances]))


def connectivity_along_arrows(near: np.ndarray, codes: np.ndarray) -> float:
    """Graph connectivity if cells hang together only where arrows to neighbours lead to and fro."""
    n, k = near.shape
    graph = sparse.csr_matrix((np.ones(n * k), near.ravel(), np.arange(0, n * k + 1, k)), shape=(n, n))
    shares = []
    for code in np.unique(codes):
        own = codes == code
        members = connected_components(graph[own][:, own], connection="strong")[1]
        shares.append(np.bincount(members).max() / own.sum())
    return float(np.mean(shares))


def main() -> None:
    warnings.filterwarnings("ignore")
    adata = tahoe.datasets.pbmc68k()
    vectors = _baselines.pca(adata.X)
    codes = np.unique(adata.obs["bulk_labels"].astype(str), return_inverse=True)[1]
    batches = np.unique(adata.obs["phase"].astype(str), return_inverse=True)[1]
    distances, neighbors = _neighbors.nearest(vectors, 90)
    near = neighbors[:, :15]

    from sklearn.metrics import silhouette_samples

    ours_lisi = _neighbors.lisi(distances, batches[neighbors], 30)
    n_batches = batches.max() + 1
    clusters = _clusters.leiden(_clusters.neighbor_graph(vectors))
    agreement = _clusters.agreement(codes, clusters)
    theirs_connected = scib_metrics.graph_connectivity(with_self(distances[:, :15], near), codes)
    rows = {
        "silhouette, rescaled to 0…1": (
            (silhouette_samples(vectors, codes).mean() + 1) / 2,
            scib_metrics.silhouette_label(vectors, codes),
        ),
        "iLISI, 90 neighbours, perplexity 30": (
            (np.median(ours_lisi) - 1) / (n_batches - 1),
            scib_metrics.ilisi_knn(with_self(distances, neighbors), batches, perplexity=30),
        ),
        "graph connectivity, 15 neighbours": (_neighbors.graph_connectivity(near, codes), theirs_connected),
        "the same along arrows": (connectivity_along_arrows(near, codes), theirs_connected),
    }
    theirs = scib_metrics.nmi_ari_cluster_labels_leiden(
        with_self(distances[:, :14], near[:, :14]), codes, optimize_resolution=True, resolution=1.0, n_jobs=1
    )
    best, _ = _clusters.best_agreement(vectors, codes, 0)
    rows["NMI at the best resolution (other weights in the graph)"] = (best["NMI"], theirs["nmi"])
    rows["ARI there"] = (best["ARI"], theirs["ari"])
    table = pd.DataFrame(rows, index=["tahoe", "scib-metrics"], dtype=float).T
    table["difference"] = table["tahoe"] - table["scib-metrics"]
    print(table.to_string(float_format="{:.7f}".format))
    print("resolution 1:", agreement)


if __name__ == "__main__":
    main()
