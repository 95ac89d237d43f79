"""Metrics on the nearest neighbours of each cell, by exact Euclidean distance."""

from __future__ import annotations

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components


def nearest(vectors: np.ndarray, n_neighbors: int) -> tuple[np.ndarray, np.ndarray]:
    """Distances and row numbers of each cell's nearest neighbours, itself not among them."""
    from sklearn.neighbors import NearestNeighbors

    return NearestNeighbors(n_neighbors=min(n_neighbors, len(vectors) - 1)).fit(vectors).kneighbors()


def purity(neighbors: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """For each cell the share of its neighbours with the same label."""
    return (codes[neighbors] == codes[:, None]).mean(axis=1)


def chance_purity(codes: np.ndarray) -> float:
    """Share of equal labels between two cells drawn at random, the sum of the squared shares of the labels."""
    shares = np.bincount(codes) / len(codes)
    return float((shares**2).sum())


def graph_connectivity(neighbors: np.ndarray, codes: np.ndarray) -> float:
    """Mean over the labels of the share of their cells that hang together in the graph of neighbours.

    That of :cite:t:`Luecken2022`. Two cells are joined if one of them is a neighbour of the other.
    """
    n, k = neighbors.shape
    graph = sparse.csr_matrix((np.ones(n * k), neighbors.ravel(), np.arange(0, n * k + 1, k)), shape=(n, n))
    largest = []
    for code in np.unique(codes):
        cells = codes == code
        members = connected_components(graph[cells][:, cells], directed=False)[1]
        largest.append(np.bincount(members).max() / cells.sum())
    return float(np.mean(largest))


def lisi(distances: np.ndarray, codes: np.ndarray, perplexity: float) -> np.ndarray:
    """Local inverse Simpson's index :cite:p:`Korsunsky2019`: how many labels there are around each cell, from 1 up.

    Parameters
    ----------
    distances
        To the neighbours, cells × neighbours.
    codes
        Labels of these neighbours, cells × neighbours.
    perplexity
        Effective number of neighbours: their weights fall with the distance so that their entropy is its logarithm.
    """
    weights = _weights(distances, perplexity)
    simpson = np.zeros(len(distances))
    for code in range(codes.max() + 1):
        simpson += np.where(codes == code, weights, 0).sum(axis=1) ** 2
    return 1 / simpson


def _weights(distances: np.ndarray, perplexity: float, tolerance: float = 1e-5, steps: int = 50) -> np.ndarray:
    """Weights proportional to exp(-beta · distance), with the beta of each cell found by bisection."""
    distances = distances - distances.min(
        axis=1, keepdims=True
    )  # as the weights are relative, so that none is all zero
    beta, low, high = np.ones(len(distances)), np.zeros(len(distances)), np.full(len(distances), np.inf)
    target = np.log(perplexity)
    for _ in range(steps):
        weights = np.exp(-distances * beta[:, None])
        weights /= weights.sum(axis=1, keepdims=True)
        entropy = -(weights * np.log(np.maximum(weights, 1e-300))).sum(axis=1)
        too_wide = entropy > target + tolerance
        too_narrow = entropy < target - tolerance
        if not (too_wide | too_narrow).any():
            break
        low, high = np.where(too_wide, beta, low), np.where(too_narrow, beta, high)
        middle = np.where(np.isinf(high), 2 * beta, (low + high) / 2)
        beta = np.where(too_wide | too_narrow, middle, beta)
    return weights
