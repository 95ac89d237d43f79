from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest

import tahoe

# What a search compares: the record that `tahoe.tl.embed` leaves.
RECORD = {
    "tahoe_version": "0",
    "model": "demo",
    "model_sha256": "a" * 64,
    "vocabulary_sha256": "b" * 64,
    "max_length": 2048,
    "seed": 0,
    "normalize": True,
}


def clouds(n_cells: int = 300, width: int = 16, n_types: int = 4, seed: int = 0) -> anndata.AnnData:
    """Vectors around a centre for each type, of three donors, with the record of an embedding."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((n_types, width))
    types = rng.integers(0, n_types, n_cells)
    vectors = centres[types] + 0.7 * rng.standard_normal((n_cells, width))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    names = [f"cell{seed}-{number}" for number in range(n_cells)]
    obs = pd.DataFrame({"type": [f"type {t}" for t in types]}, index=names)
    obs["donor"] = [f"donor {d}" for d in rng.integers(0, 3, n_cells)]
    adata = anndata.AnnData(obs=obs)
    adata.obsm["X_tahoe"] = vectors.astype(np.float32)
    adata.uns["X_tahoe"] = dict(RECORD)
    return adata


@pytest.fixture
def cells():
    return clouds()


@pytest.fixture
def built(cells, tmp_path):
    """A reference of `cells`."""
    return tahoe.build_reference(cells, tmp_path / "atlas.tahoe", obs_keys=["type"], groups="donor")


@pytest.fixture(scope="session")
def make_clouds():
    return clouds
