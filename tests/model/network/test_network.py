from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from tahoe.errors import DeviceError
from tahoe.model import Batch, ModelConfig
from tahoe.model.config import DrugEncoderConfig
from tahoe.model.cpu.compiling import compiled, entries
from tahoe.model.cpu.linear import Linear, has_onednn
from tahoe.model.cpu.softmax import exponentials
from tahoe.model.network.attention import ATTENTION, Spans, choose_attention, weights
from tahoe.model.network.encoders import ACTIVATIONS
from tahoe.model.network.network import Network
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


def random_batch(lengths=(7, 1, 12, 3), masked=False, drugs=False, seed=0):
    generator = torch.Generator().manual_seed(seed)
    n = sum(lengths)
    bounds = [0, *np.cumsum(lengths).tolist()]
    ids = torch.randint(3, 60, (n,), generator=generator)
    values = torch.randint(1, 51, (n,), generator=generator).float()
    ids[bounds[:-1]], values[bounds[:-1]] = 1, -2
    hidden = None
    if masked:
        hidden = torch.rand(n, generator=generator) < 0.4
        hidden[bounds[:-1]] = False
    chosen = torch.arange(len(lengths)) % 5 if drugs else None
    return Batch(ids, values, Spans.of(bounds, CPU), hidden, chosen)


def one_cell(batch, cell):
    part = slice(*batch.cells.bounds[cell : cell + 2])
    masked = None if batch.masked_T is None else batch.masked_T[part]
    drugs = None if batch.drugs_C is None else batch.drugs_C[cell : cell + 1]
    ids = batch.ids_T[part]
    return Batch(ids, batch.values_T[part], Spans.of([0, len(ids)], CPU), masked, drugs)


@pytest.fixture(params=VARIANTS)
def network(request):
    return new_network(VARIANTS[request.param], seed=1).eval()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("attention", ["sdpa", "blocked", "eager"])
@torch.inference_mode()
def test_a_cell_sees_only_itself(network, attention, masked):
    lengths = (7, 2, 12, 3)
    batch = random_batch(lengths, masked, drugs=network.drug is not None)
    together = network(batch, attention).split(lengths)
    cells = network.embed_cells(batch, attention)
    for cell, output in enumerate(together):
        alone = network(one_cell(batch, cell), attention)
        torch.testing.assert_close(output, alone, atol=2e-6, rtol=0)
        torch.testing.assert_close(cells[cell], alone[0], atol=2e-6, rtol=0)


