"""From neighbours to labels: shares, a confidence that means what it says, novelty, and sets that hold the truth.

Works on arrays: `codes` numbers the label of each cell of the reference, -1 where it is missing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from tahoe._reference.held_back import HeldBack

UNKNOWN = "unknown"
# How many cells a median of distances is taken of, at the least.
FEWEST = 20


@dataclass(frozen=True)
class Labels:
    """What neighbours say of some cells. A cell without neighbours has code -1, NaN, and an empty set."""

    codes: np.ndarray
    """The label with the largest share."""
    shares: np.ndarray
    """Share of each label in the weight of the neighbours (cells × labels)."""
    confidence: np.ndarray
    novelty_p: np.ndarray
    in_set: np.ndarray
    """Which labels the set of a cell has (cells × labels)."""


def weights_of(distances: np.ndarray) -> np.ndarray:
    """Weight of each neighbour, exp(-(d / d_k)²) with the distance d_k of the last one; 0 where there is none."""
    there = np.isfinite(distances)
    last = np.where(there, distances, 0).max(axis=1, keepdims=True, initial=0)
    ratio = np.divide(distances, last, out=np.zeros(distances.shape), where=there & (last > 0))
    return np.where(there, np.exp(-np.square(ratio)), 0)


def label_shares(neighbors: np.ndarray, distances: np.ndarray, codes: np.ndarray, n_labels: int) -> np.ndarray:
    """Share of each label in the weight of the neighbours (cells × labels, float32); those without a label don't vote.

    All zero for a cell that has no neighbour with a label.
    """
    of_neighbors = np.where(neighbors >= 0, codes[np.maximum(neighbors, 0)], -1).astype(np.int64)
    weights = np.where(of_neighbors >= 0, weights_of(distances), 0)
    place = np.arange(len(neighbors))[:, None] * n_labels + np.maximum(of_neighbors, 0)
    counted = np.bincount(place.ravel(), weights.ravel(), minlength=len(neighbors) * n_labels)
    sums = counted.astype(np.float64).reshape(len(neighbors), n_labels)  # of nothing, numpy counts in integers
    total = sums.sum(axis=1, keepdims=True)
    return np.divide(sums, total, out=np.zeros_like(sums), where=total > 0).astype(np.float32)


def share_above(shares: np.ndarray) -> np.ndarray:
    """For each label, the sum of the shares that are larger than its own; 1 for a label without a share.

    It is the score of adaptive prediction sets :cite:p:`Romano2020`, without the random part: 0 for the first label.
    """
    order = np.argsort(-shares, axis=1, kind="stable")
    ordered = np.take_along_axis(shares, order, 1).astype(np.float64)
    before = np.cumsum(ordered, axis=1) - ordered
    begins = np.ones(ordered.shape, dtype=bool)
    begins[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    first_of_equals = np.maximum.accumulate(np.where(begins, np.arange(shares.shape[1]), 0), axis=1)
    above = np.empty_like(ordered)
    np.put_along_axis(above, order, np.take_along_axis(before, first_of_equals, 1), 1)
    return np.where(shares > 0, above, 1)


@dataclass(frozen=True)
class Calibration:
    """What held-back cells tell of the labels of one column, for one number of neighbours."""

    n_labels: int
    n_sample: int
    """How many cells confidence and sets go by."""
    accuracy: float
    """Share of them whose first label was right."""
    knots: np.ndarray
    """Share of the first label, and how often it was right at that share (2 × knots); rising."""
    scores: np.ndarray
    """`share_above` of the true label of each of them, sorted."""
    reach: list[np.ndarray]
    """Distances to the last neighbour of the held-back cells of each label, sorted."""

    @classmethod
    def of(cls, held_back: HeldBack, codes: np.ndarray, n_labels: int, k: int) -> Calibration:
        """Ask the held-back cells, with their `k` nearest neighbours."""
        truth = codes[held_back.rows].astype(np.int64)
        distances = held_back.distances[:, :k].astype(np.float64)
        reach = [np.sort(distances[truth == label, -1]) for label in range(n_labels)]
        use = held_back.is_sample & (truth >= 0)
        shares = label_shares(held_back.neighbors[use, :k], distances[use], codes, n_labels)
        right = shares.argmax(axis=1) == truth[use]
        scores = share_above(shares)[np.arange(len(shares)), truth[use]]
        accuracy = float(right.mean()) if len(right) else math.nan
        return cls(
            n_labels, len(right), accuracy, _rising(shares.max(axis=1, initial=0), right), np.sort(scores), reach
        )

    def threshold(self, alpha: float) -> float:
        """Largest score of a label in a set: a set then holds the truth with a probability of at least 1 - alpha."""
        rank = math.ceil((self.n_sample + 1) * (1 - alpha))
        return float(self.scores[rank - 1]) if rank <= self.n_sample else 1.0

    def labels(
        self,
        neighbors: np.ndarray,
        distances: np.ndarray,
        last: np.ndarray,
        codes: np.ndarray,
        alpha: float,
        ratios: np.ndarray | None = None,
    ) -> Labels:
        """Labels of cells by their neighbours, the last of which is at the distance `last`.

        With `ratios`, what :meth:`distance_ratios` found, distances are compared after division by that of the label.
        """
        shares = label_shares(neighbors, distances, codes, self.n_labels)
        has_votes = shares.sum(axis=1) > 0
        first = np.where(has_votes, shares.argmax(axis=1), -1)
        confidence = np.where(has_votes, np.interp(shares.max(axis=1, initial=0), *self.knots), np.nan)
        in_set = (share_above(shares) <= self.threshold(alpha)) & has_votes[:, None]
        last = last if ratios is None else last / ratios[first]
        return Labels(first, shares, confidence, self._novelty(first, last), in_set)

    def distance_ratios(self, codes: np.ndarray, last: np.ndarray) -> np.ndarray:
        """How much farther cells with a label are from the reference than its held-back cells: a ratio of medians.

        A label with few cells on either side has the ratio of all; it is NaN if there are too few of those as well.
        """
        typical = np.array([np.median(reach) if len(reach) >= FEWEST else 0.0 for reach in self.reach])
        usable = (codes >= 0) & (typical[codes] > 0) & (last > 0)
        relative = np.divide(last, typical[codes], out=np.full(len(last), np.nan), where=usable)
        of_all = np.median(relative[usable]) if usable.sum() >= FEWEST else np.nan
        ratios = np.full(self.n_labels, of_all)
        for label in range(self.n_labels):
            here = usable & (codes == label)
            if here.sum() >= FEWEST:
                ratios[label] = np.median(relative[here])
        return ratios

    def _novelty(self, codes: np.ndarray, last: np.ndarray) -> np.ndarray:
        p = np.full(len(codes), np.nan)
        for label, known in enumerate(self.reach):
            here = codes == label
            farther = len(known) - np.searchsorted(known, last[here], side="left")
            p[here] = (1 + farther) / (1 + len(known))
        return p


def _rising(share: np.ndarray, right: np.ndarray) -> np.ndarray:
    """How often a first label with this share is right, as a rising curve; its ends are kept off 0 and 1.

    At each end a cell that is right and one that is wrong are added, so that few cells do not prove certainty.
    """
    from sklearn.isotonic import IsotonicRegression

    least = share.min(initial=1)
    x, y = np.concatenate([share, [least, least, 1, 1]]), np.concatenate([right, [0, 1, 0, 1]]).astype(float)
    fitted = IsotonicRegression(y_min=0, y_max=1).fit(x, y)
    return np.stack([fitted.X_thresholds_, fitted.y_thresholds_])


def vote(codes: np.ndarray, shares: np.ndarray, is_known: np.ndarray, clusters: np.ndarray, n: int) -> np.ndarray:
    """Label of each cluster: the largest mean share over its known cells; -1 where most of its cells are not known."""
    winners = np.full(n, -1, dtype=np.int64)
    for cluster in range(n):
        of_cluster = clusters == cluster
        known = of_cluster & is_known & (codes >= 0)
        if known.sum() * 2 > of_cluster.sum():
            winners[cluster] = shares[known].mean(axis=0).argmax()
    return winners
