"""Permutation tests: seeded, exact where there are few permutations, and right at ties."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

N_PERMUTATIONS = 9_999
# Sums of the same numbers in another order differ by rounding; these are ties.
TOLERANCE = 1e-9


def p_value(observed: float, permuted: Iterable[float], exact: bool = False) -> float:
    """Share of permutations that are at least as good as what was observed.

    Ties count as at least as good, else a statistic that never changes would be significant. Unless the permutations
    are all that exist, what was observed counts as one more of them :cite:p:`Phipson2010`, so that none is 0.
    """
    values = np.fromiter(permuted, dtype=np.float64)
    if not np.isfinite(observed) or not len(values):
        return np.nan
    as_good = (values >= observed - TOLERANCE * max(1.0, abs(observed))).sum()
    return float(as_good / len(values) if exact else (as_good + 1) / (len(values) + 1))


def pairing_p_value(matrix: np.ndarray, seed: int) -> float:
    """Whether the diagonal of a matrix is higher than what any pairing of rows and columns would give.

    All pairings are tried if these are not more than 9,999, and so many drawn ones otherwise.

    Parameters
    ----------
    matrix
        How well prediction i fits truth j, units × units, higher being better.
    seed
        Of the pairings that are drawn.
    """
    n = len(matrix)
    if n < 2:
        return np.nan
    rows = np.arange(n)
    observed = float(matrix[rows, rows].mean())
    if n < 10 and math.factorial(n) <= N_PERMUTATIONS:
        every = itertools.permutations(range(n))
        return p_value(observed, (matrix[rows, list(columns)].mean() for columns in every), exact=True)
    random = np.random.default_rng(seed)
    return p_value(observed, (matrix[rows, random.permutation(n)].mean() for _ in range(N_PERMUTATIONS)))
