"""The store by itself: where shards stand, when one is done, and which runs may go on."""

from __future__ import annotations

from types import SimpleNamespace

import anndata
import numpy as np
import pandas as pd
import pytest
import zarr

from tahoe._store.shards import Store, check_same
from tahoe.errors import InputError

FINGERPRINT = {"seed": 0, "model": "a", "drugs": None}


def begun(tmp_path):
    """A store of seventeen cells in shards of five."""
    store = Store(tmp_path / "out.zarr", "X_tahoe", n_cells=17, width=3, dtype="float32", cells_per_shard=5)
    store.unfinished.mkdir()
    store.begin(FINGERPRINT, resume=False)
    return store


@pytest.fixture
def store(tmp_path):
    return begun(tmp_path)


def write(store, shard):
    """Vectors that say which cell they belong to."""
    start, stop = store.rows(shard)
    cells = np.arange(start, stop)
    store.write(shard, (cells[:, None] + np.arange(3) / 10).astype(np.float32), cells % 4)


def test_each_shard_stands_in_its_place(tmp_path):
    store = begun(tmp_path)
    assert store.n_shards == 4
    assert [store.rows(shard) for shard in range(4)] == [(0, 5), (5, 10), (10, 15), (15, 17)]
    for shard in (2, 0, 3, 1):
        write(store, shard)
    root = zarr.open_group(store.unfinished / "store", mode="r", use_consolidated=False)
    expected = (np.arange(17)[:, None] + np.arange(3) / 10).astype(np.float32)
    np.testing.assert_array_equal(root["obsm"]["X_tahoe"][:], expected)
    np.testing.assert_array_equal(root["obs"]["tahoe_n_genes"][:], np.arange(17) % 4)


def test_a_shard_is_done_when_it_is_there(store):
    missing = [0, 1, 2, 3]
    assert store.missing() == missing
    assert store.state() == "0 of 4 shards are finished and stay"
    for shard in (2, 0):
        assert not store.has(shard)
        write(store, shard)
        missing.remove(shard)
        assert store.missing() == missing
    assert [store.has(shard) for shard in range(4)] == [True, False, True, False]
    assert store.state() == "2 of 4 shards are finished and stay"


@pytest.mark.filterwarnings("ignore:zarr v3 autosharding")
def test_a_store_appears_when_it_is_finished(store):
    source = SimpleNamespace(copy_obs=lambda obs, columns, without: [])
    names = pd.Index([f"g{i}" for i in range(2)])
    root = zarr.open_group(store.unfinished / "store", mode="r+", use_consolidated=False)
    anndata.io.write_elem(root["obs"], "_index", np.arange(17).astype(str).astype(object))
    root["obs"].attrs["_index"] = "_index"
    store.describe(source, pd.DataFrame(index=names), {"X_tahoe": {"model": "a"}}, keep_metadata=False)
    for shard in range(4):
        assert not store.output.exists()
        write(store, shard)
    assert store.finish() == 5
    assert not (store.unfinished / "run.json").exists()
    adata = anndata.read_zarr(store.output)
    assert adata.shape == (17, 2)
    assert adata.obs["tahoe_n_genes"].tolist() == (np.arange(17) % 4).tolist()
    assert adata.uns["X_tahoe"]["model"] == "a"


def test_an_unfinished_store_is_gone_on_with_only_if_asked(store):
    write(store, 1)
    with pytest.raises(InputError, match="unfinished run; pass resume=True"):
        store.begin(FINGERPRINT, resume=False)
    store.begin(FINGERPRINT, resume=True)
    assert store.has(1)
    for key in FINGERPRINT:
        with pytest.raises(InputError, match=rf"differs: {key} \({FINGERPRINT[key]} then, other now\)"):
            store.begin(FINGERPRINT | {key: "other"}, resume=True)
    assert store.has(1)


def test_what_only_one_of_two_runs_has_differs():
    check_same({"a": 1}, {"a": 1}, "there")
    for before, now in (({"a": 1}, {"a": 1, "b": 2}), ({"a": 1, "b": 2}, {"a": 1})):
        with pytest.raises(InputError, match=r"run in 'there' cannot go on, .*differs: b \("):
            check_same(before, now, "there")


def test_the_last_stored_type_and_another_key(tmp_path):
    store = Store(tmp_path / "out.zarr", "X_mine", n_cells=4, width=2, dtype="float16", cells_per_shard=4)
    store.unfinished.mkdir()
    store.begin({}, resume=False)
    store.write(0, np.full((4, 2), 1 / 3, np.float32), np.ones(4, np.int64))
    root = zarr.open_group(store.unfinished / "store", mode="r", use_consolidated=False)
    assert root["obsm"]["X_mine"].dtype == np.float16
    assert set(root["obs"].keys()) == {"mine_n_genes"}
