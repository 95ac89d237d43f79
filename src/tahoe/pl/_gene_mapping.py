from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tahoe._cells.objects import check_adata
from tahoe._genes.table import MATCHES
from tahoe._run.parameters import document_parameters
from tahoe.errors import InputError
from tahoe.pl._style import BLUE, ORANGE, PALE_BLUE, PALE_ORANGE, new_axes

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

# The paler bar of each pair is the genes, the darker one the counts: in the vocabulary, and lost.
KNOWN, LOST = (PALE_BLUE, BLUE), (PALE_ORANGE, ORANGE)


@document_parameters
def gene_mapping(adata: AnnData, *, ax: Axes | None = None) -> Axes:
    """Draw how the genes were found, as shares of the genes and of the counts.

    Parameters
    ----------
    adata
        Data that `tahoe.pp.map_genes` or `tahoe.tl.embed` has seen: reads ``adata.uns["tahoe_genes"]``.

    Returns
    -------
    The axes. Nothing is written to `adata`.

    Raises
    ------
    tahoe.errors.InputError
        If the genes were not mapped yet.

    Examples
    --------
    >>> import tahoe
    >>> adata = tahoe.datasets.pbmc68k()
    >>> tahoe.pp.map_genes(adata)
    >>> ax = tahoe.pl.gene_mapping(adata)
    """
    check_adata(adata)
    if "tahoe_genes" not in adata.uns:
        message = 'adata.uns["tahoe_genes"] does not exist; call tahoe.pp.map_genes(adata) first'
        raise InputError(message)
    report = adata.uns["tahoe_genes"]
    # a file gives the report back in another order, and one of an older version has fewer kinds of matches
    matches = [match for match in MATCHES if report["genes"].get(match) and match != "modality"]
    ax = ax or new_axes(6.5, 1.4 + 0.5 * len(matches))
    has_counts = "counts" in report
    n_genes = [report["genes"][match] for match in matches]
    known = [report["genes_in_vocabulary"][match] for match in matches]
    share, known_share = (np.array(numbers) / report["n_genes"] for numbers in (n_genes, known))
    numbers = [f"{number:,} gene{'s' * (number != 1)}" for number in n_genes]
    _draw_bars(ax, share, known_share, numbers, shade=0, row=-0.2 * has_counts)
    if has_counts:
        share, known_share = (
            np.array([report[key][match] for match in matches]) for key in ("counts", "counts_in_vocabulary")
        )
        _draw_bars(ax, share, known_share, [f"{_percent(each)} of counts" for each in share], shade=1, row=0.2)
    # Rows from the top down in order of certainty, with room on the right for the numbers.
    ax.set(yticks=range(len(matches)), yticklabels=matches, ylim=(len(matches) - 0.5, -0.5), xlim=(0, 1.3))
    ax.set_xticks(np.linspace(0, 1, 6), [f"{share:.0%}" for share in np.linspace(0, 1, 6)])
    ax.set_title(_title(report), fontsize="medium", loc="left")
    ax.legend(title="in the vocabulary", labels=["yes", "no"], loc="lower right", frameon=False)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.spines["bottom"].set_bounds(0, 1)
    ax.tick_params(axis="y", length=0)
    return ax


def _draw_bars(ax: Axes, share: np.ndarray, known: np.ndarray, labels: list[str], *, shade: int, row: float) -> None:
    """One bar for each match: what the models know, then what they do not."""
    rows = np.arange(len(share)) + row
    ax.barh(rows, known, height=0.36, color=KNOWN[shade])
    bars = ax.barh(rows, share - known, left=known, height=0.36, color=LOST[shade])
    ax.bar_label(bars, labels=labels, padding=4, fontsize="small", color="0.25")


def _percent(share: float) -> str:
    """Two digits, so that a few counts are not called none."""
    return f"{100 * share:.2g}%" if share < 0.1 else f"{share:.1%}"


def _title(report: dict[str, Any]) -> str:
    found = f"The released models know {report['n_in_vocabulary']:,} of {report['n_genes']:,} genes"
    if "counts" in report:
        found += f",\n{report['share_in_vocabulary']:.2%} of the counts"
    return found
