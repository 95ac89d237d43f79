from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from tahoe._cells.objects import check_adata
from tahoe._cells.slots import groups_of
from tahoe._reference.labels import UNKNOWN
from tahoe._run.parameters import document_parameters
from tahoe.errors import InputError
from tahoe.pl._style import COLORMAP, MEDIUM_BLUE, new_axes

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

# Shares below this are not written into their field.
WRITTEN = 0.05


@document_parameters
def label_transfer(adata: AnnData, key: str, *, groupby: str | None = None, ax: Axes | None = None) -> Axes:
    """Show which labels cells got from a reference, how sure they are, and how many are unknown.

    Parameters
    ----------
    adata
        Annotated data matrix, after `tahoe.tl.transfer_labels`.
    key
        Name of the result, such as ``"cell_type_tahoe"``.
    groupby
        Column of ``adata.obs`` to hold against the labels: clusters, or the truth.

    Returns
    -------
    The axes. Without `groupby` a bar for each label: how many cells have it, and behind it the mean confidence. With
    `groupby` a row for each group: the share of its cells with each label, and behind it the number of its cells and
    their mean confidence. Groups are in the order of their commonest label. Nothing is written to `adata`.

    Raises
    ------
    tahoe.errors.InputError
        If there is no such result or column.

    Examples
    --------
    >>> import tahoe, tempfile
    >>> adata = tahoe.datasets.pbmc68k()
    >>> tahoe.tl.embed(adata, model="demo")
    >>> folder = tempfile.mkdtemp() + "/blood.tahoe"
    >>> atlas = tahoe.build_reference(adata[::2].copy(), folder, obs_keys="bulk_labels")
    >>> rest = adata[1::2].copy()
    >>> tahoe.tl.transfer_labels(rest, atlas, obs_key="bulk_labels", k=5)
    >>> ax = tahoe.pl.label_transfer(rest, "bulk_labels_tahoe", groupby="bulk_labels")
    """
    check_adata(adata)
    record = adata.uns.get(key)
    if not isinstance(record, Mapping) or "labels" not in record or key not in adata.obs:
        made = [name for name, each in adata.uns.items() if isinstance(each, Mapping) and "set_threshold" in each]
        message = (
            f"key={key!r} is no result of tahoe.tl.transfer_labels; there is {', '.join(map(repr, made)) or 'none'}"
        )
        raise InputError(message)
    labels = adata.obs[key].astype(str)
    confidence = adata.obs[f"{key}_confidence"].to_numpy(dtype=float)
    seen = set(labels)
    order = [str(label) for label in record["labels"] if str(label) in seen and label != UNKNOWN]
    order += [UNKNOWN] if UNKNOWN in seen else []
    if groupby is None:
        return _bars(labels, confidence, order, key, ax)
    codes, names = groups_of(adata, groupby)
    return _table(labels, confidence, order, np.asarray(names)[codes], groupby, key, ax)


def _bars(labels: pd.Series, confidence: np.ndarray, order: list[str], key: str, ax: Axes | None) -> Axes:
    """A bar for each label, from the commonest down; the unknown cells last."""
    n_cells = labels.value_counts()
    order = sorted(order, key=lambda label: (label == UNKNOWN, -n_cells[label]))
    ax = new_axes(6, 1.1 + 0.3 * len(order)) if ax is None else ax
    lengths = [n_cells[label] for label in order]
    ax.barh(order, lengths, color=["0.75" if label == UNKNOWN else MEDIUM_BLUE for label in order], height=0.7)
    for row, label in enumerate(order):
        ax.annotate(
            f"{lengths[row]:,} · {_mean(confidence[labels == label])}", (lengths[row], row), (4, 0),
            textcoords="offset points", va="center", fontsize="small", color="0.3",
        )  # fmt: skip
    ax.set(ylim=(len(order) - 0.5, -0.5), xlim=(0, 1.25 * max(lengths)), xlabel="cells · mean confidence")
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_title(key, fontsize="medium", loc="left")
    return ax


def _table(
    labels: pd.Series,
    confidence: np.ndarray,
    order: list[str],
    groups: np.ndarray,
    groupby: str,
    key: str,
    ax: Axes | None,
) -> Axes:
    """Share of each label in each group, in colours and figures."""
    shares = pd.crosstab(groups, labels.to_numpy(), normalize="index").reindex(columns=order, fill_value=0)
    first = shares.to_numpy().argmax(axis=1)
    shares = shares.iloc[np.lexsort((-shares.to_numpy().max(axis=1), first))]
    values = shares.to_numpy()
    ax = new_axes(3.2 + 0.5 * len(order), 2.2 + 0.32 * len(shares)) if ax is None else ax
    ax.imshow(values, cmap=COLORMAP, vmin=0, vmax=1, aspect="auto")
    for row, column in zip(*np.nonzero(values >= WRITTEN), strict=True):
        colour = "white" if values[row, column] > 0.55 else "0.2"
        share = f"{100 * values[row, column]:.0f}"
        ax.text(column, row, share, ha="center", va="center", fontsize="x-small", color=colour)
    for row, group in enumerate(shares.index):
        of_group = groups == group
        ax.annotate(
            f"{of_group.sum():,} · {_mean(confidence[of_group])}", (1, row), (6, 0),
            xycoords=("axes fraction", "data"), textcoords="offset points", va="center", fontsize="small", color="0.3",
        )  # fmt: skip
    ax.annotate(
        "cells · confidence", (1, 1), (6, 4), xycoords="axes fraction", textcoords="offset points", fontsize="small",
        color="0.3",
    )  # fmt: skip
    ax.set_xticks(range(len(order)), order, rotation=45, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(len(shares)), [str(name) for name in shares.index])
    if UNKNOWN in order:
        ax.axvline(order.index(UNKNOWN) - 0.5, color="0.5", linewidth=1)
    ax.set(xlabel=f"{key}, % of the row", ylabel=groupby)
    ax.tick_params(length=0)
    return ax


def _mean(confidence: np.ndarray) -> str:
    known = confidence[np.isfinite(confidence)]
    return f"{known.mean():.2f}" if len(known) else "none"
