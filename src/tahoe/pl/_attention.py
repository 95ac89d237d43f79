from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse
from scipy.cluster import hierarchy
from scipy.spatial.distance import pdist, squareform

from tahoe._cells.objects import check_adata
from tahoe._cells.slots import columns_of
from tahoe._run.parameters import document_parameters
from tahoe.errors import InputError, check_at_least, check_choice
from tahoe.pl._results import slot_of
from tahoe.pl._style import COLORMAP, new_axes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from matplotlib.axes import Axes

KINDS = ("heatmap", "network")


@document_parameters
def attention(
    adata: AnnData,
    *,
    key: str = "tahoe_attention",
    genes: Sequence[str] | None = None,
    kind: str = "heatmap",
    n_pairs: int = 30,
    group: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the attention between genes.

    Parameters
    ----------
    adata
        Data that `tahoe.tl.attention` has seen: reads ``adata.varp[key]``.
    kind
        ``"heatmap"``: all pairs of some genes, similar genes side by side. ``"network"``: the strongest pairs, with
        arrows from the gene that attends to the gene that it attends to.
    genes
        Only these, by ``adata.var_names``; `None` takes those of the strongest pairs.
    n_pairs
        How many of the strongest pairs to show, or to take the genes from. A gene and itself are no pair.
    key
        Name of the result: the `key_added` of `tahoe.tl.attention`.

    Returns
    -------
    The axes. Nothing is written to `adata`.

    Raises
    ------
    tahoe.errors.InputError
        If there is no such result, kind, group or gene, or no attention between these genes.

    Examples
    --------
    >>> import tahoe
    >>> adata = tahoe.datasets.pbmc68k()[:50].copy()
    >>> tahoe.tl.attention(adata, model="demo", min_cells=10)
    >>> ax = tahoe.pl.attention(adata)
    """
    check_adata(adata)
    check_at_least(n_pairs=(n_pairs, 1))
    check_choice(kind=(kind, KINDS))
    slot, _ = slot_of(adata, "varp", key, group, "attention")
    columns = columns_of(adata, genes)
    pairs = sparse.coo_matrix(sparse.csr_matrix(adata.varp[slot])[columns][:, columns])
    pairs.setdiag(0)
    pairs.eliminate_zeros()
    if not pairs.nnz:
        message = f"varp[{slot!r}] has no attention between these genes; choose others"
        raise InputError(message)
    strongest = np.argsort(-pairs.data, kind="stable")[:n_pairs]
    rows, others = pairs.row[strongest], pairs.col[strongest]
    names = adata.var_names[columns].astype(str).to_numpy(dtype=object)
    if kind == "network":
        ax = ax or new_axes(6.5, 6)
        _draw_network(ax, rows, others, pairs.data[strongest], names)
    else:
        chosen = np.arange(len(columns)) if genes is not None else np.unique([rows, others])
        ax = ax or new_axes(2.5 + 0.22 * len(chosen), 1.8 + 0.22 * len(chosen))
        _draw_heatmap(ax, pairs.tocsr()[chosen][:, chosen].toarray(), names[chosen])
    ax.set_title("Attention between genes" + ("" if group is None else f" in {group}"), fontsize="medium", loc="left")
    return ax


def _draw_heatmap(ax: Axes, weights: np.ndarray, names: np.ndarray) -> None:
    """All pairs, in an order that brings genes with similar rows and columns together."""
    order = _order(pdist(np.hstack([weights, weights.T])))
    weights, names = weights[np.ix_(order, order)], names[order]
    image = ax.imshow(np.where(weights > 0, weights, np.nan), cmap=COLORMAP, vmin=0)
    ax.set_facecolor("0.9")  # pairs without a value
    places = range(len(names))
    ax.set_xticks(places, names, rotation=90, fontsize="small")
    ax.set_yticks(places, names, fontsize="small")
    ax.tick_params(length=0)
    ax.set(xlabel="is attended to", ylabel="attends")
    ax.spines[:].set_visible(False)
    ax.figure.colorbar(image, ax=ax, shrink=0.6, label="share of attention, mean over cells")


def _draw_network(ax: Axes, sources: np.ndarray, targets: np.ndarray, weights: np.ndarray, names: np.ndarray) -> None:
    """Genes on a circle, and arrows from the one that attends, wider and darker with the attention."""
    genes = np.unique([sources, targets])
    genes = genes[np.argsort(names[genes], kind="stable")]
    place = np.zeros(len(names), dtype=int)
    place[genes], names = np.arange(len(genes)), names[genes]
    pairs = np.zeros((len(names), len(names)))
    pairs[place[sources], place[targets]] = weights
    # genes that are linked lie side by side
    order = _order(squareform(pairs.max() - np.maximum(pairs, pairs.T), checks=False))
    angles = np.empty(len(names))
    angles[order] = 2 * np.pi * np.arange(len(names)) / len(names)
    places = np.column_stack([np.cos(angles), np.sin(angles)])
    for source, target in zip(*np.unravel_index(np.argsort(pairs, axis=None), pairs.shape), strict=True):
        if pairs[source, target]:
            _draw_arrow(ax, places[source], places[target], pairs[source, target] / weights.max())
    degrees = np.degrees(angles)
    for name, (x, y), angle in zip(names, 1.06 * places, degrees, strict=True):
        left = 90 < angle < 270
        ax.text(
            x, y, name, rotation=angle - 180 * left, rotation_mode="anchor", ha="right" if left else "left", va="center"
        )
    ax.plot(*places.T, "o", color="0.3", markersize=4)
    ax.set(xlim=(-1.4, 1.4), ylim=(-1.4, 1.4), aspect="equal")
    ax.set_axis_off()


def _draw_arrow(ax: Axes, start: np.ndarray, end: np.ndarray, strength: float) -> None:
    """An arrow that bends towards the middle of the circle; `strength` is at most one."""
    from matplotlib import colormaps
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path

    # the further apart, the nearer to the middle
    bend = (start + end) / 2 * (0.75 - 0.3 * np.linalg.norm(start - end))
    arrow = FancyArrowPatch(
        path=Path([0.97 * start, bend, 0.97 * end], [Path.MOVETO, Path.CURVE3, Path.CURVE3]),
        arrowstyle="-|>",
        mutation_scale=9,
        linewidth=0.5 + 2 * strength,
        color=colormaps[COLORMAP](0.25 + 0.75 * strength),
    )
    ax.add_patch(arrow)


def _order(distances: np.ndarray) -> np.ndarray:
    """Genes in an order that brings near ones together; `distances` are those of all pairs, one after another."""
    if len(distances) < 2:
        return np.arange(len(distances) + 1)
    return hierarchy.leaves_list(hierarchy.linkage(distances, "average", optimal_ordering=True))