def by_the_book(network, batch):
    """Outputs of one cell, written down layer by layer with nothing of the package but the weights."""
    config = network.config
    named = dict(network.named_parameters())

    def linear(x, name):
        return x @ named[f"{name}.weight"].T + named[f"{name}.bias"]

    def norm(x, name, eps=1e-5):
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()
        return scaled * named[f"{name}.weight"] + named[f"{name}.bias"]

    act = ACTIVATIONS[config.activation]
    value = linear(ACTIVATIONS[config.value_activation](linear(batch.values_T[:, None], "value.hidden")), "value.out")
    value = norm(value, "value.norm")
    seen = torch.ones(len(value), len(value), dtype=torch.bool)
    if batch.masked_T is not None:
        value[batch.masked_T] = named["flag.weight"][1]
        # everybody sees the visible tokens, and a masked one sees itself
        seen[:, batch.masked_T] = False
        seen.fill_diagonal_(True)
    x = norm(named["genes.weight"][batch.ids_T], "gene_norm") + value
    for number in range(config.n_layers):
        layer = f"layers.{number}"
        h = norm(x, f"{layer}.attention_norm", config.norm_eps) if config.pre_norm else x
        q, k, v = (part.unflatten(-1, (config.n_heads, -1)) for part in linear(h, f"{layer}.qkv").chunk(3, -1))
        scores = torch.einsum("qhk,nhk->hqn", q, k) / (config.d_model // config.n_heads) ** 0.5
        scores[:, ~seen] = -torch.inf
        context = torch.einsum("hqn,nhk->qhk", scores.softmax(-1), v).flatten(-2)
        x = x + linear(context, f"{layer}.attention_out")
        x = x if config.pre_norm else norm(x, f"{layer}.attention_norm", config.norm_eps)
        h = norm(x, f"{layer}.feed_forward_norm", config.norm_eps) if config.pre_norm else x
        hidden = (
            act(linear(h, f"{layer}.gate")) * linear(h, f"{layer}.up")
            if config.gated
            else act(linear(h, f"{layer}.up"))
        )
        x = x + linear(hidden, f"{layer}.down")
        x = x if config.pre_norm else norm(x, f"{layer}.feed_forward_norm", config.norm_eps)
    return norm(x, "norm", config.norm_eps) if config.pre_norm else x


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("variant", ["pre", "post", "gated"])
@torch.inference_mode()
def test_the_network_is_what_the_book_says(variant, masked):
    network = new_network(dataclasses.replace(VARIANTS[variant], norm_eps=1e-3), seed=1).eval()
    generator = torch.Generator().manual_seed(2)
    for name, weight in network.named_parameters():
        if "norm" in name or name.endswith("bias"):  # so that a lost or swapped one shows
            weight.add_(0.3 * torch.randn(weight.shape, generator=generator))
    batch = one_cell(random_batch(masked=masked), 2)
    expected = by_the_book(network, batch)
    torch.testing.assert_close(network(batch), expected, rtol=0, atol=2e-5)
    torch.testing.assert_close(network.embed_cells(batch), expected[:1], rtol=0, atol=2e-5)


@torch.inference_mode()
def test_masked_values_are_hidden(network):
    batch = random_batch(masked=True)
    other = torch.where(batch.masked_T, batch.values_T.flip(0).clamp(min=1), batch.values_T)
    changed = dataclasses.replace(batch, values_T=other)
    torch.testing.assert_close(network(batch), network(changed), rtol=0, atol=0)


@torch.inference_mode()
def test_visible_tokens_do_not_see_masked_ones():
    network = new_network(CONFIG, seed=2).eval()
    batch = random_batch(masked=True)
    visible = ~batch.masked_T
    lengths = [int(part.sum()) for part in visible.split(batch.cells.lengths)]
    bounds = [0, *np.cumsum(lengths).tolist()]
    without = Batch(batch.ids_T[visible], batch.values_T[visible], Spans.of(bounds, CPU))
    torch.testing.assert_close(network(batch)[visible], network(without), atol=2e-6, rtol=0)
    # a masked token sees the visible ones and itself, not the other masked ones
    last = int(batch.masked_T.nonzero()[-1])
    others = batch.masked_T.clone()
    others[last] = False
    ids = torch.where(others, batch.ids_T.roll(1), batch.ids_T)
    changed = network(dataclasses.replace(batch, ids_T=ids))
    torch.testing.assert_close(changed[last], network(batch)[last], rtol=0, atol=0)


@torch.inference_mode()
def test_full_attention_lets_all_tokens_be_seen():
    network = new_network(dataclasses.replace(CONFIG, hide_masked=False), seed=2).eval()
    batch = random_batch(masked=True)
    ids = torch.where(batch.masked_T, batch.ids_T.roll(1), batch.ids_T)
    visible = ~batch.masked_T
    assert (network(batch)[visible] - network(dataclasses.replace(batch, ids_T=ids))[visible]).abs().max() > 1e-4


@torch.inference_mode()
def test_drug_replaces_the_second_token_only_as_input():
    network = new_network(VARIANTS["drug"], seed=3).eval()
    batch = random_batch((5, 6), drugs=True)
    inputs = network.inputs(batch)
    torch.testing.assert_close(inputs[[1, 6]], network.drug(batch.drugs_C), rtol=0, atol=0)
    plain = network.inputs(dataclasses.replace(batch, drugs_C=None))
    kept = [0, 2, 3, 4, 5, 7, 8, 9, 10]
    torch.testing.assert_close(inputs[kept], plain[kept], rtol=0, atol=0)


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_value_table_is_the_formula(activation):
    network = new_network(dataclasses.replace(CONFIG, value_activation=activation), seed=4)
    bins = torch.tensor([-2.0, -1, 0, *range(1, 51)])
    torch.testing.assert_close(network.value(bins), network.value.encode(bins), rtol=0, atol=1e-6)


@torch.inference_mode()
def test_special_values_among_the_bins():
    """A configuration may put the padding and the mask anywhere; all bins are in the table all the same."""
    network = new_network(dataclasses.replace(CONFIG, pad_value=10.0, mask_value=20.0), seed=0)
    values = torch.arange(51, dtype=torch.float32)
    torch.testing.assert_close(network.value(values), network.value.encode(values))


def test_observed_weights_are_those_that_were_used():
    network = new_network(CONFIG, seed=5).eval()
    batch = random_batch(masked=True)
    seen = []
    network.observe(batch, lambda layer, cell, w: seen.append((layer, cell, w)))
    assert [(layer, cell) for layer, cell, _ in seen] == [(i, c) for i in range(2) for c in range(4)]
    for _, cell, w in seen:
        masked = batch.masked_T.split(batch.cells.lengths)[cell]
        torch.testing.assert_close(w.sum(-1), torch.ones(w.shape[:2]))
        off_diagonal = ~torch.eye(len(masked), dtype=torch.bool)
        assert (w[:, off_diagonal & masked[None, :]] == 0).all()


@torch.inference_mode()
def test_layers_above_the_last_that_is_observed_are_not_computed(network):
    seen, computed = [], []
    for number, layer in enumerate(network.layers):
        layer.register_forward_hook(lambda *_, number=number: computed.append(number))
    network.observe(random_batch(), lambda layer, *_: seen.append(layer), [1])
    assert set(seen) == {1}
    assert computed == [0]


@torch.inference_mode()
def test_attention_functions_agree():
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 30, 4, 8, generator=generator)
    spans = Spans.of([0, 11, 12, 30], CPU)
    cells = zip(*(t.split([11, 1, 18]) for t in (q, k, v)), strict=True)
    formula = torch.cat([torch.einsum("hqn,nhk->qhk", weights(a, b), c) for a, b, c in cells])
    for name in ("sdpa", "blocked", "eager"):
        torch.testing.assert_close(ATTENTION[name](q, k, v, spans, spans, None), formula, atol=1e-6, rtol=0)


