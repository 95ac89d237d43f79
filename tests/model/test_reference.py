"""The network and the tokenizer against what the authors' implementation computed, one cell at a time, in float32."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from tahoe.model import load_model
from tahoe.model.cpu import linear
from tahoe.model.tokens.tokenizer import tokenize

CASES = [("tiny", "golden"), ("drug", "no_drug"), ("drug", "with_drug"), ("drug", "drug_id_0")]
# Predictions lie on a scale of about 15.
CLOSE, CLOSE_PREDICTION = 1e-5, 5e-5


class Case:
    """One reference file, our tokens for its cells, and the order in which its tokens become ours."""

    def __init__(self, folder, name, result):
        self.model = load_model(folder / f"{name}-model", device="cpu", dtype="float32")
        self.truth = np.load(folder / f"{name}-{result}.npz")
        self.n_special = 2 if result in ("with_drug", "drug_id_0") else 1
        cells = np.load(folder / f"{name}-input.npz")
        self.tokens = tokenize(
            cells["indptr"],
            cells["indices"],
            cells["data"],
            self.model.vocabulary.tokens_of(cells["genes"]),
            config=self.model.config,
            vocabulary=self.model.vocabulary,
            drugs=self.truth["drug_ids"] if self.n_special == 2 else None,
        )
        self.order = np.concatenate([self.order_of(cell) for cell in range(64)])

    def order_of(self, cell, local=False):
        start, stop = self.truth["indptr"][cell : cell + 2]
        genes = np.argsort(self.truth["genes"][start + self.n_special : stop], kind="stable")
        order = np.concatenate([np.arange(self.n_special), genes + self.n_special])
        return order if local else order + start

    def batch(self):
        return self.model.batch(self.tokens)


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def case(request):
    return Case(request.config.rootpath / "tests" / "reference", *request.param)


@pytest.fixture(autouse=True, params=[1, linear.NARROW], ids=["onednn", "torch"])
def _linear(request, monkeypatch):
    """These networks are so narrow that their linear layers would be torch's."""
    monkeypatch.setattr(linear, "NARROW", request.param)


def test_tokens(case):
    np.testing.assert_array_equal(case.tokens.bounds, case.truth["indptr"])
    np.testing.assert_array_equal(case.tokens.ids, case.truth["genes"][case.order])
    np.testing.assert_array_equal(case.tokens.values, case.truth["values"][case.order])


@pytest.mark.parametrize("attention", ["sdpa", "blocked", "eager"])
@torch.inference_mode()
def test_outputs(case, attention):
    batch, network = case.batch(), case.model.network
    output = network(batch, attention)
    cells = output[batch.starts_C].numpy()
    np.testing.assert_allclose(cells, case.truth["cell_emb_raw"], atol=CLOSE, rtol=0)
    np.testing.assert_allclose(
        cells / np.linalg.norm(cells, axis=1, keepdims=True), case.truth["cell_emb"], atol=1e-6, rtol=0
    )
    np.testing.assert_allclose(
        network.decode(output).numpy(), case.truth["expr_preds"][case.order], atol=CLOSE_PREDICTION, rtol=0
    )
    np.testing.assert_allclose(
        network.decode_mvc(output, batch).numpy(), case.truth["mvc_output"][case.order], atol=CLOSE_PREDICTION, rtol=0
    )


@pytest.mark.parametrize("attention", ["sdpa", "blocked", "eager"])
@torch.inference_mode()
def test_short_cut_for_cells(case, attention):
    cells = case.model.network.embed_cells(case.batch(), attention)
    np.testing.assert_allclose(cells.numpy(), case.truth["cell_emb_raw"], atol=CLOSE, rtol=0)


@pytest.mark.parametrize("attention", ["sdpa", "blocked", "eager"])
@torch.inference_mode()
def test_gene_vectors(case, attention):
    output = case.model.network(case.batch(), attention).numpy()
    compared = 0
    for name in case.truth.files:
        if name.startswith("gene_emb_"):
            cell = int(name.removeprefix("gene_emb_"))
            ours = output[slice(*case.tokens.bounds[cell : cell + 2])]
            np.testing.assert_allclose(ours, case.truth[name][case.order_of(cell, local=True)], atol=CLOSE, rtol=0)
            compared += 1
    assert compared >= 4


@torch.inference_mode()
def test_mean_gene_vectors(case):
    output = case.model.network(case.batch()).double().numpy()
    counts = np.bincount(case.tokens.ids, minlength=len(case.truth["mean_gene_count"]))
    np.testing.assert_array_equal(counts, case.truth["mean_gene_count"])
    means = np.zeros(case.truth["mean_gene_emb"].shape)
    np.add.at(means, case.tokens.ids, output)
    seen = counts > 0
    means = means[seen] / counts[seen, None]
    np.testing.assert_allclose(means, case.truth["mean_gene_emb"][seen], atol=CLOSE, rtol=0)


@torch.inference_mode()
def test_attention_weights(case):
    kept = {}
    case.model.network.observe(case.batch(), lambda layer, cell, weights: kept.setdefault((layer, cell), weights))
    for name in case.truth.files:
        if name.startswith("attn_"):
            cell = int(name.removeprefix("attn_"))
            order = case.order_of(cell, local=True)
            for layer, truth in enumerate(case.truth[name]):
                ours = kept[layer, cell]
                np.testing.assert_allclose(ours, truth[:, order][:, :, order], atol=CLOSE, rtol=0)
                np.testing.assert_allclose(ours.sum(-1), 1, atol=1e-6)


@pytest.mark.parametrize("attention", ["sdpa", "blocked"])
def test_the_ways_that_verbs_take(case, attention):
    case.model.attention = attention
    tokens = case.tokens.cells(0, 12)
    outputs, cells = case.model.embed_tokens(tokens), case.model.embed_cells(tokens)
    np.testing.assert_allclose(cells, case.truth["cell_emb_raw"][:12], atol=CLOSE, rtol=0)
    np.testing.assert_allclose(outputs[tokens.bounds[:-1]], cells, atol=2e-6, rtol=0)
    truth = case.truth["expr_preds"][case.order[: len(tokens.ids)]]
    np.testing.assert_allclose(case.model.predict(tokens), truth, atol=CLOSE_PREDICTION, rtol=0)


def test_drugs_by_name(reference):
    model = load_model(reference / "drug-model", device="cpu")
    assert model.drugs == json.loads((reference / "drug-model" / "drug_to_id_pad.json").read_text())
    assert model.drugs["<pad>"] == 0
