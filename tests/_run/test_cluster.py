"""The same on the workers of a dask cluster: bits, counts, and what happens when a worker dies."""

from __future__ import annotations

import os
import signal
import threading
import time
import warnings

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import tahoe
from tahoe._run.means import AttentionMeans, GeneMeans
from tahoe.errors import InputError, ModelError, TahoeWarning
from tahoe.model.files import WEIGHTS_FILE, file_sha256

dask = pytest.importorskip("dask.array")
distributed = pytest.importorskip("distributed")
pytest.importorskip("xarray")
ROWS = 120
# Threads and sockets of the cluster end when they like.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")


@pytest.fixture(scope="module")
def client():
    with (
        warnings.catch_warnings(),
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0") as cluster,
    ):
        warnings.simplefilter("ignore")
        with distributed.Client(cluster) as client:
            yield client


@pytest.fixture(scope="module")
def file(tmp_path_factory, read_cells, reference):
    cells = read_cells(reference / "tiny-input.npz")
    matrix = sparse.vstack([cells.X] * 5, format="csr")[:ROWS]
    obs = pd.DataFrame({"group": np.resize(["a", "b", "c"], ROWS)}, index=[f"cell {i}" for i in range(ROWS)])
    adata = anndata.AnnData(matrix, obs=obs, var=pd.DataFrame({"tahoe_gene": cells.var_names}, index=cells.var_names))
    path = tmp_path_factory.mktemp("cluster") / "cells.h5ad"
    adata.write_h5ad(path)
    return path


@pytest.fixture(scope="module")
def model(reference):
    return reference / "tiny-model"


@pytest.fixture(scope="module")
def truth(file, model):
    adata = anndata.read_h5ad(file)
    with pytest.warns(TahoeWarning, match="express no gene"), tahoe.settings.override(device="cpu"):
        tahoe.tl.embed(adata, model, dtype="float32")
    return adata.obsm["X_tahoe"]


def lazy(file, rows=40):
    adata = anndata.experimental.read_lazy(file)
    adata.X = adata.X.rechunk((rows, -1))
    return adata


def loaded_models():
    from tahoe._run import cluster as _dask

    return len(_dask._loaded)


def test_a_lazy_result_is_computed_on_the_workers(client, file, model, truth):
    adata = lazy(file)
    tahoe.tl.embed(adata, model, dtype="float32")
    np.testing.assert_array_equal(adata.obsm["X_tahoe"].compute(), truth)
    assert adata.uns["X_tahoe"]["dtype"] == "float32"
    assert adata.uns["X_tahoe"]["device"] == "cpu"
    # once a worker, and only what was referred to
    assert all(n <= 2 for n in client.run(loaded_models).values())


def test_gene_embeddings_are_summed_on_the_workers(client, file, model):
    adata, here = lazy(file), anndata.read_h5ad(file)
    for each in (adata, here):
        tahoe.tl.embed_genes(each, model, groupby="group", dtype="float32")
    for group in "abc":
        np.testing.assert_allclose(adata.varm[f"tahoe_{group}"], here.varm[f"tahoe_{group}"], atol=1e-6, rtol=0)
    np.testing.assert_array_equal(adata.varm["tahoe_n_cells"], here.varm["tahoe_n_cells"])


def test_attention_is_summed_on_the_workers(client, file, model):
    adata, here = lazy(file, rows=60), anndata.read_h5ad(file)
    for each in (adata, here):
        tahoe.tl.attention(each, model, min_cells=1, genes=here.var_names[:50].tolist(), dtype="float32")
    difference = abs(adata.varp["tahoe_attention"] - here.varp["tahoe_attention"])
    assert difference.max() < 1e-7
    assert here.varp["tahoe_attention"].nnz > 1000


def test_expression_is_predicted_on_the_workers(client, file, model):
    adata, here = lazy(file), anndata.read_h5ad(file)
    known = here.var_names[tahoe.load_model(model).vocabulary.tokens_of(here.var["tahoe_gene"]) >= 0]
    for each in (adata, here):
        tahoe.tl.predict_expression(each, model, mask_fraction=0.2, dtype="float32")
        tahoe.tl.predict_expression(each, model, genes=known[:2].tolist(), key_added="asked", dtype="float32")
    difference = abs(adata.layers["tahoe_expression"] - here.layers["tahoe_expression"])
    assert difference.max() < 1e-4
    assert here.layers["tahoe_expression"].nnz == adata.layers["tahoe_expression"].nnz > 1000
    for score in ("mse", "mse_gene_mean"):
        name = f"tahoe_expression_{score}"
        np.testing.assert_allclose(np.asarray(adata.obs[name]), here.obs[name], rtol=1e-5)
    np.testing.assert_allclose(np.asarray(adata.obsm["asked"]), here.obsm["asked"], atol=1e-4, rtol=0)


def test_a_model_that_was_never_written_cannot_travel(client, file, tiny):
    mine = tiny.copy("mine")
    with pytest.raises(ModelError, match=r"model.save\(folder\)"):
        tahoe.tl.embed(lazy(file), mine)


