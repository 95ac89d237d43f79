"""What can be learned, and what is refused before anything is computed."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from tahoe._fine_tune.targets import read_targets
from tahoe.errors import InputError, TahoeWarning


def made(n=12, **obs):
    return anndata.AnnData(np.zeros((n, 2), np.float32), obs=pd.DataFrame(obs, index=[f"c{i}" for i in range(n)]))


def read(values, name="x"):
    return read_targets(made(len(values), **{name: values}), name)[0]


@pytest.mark.parametrize(
    ("values", "labels", "codes"),
    [
        (["b", "a", "b", "a"], ("a", "b"), [1, 0, 1, 0]),
        ([True, False, True, True], ("False", "True"), [1, 0, 1, 1]),
        (pd.Categorical(["b", "a", None, "b"], categories=["b", "a", "unused"]), ("b", "a"), [0, 1, -1, 0]),
        (["0", "1", "10", "0", "10", "1"], ("0", "1", "10"), [0, 1, 2, 0, 2, 1]),
        (pd.Categorical([0, 1, 0, 1]), ("0", "1"), [0, 1, 0, 1]),
    ],
)
def test_classes(values, labels, codes):
    found = read(values)
    assert found.target.kind == "classes"
    assert found.target.labels == labels
    assert found.values.tolist() == codes
    assert found.there.tolist() == [code >= 0 for code in codes]


def test_quantities():
    found = read([1.5, np.nan, 3.25])
    assert found.target.kind == "quantities"
    assert found.there.tolist() == [True, False, True]
    nullable = read(pd.array([1.5, None, 3.25], dtype="Float64"))
    assert np.array_equal(nullable.values, found.values, equal_nan=True)
    with pytest.warns(TahoeWarning, match=r"3 whole numbers and is learned as a quantity.*astype\(str\)"):
        read([1, 2, 3, 3])


@pytest.mark.parametrize("make", [np.asarray, sparse.csr_matrix, lambda x: pd.DataFrame(x, columns=["CD3", "CD4"])])
def test_tables(make):
    adata, table = made(4), np.arange(8.0).reshape(4, 2)
    value = make(table)
    if isinstance(value, pd.DataFrame):
        value.index = adata.obs_names
    adata.obsm["proteins"] = value
    (found,) = read_targets(adata, "proteins")
    assert found.target.slot == "obsm"
    assert found.target.labels == (("CD3", "CD4") if isinstance(value, pd.DataFrame) else ("0", "1"))
    assert np.array_equal(found.values, table)


@pytest.mark.parametrize(
    ("values", "match"),
    [
        (["a"] * 4, r"one value, a: there is nothing to tell apart"),
        ([None] * 4, "no value"),
        ([2.0, 2.0, np.nan], "one value, 2.0"),
        ([1.0, np.inf, 2.0], "infinite values, in 1 cells"),
        (["1.5", "2.5", "n/a", "3.5", "1.5", "2.5"], r"is text, and its values are numbers such as '1\.5' and 'n/a'"),
        (["0.1", "0.2", "0.1", "0.2"], r"for a quantity: adata\.obs\['x'\] = pandas\.to_numeric"),
        ([f"cell {number}" for number in range(8)], "8 labels for 8 cells"),
        (pd.Categorical([1, "1", 1, "1"], categories=[1, "1"]), "both written '1'"),
    ],
)
def test_what_cannot_be_learned(values, match):
    with pytest.raises(InputError, match=match):
        read(values)


def test_no_such_target():
    adata = made(4, cell_type=list("abab"))
    adata.obsm["proteins"] = np.ones((4, 2))
    adata.obsm["words"] = pd.DataFrame({"a": list("abcd")}, index=adata.obs_names)
    for target, match in (
        ("cel_type", "neither in adata.obs nor in adata.obsm, which have 'cell_type'"),
        ([], "pass the name"),
        (["cell_type", "cell_type"], "once"),
        ("proteins", "one value, 1.0 in column 0"),
        ("words", "must be a table of numbers"),
    ):
        with pytest.raises(InputError, match=match):
            read_targets(adata, target)
    adata.obsm["cell_type"] = np.ones((4, 2))
    with pytest.raises(InputError, match=r"both in adata\.obs and in adata\.obsm"):
        read_targets(adata, "cell_type")
