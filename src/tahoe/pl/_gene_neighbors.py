from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tahoe._cells.objects import check_adata
from tahoe._run.parameters import document_parameters
from tahoe.errors import InputError, check_at_least, similar_names
from tahoe.pl._results import slot_of
from tahoe.pl._style import BLUE, PALE_BLUE, new_axes

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes


@document_parameters
def gene_neighbors(
    adata: AnnData,
    gene: str,
    *,
    key: str = "tahoe",
    n_neighbors: int = 10,
    min_cells: int = 10,
    group: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw which genes have the most similar embeddings to that of a gene.

    Parameters
    ----------
    adata
        Data that `tahoe.tl.embed_genes` has seen: reads ``adata.varm[key]``.
    gene
        The gene, by ``adata.var_names``.
    key
        Name of the embeddings: the `key_added` of `tahoe.tl.embed_genes`.
    n_neighbors
        How many genes to show.

    Returns
    -------
    The axes: one row for each neighbour, from the nearest down, with the cosine similarity of the embeddings and the
    number of cells that express it. Nothing is written to `adata`.

    Raises
    ------
    tahoe.errors.InputError
        If there are no such embeddings, gene or group, or if the gene has no embedding.

    Examples
    --------
    >>> import tahoe
    >>> adata = tahoe.datasets.pbmc68k()[:100].copy()
    >>> tahoe.tl.embed_genes(adata, model="demo")
    >>> ax = tahoe.pl.gene_neighbors(adata, "CD3D")
    """
    check_adata(adata)
    check_at_least(n_neighbors=(n_neighbors, 1), min_cells=(min_cells, 1))
    slot, number = slot_of(adata, "varm", key, group, "embed_genes")
    if gene not in adata.var_names:
        message = f"gene={gene!r} is not in adata.var_names (near: {similar_names(gene, adata.var_names)})"
        raise InputError(message)
    embeddings = np.asarray(adata.varm[slot])
    column = _column_of(adata.var_names == gene, embeddings, f"gene={gene!r}", f"varm[{slot!r}]")
    counts = f"{key}_n_cells"
    n_cells = np.asarray(adata.varm[counts])[:, number] if counts in adata.varm else None
    similarity = _cosines(embeddings, column)
    if n_cells is not None:
        similarity[n_cells < min_cells] = -np.inf
    order = np.argsort(-similarity, kind="stable")[:n_neighbors]
    order = order[np.isfinite(similarity[order])]
    if not len(order):
        message = f"no other gene in varm[{slot!r}] is expressed in min_cells={min_cells} cells; lower it"
        raise InputError(message)
    if ax is None:
        ax = new_axes(4.5, 1.2 + 0.26 * len(order))
    names = adata.var_names[order].astype(str).tolist()
    labels = [""] * len(order) if n_cells is None else [f"{n_cells[place]:,}" for place in order]
    _draw(ax, similarity[order], names, labels)
    ax.set_title(f"Nearest to {gene}" + ("" if group is None else f" in {group}"), fontsize="medium", loc="left")
    return ax


def _column_of(named: np.ndarray, embeddings: np.ndarray, gene: str, slot: str) -> int:
    """The column of a gene; of several that bear its name, the one that has an embedding."""
    columns = np.flatnonzero(named & ~np.isnan(embeddings).any(axis=1))
    if not len(columns):
        message = (
            f"{gene} has no embedding in {slot}: no cell expresses it, the model does not know it, or another column"
            " has this gene"
        )
        raise InputError(message)
    if len(columns) > 1:
        message = (
            f"{gene} is the name of {len(columns)} columns with an embedding; call adata.var_names_make_unique() first"
        )
        raise InputError(message)
    return int(columns[0])


def _cosines(embeddings: np.ndarray, column: int) -> np.ndarray:
    """Cosine similarity of each embedding to one of them; minus infinity for that one and those that are missing."""
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    cosines = (unit @ unit[column]).astype(np.float64)
    cosines[column] = -np.inf
    return np.where(np.isnan(cosines), -np.inf, cosines)


def _draw(ax: Axes, similarity: np.ndarray, names: list[str], labels: list[str]) -> None:
    """A dot for each neighbour, the nearest on top, and to its right in how many cells it is expressed."""
    rows = np.arange(len(names))
    lowest = similarity.min()
    start = lowest - 0.15 * (1 - lowest) - 0.01
    ax.hlines(rows, start, similarity, color=PALE_BLUE, linewidth=2)
    ax.plot(similarity, rows, "o", color=BLUE, markersize=7)
    for row, label in zip(rows, labels, strict=True):
        ax.annotate(
            label, (1, row), (6, 0), xycoords=("axes fraction", "data"), textcoords="offset points", va="center",
            fontsize="small", color="0.4",
        )  # fmt: skip
    if any(labels):
        ax.annotate(
            "cells", (1, 1), (6, 4), xycoords="axes fraction", textcoords="offset points", fontsize="small", color="0.4"
        )
    ax.set(yticks=rows, yticklabels=names, ylim=(len(names) - 0.5, -0.5), xlim=(start, max(1, similarity.max())))
    ax.set_xlabel("cosine similarity")
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.tick_params(axis="y", length=0)
