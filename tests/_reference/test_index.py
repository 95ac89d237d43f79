"""An index finds nearly what exact search finds, survives a kill, and is missed by name."""

from __future__ import annotations

import importlib.util
import warnings

import numpy as np
import pytest

import tahoe
from tahoe._reference import index
from tahoe._reference.embeddings import unit
from tahoe.errors import InputError

KEYS = {"obs_keys": "type", "cells_per_shard": 700}


def test_without_the_library(cells, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r'needs faiss: pip install "tahoe-anndata\[search\]"'):
        tahoe.build_reference(cells, tmp_path / "atlas", index=True)
    assert not list(tmp_path.iterdir())
    assert not index.wanted("auto", 10)
    assert not index.wanted("auto", 10_000_000)


@pytest.fixture(scope="module")
def faiss():
    return pytest.importorskip("faiss")


@pytest.fixture(scope="module")
def indexed(faiss, make_clouds, tmp_path_factory):
    cells = make_clouds(4000, n_types=6)
    cells.obsm["X_tahoe"][5] = np.nan
    folder = tmp_path_factory.mktemp("reference")
    with pytest.warns(tahoe.errors.TahoeWarning, match="1 of 4000 cells"):
        return cells, tahoe.build_reference(cells, folder / "atlas", index=True, **KEYS)


def test_it_finds_what_exact_search_finds(indexed, make_clouds):
    _, atlas = indexed
    queries = unit(make_clouds(200, seed=2, n_types=6).obsm["X_tahoe"])
    queries[3] = np.nan
    assert atlas.index["library"] == "faiss"
    found, distances = atlas.nearest(queries, 20)
    exact, exactly = atlas.nearest(queries, 20, exact=True)
    assert (found[3] == -1).all()
    same = [len(np.intersect1d(a, b)) / 20 for a, b in zip(np.delete(found, 3, 0), np.delete(exact, 3, 0), strict=True)]
    assert np.mean(same) > 0.99
    np.testing.assert_array_equal(found[:, 0], exact[:, 0])
    np.testing.assert_array_equal(distances[:, 0], exactly[:, 0])
    assert not (found == 5).any()


def test_a_build_that_stops_in_the_index_goes_on(indexed, tmp_path, monkeypatch):
    cells, atlas = indexed
    built, n = index._build_shard, 0

    def stops(*arguments):
        nonlocal n
        n += 1
        if n == 3:
            raise KeyboardInterrupt
        return built(*arguments)

    with monkeypatch.context() as broken, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        broken.setattr(index, "_build_shard", stops)
        with pytest.raises(KeyboardInterrupt):
            tahoe.build_reference(cells, tmp_path / "atlas", index=True, **KEYS)
    done = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("atlas.partial/store/index/0*")}
    assert len(done) == 2
    wrote, written = index._write, []

    def noted(made, file):
        written.append(file.name)
        wrote(made, file)

    monkeypatch.setattr(index, "_write", noted)
    with pytest.warns(tahoe.errors.TahoeWarning):
        again = tahoe.build_reference(cells, tmp_path / "atlas", index=True, resume=True, **KEYS)
    assert not set(written) & {*done, index.CENTRES}
    assert again.manifest["files"] == atlas.manifest["files"]


def test_labels_through_an_index(indexed, make_clouds):
    _, atlas = indexed
    query = make_clouds(100, seed=2, n_types=6)
    exact = tahoe.tl.transfer_labels(query, atlas, obs_key="type", k=20, exact=True, copy=True)
    tahoe.tl.transfer_labels(query, atlas, obs_key="type", k=20)
    assert query.obs["type_tahoe"].tolist() == exact.obs["type_tahoe"].tolist()
    assert not query.uns["type_tahoe"]["exact"]


def test_an_indexed_reference_without_the_library(indexed, monkeypatch):
    _, atlas = indexed
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="has an index, which needs faiss"):
        atlas.nearest(np.eye(16, dtype=np.float32), 3)
    assert atlas.nearest(np.eye(16, dtype=np.float32), 3, exact=True)[0].shape == (16, 3)
