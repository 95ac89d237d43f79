"""Draw the pictures of ``docs/gallery.md`` with the demo model: ``python scripts/draw_gallery.py [FOLDER]``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl

mpl.use("agg")
from matplotlib import pyplot as plt

import tahoe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes

METRICS = ["logistic regression macro-F1", "kNN purity", "silhouette", "NMI"]
FOLDER = Path(__file__).parents[1] / "docs" / "_static" / "gallery"


def pictures() -> Iterator[tuple[str, Callable[[AnnData], Axes]]]:
    """Name of each picture, and what draws it; the calls stand in the gallery too."""
    yield "gene_mapping", tahoe.pl.gene_mapping
    yield "gene_neighbors", lambda adata: tahoe.pl.gene_neighbors(adata, "NKG7")
    yield "attention_heatmap", lambda adata: tahoe.pl.attention(adata)
    yield "attention_network", lambda adata: tahoe.pl.attention(adata, kind="network")
    yield "evaluation", lambda adata: tahoe.pl.evaluation(evaluated(adata), metrics=METRICS)[0]


def evaluated(adata: AnnData) -> pd.DataFrame:
    """The embedding and the baselines, judged by the labels of the cells."""
    tahoe.tl.embed(adata, model="demo")
    return tahoe.evaluate.cell_types(adata, "X_tahoe", label_key="bulk_labels")


def main(folder: Path) -> None:
    """Compute on the cells that ship with scanpy, and save one PNG for each plot."""
    folder.mkdir(parents=True, exist_ok=True)
    adata = tahoe.datasets.pbmc68k()
    tahoe.tl.embed_genes(adata, model="demo")
    tahoe.tl.attention(adata, model="demo", min_cells=20)
    for name, draw in pictures():
        figure = draw(adata).figure
        # without a version of matplotlib inside, the same picture is the same file
        figure.savefig(folder / f"{name}.png", dpi=130, metadata={"Software": None})
        plt.close(figure)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
