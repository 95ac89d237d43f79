from __future__ import annotations

import pandas as pd
import pytest
from matplotlib import pyplot as plt

import tahoe
from tahoe.errors import InputError

COLUMNS = ["metric", "representation", "kind", "value", "standard_error"]


@pytest.fixture
def table():
    rows = [
        ("accuracy", "X_tahoe", "given", 0.8, 0.01),
        ("accuracy", "PCA", "baseline", 0.7, 0.02),
        ("accuracy", "random", "baseline", 0.3, float("nan")),
        ("purity", "X_tahoe", "given", 0.6, float("nan")),
    ]
    yield pd.DataFrame(rows, columns=COLUMNS)
    plt.close("all")


def test_dots_and_intervals(table):
    axes = tahoe.pl.evaluation(table)
    assert [ax.get_title(loc="left") for ax in axes] == ["accuracy", "purity"]
    assert [tick.get_text() for tick in axes[0].get_yticklabels()] == ["X_tahoe", "PCA", "random"]
    baselines, given = axes[0].containers
    assert given.lines[0].get_xdata() == pytest.approx([0.8])
    (interval,) = given.lines[2][0].get_segments()
    assert interval[:, 0] == pytest.approx([0.8 - 1.96 * 0.01, 0.8 + 1.96 * 0.01])
    assert baselines.lines[0].get_xdata() == pytest.approx([0.7, 0.3])
    best = [line for line in axes[0].get_lines() if line.get_linestyle() == ":"]
    assert best[0].get_xdata()[0] == 0.7


def test_some_metrics(table):
    (ax,) = tahoe.pl.evaluation(table, metrics="purity")
    assert ax.get_title(loc="left") == "purity"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda table: (table.drop(columns="value"), None), "no column 'value'"),
        (lambda table: (table.iloc[:0], None), "no rows"),
        (lambda table: (table, "F1"), r"\['F1'\]: not in the table"),
        (lambda table: ([1], None), "no column"),
    ],
)
def test_bad_tables(table, change, told):
    table, metrics = change(table)
    with pytest.raises(InputError, match=told):
        tahoe.pl.evaluation(table, metrics=metrics)
