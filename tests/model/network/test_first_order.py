"""First order against finite differences and against exact edits, on networks of each form."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr

import tahoe
from tahoe.model import ModelConfig
from tahoe.model.config import DrugEncoderConfig
from tahoe.model.network import first_order as module
from tahoe.model.network.attention import Spans
from tahoe.model.network.first_order import first_order, gradients
from tahoe.model.network.network import Batch, Network
from tahoe.model.tokens.edits import deleted, with_genes
from tahoe.model.training import new_network

CPU = torch.device("cpu")
CONFIG = ModelConfig(
    32, 2, 4, 60, gene_norm=True, value_norm=True, decoder_layers=1, mvc_scaled=True, expansion_ratio=2
)
VARIANTS = {
    "pre": CONFIG,
    "post": dataclasses.replace(CONFIG, pre_norm=False),
    "gated": dataclasses.replace(CONFIG, gated=True, activation="silu"),
    "drug": dataclasses.replace(CONFIG, drug_encoder=DrugEncoderConfig(5, 16, "gelu")),
}
N, S = 9, 5


def a_cell(config: ModelConfig) -> tuple[Network, Batch, tuple[torch.Tensor, torch.Tensor]]:
    network = new_network(config, seed=2).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    ids = torch.cat([torch.tensor([1]), 3 + torch.randperm(50, generator=generator)])
    values = torch.randint(1, 51, (60,), generator=generator).float()
    values[0] = -2
    drugs = torch.tensor([3]) if config.drug_encoder else None
    batch = Batch(ids[:N], values[:N], Spans.of([0, N], CPU), drugs_C=drugs)
    return network, batch, (ids[N : N + S], values[N : N + S])


def weighted(network: Network, x_ND: torch.Tensor, weights_NN: torch.Tensor) -> torch.Tensor:
    """Embedding of one cell, of length 1, where each query gives its keys these weights on top of its own."""

    def attend(q, k, v, queries, keys, masked):
        scores = torch.einsum("qhk,nhk->hqn", q, k) * q.shape[-1] ** -0.5
        shares = scores.exp() * weights_NN
        return torch.einsum("hqn,nhk->qhk", shares / shares.sum(-1, keepdim=True), v)

    n = len(x_ND)
    for layer in network.layers:
        x_ND = layer(x_ND, Spans.of([0, n], CPU), attend)
    return F.normalize(network.norm(x_ND)[0], dim=0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_is_the_derivative(variant):
    """Of a weight on a token, from one on, and of that on a token that is not there yet; by central differences."""
    network, batch, shadows = a_cell(VARIANTS[variant])
    directions = F.normalize(torch.randn(3, 32, generator=torch.Generator().manual_seed(3)), dim=1)
    step = 1e-7
    with gradients(CPU):
        effects = first_order(network, batch, directions, shadows)
    with torch.no_grad():
        x = network.inputs(batch).double()
        more = (network.gene_inputs(shadows[0]) + network.value(shadows[1])).double()
        network, directions = copy.deepcopy(network).double(), directions.double()
        whole = torch.ones(N, N, dtype=torch.float64)
        base = weighted(network, x, whole)
        torch.testing.assert_close(effects.embedding_D.double(), base, atol=2e-6, rtol=0)

        def difference(x, weights, token):
            ends = []
            for sign in (1, -1):
                moved = weights.clone()
                moved[:, token] += sign * step
                if token == N:
                    moved[token, token] = 1  # what is not there sees itself as if it was
                ends.append(directions @ weighted(network, x, moved))
            return (ends[0] - ends[1]) / (2 * step)

        removed = torch.stack([-difference(x, whole, token) for token in range(N)], dim=1)
        torch.testing.assert_close(effects.deleted_JN.double(), removed, atol=5e-6, rtol=1e-3)
        for place in range(S):
            weights = torch.ones(N + 1, N + 1, dtype=torch.float64)
            weights[:N, N] = 0
            expected = difference(torch.cat([x, more[[place]]]), weights, N)
            torch.testing.assert_close(effects.inserted_JS[:, place].double(), expected, atol=5e-6, rtol=1e-3)


def test_shadows_do_not_see_each_other(monkeypatch):
    network, batch, shadows = a_cell(CONFIG)
    directions = torch.eye(32)[:4]

    def found(which):
        with gradients(CPU):
            return first_order(network, batch, directions, (shadows[0][which], shadows[1][which])).inserted_JS

    whole = found(slice(None))
    for place in range(S):
        torch.testing.assert_close(found([place])[:, 0], whole[:, place], atol=1e-7, rtol=1e-5)
    monkeypatch.setattr(module, "SCORES", 4 * 4 * N * 2)
    torch.testing.assert_close(found(slice(None)), whole, atol=1e-7, rtol=1e-5)


def test_weights_get_no_gradient_and_the_modes_come_back():
    network, batch, shadows = a_cell(CONFIG)
    network.requires_grad_(True)
    with torch.inference_mode(), gradients(CPU):
        fresh = dataclasses.replace(batch, ids_T=batch.ids_T.clone())
        first_order(network, fresh, torch.eye(32)[:1], shadows)
    assert all(weight.grad is None for weight in network.parameters())
    assert not torch.is_inference_mode_enabled()


def test_it_agrees_with_exact_edits_of_real_cells(heart):
    """Of the demo model: all deletions of short cells, and insertions of genes that they lack."""
    model = tahoe.load_model("demo", device="cpu", dtype="float32")
    columns = model.vocabulary.tokens_of(heart.var_names)
    tokens = model.tokenize(heart.X[[3, 17]], columns, max_length=160)
    generator = np.random.default_rng(0)
    direction = torch.from_numpy(generator.normal(size=(1, 128)).astype(np.float32))
    for cell in (tokens.cells(0, 1), tokens.cells(1, 2)):
        new = generator.choice(np.setdiff1d(columns[columns >= 0], cell.ids), 60, replace=False)
        with gradients(CPU):
            shadows = (torch.from_numpy(new), torch.full((60,), 50.0))
            effects = first_order(model.network, model.batch(cell), direction, shadows)
        base = F.normalize(model.embed_cells(cell), dim=1)
        places = np.arange(1, len(cell.ids))
        removed = (F.normalize(model.embed_cells(deleted(cell, places[:, None])), dim=1) - base) @ direction[0]
        assert spearmanr(effects.deleted_JN[0, 1:], removed)[0] > 0.99
        added = (F.normalize(model.embed_cells(with_genes(cell, new[:, None], 50)), dim=1) - base) @ direction[0]
        assert spearmanr(effects.inserted_JS[0], added)[0] > 0.85
