"""The checkpoint that ships with the package."""

from __future__ import annotations

import numpy as np
import pytest

import tahoe
from tahoe._genes.mapping import resolve
from tahoe.model.training import evaluate


@pytest.fixture(scope="module")
def demo():
    return tahoe.load_model("demo", device="cpu")


def test_it_is_small_and_has_a_card(demo):
    assert sum(file.stat().st_size for file in demo.folder.iterdir()) < 6e6
    card = (demo.folder / "README.md").read_text()
    assert "not for science" in card
    assert demo.weights_sha256 in card
    assert "pbmc68k" not in card.split("## Training data")[1].split("## Training\n")[0]


def test_its_genes_are_human_genes(demo):
    genes, tiers = resolve(demo.vocabulary.genes)
    np.testing.assert_array_equal(genes, demo.vocabulary.genes)
    assert set(tiers) == {"ensembl"}


def test_it_knows_the_genes_of_the_demo_cells(demo):
    adata = tahoe.datasets.pbmc68k()
    tahoe.pp.map_genes(adata)
    known = np.isin(adata.var["tahoe_gene"].astype(str), demo.vocabulary.genes.astype(str))
    assert adata.X[:, known].sum() / adata.X.sum() > 0.97


def test_it_predicts_masked_genes_of_unseen_cells(demo):
    """Far better than any constant: about as well as the mean of each gene in this very set, unknown to the model."""
    adata = tahoe.datasets.pbmc68k()[::3].copy()
    tahoe.pp.map_genes(adata)
    columns = demo.vocabulary.tokens_of(adata.var["tahoe_gene"].astype(str).to_numpy())
    errors = evaluate(demo.network, demo.tokenize(adata.X, columns))
    assert errors["expression_mse"] < 0.74 * errors["constant_mse"]
    assert errors["mvc_mse"] < 0.77 * errors["constant_mse"]
