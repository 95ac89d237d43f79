"""Folds of a cross-validation, which never share a group."""

from __future__ import annotations

import warnings

import numpy as np

from tahoe.errors import InputError, warn

Fold = tuple[np.ndarray, np.ndarray]


def make_folds(labels: np.ndarray, groups: np.ndarray | None, n_folds: int, seed: int) -> list[Fold]:
    """Rows to train on and to test on in each fold.

    Without `groups` the folds are stratified by label. With them all rows of a group are in the same fold, and there
    are at most as many folds as groups.

    Raises
    ------
    tahoe.errors.InputError
        If no such folds exist, or in one of them only one label is left to train on.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    if groups is None:
        if len(labels) < n_folds:
            message = f"there are {len(labels)} labelled rows, fewer than n_folds={n_folds}; pass a smaller n_folds"
            raise InputError(message)
        splitter = StratifiedKFold(n_folds, shuffle=True, random_state=seed)
        if np.unique(labels, return_counts=True)[1].max() < n_folds:
            message = f"every label has fewer rows than n_folds={n_folds}; pass a smaller n_folds"
            raise InputError(message)
    else:
        n_folds = min(n_folds, len(np.unique(groups)))
        splitter = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # our own warning on rare labels is more exact
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        folds = [fold for fold in splitter.split(labels, labels, groups) if len(fold[1])]
    for train, _ in folds:
        if len(np.unique(labels[train])) < 2:
            message = "when one fold is left out, a single label remains; pass more groups, or groups=None"
            raise InputError(message)
    return folds


def check_groups(labels: np.ndarray, groups: np.ndarray, label: str, key: str) -> None:
    """Refuse groups that tell the labels, and warn of labels that no other group can teach.

    Raises
    ------
    tahoe.errors.InputError
        If there is one group, or every group holds one label.
    """
    if len(np.unique(groups)) < 2:
        message = f"obs[{key!r}] has one group, {groups[0]!r}, and folds need two; omit groups= to draw them at random"
        raise InputError(message)
    pairs = np.unique(np.stack([labels, groups]).astype(str), axis=1)
    labels_of_group = np.unique(pairs[1], return_counts=True)
    if labels_of_group[1].max() == 1:
        message = (
            f"each group of obs[{key!r}] holds cells of one {label!r} only (such as {pairs[1, 0]!r}: {pairs[0, 0]!r}),"
            " so groups and labels cannot be told apart; pass another column as groups=, or omit it"
        )
        raise InputError(message)
    names, in_groups = np.unique(pairs[0], return_counts=True)
    alone = names[in_groups == 1]
    if len(alone):
        message = (
            f"{len(alone)} of {len(names)} values of obs[{label!r}] occur in one group of obs[{key!r}] only"
            f" ({', '.join(alone[:3])}): when that group is left out nothing can tell them, and they count as wrong"
        )
        warn(message)
