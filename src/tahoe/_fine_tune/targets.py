"""What is to be learned: columns of ``obs`` and tables of ``obsm``, as numbers."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from tahoe._cells.slots import column_of
from tahoe.errors import InputError, warn
from tahoe.model.fine_tuning.heads import Target

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from anndata import AnnData

# Distinct whole numbers up to which somebody may have meant classes.
FEW = 20


@dataclass(frozen=True)
class Wanted:
    """A target, and its truth for all cells."""

    target: Target
    values: np.ndarray
    """Number of each cell's class, -1 if it is missing (int64); or quantities (cells, quantities), NaN if missing."""

    @property
    def there(self) -> np.ndarray:
        """Which cells have it."""
        return self.values >= 0 if self.values.ndim == 1 else np.isfinite(self.values).any(axis=1)


def read_targets(adata: AnnData, target: str | Sequence[str]) -> list[Wanted]:
    """The targets by name, each checked.

    Raises
    ------
    tahoe.errors.InputError
        If there is no such slot, or nothing can be learned from it: one class, a constant, text that is a number.
    """
    names = [target] if isinstance(target, str) else list(target)
    if not names or len(set(names)) < len(names) or not all(isinstance(name, str) for name in names):
        message = f"target={target!r}: pass the name of a column of adata.obs or a key of adata.obsm, or several, once"
        raise InputError(message)
    return [_read(adata, name) for name in names]


def _read(adata: AnnData, name: str) -> Wanted:
    in_obs, in_obsm = name in adata.obs, name in adata.obsm
    if in_obs and in_obsm:
        message = f"target={name!r} is both in adata.obs and in adata.obsm; rename one of them"
        raise InputError(message)
    if in_obsm:
        return _table(adata, name)
    if not in_obs:
        present = [*adata.obs.columns, *adata.obsm]
        message = f"target={name!r} is neither in adata.obs nor in adata.obsm, which have {_near(name, present)}"
        raise InputError(message)
    column = column_of(adata, name, "target")
    if pd.api.types.is_bool_dtype(column.dtype) or not pd.api.types.is_numeric_dtype(column.dtype):
        return _classes(name, column)
    return _quantity(name, column)


def _classes(name: str, column: pd.Series) -> Wanted:
    categories = column.astype("category").cat.remove_unused_categories()
    labels = [str(label) for label in categories.cat.categories]
    codes = categories.cat.codes.to_numpy(dtype=np.int64)
    _refuse_numbers_as_text(name, labels, int((codes >= 0).sum()))
    if len(set(labels)) < len(labels):
        twice = next(label for label in labels if labels.count(label) > 1)
        message = f"obs[{name!r}] has two categories that are both written {twice!r}; rename one"
        raise InputError(message)
    if len(labels) < 2:
        message = f"obs[{name!r}] has {_one(labels)}: there is nothing to tell apart; pass a column with two or more"
        raise InputError(message)
    return Wanted(Target(name, "classes", tuple(labels)), codes)


def _refuse_numbers_as_text(name: str, labels: list[str], n_cells: int) -> None:
    """Refuse a quantity that is stored as text, as a column with a word for a missing value is."""
    numbers = pd.to_numeric(pd.Series(labels, dtype=object), errors="coerce")
    are_numbers = np.isfinite(numbers.to_numpy(dtype=float))
    fractions = are_numbers & (numbers.to_numpy(dtype=float, na_value=0.0) % 1 != 0)
    if fractions.sum() >= max(2, 0.5 * len(labels)):
        others = [label for label, number in zip(labels, are_numbers, strict=True) if not number]
        rest = f" and {others[0]!r}" if others else ""
        message = (
            f"obs[{name!r}] is text, and its values are numbers such as {labels[int(fractions.argmax())]!r}{rest}; for"
            f" a quantity: adata.obs[{name!r}] = pandas.to_numeric(adata.obs[{name!r}].astype(str), errors='coerce')"
        )
        raise InputError(message)
    if len(labels) > max(2, n_cells / 2):
        message = f"obs[{name!r}] has {len(labels)} labels for {n_cells} cells; pass a column of classes, not of names"
        raise InputError(message)


def _quantity(name: str, column: pd.Series) -> Wanted:
    values = column.to_numpy(dtype=np.float64, na_value=np.nan)[:, None]
    there = values[np.isfinite(values)]
    _check_quantities(f"obs[{name!r}]", values)
    distinct = np.unique(there)
    if len(distinct) <= FEW and (distinct % 1 == 0).all():
        message = (
            f"obs[{name!r}] holds {len(distinct)} whole numbers and is learned as a quantity; if they are names of"
            f" classes, pass them as text: adata.obs[{name!r}].astype(str)"
        )
        warn(message)
    return Wanted(Target(name, "quantities", (name,)), values.astype(np.float32))


def _table(adata: AnnData, name: str) -> Wanted:
    table: Any = adata.obsm[name]
    labels = [str(column) for column in getattr(table, "columns", [])]
    table = table.toarray() if sparse.issparse(table) else table
    values = np.asarray(table)
    if values.ndim != 2 or not values.shape[1] or values.dtype.kind not in "fiub":
        message = f"obsm[{name!r}] is {values.dtype} of shape {values.shape}; it must be a table of numbers"
        raise InputError(message)
    values = values.astype(np.float64)
    _check_quantities(f"obsm[{name!r}]", values)
    labels = labels or [str(number) for number in range(values.shape[1])]
    return Wanted(Target(name, "quantities", tuple(labels), "obsm"), values.astype(np.float32))


def _check_quantities(slot: str, values: np.ndarray) -> None:
    if np.isinf(values).any():
        message = f"{slot} has infinite values, in {int(np.isinf(values).any(axis=1).sum())} cells; replace them by NaN"
        raise InputError(message)
    for number, column in enumerate(values.T):
        there = column[np.isfinite(column)]
        if not len(there) or there.min() == there.max():
            which = f" in column {number}" if values.shape[1] > 1 else ""
            message = f"{slot} has {_one(np.unique(there))}{which}: there is nothing to learn; pass one that varies"
            raise InputError(message)


def _one(values: Any) -> str:
    return f"one value, {values[0]!s}" if len(values) else "no value"


def _near(name: str, present: Iterable[str]) -> str:
    names = [str(each) for each in present]
    return ", ".join(map(repr, difflib.get_close_matches(name, names, n=3) or names[:8])) or "nothing"


def check_class_weight(class_weight: Any, targets: Iterable[Target]) -> None:
    """Refuse what is no weighting of these classes."""
    if class_weight is None or (isinstance(class_weight, str) and class_weight == "balanced"):
        return
    if not isinstance(class_weight, dict):
        message = f"class_weight={class_weight!r}: pass 'balanced', None, or a dict of labels and their weights"
        raise InputError(message)
    known = {label for target in targets if target.kind == "classes" for label in target.labels}
    for label, weight in class_weight.items():
        if label not in known or not isinstance(weight, int | float) or not 0 < weight < np.inf:
            reason = "is not a label of the target" if label not in known else f"has weight {weight!r}, not above 0"
            message = f"class_weight: {label!r} {reason}"
            raise InputError(message)
