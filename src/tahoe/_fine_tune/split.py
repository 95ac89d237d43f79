"""Which cells are held back: whole groups of them where there are any."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tahoe.errors import InputError, warn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tahoe._fine_tune.targets import Wanted

# Orders of the groups that are tried.
TRIES = 200


def hold_back(
    wanted: Sequence[Wanted], rows: np.ndarray, groups: np.ndarray | None, key: str | None, share: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on and rows that are held back, of those given.

    Groups are held back as a whole: of many choices the one that leaves no class without cells to train on, holds as
    many classes as possible, and comes nearest to the share.

    Parameters
    ----------
    groups
        Group of each of the `rows`.
    key
        Where they come from, for messages.

    Raises
    ------
    tahoe.errors.InputError
        If there are too few groups or cells, or every choice takes all cells of a class.
    """
    codes = [each.values[rows] for each in wanted if each.target.kind == "classes"]
    generator = np.random.default_rng(seed)
    if groups is None:
        held = _cells(codes, len(rows), share, generator)
    else:
        held = _groups(codes, groups, str(key), share, generator)
    _check(wanted, rows[~held], rows[held], key if groups is not None else None)
    return rows[~held], rows[held]


def _cells(codes: list[np.ndarray], n_cells: int, share: float, generator: np.random.Generator) -> np.ndarray:
    """Some cells of each class of the first target, and never all of them; or some of all."""
    strata = codes[0] if codes else np.zeros(n_cells, dtype=np.int64)
    held = np.zeros(n_cells, dtype=bool)
    for code in np.unique(strata):
        cells = generator.permutation(np.flatnonzero(strata == code))
        n_held = min(max(1, round(share * len(cells))), len(cells) - 1)
        held[cells[:n_held]] = True
    return held


def _groups(
    codes: list[np.ndarray], groups: np.ndarray, key: str, share: float, generator: np.random.Generator
) -> np.ndarray:
    names, members = np.unique(groups, return_inverse=True)
    if len(names) < 2:
        message = (
            f"obs[{key!r}] has one group, {str(names[0])!r}, and one is to be held back; leave groups= away to hold"
            " back cells by chance"
        )
        raise InputError(message)
    sizes = np.bincount(members)
    tables = [_counts(each, members, len(names)) for each in codes]
    best, chosen = None, np.zeros(0, dtype=np.int64)
    for _ in range(TRIES):
        order = generator.permutation(len(names))
        n_held = int(np.searchsorted(sizes[order].cumsum() / sizes.sum(), share)) + 1
        held = order[: min(n_held, len(names) - 1)]
        lost = sum(int(((table[held].sum(0) == table.sum(0)) & (table.sum(0) > 0)).sum()) for table in tables)
        absent = sum(int((table[held].sum(0) == 0).sum()) for table in tables)
        rank = (lost, absent, abs(sizes[held].sum() / sizes.sum() - share))
        if best is None or rank < best:
            best, chosen = rank, held
    assert best is not None
    if best[0]:
        message = (
            f"whichever groups of obs[{key!r}] are held back, a class has no cells left to train on"
            f" ({len(names)} groups); pass another column as groups=, a smaller validation=, or leave groups= away"
        )
        raise InputError(message)
    return np.isin(members, chosen)


def _counts(codes: np.ndarray, members: np.ndarray, n_groups: int) -> np.ndarray:
    """Cells of each class in each group."""
    counts = np.zeros((n_groups, codes.max(initial=0) + 1), dtype=np.int64)
    np.add.at(counts, (members[codes >= 0], codes[codes >= 0]), 1)
    return counts


def _check(wanted: Sequence[Wanted], train: np.ndarray, held: np.ndarray, key: str | None) -> None:
    if not len(train) or not len(held):
        message = f"{len(train) + len(held)} labelled cells are too few to train on some and hold others back"
        raise InputError(message)
    for each in wanted:
        name = each.target.name
        if each.target.kind == "quantities":
            for part, what in ((train, "train on"), (held, "hold back")):
                if not np.isfinite(each.values[part]).any(axis=0).all():
                    message = f"{name!r} has no values in the cells to {what}; pass more cells, or other groups="
                    raise InputError(message)
            continue
        counts = [np.bincount(each.values[part][each.values[part] >= 0], minlength=len(each.target.labels))
                  for part in (train, held)]  # fmt: skip
        if np.count_nonzero(counts[0]) < 2:
            message = f"{name!r} has a single class in the cells to train on; pass more cells, or other groups="
            raise InputError(message)
        untrained = [label for label, n in zip(each.target.labels, counts[0], strict=True) if not n]
        unseen = [label for label, n in zip(each.target.labels, counts[1], strict=True) if not n]
        if untrained:
            message = (
                f"{name!r}: all cells of {_listed(untrained)} were held back or have no gene; nothing can be learned of"
                " it; leave the class out"
            )
            raise InputError(message)
        if unseen:
            why = (
                "too few cells to hold one back" if key is None else f"no cells in the held-out groups of obs[{key!r}]"
            )
            message = (
                f"{name!r}: {len(unseen)} of {len(each.target.labels)} classes have {why} ({_listed(unseen)}); they are"
                " trained on, and how well they are told is not known"
            )
            warn(message)


def _listed(labels: list[str]) -> str:
    return ", ".join(map(repr, labels[:5])) + (", …" if len(labels) > 5 else "")
