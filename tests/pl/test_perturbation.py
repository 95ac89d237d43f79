from __future__ import annotations

import numpy as np
import pytest
from matplotlib import pyplot as plt

import tahoe
from tahoe.errors import InputError


@pytest.fixture(scope="module")
def screened():
    adata = tahoe.datasets.pbmc68k()
    with tahoe.settings.override(progress=False, device="cpu", dtype="float32"):
        goal = ("bulk_labels", "CD4+/CD25 T Reg", "CD14+ Monocyte")
        tahoe.tl.perturb(adata, "demo", goal=goal, n_cells=12, min_cells=3, n_exact=5)
        tahoe.tl.perturb(adata, "demo", genes=["CD3D", "CD3E"], groupby="phase", n_cells=6, key_added="sizes")
    return adata


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


@pytest.mark.parametrize("x", ["rank", "detection"])
@pytest.mark.parametrize("y", [None, "toward", "z"])
def test_every_gene_is_a_dot(screened, x, y):
    ax = tahoe.pl.perturbation(screened, x=x, y=y, n_genes=4)
    table = tahoe.get.perturbation(screened, sort_by=y)
    column = table[y or "projection"].dropna()
    drawn = np.concatenate([dots.get_offsets()[:, 1] for dots in ax.collections[:2]])
    np.testing.assert_allclose(np.sort(drawn), np.sort(column))
    names = {text.get_text() for text in ax.texts}
    assert names == {*table["gene"].head(4), *table.loc[column.index, "gene"].tail(4)}
    assert ax.get_title(loc="left") == f"{len(column):,} genes"


def test_exact_edits_are_rings(screened):
    ax = tahoe.pl.perturbation(screened)
    rings = ax.collections[2].get_offsets()[:, 1]
    table = tahoe.get.perturbation(screened)
    np.testing.assert_allclose(np.sort(rings[~np.isnan(rings)]), np.sort(table["projection_exact"].dropna()))


def test_axes_of_the_user(screened):
    ax = plt.subplots()[1]
    assert tahoe.pl.perturbation(screened, key="sizes", group="G1", ax=ax) is ax
    assert ax.get_ylabel() == "shift (1 − cosine)"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"key": "nothing"}, r"uns\['nothing'\] has no table"),
        ({"key": "sizes"}, "has 3 groups; pass group="),
        ({"key": "sizes", "group": "G3"}, "group='G3' is not a group of"),
        ({"y": "height"}, "y='height' cannot be drawn"),
        ({"y": "away"}, "y='away' cannot be drawn"),
        ({"x": "height"}, "x='height' cannot be drawn"),
        ({"min_edited": 100}, "lower it"),
    ],
)
def test_bad_arguments(screened, options, message):
    with pytest.raises(InputError, match=message):
        tahoe.pl.perturbation(screened, **options)
