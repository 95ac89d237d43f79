from __future__ import annotations

import warnings

import numpy as np
import pytest
import scanpy as sc
from scipy import sparse

import tahoe


def test_counts_come_back_exactly():
    adata = tahoe.datasets.pbmc68k()
    assert adata.shape == (700, 765)
    assert sparse.issparse(adata.X)
    assert adata.X.format == "csr"
    assert adata.obs["bulk_labels"].nunique() == 10
    counts = adata.X.data
    assert counts.min() == 1
    np.testing.assert_array_equal(counts, np.rint(counts))
    # normalising and taking logarithms again gives what scanpy ships
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shipped = sc.datasets.pbmc68k_reduced().raw.X.toarray()
    again = np.log1p(adata.X.toarray().astype(np.float64) / adata.obs["n_counts"].to_numpy()[:, None] * 1e4)
    assert np.abs(again - shipped).max() < 1e-3
    assert (adata.obs["n_counts"] >= adata.X.sum(1).A1).all()


def test_each_call_gives_a_new_object():
    first, second = tahoe.datasets.pbmc68k(), tahoe.datasets.pbmc68k()
    first.X.data[:] = 0
    assert second.X.data.min() == 1


def test_the_reference_of_pbmc68k_labels_cells(tmp_path):
    blood = tahoe.datasets.pbmc68k_reference(tmp_path / "blood.tahoe")
    assert tahoe.datasets.pbmc68k_reference(tmp_path / "blood.tahoe").fingerprint == blood.fingerprint
    cells = tahoe.datasets.pbmc68k()[:40].copy()
    with pytest.warns(tahoe.errors.TahoeWarning, match="2 of 10 labels have fewer than k=15 cells"):
        tahoe.tl.transfer_labels(cells, blood, obs_key="bulk_labels", k=15)
    # its own cells, none of which votes for itself
    first = np.array(blood.labels("bulk_labels"))[cells.obsm["bulk_labels_tahoe_shares"].argmax(axis=1)]
    assert 0.6 < (first == cells.obs["bulk_labels"]).mean() < 1
