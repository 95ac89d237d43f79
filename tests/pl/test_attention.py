from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pytest

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.patches import FancyArrowPatch

import tahoe
from tahoe.errors import InputError


@pytest.fixture(scope="module")
def cells():
    cells = tahoe.datasets.pbmc68k()[::6].copy()
    cells.obs["kind"] = np.where(cells.obs["bulk_labels"] == "Dendritic", "a/b", "other")
    with tahoe.settings.override(progress=False):
        tahoe.tl.attention(cells, "demo", min_cells=5)
        genes = ["CD74", "HLA-DRA", "CD3D"]
        tahoe.tl.attention(cells, "demo", genes=genes, min_cells=1, groupby="kind", key_added="by_kind")
    return cells


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def strongest(cells, n_pairs):
    weights = cells.varp["tahoe_attention"].toarray()
    np.fill_diagonal(weights, 0)
    order = np.argsort(-weights, axis=None, kind="stable")[:n_pairs]
    return weights, list(zip(*np.unravel_index(order, weights.shape), strict=True))


def test_heatmap_of_the_genes_of_the_strongest_pairs(cells):
    ax = tahoe.pl.attention(cells, n_pairs=12)
    weights, pairs = strongest(cells, 12)
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert set(names) == {cells.var_names[gene] for pair in pairs for gene in pair}
    assert names == [label.get_text() for label in ax.get_xticklabels()]
    columns = cells.var_names.get_indexer(names)
    shown = ax.images[0].get_array().filled(np.nan)
    np.testing.assert_array_equal(np.nan_to_num(shown), weights[np.ix_(columns, columns)])
    assert ax.get_ylabel() == "attends"


def test_heatmap_of_given_genes_in_a_group(cells):
    _, ax = plt.subplots()
    genes = ["CD74", "HLA-DRA"]
    assert tahoe.pl.attention(cells, genes=genes, key="by_kind", group="a/b", ax=ax) is ax
    assert {label.get_text() for label in ax.get_yticklabels()} == set(genes)
    assert ax.get_title(loc="left") == "Attention between genes in a/b"
    assert len(plt.get_fignums()) == 1


def test_network_has_an_arrow_for_each_pair(cells):
    ax = tahoe.pl.attention(cells, kind="network", n_pairs=9)
    _, pairs = strongest(cells, 9)
    places = {text.get_text(): np.array(text.get_position()) for text in ax.texts}

    def gene_at(place):
        return min(places, key=lambda name: np.linalg.norm(places[name] - place))

    ends = [arrow._path_original.vertices[[0, -1]] for arrow in ax.patches if isinstance(arrow, FancyArrowPatch)]
    arrows = {(gene_at(start), gene_at(end)) for start, end in ends}
    assert arrows == {(cells.var_names[row], cells.var_names[other]) for row, other in pairs}


def test_two_columns_of_one_name_are_two_genes(cells):
    _, pairs = strongest(cells, 9)
    (first, second), *_ = pairs
    twice = cells.copy()
    twice.var_names = [
        cells.var_names[first] if place == second else name for place, name in enumerate(cells.var_names)
    ]
    ax = tahoe.pl.attention(twice, kind="network", n_pairs=9)
    assert len(ax.texts) == len({gene for pair in pairs for gene in pair})
    assert sum(isinstance(arrow, FancyArrowPatch) for arrow in ax.patches) == 9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "graph"}, "kind='graph' is unknown; choose from 'heatmap', 'network'"),
        ({"genes": ["CD7x"]}, r"genes=\['CD7x'\]: not in adata.var_names"),
        ({"genes": ["CD74"]}, "no attention between these genes"),
        ({"key": "nothing"}, r"varp\['nothing'\] does not exist; call tahoe.tl.attention\(adata\) first"),
        ({"key": "by_kind"}, "has 2 groups; pass group="),
        ({"key": "by_kind", "group": "b"}, "group='b' is not a group of"),
        ({"n_pairs": 0}, "n_pairs=0"),
    ],
)
def test_bad_arguments(cells, options, message):
    with pytest.raises(InputError, match=message):
        tahoe.pl.attention(cells, **options)
    assert not plt.get_fignums()
