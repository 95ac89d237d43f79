"""Adapters: what they compute beside the weights, and within them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tahoe.errors import ModelError
from tahoe.model.cpu.linear import Linear, has_int8
from tahoe.model.fine_tuning.lora import ADAPTED, AdaptedLinear, adapt, adapters_of, merge


@pytest.fixture
def tokens(tiny, full_cells):
    columns = tiny.vocabulary.tokens_of(full_cells.var["tahoe_gene"])
    return tiny.tokenize(full_cells.X[:12].tocsr(), columns, max_length=100)


def trained(network, seed=0):
    """The network with adapters that are no longer zero."""
    adapted = adapt(network, 4, 8.0, seed)
    generator = torch.Generator().manual_seed(seed)
    for module in adapted.modules():
        if isinstance(module, AdaptedLinear):
            module.b_NR.data = 0.1 * torch.randn(module.b_NR.shape, generator=generator)
    return adapted


def embedded(network, model, tokens):
    return network.embed_cells(model.batch(tokens), "sdpa").detach()


def test_the_formula():
    linear = Linear(6, 5)
    adapted = AdaptedLinear(linear, 2, 3.0, torch.Generator().manual_seed(0))
    adapted.b_NR.data.normal_(generator=torch.Generator().manual_seed(1))
    x = torch.randn((4, 6), generator=torch.Generator().manual_seed(2))
    expected = F.relu(F.linear(x, linear.weight + 3.0 / 2 * adapted.b_NR @ adapted.a_RK, linear.bias))
    torch.testing.assert_close(adapted(x, F.relu), expected)
    whole = adapted(x)
    torch.testing.assert_close(adapted.features(x, slice(2)), whole[:, :2])
    torch.testing.assert_close(adapted.features(x, slice(2, None)), whole[:, 2:])


def test_new_adapters_change_nothing(tiny, tokens):
    assert torch.equal(embedded(adapt(tiny.network, 8, 16.0, 0), tiny, tokens), embedded(tiny.network, tiny, tokens))


@pytest.mark.parametrize("name", ["tiny-model", "drug-model"])
def test_merged_is_unmerged(reference, full_cells, name):
    import tahoe

    model = tahoe.load_model(reference / name, device="cpu", dtype="float32")
    columns = model.vocabulary.tokens_of(full_cells.var["tahoe_gene"])
    if (columns >= 0).sum() < 50:
        columns = np.resize(model.vocabulary.tokens_of(model.vocabulary.genes), full_cells.n_vars)
    tokens = model.tokenize(full_cells.X[:12].tocsr(), columns, max_length=100)
    adapted = trained(model.network)
    unmerged = embedded(adapted, model, tokens)
    merged = embedded(merge(model.network, adapters_of(adapted), 8.0), model, tokens)
    assert (merged - embedded(model.network, model, tokens)).abs().max() > 0.1
    assert (merged - unmerged).abs().max() <= 1e-6 * unmerged.abs().max().clamp(min=1)


def test_merged_is_what_inference_computes(tiny, tokens):
    """By the path of inference: one cell at a time, through oneDNN where it is."""
    from dataclasses import replace

    adapted = trained(tiny.network)
    mine = replace(tiny, network=merge(tiny.network, adapters_of(adapted), 8.0))
    assert (mine.embed_cells(tokens) - embedded(adapted, tiny, tokens)).abs().max() <= 1e-5


def test_training_computes_what_inference_does(tiny, tokens):
    with_gradients = tiny.network.requires_grad_(True).embed_cells(tiny.batch(tokens), "sdpa").detach()
    assert (with_gradients - tiny.embed_cells(tokens)).abs().max() <= 1e-5


def test_only_adapters_have_gradients(tiny, tokens):
    adapted = adapt(tiny.network, 4, 8.0, 0)
    adapted.embed_cells(tiny.batch(tokens), "sdpa").square().sum().backward()
    with_gradient = {name for name, weight in adapted.named_parameters() if weight.grad is not None}
    expected = {
        f"layers.{layer}.{name}.{part}"
        for layer in range(len(adapted.layers))
        for name in ADAPTED
        for part in ("a_RK", "b_NR")
    }
    assert with_gradient == expected == {n for n, weight in adapted.named_parameters() if weight.requires_grad}
    assert all(weight.grad is None and not weight.requires_grad for weight in tiny.network.parameters())


def test_weights_are_shared_and_stay(tiny):
    before = {name: weight.clone() for name, weight in tiny.network.state_dict().items()}
    adapted = trained(tiny.network)
    assert adapted.layers[0].qkv.weight is tiny.network.layers[0].qkv.weight
    merged = merge(tiny.network, adapters_of(adapted), 8.0)
    assert merged.genes.weight is tiny.network.genes.weight
    assert merged.layers[0].qkv.weight is not tiny.network.layers[0].qkv.weight
    assert not any(isinstance(module, AdaptedLinear) for module in tiny.network.modules())
    assert all(torch.equal(weight, before[name]) for name, weight in tiny.network.state_dict().items())


def test_adapters_are_drawn_by_the_seed_alone(tiny):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first, second, other = (adapters_of(adapt(tiny.network, 4, 8.0, seed)) for seed in (0, 0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["layers.0.up.a"], other["layers.0.up.a"])
    assert torch.equal(torch.get_rng_state(), state)


def test_adapters_of_another_network_are_refused(tiny):
    adapters = adapters_of(trained(tiny.network))
    short = adapters | {"layers.1.up.b": adapters["layers.1.up.b"][:-1]}
    deep = adapters | {"layers.7.up.b": adapters["layers.1.up.b"], "layers.7.up.a": adapters["layers.1.up.a"]}
    half = {name: each for name, each in adapters.items() if name != "layers.1.up.b"}
    for wrong, match in (
        (short, "layers.1.up is for weights of shape"),
        (deep, "no such layer"),
        (half, "layers.1.up"),
    ):
        with pytest.raises(ModelError, match=match):
            merge(tiny.network, wrong, 8.0)


def test_rounded_weights_are_refused(tiny):
    adapters = adapters_of(trained(tiny.network))
    tiny.network.is_quantized = True
    with pytest.raises(ModelError, match="weights in int8"):
        adapt(tiny.network, 4, 8.0, 0)
    with pytest.raises(ModelError, match="weights in int8"):
        merge(tiny.network, adapters, 8.0)


@pytest.mark.skipif(not has_int8(), reason="needs a CPU that multiplies in eight bits")
def test_merged_weights_can_be_rounded(tiny, tokens):
    """Those that are rounded have the adapters in them."""
    from dataclasses import replace

    adapted = trained(tiny.network)
    exact = embedded(adapted, tiny, tokens)
    merged = merge(tiny.network, adapters_of(adapted), 8.0)
    mine = replace(tiny, network=merged.set_precision(torch.int8))
    cosine = F.cosine_similarity(mine.embed_cells(tokens), exact)
    assert cosine.min() > 0.99
