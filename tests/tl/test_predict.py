"""Labels and quantities that a model was taught to tell."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import tahoe
from tahoe.errors import InputError, ModelError, TahoeWarning

OPTIONS = {"max_length": 60, "min_coverage": 0}


@pytest.fixture
def cells(tiny_cells):
    """Cell 5 is empty."""
    tiny_cells.obs["type"] = pd.Categorical(["T", "B"] * 32, categories=["T", "B"])
    tiny_cells.obs["age"] = np.linspace(0, 80, 64)
    tiny_cells.obsm["proteins"] = pd.DataFrame(
        np.random.default_rng(0).normal(size=(64, 2)), columns=["CD3", "CD4"], index=tiny_cells.obs_names
    )
    return tiny_cells


@pytest.fixture
def taught(cells, tiny):
    full = cells[np.arange(64) != 5].copy()
    return lambda target, **options: tahoe.fine_tune(full, target, tiny, method="head", **OPTIONS, **options)


def test_classes(cells, taught):
    mine = taught("type")
    with pytest.warns(TahoeWarning, match=r"1 of 64 cells express no gene.*nothing is told of them"):
        tahoe.tl.predict(cells, mine, min_coverage=0)
    shares = cells.obsm["type_probabilities"]
    assert shares.shape == (64, 2)
    assert shares.dtype == np.float32
    assert np.isnan(shares[5]).all()
    assert pd.isna(cells.obs["type_predicted"].iloc[5])
    there = np.arange(64) != 5
    np.testing.assert_allclose(shares[there].sum(axis=1), 1, rtol=1e-5)
    labels = np.array(cells.uns["type_predicted"]["labels"])
    assert labels.tolist() == ["T", "B"]
    assert (cells.obs["type_predicted"][there].astype(str) == labels[shares[there].argmax(axis=1)]).all()
    assert np.array_equal(cells.obs["type_predicted_confidence"], shares.max(axis=1), equal_nan=True)


def test_quantities(cells, taught, tiny):
    full = cells[np.arange(64) != 5].copy()
    tahoe.tl.predict(full, taught(["age", "proteins"]), min_coverage=0)
    assert full.obs["age_predicted"].dtype == np.float32
    assert full.obs["age_predicted"].between(-200, 300).all()
    assert list(full.obsm["proteins_predicted"].columns) == ["CD3", "CD4"]
    assert (full.obsm["proteins_predicted"].index == full.obs_names).all()
    assert "proteins_probabilities" not in full.obsm


def test_provenance(cells, taught, tiny, tmp_path):
    full = cells[np.arange(64) != 5].copy()
    mine = taught("type")
    tahoe.tl.predict(full, mine, min_coverage=0)
    record = full.uns["type_predicted"]
    assert record["base_weights_sha256"] == tiny.weights_sha256
    assert record["model_sha256"] == tiny.weights_sha256
    assert record["fine_tuned_sha256"] == mine.fine_tuned.sha256()
    assert record["max_length"] == 60
    assert record["method"] == "head"
    assert set(record["slots"]) == {
        "obs/type_predicted",
        "obs/type_predicted_confidence",
        "obsm/type_probabilities",
    }
    full.write_h5ad(tmp_path / "cells.h5ad")


def test_names(cells, taught):
    full = cells[np.arange(64) != 5].copy()
    told = tahoe.tl.predict(full, taught("type"), key_added="mine", copy=True, min_coverage=0)
    assert {"mine", "mine_confidence"} < set(told.obs)
    assert "mine_probabilities" in told.obsm
    assert "mine" not in full.obs
    with pytest.raises(InputError, match="name of one result, and the model tells 2"):
        tahoe.tl.predict(full, taught(["type", "age"]), key_added="mine")


def test_slots_of_somebody_else(cells, taught):
    full = cells[np.arange(64) != 5].copy()
    full.obs["type_predicted"] = "T"
    mine = taught("type")
    with pytest.warns(TahoeWarning, match=r"obs\['type_predicted'\] will be overwritten"):
        tahoe.tl.predict(full, mine, min_coverage=0)
    tahoe.tl.predict(full, mine, min_coverage=0)  # ours now


def test_a_model_without_a_head(cells, tiny):
    before = list(cells.obs)
    with pytest.raises(ModelError, match="'tiny-model' has no head"):
        tahoe.tl.predict(cells, tiny)
    assert list(cells.obs) == before


def test_other_genes_than_in_training(cells, taught):
    full = cells[np.arange(64) != 5].copy()
    full.var["some"] = np.arange(full.n_vars) % 10 > 0
    with pytest.warns(TahoeWarning, match=r"trained without mask_var=, and mask_var=… here; pass it as in training"):
        tahoe.tl.predict(full, taught("type"), mask_var="some", min_coverage=0)


def test_a_cell_is_told_by_itself(cells, taught):
    full = cells[np.arange(64) != 5].copy()
    mine = taught("type")
    one = full[7:8].copy()
    for each in (full, one):
        tahoe.tl.predict(each, mine, min_coverage=0)
    np.testing.assert_allclose(one.obsm["type_probabilities"][0], full.obsm["type_probabilities"][7], rtol=1e-6)
