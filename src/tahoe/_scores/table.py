"""The table that every evaluation returns: one row for each metric and representation."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

GIVEN, BASELINE = "given", "baseline"


class Score(NamedTuple):
    """One row of the table."""

    metric: str
    representation: str
    kind: str
    """Whether the representation was passed, or is one of our baselines."""
    value: float
    standard_error: float = np.nan
    replicates: int = 1
    """How many folds, groups, seeds or perturbations the value is the mean of."""
    over: str = ""
    """What these are; empty if the value comes from all cells at once."""
    n: int = 0
    """Number of cells, genes or perturbations that take part."""
    detail: str = ""
    p_value: float = np.nan
    better: str = "higher"


def mean_score(
    metric: str, representation: str, kind: str, values: Iterable[float], over: str, **more: object
) -> Score:
    """Mean of a metric over its replicates, with the standard error of this mean; both NaN if any of them is."""
    replicates = np.array(list(values), dtype=np.float64)
    n = len(replicates)
    error = replicates.std(ddof=1) / np.sqrt(n) if n > 1 else np.nan
    return Score(metric, representation, kind, float(replicates.mean()), float(error), n, over, **more)  # type: ignore[arg-type]


def to_table(scores: Sequence[Score], **parameters: object) -> pd.DataFrame:
    """Rows of one metric together, metrics and representations in the order in which they first come."""
    metrics = list(dict.fromkeys(score.metric for score in scores))
    representations = list(dict.fromkeys(score.representation for score in scores))
    ordered = sorted(
        scores, key=lambda score: (metrics.index(score.metric), representations.index(score.representation))
    )
    table = pd.DataFrame(ordered, columns=list(Score._fields))
    if table["p_value"].isna().all():
        table = table.drop(columns="p_value")
    table.attrs["tahoe_evaluate"] = parameters
    return table
