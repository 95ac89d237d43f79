from __future__ import annotations

import anndata
import matplotlib
import numpy as np
import pandas as pd
import pytest

import tahoe
from tahoe.errors import InputError

matplotlib.use("agg")


@pytest.fixture
def labelled():
    """A result as `tahoe.tl.transfer_labels` writes it."""
    obs = pd.DataFrame(index=[str(i) for i in range(10)])
    obs["t"] = pd.Categorical(["a"] * 5 + ["b"] * 3 + ["unknown"] * 2)
    obs["t_confidence"] = np.linspace(0, 0.9, 10)
    obs["cluster"] = ["y"] * 4 + ["x"] * 6
    cells = anndata.AnnData(obs=obs)
    cells.uns["t"] = {"labels": ["c", "b", "a"], "set_threshold": 0.5}
    return cells


def test_bars(labelled):
    ax = tahoe.pl.label_transfer(labelled, "t")
    assert [text.get_text() for text in ax.get_yticklabels()] == ["a", "b", "unknown"]
    assert [patch.get_width() for patch in ax.patches] == [5, 3, 2]
    assert ax.texts[0].get_text() == "5 · 0.20"


def test_against_clusters(labelled):
    ax = tahoe.pl.label_transfer(labelled, "t", groupby="cluster")
    assert [text.get_text() for text in ax.get_xticklabels()] == ["b", "a", "unknown"]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["x", "y"]  # by their commonest labels
    np.testing.assert_allclose(ax.images[0].get_array(), [[3 / 6, 1 / 6, 2 / 6], [0, 1, 0]])
    assert {"50", "17", "33", "100", "4 · 0.15"} <= {text.get_text() for text in ax.texts}


def test_given_axes_and_bad_keys(labelled):
    from matplotlib import pyplot as plt

    ax = plt.subplots()[1]
    assert tahoe.pl.label_transfer(labelled, "t", ax=ax) is ax
    with pytest.raises(InputError, match="key='u' is no result of tahoe.tl.transfer_labels; there is 't'"):
        tahoe.pl.label_transfer(labelled, "u")
    with pytest.raises(InputError, match="groupby='leiden'"):
        tahoe.pl.label_transfer(labelled, "t", groupby="leiden")
