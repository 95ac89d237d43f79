"""What a trained model has to beat, on the cells that were held back from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tahoe.model.fine_tuning.labels import scores

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tahoe._fine_tune.targets import Wanted

EMBEDDINGS, PCA = "embeddings", "PCA of log counts"


def compare(
    wanted: Sequence[Wanted],
    told: Mapping[str, Mapping[str, np.ndarray]],
    vectors: Mapping[str, np.ndarray],
    train: np.ndarray,
    validation: np.ndarray,
    class_weight: Any,
) -> list[dict[str, Any]]:
    """A row for each target and method.

    Parameters
    ----------
    told
        By method and target: what our own models say of the held-out cells.
    vectors
        By name: vectors of all cells, for a logistic or ridge regression on them.
    """
    rows = []
    for each in wanted:
        name, kind = each.target.name, each.target.kind
        truth = each.values[validation]
        answers = {method: by_target[name] for method, by_target in told.items()}
        usable = train[each.there[train]]
        for what, vector in vectors.items():
            word = "logistic" if kind == "classes" else "ridge"
            answers[f"{word} regression on {what}"] = _regression(each, vector, usable, validation, class_weight)
        answers["majority class" if kind == "classes" else "mean"] = _constant(each, usable, len(validation))
        for method, answer in answers.items():
            rows.append({"target": name, "method": method, **scores(kind, answer, truth)})
    return rows


def _regression(
    each: Wanted, vectors: np.ndarray, train: np.ndarray, validation: np.ndarray, class_weight: Any
) -> np.ndarray:
    from sklearn.linear_model import LogisticRegression, RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    values, labels = each.values, each.target.labels
    if each.target.kind == "classes":
        weights = class_weight
        if isinstance(class_weight, dict):
            weights = {code: class_weight.get(label, 1.0) for code, label in enumerate(labels)}
            weights = {code: weights[code] for code in np.unique(values[train])}
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000, class_weight=weights))
        model.fit(vectors[train], values[train])
        answer = np.zeros((len(validation), len(labels)), dtype=np.float32)
        answer[:, model[-1].classes_] = model.predict_proba(vectors[validation])
        return answer
    answer = np.zeros((len(validation), len(labels)), dtype=np.float32)
    for column in range(len(labels)):
        there = train[np.isfinite(values[train, column])]
        model = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-1, 5, 13)))
        answer[:, column] = model.fit(vectors[there], values[there, column]).predict(vectors[validation])
    return answer


def _constant(each: Wanted, train: np.ndarray, n_cells: int) -> np.ndarray:
    """The most frequent class, or the mean."""
    if each.target.kind == "classes":
        answer = np.bincount(each.values[train], minlength=len(each.target.labels)).astype(np.float32)
    else:
        answer = np.nanmean(each.values[train], axis=0)
    return np.tile(answer, (n_cells, 1))
