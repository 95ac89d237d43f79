from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pytest

mpl.use("Agg")
from matplotlib import pyplot as plt

import tahoe
from tahoe.errors import InputError


@pytest.fixture(scope="module")
def cells():
    cells = tahoe.datasets.pbmc68k()[::4].copy()
    cells.obs["kind"] = np.where(cells.obs["bulk_labels"] == "Dendritic", "a/b", "other")
    with tahoe.settings.override(progress=False):
        tahoe.tl.embed_genes(cells, "demo")
        tahoe.tl.embed_genes(cells, "demo", groupby="kind", key_added="by_kind")
    return cells


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def names(ax):
    return [label.get_text() for label in ax.get_yticklabels()]


def test_the_nearest_genes_from_the_top_down(cells):
    ax = tahoe.pl.gene_neighbors(cells, "NKG7", n_neighbors=6, min_cells=5)
    vectors, n_cells = cells.varm["tahoe"], cells.varm["tahoe_n_cells"][:, 0]
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = unit @ unit[cells.var_names.get_loc("NKG7")]
    cosines[(n_cells < 5) | (cells.var_names == "NKG7")] = np.nan
    order = np.argsort(-cosines)[:6]
    assert names(ax) == cells.var_names[order].tolist()
    np.testing.assert_allclose(ax.lines[0].get_xdata(), cosines[order], rtol=1e-6)
    assert ax.get_ylim()[0] > ax.get_ylim()[1]
    assert [text.get_text() for text in ax.texts[:6]] == [str(number) for number in n_cells[order]]
    assert ax.get_title(loc="left") == "Nearest to NKG7"


def test_on_given_axes_and_in_a_group(cells):
    _, ax = plt.subplots()
    assert tahoe.pl.gene_neighbors(cells, "CD74", key="by_kind", group="a/b", min_cells=1, ax=ax) is ax
    assert len(plt.get_fignums()) == 1
    assert ax.get_title(loc="left") == "Nearest to CD74 in a/b"


def test_without_numbers_of_cells(cells):
    tahoe.tl.embed_genes(cells, "demo", context=False, key_added="input")
    ax = tahoe.pl.gene_neighbors(cells, "NKG7", key="input")
    assert len(names(ax)) == 10


def test_a_name_that_several_columns_bear(cells):
    """The one that has a vector is meant; if several have, none can be."""
    twice, names_before = cells.copy(), cells.var_names.tolist()
    lost = int(np.flatnonzero(np.isnan(cells.varm["tahoe"]).any(1))[0])
    place = names_before.index("NKG7")
    assert lost < place
    twice.var_names = [*names_before[:lost], "NKG7", *names_before[lost + 1 :]]
    found = tahoe.pl.gene_neighbors(twice, "NKG7", min_cells=5)
    assert names(found) == names(tahoe.pl.gene_neighbors(cells, "NKG7", min_cells=5))
    twice.var_names = [*names_before[: place + 1], *["NKG7"] * (len(names_before) - place - 1)]
    with pytest.raises(
        InputError, match=r"is the name of \d+ columns with an embedding; call adata.var_names_make_unique"
    ):
        tahoe.pl.gene_neighbors(twice, "NKG7")


@pytest.mark.parametrize(
    ("gene", "options", "message"),
    [
        ("NKG", {}, r"gene='NKG' is not in adata.var_names \(near: 'NKG7'"),
        ("NKG7", {"key": "nothing"}, r"varm\['nothing'\] does not exist; call tahoe.tl.embed_genes\(adata\) first"),
        ("NKG7", {"key": "by_kind"}, r"uns\['by_kind'\] has 2 groups; pass group=, such as 'a/b'"),
        ("NKG7", {"key": "by_kind", "group": "othr"}, "group='othr' is not a group of.*which has 'other'"),
        ("NKG7", {"group": "other"}, "which has none; omit group="),
        ("NKG7", {"n_neighbors": 0}, "n_neighbors=0"),
        ("NKG7", {"min_cells": 10_000}, "expressed in min_cells=10000 cells; lower it"),
        ("TNFRSF17", {}, "gene='TNFRSF17' has no embedding"),
    ],
)
def test_bad_arguments(cells, gene, options, message):
    with pytest.raises(InputError, match=message):
        tahoe.pl.gene_neighbors(cells, gene, **options)
    assert not plt.get_fignums()
