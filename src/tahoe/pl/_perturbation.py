from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tahoe._cells.objects import check_adata
from tahoe._perturbation.results import table_of
from tahoe._run.parameters import document_parameters
from tahoe.errors import InputError, check_at_least
from tahoe.pl._style import BLUE, PALE_BLUE, RED, new_axes

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes

LABELS = {
    "shift": "shift (1 − cosine)",
    "toward": "change of the cosine with the goal",
    "projection": "movement from start to goal",
    "away": "change of the cosine with the alternative",
    "z": "deviations from genes alike in detection and bin",
}
ACROSS = ("rank", "detection")


@document_parameters
def perturbation(
    adata: AnnData,
    *,
    key: str = "tahoe_perturb",
    y: str | None = None,
    x: str = "rank",
    n_genes: int = 10,
    min_edited: int = 0,
    group: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw a perturbation screen: each gene a dot, the outermost with their names.

    Parameters
    ----------
    adata
        Data that `tahoe.tl.perturb` has seen: reads ``adata.uns[key]``.
    key
        Under which `tahoe.tl.perturb` left the result, its `key_added`.
    y
        ``"projection"``, ``"toward"``, ``"away"``, ``"shift"`` or ``"z"``. `None` is the projection with a goal, else
        the shift.
    x
        ``"rank"`` of the gene, or ``"detection"``, the share of the cells that express it: effects that merely follow
        detection are seen there.
    n_genes
        How many genes are named: with a goal as many at either end, without at the top.
    min_edited
        Omit genes that were edited in fewer cells.

    Returns
    -------
    The axes. Dots that an exact edit confirms have a ring, at the height that the edit gave. Nothing is written.

    Raises
    ------
    tahoe.errors.InputError
        If there is no such result, group or quantity, or no gene to show.

    Examples
    --------
    >>> import tahoe
    >>> adata = tahoe.datasets.pbmc68k()
    >>> tahoe.tl.perturb(adata, model="demo", n_cells=10, min_cells=3, n_exact=5)
    >>> ax = tahoe.pl.perturbation(adata, x="detection")
    """
    check_adata(adata)
    check_at_least(n_genes=(n_genes, 0), min_edited=(min_edited, 0))
    table = table_of(adata, key, group)
    groups = table["group"].unique().tolist()
    if len(groups) > 1:
        message = f"uns[{key!r}] has {len(groups)} groups; pass group=, such as {groups[0]!r}"
        raise InputError(message)
    y = y or ("projection" if table["projection"].notna().any() else "shift")
    if y not in LABELS or y not in table or x not in ACROSS:
        wrong = f"y={y!r}" if y not in LABELS or y not in table else f"x={x!r}"
        drawable = [name for name in LABELS if name in table and table[name].notna().any()]
        message = f"{wrong} cannot be drawn; y is one of {drawable}, and x one of {list(ACROSS)}"
        raise InputError(message)
    shown = table[(table["n_cells"] >= min_edited) & table[y].notna() & (table[x].notna() if x != "rank" else True)]
    if shown.empty:
        message = f"no gene in uns[{key!r}] has {y!r} in min_edited={min_edited} cells; lower it, or draw another y"
        raise InputError(message)
    shown = shown.sort_values(y, ascending=False, kind="stable").reset_index(drop=True)
    if ax is None:
        ax = new_axes(6.5, 4.2)
    _draw(ax, shown, y, x, n_genes)
    ax.set_title(("" if group is None else f"{group}, ") + f"{len(shown):,} genes", fontsize="medium", loc="left")
    return ax


def _draw(ax: Axes, shown: pd.DataFrame, y: str, x: str, n_genes: int) -> None:
    across = np.arange(1, len(shown) + 1) if x == "rank" else shown[x].to_numpy()
    heights = shown[y].to_numpy()
    ends = np.zeros(len(shown), dtype=bool)
    ends[:n_genes] = True
    if y != "shift":
        ends[max(0, len(shown) - n_genes) :] = n_genes > 0
    ax.axhline(0, color="0.8", linewidth=0.8, zorder=0)
    ax.scatter(across[~ends], heights[~ends], s=8, color=PALE_BLUE, linewidth=0, rasterized=len(shown) > 2000)
    ax.scatter(across[ends], heights[ends], s=16, color=BLUE, linewidth=0)
    if f"{y}_exact" in shown and shown[f"{y}_exact"].notna().any():
        ax.scatter(across, shown[f"{y}_exact"], s=34, facecolor="none", edgecolor=RED, linewidth=0.8, label="exact")
        ax.legend(frameon=False, fontsize="small", loc="best")
    _name(ax, across[ends], heights[ends], shown["gene"].to_numpy()[ends], of_rank=x == "rank")
    ax.set(xlabel="rank" if x == "rank" else "share of the cells that express it", ylabel=LABELS[y])
    ax.spines[["top", "right"]].set_visible(False)


def _name(ax: Axes, across: np.ndarray, heights: np.ndarray, names: np.ndarray, *, of_rank: bool) -> None:
    """Names beside their dots; those of ranks in two columns, a line apart, since the dots lie on each other."""
    ax.margins(x=0.08, y=0.08)
    if not of_rank:
        for place, height, name in zip(across, heights, names, strict=True):
            ax.annotate(name, (place, height), (4, 2), textcoords="offset points", fontsize="x-small")
        return
    middle = (across.max() + 1) / 2
    for lines, side in ((np.flatnonzero(across <= middle), 1), (np.flatnonzero(across > middle)[::-1], -1)):
        for number, line in enumerate(lines):
            ax.annotate(
                names[line], (across[line], heights[line]),
                (0.22 if side > 0 else 0.78, 0.97 - 0.05 * number if side > 0 else 0.03 + 0.05 * number),
                textcoords="axes fraction", fontsize="x-small", ha="left" if side > 0 else "right", va="center",
                arrowprops={"arrowstyle": "-", "color": "0.75", "linewidth": 0.5, "shrinkA": 1, "shrinkB": 2},
            )  # fmt: skip
