from __future__ import annotations

import matplotlib as mpl
import pytest

mpl.use("Agg")
from matplotlib import pyplot as plt

import tahoe
from tahoe.errors import InputError


@pytest.fixture
def mapped(heart):
    cells = heart.copy()  # the original is shared by all tests
    tahoe.pp.map_genes(cells)
    yield cells
    plt.close("all")


def test_draws_one_row_for_each_match_that_occurs(mapped):
    axes = tahoe.pl.gene_mapping(mapped)
    report = mapped.uns["tahoe_genes"]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == [m for m, n in report["genes"].items() if n]
    widths = sorted(bar.get_width() for bar in axes.patches)
    assert widths[-1] == pytest.approx(max(report["genes"]["ensembl"] / report["n_genes"], report["counts"]["ensembl"]))
    assert f"{report['n_in_vocabulary']:,}" in axes.get_title(loc="left")


def test_draws_where_it_is_told_to(mapped):
    _, ax = plt.subplots()
    assert tahoe.pl.gene_mapping(mapped, ax=ax) is ax
    assert len(plt.get_fignums()) == 1


def test_genes_without_counts_are_drawn_too(mapped):
    for key in ("counts", "counts_in_vocabulary", "share_in_vocabulary"):
        del mapped.uns["tahoe_genes"][key]
    axes = tahoe.pl.gene_mapping(mapped)
    assert len(axes.containers) == 2


def test_asks_for_the_mapping(heart):
    with pytest.raises(InputError, match="map_genes"):
        tahoe.pl.gene_mapping(heart)
