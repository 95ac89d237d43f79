"""Labels for embeddings, from a reference: what `tahoe.tl.transfer_labels` and `tahoe annotate` share."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tahoe._reference.embeddings import unit
from tahoe._reference.held_back import MOST_NEIGHBORS
from tahoe._reference.labels import FEWEST, UNKNOWN
from tahoe.errors import InputError, listed, warn

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pandas as pd

    from tahoe._reference.labels import Calibration, Labels
    from tahoe._reference.reference import Reference

# From how many cells on, and how many times `alpha` of them, so many unknown cells bring a warning.
LEAST, FACTOR = 50, 4
# Cells whose neighbours are looked for at once.
CELLS_AT_ONCE = 8192
# Blocks of cells, spread over all, by which it is told how far most of them are from the reference.
N_BLOCKS, BLOCK = 32, 512


@dataclass(frozen=True)
class Transfer:
    """How labels of some columns are taken from a reference; checked when it is made."""

    reference: Reference
    obs_keys: list[str]
    k: int
    alpha: float
    exact: bool
    device: Any
    calibrations: dict[str, Calibration]
    ratios: dict[str, np.ndarray] = field(default_factory=dict)
    """With `mostly_known`, for each column: by what the distances of each label are divided."""

    @classmethod
    def plan(
        cls, reference: Reference, obs_key: str | Sequence[str], *, k: int, alpha: float, exact: bool, device: Any
    ) -> Transfer:
        """Check the arguments, and calibrate.

        Raises
        ------
        tahoe.errors.InputError
            If there is no such column, or `k` or `alpha` cannot be.

        Warns
        -----
        tahoe.errors.TahoeWarning
            If labels have too few cells, or too few cells were held back.
        """
        keys = [obs_key] if isinstance(obs_key, str) else list(dict.fromkeys(obs_key))
        if not keys:
            message = f"obs_key= is empty; the reference {reference.name!r} has {listed(reference.obs_keys)}"
            raise InputError(message)
        reference.check_k(k)
        if k > MOST_NEIGHBORS:
            message = f"k={k}: held-back cells have {MOST_NEIGHBORS} neighbours, so k must be at most that"
            raise InputError(message)
        if not 0 < alpha < 1:
            message = f"alpha={alpha}; it must be between 0 and 1, such as 0.05"
            raise InputError(message)
        calibrations = {key: reference.calibration(key, k) for key in keys}
        plan = cls(reference, keys, k, alpha, exact, device, calibrations)
        for key in keys:
            plan._warn(key)
        return plan

    def _warn(self, key: str) -> None:
        labels, codes, calibration = self.reference.labels(key), self.reference.codes(key), self.calibrations[key]
        n_cells = np.bincount(codes[codes >= 0], minlength=len(labels))
        few = [label for label, n in zip(labels, n_cells, strict=True) if n < self.k]
        problems = []
        if few:
            problems.append(
                f"{len(few)} of {len(labels)} labels have fewer than k={self.k} cells and can hardly win"
                f" ({listed(few)}); lower k, or join labels"
            )
        if calibration.n_sample < math.ceil(1 / self.alpha):
            problems.append(
                f"only {calibration.n_sample} held-back cells have a label, so confidence is rough, and each set has"
                " all labels"
            )
        if UNKNOWN in labels:
            problems.append(f"{UNKNOWN!r} is a label of the reference too; build it again without these cells' labels")
        for problem in problems:
            warn(f"{key!r} of the reference {self.reference.name!r}: {problem}")

    def check_mostly_known(self, n_cells: int) -> None:
        """Refuse what no median can be taken of.

        Raises
        ------
        tahoe.errors.InputError
            If there are too few cells, or too few were held back of every label.
        """
        for key, calibration in self.calibrations.items():
            most = max((len(reach) for reach in calibration.reach), default=0)
            if min(n_cells, most) < FEWEST:
                message = (
                    f"mostly_known=True needs {FEWEST} cells and {FEWEST} held-back cells of a label; there are"
                    f" {n_cells}, and at most {most} of a label in {key!r} of the reference {self.reference.name!r}"
                )
                raise InputError(message)

    def mostly_known(
        self, read: Callable[[int, int], tuple[Any, Sequence[str] | np.ndarray]], n_cells: int
    ) -> Transfer:
        """The same for cells most of which are of the labels they get: novel is what is far among these.

        Parameters
        ----------
        read
            Gives embeddings and names of the cells from one place to another.
        n_cells
            How many cells there are.
        """
        starts = [n_cells * block // N_BLOCKS for block in range(N_BLOCKS + 1)]
        nearest = []
        for start, end in itertools.pairwise(starts):
            if start < end:
                embeddings, names = read(start, min(end, start + BLOCK))
                nearest.append(self._nearest(unit(embeddings), names))
        rows, distances, reach = (np.concatenate(parts) for parts in zip(*nearest, strict=True))
        ratios = {}
        for key, calibration in self.calibrations.items():
            found = calibration.labels(rows, distances, reach, np.asarray(self.reference.codes(key)), self.alpha)
            ratios[key] = calibration.distance_ratios(found.codes, reach)
            if np.isnan(ratios[key]).any():
                ratios[key] = np.where(np.isnan(ratios[key]), 1, ratios[key])
                warn(f"fewer than {FEWEST} cells have a label of {key!r}: their distances are compared as they are")
        return replace(self, ratios=ratios)

    def _nearest(
        self, embeddings: np.ndarray, names: Sequence[str] | np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Neighbours, their distances, and how far the last of them is."""
        rows, distances = self.reference.nearest(embeddings, self.k, exact=self.exact, names=names, device=self.device)
        # a cell with fewer neighbours than k, since some were itself, has its last one at the end
        last = np.where(np.isfinite(distances), distances, 0).max(axis=1, initial=0)
        return rows, distances, np.where((rows >= 0).any(axis=1), last, np.nan)

    def labels(self, embeddings: Any, names: Sequence[str] | np.ndarray) -> tuple[dict[str, Labels], np.ndarray]:
        """Labels of cells, by column, and whether each cell has an embedding. A cell never votes for itself."""
        embeddings = unit(embeddings)
        rows, distances, reach = self._nearest(embeddings, names)
        there = np.isfinite(embeddings).all(axis=1)
        return {
            key: self.calibrations[key].labels(
                rows, distances, reach, np.asarray(self.reference.codes(key)), self.alpha, self.ratios.get(key)
            )
            for key in self.obs_keys
        }, there

    def is_known(self, labels: Labels) -> np.ndarray:
        """Where a label is given rather than «unknown»: not novel at the level alpha."""
        return (labels.codes >= 0) & (labels.novelty_p > self.alpha)

    def warn_of_unlike(self, key: str, labels: Labels) -> None:
        """Say where the promises do not hold, as far as can be seen: many cells are far from those of their label."""
        labelled = labels.codes >= 0
        share = float((labels.novelty_p[labelled] <= self.alpha).mean()) if labelled.any() else 0.0
        if labelled.sum() >= LEAST and share > FACTOR * self.alpha:
            message = (
                f"{share:.0%} of the cells are unknown by {key!r} of the reference {self.reference.name!r}, where"
                f" alpha={self.alpha} allows {self.alpha:.0%}: it lacks their types, or they come from another"
                " laboratory or chemistry. Then confidence and sets are too bold as well"
            )
            if not self.ratios:
                message += "; if most of your cells are of types that it has, pass mostly_known=True"
            warn(message)

    def named(self, key: str, labels: Labels) -> pd.Categorical:
        """The labels as they are written, with «unknown»."""
        return as_categories(self.reference.labels(key), np.where(self.is_known(labels), labels.codes, -1))

    def without_novelty(self, key: str) -> list[str]:
        """Labels of which too few cells were held back for any cell to be novel at the level alpha."""
        of_labels = zip(self.reference.labels(key), self.calibrations[key].reach, strict=True)
        return [label for label, reach in of_labels if 1 / (1 + len(reach)) > self.alpha]

    def record(self, key: str) -> dict[str, Any]:
        """What is needed to repeat it, for ``uns``."""
        reference, calibration = self.reference, self.calibrations[key]
        record = {
            "reference": reference.name,
            "reference_fingerprint": reference.fingerprint,
            "obs_key": key,
            "labels": reference.labels(key),
            "k": self.k,
            "alpha": self.alpha,
            "exact": bool(self.exact or reference.index is None),
            "groups": reference.manifest["groups"],
            "n_held_back": calibration.n_sample,
            "held_back_accuracy": calibration.accuracy,
            "set_threshold": calibration.threshold(self.alpha),
            "labels_without_novelty": self.without_novelty(key) or None,
            "mostly_known": bool(self.ratios),
            "distance_ratios": self.ratios.get(key),
        }
        record |= {name: reference.embedding.get(name) for name in ("model", "model_sha256", "vocabulary_sha256")}
        return {name: value for name, value in record.items() if value is not None}


def as_categories(labels: list[str], codes: np.ndarray) -> pd.Categorical:
    """Categories of the labels that occur; -1 becomes «unknown»."""
    import pandas as pd

    values = np.array([*labels, UNKNOWN], dtype=object)[codes]
    order = [*labels, *([] if UNKNOWN in labels else [UNKNOWN])]
    return pd.Categorical(values, categories=[label for label in order if label in set(values)])
