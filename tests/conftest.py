from __future__ import annotations

import logging
import signal
import warnings
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
import zarr
from hypothesis import HealthCheck, settings
from scipy import sparse

import tahoe
from tahoe.model.training import FineTuningPlan

pytest.register_assert_rewrite("tests.strategies")
HERE = Path(__file__).parent
# Hypothesis draws the same few examples each time; `pytest --hypothesis-profile=long` draws others, and many.
settings.register_profile(
    "short", max_examples=30, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck)
)
settings.register_profile("long", max_examples=3000, deadline=None, suppress_health_check=list(HealthCheck))
settings.load_profile("short")
# The workers of pytest-xdist ignore Ctrl-C, and so would all processes that the tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
# The networks of the tests are so small that a second thread only waits.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _quiet():
    log = logging.getLogger("tahoe")
    level, handlers = log.level, log.handlers
    with tahoe.settings.override(progress=False, device="cpu", dtype="float32"):
        yield
    # the command line sets them for its process
    log.setLevel(level)
    log.handlers = handlers


@pytest.fixture(scope="session")
def reference() -> Path:
    """Folder of the reference vectors and their models."""
    return HERE / "reference"


@pytest.fixture
def tiny(reference):
    """A network of 2 layers × 64 with random weights, in the released layout."""
    return tahoe.load_model(reference / "tiny-model", device="cpu", dtype="float32")


@pytest.fixture
def tiny_cells(reference) -> anndata.AnnData:
    """64 cells × 1,600 genes for `tiny`; cell 5 is empty, cell 9 has one gene.

    Their ids were drawn at random, and some are those of retired genes, so the mapping is given and not looked up.
    """
    cells = _read_cells(reference / "tiny-input.npz")
    cells.var["tahoe_gene"] = cells.var_names
    return cells


@pytest.fixture
def full_cells(tiny_cells) -> anndata.AnnData:
    """The cells of `tiny_cells` that express a gene of the vocabulary."""
    return tiny_cells[np.arange(64) != 5].copy()


@pytest.fixture
def labelled(full_cells, tiny):
    """63 cells of 5 donors; `tiny` can be taught their type, age and first protein, since they lie in its embedding."""
    embedded = tahoe.tl.embed(full_cells, tiny, max_length=60, min_coverage=0, copy=True).obsm["X_tahoe"]
    score = np.linalg.svd(embedded - embedded.mean(axis=0), full_matrices=False)[0][:, 0]
    generator = np.random.default_rng(0)
    full_cells.obs["type"] = np.array(["B", "NK", "T"])[np.digitize(score, np.quantile(score, [1 / 3, 2 / 3]))]
    full_cells.obs["donor"] = [f"donor {number % 5}" for number in range(full_cells.n_obs)]
    full_cells.obs["age"] = (score - score.mean()) / score.std() * 10 + 50.5
    full_cells.obsm["proteins"] = np.stack([score, generator.normal(size=len(score))], axis=1)
    return full_cells


@pytest.fixture
def short(monkeypatch):
    """A plan that takes a second; it starts from a head that leaves something to learn."""
    monkeypatch.setattr("tahoe._fine_tune.task.HEAD_PLAN", FineTuningPlan(epochs=1, batch_size=64))
    return FineTuningPlan(epochs=2, batch_size=16, learning_rate=2e-3, rank=2, alpha=4.0)


@pytest.fixture(scope="session")
def heart() -> anndata.AnnData:
    """40 real cells with about 2,200 genes each, by Ensembl id."""
    return _read_cells(HERE / "data" / "heart.npz")


@pytest.fixture(scope="session")
def read_cells():
    """Reader of the cells that lie beside the tests."""
    return _read_cells


@pytest.fixture(scope="session")
def write_zarr():
    """Writer of a store in zarr's format 2 or 3, with any anndata."""
    return _write_zarr


def _write_zarr(adata: anndata.AnnData, path: Path, zarr_format: int = 3) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # how zarr formats will change in future
        anndata.io.write_elem(zarr.open_group(path, mode="w", zarr_format=zarr_format), "/", adata)
        zarr.consolidate_metadata(path)


def _read_cells(path: Path) -> anndata.AnnData:
    with np.load(path) as file:
        counts = file["data"].astype(np.float32), file["indices"].astype(np.int32), file["indptr"]
        matrix = sparse.csr_matrix(counts, shape=(len(file["indptr"]) - 1, len(file["genes"])))
        genes = pd.Index(file["genes"].astype(object))
        extra = {name: file[name] for name in ("drugs", "cell_type") if name in file and len(file[name])}
    obs = pd.DataFrame(extra, index=[f"cell{i}" for i in range(matrix.shape[0])])
    return anndata.AnnData(matrix, obs=obs, var=pd.DataFrame(index=genes))