def test_a_model_that_was_saved_travels_and_so_does_the_next(client, file, tiny, tmp_path):
    """A worker that has the network of a folder loads it anew when another one was saved there."""
    mine, folder, results = tiny.copy("mine"), tmp_path / "mine", []
    for _ in range(2):
        mine.save(folder)
        adata, here = lazy(file), anndata.read_h5ad(file)
        tahoe.tl.embed(adata, mine)
        with pytest.warns(TahoeWarning, match="express no gene"):
            tahoe.tl.embed(here, mine)
        results.append(adata.obsm["X_tahoe"].compute())
        np.testing.assert_array_equal(results[-1], here.obsm["X_tahoe"])
        assert adata.uns["X_tahoe"]["model_sha256"] == file_sha256(folder / WEIGHTS_FILE)
        mine.network.layers[0].up.weight[0] += 1
    assert np.nanmax(np.abs(results[0] - results[1])) > 1e-4
    # what was loaded before is not what lies there now, and must not be taken for it
    old = tahoe.load_model(folder, device="cpu", dtype="float32", attention="eager")
    mine.save(folder)
    with pytest.raises(ModelError, match="is not the one that was meant"):
        tahoe.tl.embed(lazy(file), old)


def test_nothing_runs_on_after_a_failure(client, file, model):
    """Nor does a traceback that somebody keeps, as notebooks do, keep the work alive."""
    adata = lazy(file, rows=10)
    adata.X = dask.concatenate([adata.X[:4], -adata.X[4:6], adata.X[6:]])
    with pytest.raises(InputError, match="negative values") as kept:
        tahoe.tl.embed_genes(adata, model, dtype="float32")

    def tasks(dask_scheduler):
        return [key for key in dask_scheduler.tasks if "_add" in str(key)]

    end = time.monotonic() + 20
    while client.run_on_scheduler(tasks) and time.monotonic() < end:
        time.sleep(0.05)
    assert not client.run_on_scheduler(tasks)
    assert kept.value


def test_a_task_leaves_its_input_as_it_is(tiny, file):
    """dask may give the same sum to a task that is repeated."""
    from tahoe._run import cluster as _dask
    from tahoe._run.predictions import HiddenPredictions

    cells = anndata.read_h5ad(file)[:7]
    columns, size = tiny.vocabulary.tokens_of(cells.var["tahoe_gene"]), tiny.config.vocab_size
    task = _dask.EmbeddingTask(_dask.ModelReference.to(tiny), columns, "X", max_length=2048, seed=0, token_budget=1)
    groups, seen = np.zeros(7, np.int64), np.flatnonzero(columns >= 0)[:40]
    for kind, arguments in (
        (GeneMeans, (columns, groups, 1, size, 64)),
        (AttentionMeans, (columns, seen, groups, 1, size, (0,), (0,))),
        (HiddenPredictions, (columns, size, "expression", 0.5, 0)),
    ):
        empty = kind(*arguments)
        once, again = (_dask._add(empty, cells.X, 0, task) for _ in range(2))
        more = _dask._add(once, cells.X, 0, task)
        assert not empty.sums.any()
        np.testing.assert_array_equal(once.sums, again.sums)
        np.testing.assert_allclose(more.sums, 2 * once.sums)
        if kind is HiddenPredictions:
            assert (len(empty.rows), len(once.rows), len(more.rows)) == (0, 7, 14)


def test_a_file_is_embedded_by_the_workers(client, file, model, truth, tmp_path):
    with pytest.warns(TahoeWarning, match="express no gene"):
        tahoe.embed_file(file, tmp_path / "out.zarr", model, cells_per_shard=30, dtype="float32")
    np.testing.assert_array_equal(anndata.read_zarr(tmp_path / "out.zarr").obsm["X_tahoe"], truth)


def test_what_the_shards_share_is_sent_once(client, file, model, tmp_path, monkeypatch):
    from tahoe._store.embed_file import Work

    pickled = []
    monkeypatch.setattr(Work, "__getstate__", lambda self: pickled.append(self) or self.__dict__, raising=False)
    with pytest.warns(TahoeWarning, match="express no gene"):
        tahoe.embed_file(file, tmp_path / "out.zarr", model, cells_per_shard=10, dtype="float32")
    assert 1 <= len(pickled) < 5


def test_a_worker_that_dies_is_replaced(client, file, model, truth, tmp_path):
    """Kill −9 of a worker in the middle: its shard is done again by another, finished ones are not."""
    found = tmp_path / "out.zarr.partial" / "store" / "obsm" / "X_tahoe" / "c"
    seen: dict[str, int] = {}

    def kill_one():
        while len(list(found.glob("*/0"))) < 5:
            time.sleep(0.002)
        seen.update({path.parent.name: path.stat().st_ino for path in found.glob("*/0")})
        os.kill(next(iter(client.run(os.getpid).values())), signal.SIGKILL)

    pids = set(client.run(os.getpid).values())
    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    with pytest.warns(TahoeWarning, match="express no gene"):
        tahoe.embed_file(file, tmp_path / "out.zarr", model, cells_per_shard=5, dtype="float32")
    killer.join()
    store = anndata.read_zarr(tmp_path / "out.zarr")
    np.testing.assert_array_equal(store.obsm["X_tahoe"], truth)
    shards = tmp_path / "out.zarr" / "obsm" / "X_tahoe" / "c"
    assert {name: (shards / name / "0").stat().st_ino for name in seen} == seen
    assert 5 <= len(seen) < ROWS // 5
    client.wait_for_workers(2)
    assert set(client.run(os.getpid).values()) != pids


def test_an_error_of_a_worker_surfaces(client, file, model, tmp_path):
    # beyond the block that is looked at before the work begins
    adata = anndata.concat([anndata.read_h5ad(file)] * 5, index_unique="-", merge="same")
    adata.X.data[-1] = -1
    adata.write_h5ad(tmp_path / "bad.h5ad")
    with pytest.raises(InputError, match="negative values"):
        tahoe.embed_file(tmp_path / "bad.h5ad", tmp_path / "out.zarr", model, cells_per_shard=100)
    assert not (tmp_path / "out.zarr").exists()
    assert (tmp_path / "out.zarr.partial" / "run.json").is_file()