@torch.inference_mode()
def test_blocks_of_queries_meet(monkeypatch):
    monkeypatch.setattr("tahoe.model.network.attention.BLOCK", 1)  # the fewest rows, 64
    q, k, v = torch.randn(3, 150, 2, 64, generator=torch.Generator().manual_seed(0))
    spans = Spans.of([0, 150], CPU)
    formula = torch.einsum("hqn,nhk->qhk", weights(q, k), v)
    torch.testing.assert_close(ATTENTION["blocked"](q, k, v, spans, spans, None), formula, atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_exponentials(dtype):
    generator = torch.Generator().manual_seed(0)
    scores = (torch.randn(20, 333, generator=generator) * torch.logspace(-3, 3, 20)[:, None]).to(dtype)
    scores[1], scores[2], scores[3] = scores[1].abs() - 100, scores[2].abs() + 100, -0.0
    wide, powers, totals = scores.to(torch.float32, copy=True), scores.clone(), np.empty(20, np.float32)
    exponentials(entries(powers), np.float32(0.3), totals)
    exponentials(entries(wide), np.float32(0.3), np.empty(20, np.float32))
    assert torch.equal(powers, wide.to(dtype))
    exponents = scores.double() * 0.3 - scores.double().amax(1, keepdim=True) * 0.3
    exact = exponents.exp()
    bound = 3e-7 * (1 + exponents.abs().clamp(max=87)) * exact + 2e-38
    assert ((wide.double() - exact).abs() <= bound).all()
    np.testing.assert_allclose(totals, exact.sum(1), rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bits", [0x7F800000, 0x7FC00000, 0x7FFFFFFF, -0x400000, -1], ids=hex)
def test_exponentials_do_not_hide_what_is_no_number(dtype, bits):
    scores = torch.randn(3, 100, generator=torch.Generator().manual_seed(0))
    scores, totals = scores.to(dtype), np.empty(3, np.float32)
    if dtype == torch.bfloat16:
        scores.view(torch.int16)[1, 50] = bits >> 16
    else:
        scores.view(torch.int32)[1, 50] = bits
    exponentials(entries(scores), np.float32(1), totals)
    np.testing.assert_array_equal(np.isnan(totals), [False, True, False])


def test_where_nothing_can_be_cached(monkeypatch):
    def refuse(*_):
        message = "cannot cache function: no locator available"
        raise RuntimeError(message)

    monkeypatch.setattr("numba.core.dispatcher.Dispatcher.enable_caching", refuse)
    assert compiled()(lambda x: x + 1)(1) == 2


@torch.inference_mode()
def test_bfloat16_is_close_to_float32(tiny, tiny_cells):
    tokens = tiny.tokenize(tiny_cells.X, tiny.vocabulary.tokens_of(tiny_cells.var_names))
    exact = tiny.embed_cells(tokens)
    tiny.network.set_precision(torch.bfloat16)
    assert tiny.network.norm.weight.dtype == torch.float32
    rounded = tiny.embed_cells(tokens)
    assert rounded.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(exact, rounded).min() > 0.999


def test_a_network_of_another_configuration_refuses():
    network = Network(dataclasses.replace(CONFIG, mvc_decoder=False))
    batch = random_batch()
    with pytest.raises(ValueError, match="no MVC decoder"):
        network.decode_mvc(network(batch), batch)
    with pytest.raises(ValueError, match="no drug encoder"):
        network(random_batch(drugs=True))


@pytest.mark.parametrize(("name", "width", "chosen"), [(None, 512, True), (None, 64, False), ("blocked", 64, True)])
def test_blocked_attention_is_for_wide_networks(name, width, chosen):
    if not has_onednn():
        pytest.skip("no oneDNN here")
    assert (choose_attention(name, CPU, torch.float32, width) == "blocked") == chosen
    with pytest.raises(DeviceError, match="does not compute in float16"):
        choose_attention("blocked", CPU, torch.float16, width)


@pytest.mark.parametrize("activation", [None, *ACTIVATIONS.values()])
def test_onednn_is_the_same_layer(activation):
    linear = Linear(300, 260)
    x = torch.randn(37, 300, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = linear(x, activation)
    with torch.inference_mode():
        torch.testing.assert_close(linear(x, activation), expected, atol=5e-6, rtol=0)
