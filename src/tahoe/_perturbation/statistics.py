"""What effects of genes are compared with: those of genes that are alike, and those of the other replicates.

Plain arrays; U replicates, G genes. Cells are not replicates: all cells of a donor share whatever is peculiar to it,
and to the direction of interest, so a test over cells finds as many genes as there are cells to pay for.
"""

from __future__ import annotations

import itertools

import numpy as np
from scipy.spatial import KDTree
from scipy.stats import false_discovery_control, rankdata

# Below so many genes to compare with there is no percentile.
LEAST_NULL = 20
# Replicates up to which all signs are tried; above, so many are drawn.
ALL_SIGNS, DRAWN_SIGNS = 14, 10_000


def matched(detection: np.ndarray, mean_bin: np.ndarray, n_null: int, seed: int) -> np.ndarray | None:
    """For each gene those that are most like it in rank of detection and of mean bin: (G, n), None if too few.

    Where many are alike, as genes that no cell expresses, which of them depends on `seed`.
    """
    n_genes = len(detection)
    n = min(n_null, n_genes - 1)
    if n < LEAST_NULL:
        return None
    noise = np.random.default_rng([seed % 2**32, 2]).uniform(0, 0.5, (n_genes, 2))
    ranks = np.stack([rankdata(detection), rankdata(mean_bin)], axis=1) + noise
    nearest = KDTree(ranks).query(ranks, k=n + 1)[1]
    own = nearest == np.arange(n_genes)[:, None]
    own[~own.any(1), -1] = True
    return nearest[~own].reshape(n_genes, n)


def percentiles(effects: np.ndarray, null: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Where each gene stands among those that it is compared with, in per cent, and how many of their deviations off.

    NaN for genes without an effect.
    """
    if null is None:
        missing = np.full(len(effects), np.nan)
        return missing, missing.copy()
    others = effects[null]
    below = (others < effects[:, None]).mean(1) + 0.5 * (others == effects[:, None]).mean(1)
    spread = others.std(1, ddof=1)
    z = np.divide(effects - others.mean(1), spread, out=np.full(len(effects), np.nan), where=spread > 0)
    return 100 * below, z


def over_replicates(effects_UG: np.ndarray, null: np.ndarray | None, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """p-values and their Benjamini-Hochberg q-values, NaN where fewer than two replicates have a gene.

    In each replicate the gene is compared with the mean of its matched genes; the test is that of the sum of these
    differences over the signs that they could have had. With U replicates no p-value is below ``2 / 2**U``.
    """
    n_units, n_genes = effects_UG.shape
    p = np.full(n_genes, np.nan)
    if null is None or n_units < 2:
        return p, p.copy()
    present = np.isfinite(effects_UG)
    filled = np.where(present, effects_UG, 0)
    # a replicate at a time: that of all would be a large array
    n_others = np.stack([each[null].sum(1) for each in present])
    sums = np.stack([each[null].sum(1) for each in filled])
    means = np.divide(sums, n_others, out=np.zeros(filled.shape), where=n_others > 0)
    differences = np.where(present & (n_others > 0), effects_UG - means, 0)
    enough = (differences != 0).sum(0) >= 2
    p[enough] = sign_flips(differences[:, enough], seed)
    q = np.full(n_genes, np.nan)
    if enough.any():
        q[enough] = false_discovery_control(p[enough])
    return p, q


def sign_flips(differences_UG: np.ndarray, seed: int) -> np.ndarray:
    """Two-sided p-value of each sum, among the sums with all other signs of what is added up."""
    n_units = len(differences_UG)
    if n_units <= ALL_SIGNS:
        # a sum and its opposite are as large, so half of the signs will do
        signs = np.array([(1, *rest) for rest in itertools.product((1, -1), repeat=n_units - 1)])
    else:
        drawn = np.random.default_rng([seed % 2**32, 3]).choice([1, -1], (DRAWN_SIGNS, n_units))
        signs = np.concatenate([np.ones((1, n_units), dtype=drawn.dtype), drawn])
    observed = np.abs(differences_UG.sum(0))
    as_large = np.zeros(differences_UG.shape[1])
    for some in np.array_split(signs, max(1, len(signs) * differences_UG.shape[1] // 2**24)):
        as_large += (np.abs(some @ differences_UG) >= observed * (1 - 1e-9)).sum(0)
    return as_large / len(signs)


def least_p(n_units: int) -> float:
    """The smallest p-value that so many replicates can give."""
    return 2.0 / 2**n_units if n_units <= ALL_SIGNS else 1.0 / (DRAWN_SIGNS + 1)
