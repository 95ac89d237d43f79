from __future__ import annotations

import warnings

import anndata
import numpy as np
import pytest

import tahoe
from tahoe.errors import InputError, TahoeWarning


@pytest.fixture(scope="module")
def clouds(tmp_path_factory):
    """Three types of two donors, overlapping a little, as vectors with the record of an embedding."""
    import pandas as pd

    def draw(n, seed):
        rng = np.random.default_rng(seed)
        types = rng.choice(3, n, p=[0.5, 0.3, 0.2])
        vectors = np.eye(12)[types * 4] + 0.22 * rng.standard_normal((n, 12))
        obs = pd.DataFrame(index=[f"{seed}-{i}" for i in range(n)])
        obs["type"] = pd.Categorical.from_codes(types, ["T/NK", "B", "mono"])
        obs["broad"] = np.where(types < 2, "lymphoid", "myeloid")
        obs["donor"] = np.where(rng.random(n) < 0.5, "d1", "d2")
        cells = anndata.AnnData(obs=obs)
        cells.obsm["X_tahoe"] = vectors.astype(np.float32)
        cells.uns["X_tahoe"] = {
            "tahoe_version": "0", "model": "demo", "model_sha256": "a", "vocabulary_sha256": "b", "max_length": 9,
            "seed": 0, "normalize": False,
        }  # fmt: skip
        return cells

    return draw


@pytest.fixture(scope="module")
def atlas(clouds, tmp_path_factory):
    path = tmp_path_factory.mktemp("reference") / "atlas.tahoe"
    return tahoe.build_reference(clouds(900, 0), path, obs_keys=["type", "broad"], groups="donor")


def test_all_that_is_written(clouds, atlas):
    cells = clouds(400, 1)
    cells.obs["cluster"] = cells.obs["type"].astype(str)
    tahoe.tl.transfer_labels(cells, atlas, obs_key="type", k=30, cluster_key="cluster")
    truth, told = cells.obs["type"].astype(str), cells.obs["type_tahoe"]
    known = told != "unknown"
    assert told.dtype == "category"
    assert (told[known].astype(str) == truth[known]).mean() > 0.95
    assert 0.01 < (~known).mean() < 0.1
    confidence, p = cells.obs["type_tahoe_confidence"], cells.obs["type_tahoe_novelty_p"]
    assert ((confidence > 0) & (confidence < 1)).all()
    np.testing.assert_array_equal(~known, p <= 0.05)
    labels = cells.uns["type_tahoe"]["labels"]
    assert labels == ["T/NK", "B", "mono"]
    np.testing.assert_allclose(cells.obsm["type_tahoe_shares"].sum(axis=1), 1, rtol=1e-5)
    in_set = cells.obsm["type_tahoe_set"]
    assert in_set.dtype == bool
    assert in_set[np.arange(400), [labels.index(label) for label in truth]].mean() > 0.93
    assert (cells.obs["type_tahoe_cluster"].astype(str) == truth).all()
    assert cells.uns["type_tahoe"]["groups"] == "donor"


def test_cells_of_another_laboratory(clouds, atlas):
    """All are farther from the reference than its own cells; a few are of a type that it lacks."""
    cells = clouds(600, 1)
    embeddings = cells.obsm["X_tahoe"]
    embeddings[:, 1] += 1.2  # the laboratory
    embeddings[::20, 2] += 6  # another type
    novel = np.arange(600) % 20 == 0
    with pytest.warns(TahoeWarning, match="pass mostly_known=True"):
        far = tahoe.tl.transfer_labels(cells, atlas, obs_key="type", k=30, copy=True)
    assert (far.obs["type_tahoe"] == "unknown")[~novel].mean() > 0.3
    with warnings.catch_warnings():
        warnings.simplefilter("error", TahoeWarning)
        tahoe.tl.transfer_labels(cells, atlas, obs_key=["type", "broad"], k=30, mostly_known=True)
    for key in ("type", "broad"):
        unknown = cells.obs[f"{key}_tahoe"] == "unknown"
        assert unknown[~novel].mean() < 0.08
        assert unknown[novel].mean() > 0.9
        assert cells.uns[f"{key}_tahoe"]["mostly_known"]
        assert (cells.uns[f"{key}_tahoe"]["distance_ratios"] > 1.1).all()
    # nothing but novelty changes
    np.testing.assert_array_equal(cells.obsm["type_tahoe_shares"], far.obsm["type_tahoe_shares"])
    np.testing.assert_array_equal(cells.obs["type_tahoe_confidence"], far.obs["type_tahoe_confidence"])


