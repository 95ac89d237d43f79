"""Distances between groups of cells, and shifts that need no model."""

from __future__ import annotations

import numpy as np

N_COMPONENTS, STRENGTH = 10, 1.0


def energy_distances(predicted: list[np.ndarray], true: list[np.ndarray], max_cells: int, seed: int) -> np.ndarray:
    """Energy distance of each predicted group of cells from each true one: 2 E|x - y| - E|x - x'| - E|y - y'|.

    Pairs of a cell with itself are not counted, so that groups of any size can be compared; groups of one
    distribution may come out below 0.
    """
    random = np.random.default_rng(seed)
    predicted, true = ([_some(cells, max_cells, random) for cells in groups] for groups in (predicted, true))
    within_predicted, within_true = ([_within(cells) for cells in groups] for groups in (predicted, true))
    between = np.array([[_between(one, other).mean() for other in true] for one in predicted])
    return 2 * between - np.array(within_predicted)[:, None] - np.array(within_true)[None]


def _some(cells: np.ndarray, most: int, random: np.random.Generator) -> np.ndarray:
    if len(cells) <= most:
        return cells
    return cells[np.sort(random.choice(len(cells), most, replace=False))]


def _between(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    from scipy.spatial.distance import cdist

    return cdist(one, other)


def _within(cells: np.ndarray) -> float:
    n = len(cells)
    return float(_between(cells, cells).sum() / (n * (n - 1))) if n > 1 else 0.0


def mean_of_others(shifts: np.ndarray, train: np.ndarray | None) -> np.ndarray:
    """For each unit the mean shift of the training units, or of the other units; nothing if there are none."""
    if train is not None:
        return np.tile(train.mean(axis=0), (len(shifts), 1))
    if len(shifts) < 2:
        return np.zeros_like(shifts)
    return (shifts.sum(axis=0) - shifts) / (len(shifts) - 1)


def linear_shifts(
    shifts: np.ndarray,
    names: list[str],
    train: tuple[np.ndarray, list[str]] | None,
    controls: np.ndarray,
    genes: list[str],
    seed: int,
) -> np.ndarray:
    """Shift of each unit by ridge regression on features of its perturbed gene.

    The features are the gene's loadings on principal components of the control cells. NaN for perturbations that are
    not among the genes, and where fewer than three others are.
    """
    features = _loadings(controls, seed)
    places = _places(names, genes)
    known_shifts, known_places = (shifts, places) if train is None else (train[0], _places(train[1], genes))
    predicted = np.full_like(shifts, np.nan)
    for i in np.flatnonzero(places >= 0):
        others = known_places >= 0
        if train is None:
            others = others & (np.array(names) != names[i])
        if others.sum() >= 3:
            predicted[i] = _ridge(features[known_places[others]], known_shifts[others], features[places[i]])
    return predicted


def _places(names: list[str], genes: list[str]) -> np.ndarray:
    place_of = {gene: place for place, gene in enumerate(genes)}
    return np.array([place_of.get(name, -1) for name in names])


def _loadings(cells: np.ndarray, seed: int) -> np.ndarray:
    """Genes × components, each of standard deviation one."""
    from sklearn.decomposition import PCA

    n_components = min(N_COMPONENTS, min(cells.shape) - 1)
    if n_components < 1:
        return np.zeros((cells.shape[1], 1))
    loadings = PCA(n_components, svd_solver="full" if min(cells.shape) < 500 else "randomized", random_state=seed)
    components = loadings.fit(cells).components_.T
    return components / np.maximum(components.std(axis=0), 1e-12)


def _ridge(features: np.ndarray, shifts: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Predicted shift; the mean of the shifts is not shrunk."""
    center, mean = features.mean(axis=0), shifts.mean(axis=0)
    centered = features - center
    gram = centered.T @ centered + STRENGTH * np.eye(centered.shape[1])
    return mean + (wanted - center) @ np.linalg.solve(gram, centered.T @ (shifts - mean))
