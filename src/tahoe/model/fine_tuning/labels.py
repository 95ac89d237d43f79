"""What cells are to be told as: the truth of each target, its loss, and how well it was met."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tahoe.model.fine_tuning.heads import Head, Target


class Truth:
    """The truth of each target for all cells, of which some may be missing.

    Parameters
    ----------
    head
        Its targets; it gets mean and spread of the quantities of the `train` cells.
    values
        For each target: the number of each cell's class, -1 if missing (int64), or its quantities (cells, quantities),
        NaN if missing.
    train
        The cells that are trained on.
    class_weight
        How much a cell of each class counts, by target: ``"balanced"`` (each class as much as any other), a mapping of
        labels to weights, or `None` (each cell as much as any other).
    """

    def __init__(
        self,
        head: Head,
        values: Mapping[str, np.ndarray],
        train: np.ndarray,
        class_weight: Mapping[str, float] | str | None,
    ) -> None:
        self.head, self.values = head, values
        self._device = head.linear.weight.device
        self._truths, self._weights = [], []
        for target, piece in head.pieces():
            if target.kind == "classes":
                truth, weight = _class_weights(target, values[target.name], train, class_weight)
            else:
                truth, weight = _standardised(head, piece, values[target.name], train)
            self._truths.append(torch.from_numpy(truth).clone().to(self._device))
            self._weights.append(torch.from_numpy(weight.astype(np.float32)).clone().to(self._device))

    def loss(self, outputs_CO: Tensor, rows: np.ndarray, among: np.ndarray) -> Tensor:
        """The share of these rows in the loss of a batch: the mean over targets of the weighted mean over its cells.

        Summed over the parts of a batch this is the loss of the batch.
        """
        here, all_ = (torch.from_numpy(each).to(self._device) for each in (rows, among))
        total = outputs_CO.new_zeros(())
        for (target, piece), truth, weight in zip(self.head.pieces(), self._truths, self._weights, strict=True):
            mass = weight[all_].sum()
            if mass == 0:
                continue  # nobody in the batch has a label
            if target.kind == "classes":
                errors = F.cross_entropy(outputs_CO[:, piece], truth[here].clamp(min=0), reduction="none")
            else:
                errors = (outputs_CO[:, piece] - truth[here]) ** 2
            total = total + (errors * weight[here]).sum() / mass
        return total / len(self._truths)

    def scores(self, outputs_CO: Tensor, rows: np.ndarray) -> dict[str, dict[str, float]]:
        """Scores of each target in some cells."""
        answers = self.head.answers(outputs_CO)
        return {
            target.name: scores(target.kind, answers[target.name], self.values[target.name][rows])
            for target, _ in self.head.pieces()
        }


def _class_weights(
    target: Target, codes: np.ndarray, train: np.ndarray, class_weight: Mapping[str, float] | str | None
) -> tuple[np.ndarray, np.ndarray]:
    n_cells = np.bincount(codes[train][codes[train] >= 0], minlength=len(target.labels))
    if class_weight is None:
        of_class = np.ones(len(target.labels))
    elif isinstance(class_weight, str):
        of_class = n_cells.sum() / (np.count_nonzero(n_cells) * np.maximum(n_cells, 1))
    else:
        of_class = np.array([class_weight.get(label, 1.0) for label in target.labels])
    return codes, np.where(codes >= 0, of_class[codes], 0.0)


def _standardised(head: Head, piece: slice, values: np.ndarray, train: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mean, spread = np.nanmean(values[train], axis=0), np.nanstd(values[train], axis=0)
    spread = np.where(spread > 0, spread, 1.0)
    head.mean_O[piece] = torch.from_numpy(mean.astype(np.float32))
    head.scale_O[piece] = torch.from_numpy(spread.astype(np.float32))
    truth = ((values - mean) / spread).astype(np.float32)
    return np.nan_to_num(truth), np.isfinite(values) / values.shape[1]


def scores(kind: str, answers: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Accuracy and macro-F1 of classes; R² and Pearson's correlation of quantities, means over these.

    `answers` has a column for each label, of which the largest is the class; NaN where no cell has a label.
    """
    if kind == "classes":
        there = truth >= 0
        return _class_scores(answers[there].argmax(axis=1), truth[there])
    of_columns = [_fit(answers[:, column], truth[:, column]) for column in range(truth.shape[1])]
    r2, correlation = (float(np.mean(each)) for each in zip(*of_columns, strict=True))
    return {"r2": r2, "pearson": correlation}


def _class_scores(told: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    if not len(truth):
        return {"accuracy": float("nan"), "macro_f1": float("nan")}
    f1 = []
    for code in np.union1d(told, truth):
        right = np.sum((told == code) & (truth == code))
        f1.append(2 * right / (np.sum(told == code) + np.sum(truth == code)))
    return {"accuracy": float(np.mean(told == truth)), "macro_f1": float(np.mean(f1))}


def _fit(told: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    there = np.isfinite(truth)
    told, truth = told[there].astype(np.float64), truth[there].astype(np.float64)
    if len(truth) < 2 or truth.std() == 0:
        return float("nan"), float("nan")
    r2 = 1 - np.sum((told - truth) ** 2) / np.sum((truth - truth.mean()) ** 2)
    correlation = np.corrcoef(told, truth)[0, 1] if told.std() > 0 else 0.0
    return float(r2), float(correlation)