def test_too_few_cells_to_know_the_most_of(clouds, atlas):
    cells = clouds(19, 1)
    with pytest.raises(InputError, match="mostly_known=True needs 20 cells"):
        tahoe.tl.transfer_labels(cells, atlas, obs_key="type", k=30, mostly_known=True)
    assert list(cells.obs) == ["type", "broad", "donor"]


def test_several_columns_at_once(clouds, atlas):
    both, one = clouds(100, 1), clouds(100, 1)
    tahoe.tl.transfer_labels(both, atlas, obs_key=["type", "broad"], k=20)
    tahoe.tl.transfer_labels(one, atlas, obs_key="broad", k=20, key_added="mine")
    assert both.obs["broad_tahoe"].tolist() == one.obs["mine"].tolist()
    np.testing.assert_array_equal(both.obsm["broad_tahoe_set"], one.obsm["mine_set"])
    with pytest.raises(InputError, match="key_added='x' is the name of one result"):
        tahoe.tl.transfer_labels(both, atlas, obs_key=["type", "broad"], key_added="x")


def test_it_survives_files(clouds, atlas, tmp_path, write_zarr):
    cells = clouds(60, 1)
    cells.obsm["X_tahoe"][3] = np.nan
    with pytest.warns(TahoeWarning, match="1 of 60 cells have no embedding"):
        tahoe.tl.transfer_labels(cells, atlas, obs_key="type", k=20)
    assert cells.obs["type_tahoe"].iloc[3] == "unknown"
    assert np.isnan(cells.obs["type_tahoe_confidence"].iloc[3])
    assert not cells.obsm["type_tahoe_set"][3].any()
    cells.write_h5ad(tmp_path / "cells.h5ad")
    write_zarr(cells, tmp_path / "cells.zarr")
    for again in (anndata.read_h5ad(tmp_path / "cells.h5ad"), anndata.read_zarr(tmp_path / "cells.zarr")):
        assert again.obs["type_tahoe"].tolist() == cells.obs["type_tahoe"].tolist()
        np.testing.assert_array_equal(again.obsm["type_tahoe_shares"], cells.obsm["type_tahoe_shares"])
        np.testing.assert_array_equal(again.obsm["type_tahoe_set"], cells.obsm["type_tahoe_set"])
        assert list(again.uns["type_tahoe"]["labels"]) == cells.uns["type_tahoe"]["labels"]


def test_the_order_of_the_cells_changes_nothing(clouds, atlas):
    cells = clouds(100, 1)
    order = np.random.default_rng(0).permutation(100)
    turned = cells[order].copy()
    for each in (cells, turned):
        tahoe.tl.transfer_labels(each, atlas, obs_key="type", k=20)
    for column in ("type_tahoe", "type_tahoe_confidence", "type_tahoe_novelty_p"):
        assert cells.obs[column].iloc[order].tolist() == turned.obs[column].tolist()


def test_no_cell_votes_for_itself(clouds, tmp_path):
    """Labels by chance: whoever voted for itself would be told right."""
    cells = clouds(300, 0)
    cells.obs["random"] = np.random.default_rng(0).integers(0, 2, 300).astype(str)
    atlas = tahoe.build_reference(cells, tmp_path / "atlas", obs_keys="random")
    for names in (cells.obs_names, cells.obs_names + "-1"):
        again = cells.copy()
        again.obs_names = names
        tahoe.tl.transfer_labels(again, atlas, obs_key="random", k=1, alpha=0.01)
        assert (again.obs["random_tahoe"].astype(str) == cells.obs["random"].to_numpy()).mean() < 0.65


