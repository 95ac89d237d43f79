from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from tahoe.errors import InputError
from tahoe.pl._style import BLUE, GREY

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

COLUMNS = ("metric", "representation", "kind", "value", "standard_error")
# Half the width of an interval that holds the mean in 95 of 100 cases, in standard errors.
WIDTH = 1.96


def evaluation(table: pd.DataFrame, *, metrics: str | Sequence[str] | None = None) -> np.ndarray:
    """Draw what `tahoe.evaluate` returned: a panel for each metric, a dot with its interval for each representation.

    Baselines are grey. Intervals are 1.96 standard errors wide to each side; where the table has none, there is a dot
    alone. A dotted line marks the best baseline.

    Parameters
    ----------
    table
        From a function of `tahoe.evaluate`, or its CSV file read again.
    metrics
        The metrics to draw; all of them by default.

    Returns
    -------
    The axes, a one-dimensional array of `matplotlib.axes.Axes`.

    Raises
    ------
    tahoe.errors.InputError
        If it is no such table, or a metric is not in it.

    Examples
    --------
    >>> import pandas as pd, tahoe
    >>> rows = [("accuracy", "X_tahoe", "given", 0.81, 0.01), ("accuracy", "random", "baseline", 0.31, 0.02)]
    >>> table = pd.DataFrame(rows, columns=["metric", "representation", "kind", "value", "standard_error"])
    >>> axes = tahoe.pl.evaluation(table)
    """
    from matplotlib import pyplot as plt

    names = _metrics(table, metrics)
    representations = list(dict.fromkeys(table["representation"]))
    n_columns = min(len(names), 4)
    n_rows = -(-len(names) // n_columns)
    size = (2.4 + 2.3 * n_columns, n_rows * (0.7 + 0.26 * len(representations)))
    _, axes = plt.subplots(n_rows, n_columns, figsize=size, layout="constrained", sharey=True, squeeze=False)
    for ax, name in zip(axes.flat, names, strict=False):
        _draw(ax, table[table["metric"] == name], name, representations)
    for ax in axes.flat[len(names) :]:
        ax.set_visible(False)
    return axes.ravel()[: len(names)]


def _metrics(table: pd.DataFrame, metrics: str | Sequence[str] | None) -> list[str]:
    missing = [name for name in COLUMNS if name not in getattr(table, "columns", ())]
    if missing or not len(table):
        what = f"has no column {missing[0]!r}" if missing else "has no rows"
        message = f"table {what}; pass what a function of tahoe.evaluate returned"
        raise InputError(message)
    present = list(dict.fromkeys(table["metric"]))
    names = present if metrics is None else [metrics] if isinstance(metrics, str) else list(metrics)
    unknown = [name for name in names if name not in present]
    if unknown or not names:
        message = f"metrics={unknown or names}: not in the table, which has {', '.join(map(repr, present))}"
        raise InputError(message)
    return names


def _draw(ax: Axes, rows: pd.DataFrame, name: str, representations: list[str]) -> None:
    """One metric; representations from the top down."""
    heights = np.array([representations.index(row) for row in rows["representation"]])
    values = rows["value"].to_numpy(dtype=float)
    errors = WIDTH * np.nan_to_num(rows["standard_error"].to_numpy(dtype=float))
    is_baseline = (rows["kind"] == "baseline").to_numpy()
    for chosen, color in ((is_baseline, GREY), (~is_baseline, BLUE)):
        ax.errorbar(
            values[chosen], heights[chosen], xerr=errors[chosen], fmt="o", color=color, markersize=5, linewidth=1.5
        )
    baselines = rows.loc[is_baseline, "value"].dropna()
    if len(baselines):
        best = baselines.min() if "lower" in rows.get("better", pd.Series()).to_numpy() else baselines.max()
        ax.axvline(best, color=GREY, linewidth=0.8, linestyle=":", zorder=0)
    ax.set(yticks=range(len(representations)), yticklabels=representations, ylim=(len(representations) - 0.5, -0.5))
    ax.set_title(name, fontsize="small", loc="left")
    ax.tick_params(axis="x", labelsize="small")
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="y", color="0.93")
    ax.set_axisbelow(True)
    ax.spines[["top", "right", "left"]].set_visible(False)
