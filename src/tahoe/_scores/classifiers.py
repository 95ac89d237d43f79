"""Classifiers that are trained on a representation, and scored on what they have not seen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tahoe._scores.folds import Fold

N_NEIGHBORS = 15


def classifiers(seed: int, n_neighbors: int = N_NEIGHBORS) -> dict[str, Any]:
    """A new instance of each classifier by its name."""
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return {
        "kNN": KNeighborsClassifier(n_neighbors),
        "logistic regression": make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)),
        "random forest": RandomForestClassifier(random_state=seed),
    }


def majority() -> Any:
    """The classifier that always answers with the most frequent label."""
    from sklearn.dummy import DummyClassifier

    return DummyClassifier(strategy="most_frequent")


def fold_scores(classifier: Any, vectors: np.ndarray, labels: np.ndarray, folds: list[Fold]) -> dict[str, list[float]]:
    """Accuracy and macro-F1 in each fold; the classifier is fitted anew in each."""
    from sklearn.metrics import accuracy_score, f1_score

    scores: dict[str, list[float]] = {"accuracy": [], "macro-F1": []}
    for true, predicted in _predictions(classifier, vectors, labels, folds):
        scores["accuracy"].append(float(accuracy_score(true, predicted)))
        scores["macro-F1"].append(float(f1_score(true, predicted, average="macro", zero_division=0)))
    return scores


def _predictions(
    classifier: Any, vectors: np.ndarray, labels: np.ndarray, folds: list[Fold]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    from sklearn.base import clone

    for train, test in folds:
        fitted = clone(classifier).fit(vectors[train], labels[train])
        yield labels[test], fitted.predict(vectors[test])


def nearest_neighbor_accuracy(
    vectors: np.ndarray, labels: np.ndarray, folds: list[Fold], n_neighbors: int = N_NEIGHBORS
) -> float:
    """Mean over the folds of the share of cells whose label their nearest neighbours tell."""
    return float(np.mean(fold_scores(classifiers(0, n_neighbors)["kNN"], vectors, labels, folds)["accuracy"]))