def test_few_cells_of_a_label(clouds, tmp_path):
    cells = clouds(300, 0)
    cells.obs["type"] = cells.obs["type"].cat.add_categories("rare")
    cells.obs.iloc[:4, 0] = "rare"
    atlas = tahoe.build_reference(cells, tmp_path / "atlas", obs_keys="type")
    query = clouds(20, 1)
    with pytest.warns(TahoeWarning, match=r"1 of 4 labels have fewer than k=30 cells and can hardly win \('rare'\)"):
        tahoe.tl.transfer_labels(query, atlas, obs_key="type", k=30)
    assert list(query.uns["type_tahoe"]["labels_without_novelty"]) == ["rare"]


def test_few_held_back_cells(clouds, tmp_path):
    atlas = tahoe.build_reference(clouds(15, 0), tmp_path / "atlas", obs_keys="broad")
    query = clouds(20, 1)
    with pytest.warns(TahoeWarning, match="only 15 held-back cells"):
        tahoe.tl.transfer_labels(query, atlas, obs_key="broad", k=2)
    assert query.obsm["broad_tahoe_set"].all()


def test_a_label_that_is_called_unknown(clouds, tmp_path):
    cells = clouds(200, 0)
    cells.obs["broad"] = cells.obs["broad"].replace("myeloid", "unknown")
    atlas = tahoe.build_reference(cells, tmp_path / "atlas", obs_keys="broad")
    with pytest.warns(TahoeWarning, match="'unknown' is a label of the reference too"):
        tahoe.tl.transfer_labels(cells, atlas, obs_key="broad", k=5)


def test_cells_without_a_label_have_no_vote(clouds, tmp_path):
    cells = clouds(300, 0)
    cells.obs.loc[cells.obs["type"] == "B", "type"] = np.nan
    atlas = tahoe.build_reference(cells, tmp_path / "atlas", obs_keys="type")
    query = clouds(100, 1)
    tahoe.tl.transfer_labels(query, atlas, obs_key="type", k=30, alpha=0.01)
    assert set(query.obs["type_tahoe"]) <= {"T/NK", "mono", "unknown"}


BAD = {
    "no such column": ({"obs_key": "kind"}, "obs_key='kind' is not a column of the reference .*'type', 'broad'"),
    "none": ({"obs_key": []}, "obs_key= is empty"),
    "k": ({"k": 901}, "k=901"),
    "many": ({"k": 201}, "at most that"),
    "alpha": ({"alpha": 1}, "alpha=1; it must be between 0 and 1"),
    "cluster": ({"cluster_key": "leiden"}, "cluster_key='leiden' is not a column"),
    "key": ({"key_added": "a/b"}, "without '/'"),
}


@pytest.mark.parametrize(("arguments", "told"), BAD.values(), ids=BAD)
def test_bad_arguments_change_nothing(clouds, atlas, arguments, told):
    cells = clouds(30, 1)
    before = str(cells)
    with pytest.raises(InputError, match=told):
        tahoe.tl.transfer_labels(cells, atlas, **{"obs_key": "type", "k": 20, **arguments})
    assert str(cells) == before


def test_cells_that_are_unlike_the_reference_are_told(clouds, atlas):
    cells = clouds(100, 1)
    cells.obsm["X_tahoe"] = np.random.default_rng(0).standard_normal((100, 12)).astype(np.float32)
    with pytest.warns(TahoeWarning, match=r"\d\d% of the cells are unknown by 'type' .* alpha=0.05 allows 5%"):
        tahoe.tl.transfer_labels(cells, atlas, obs_key="type", k=20)


def test_a_copy(clouds, atlas):
    cells = clouds(30, 1)
    changed = tahoe.tl.transfer_labels(cells, atlas, obs_key="type", k=20, copy=True)
    assert "type_tahoe" in changed.obs
    assert "type_tahoe" not in cells.obs


def test_a_slot_of_somebody_else_is_overwritten_with_a_warning(clouds, atlas):
    cells = clouds(30, 1)
    cells.obs["type_tahoe"] = "mine"
    with pytest.warns(TahoeWarning, match=r"obs\['type_tahoe'\] will be overwritten"):
        tahoe.tl.transfer_labels(cells, atlas, obs_key="type", k=20)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tahoe.tl.transfer_labels(cells, atlas, obs_key="type", k=20)
