"""Linear layers in eight bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import tahoe
from tahoe.errors import DeviceError, ModelError
from tahoe.model.cpu.linear import Linear, computed_in, has_int8
from tahoe.model.training import TrainingPlan, evaluate, train

pytestmark = pytest.mark.skipif(not has_int8(), reason="this CPU does not multiply in eight bits")


@pytest.fixture(scope="module")
def rounded():
    return tahoe.load_model("demo", device="cpu", dtype="int8")


@pytest.fixture(scope="module")
def tokens(rounded):
    adata = tahoe.datasets.pbmc68k()[:40].copy()
    tahoe.pp.map_genes(adata)
    return rounded.tokenize(adata.X, rounded.vocabulary.tokens_of(adata.var["tahoe_gene"]))


def layer(n_in, n_out, seed=0):
    generator = torch.Generator().manual_seed(seed)
    linear = Linear(n_in, n_out).requires_grad_(False)
    linear.weight.copy_(torch.randn(n_out, n_in, generator=generator) * torch.logspace(-2, 1, n_out)[:, None])
    return linear, torch.randn(50, n_in, generator=generator)


@pytest.mark.parametrize("activation", [None, F.gelu, F.relu, F.silu])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(96, 288), (300, 77)])
@torch.inference_mode()
def test_a_layer_is_its_definition(shape, dtype, activation):
    from tahoe.model.cpu.int8 import Int8Linear

    linear, x = layer(*shape)
    x = x.to(dtype)
    largest = x.float().abs().max()
    steps = (x.float() * (127 / largest)).round().double()
    scales = linear.weight.abs().amax(1) / 127
    weights = (linear.weight / scales[:, None]).round().double()
    assert weights.abs().amax(1).eq(127).all()
    expected = steps @ weights.T * (largest / 127 * scales).double() + linear.bias.double()
    expected = expected if activation is None else activation(expected)
    found = Int8Linear(linear)(x, activation)
    assert found.dtype == dtype
    tolerance = {"atol": 1e-4, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 1e-4, "rtol": 2**-8}
    if dtype == torch.bfloat16 and activation is F.silu:
        tolerance = {"atol": 0.1, "rtol": 2**-6}  # of what was rounded before
    torch.testing.assert_close(found.double(), expected, **tolerance)


@torch.inference_mode()
def test_zeros_and_what_is_no_number():
    from tahoe.model.cpu.int8 import Int8Linear

    linear, x = layer(96, 32)
    linear.weight[3] = 0
    found = Int8Linear(linear)
    torch.testing.assert_close(found(torch.zeros(5, 96)), linear.bias.expand(5, 32))
    assert (found(x)[:, 3] == linear.bias[3]).all()
    for wrong in (torch.nan, torch.inf, -torch.inf):
        x[7, 7] = wrong
        assert not found(x)[7].isfinite().any()


def test_close_to_float32(rounded, tokens):
    exact = tahoe.load_model("demo", device="cpu", dtype="float32").embed_cells(tokens)
    cosine = F.cosine_similarity(rounded.embed_cells(tokens), exact)
    assert 0.9995 < cosine.min() < 0.9999999


def test_neighbours_do_not_matter(rounded, tokens):
    together = rounded.embed_cells(tokens)
    assert torch.equal(together, rounded.embed_cells(tokens))
    for cell in (0, 17, 39):
        assert torch.equal(rounded.embed_cells(tokens.cells(cell, cell + 1))[0], together[cell])
    shown: dict[int, list[torch.Tensor]] = {0: [], 1: []}
    rounded.observe(tokens.cells(0, 2), [0], lambda _, cell, weights: shown[cell].append(weights))
    rounded.observe(tokens.cells(1, 2), [0], lambda _, __, weights: shown[1].append(weights))
    assert len(shown[0]) == 1
    assert torch.equal(*shown[1])


def test_several_cells_in_a_batch_are_refused(rounded, tokens):
    """They would share a scale, so that a cell would depend on its neighbours."""
    two, one = (rounded.batch(tokens.cells(0, n)) for n in (2, 1))
    network = rounded.network
    for way in (network.__call__, network.embed_cells, lambda batch: network.observe(batch, lambda *_: None)):
        with torch.inference_mode(), pytest.raises(ModelError, match="each cell goes through the network alone"):
            way(two)
        with torch.inference_mode():
            way(one)
    with pytest.raises(ModelError, match="each cell goes through the network alone"):
        evaluate(network, tokens)
    exact = tahoe.load_model("demo", device="cpu", dtype="float32")
    alone = evaluate(network, tokens, cells_per_batch=1)
    assert alone == pytest.approx(evaluate(exact.network, tokens, cells_per_batch=1), rel=0.02)


def test_it_says_what_it_is(rounded):
    exact = tahoe.load_model("demo", device="cpu", dtype="float32")
    assert rounded.dtype == torch.int8
    assert rounded.n_parameters == exact.n_parameters == sum(w.numel() for w in exact.network.parameters())
    assert "int8 on cpu" in repr(rounded)
    inner = rounded.network.layers[-1].qkv
    assert isinstance(inner, Linear)
    assert inner.weight.dtype == computed_in(torch.int8)
    assert not any(isinstance(each, Linear) for each in rounded.network.layers[0].children())


def test_verbs(rounded):
    adata = tahoe.datasets.pbmc68k()[:30].copy()
    tahoe.pp.map_genes(adata)
    other = adata.copy()
    for cells, precision in ((adata, "int8"), (other, "float32")):
        tahoe.tl.embed(cells, "demo", device="cpu", dtype=precision)
        tahoe.tl.embed_genes(cells, "demo", device="cpu", dtype=precision)
        tahoe.tl.predict_expression(cells, "demo", device="cpu", dtype=precision)
        assert cells.uns["X_tahoe"]["dtype"] == precision
    np.testing.assert_array_equal(tahoe.tl.embed(adata, rounded, copy=True).obsm["X_tahoe"], adata.obsm["X_tahoe"])
    assert 0.999 < (adata.obsm["X_tahoe"] * other.obsm["X_tahoe"]).sum(1).min() < 0.9999999
    for mine, theirs in (
        (adata.varm["tahoe"], other.varm["tahoe"]),
        (adata.layers["tahoe_expression"].toarray(), other.layers["tahoe_expression"].toarray()),
    ):
        seen = ~np.isnan(theirs)
        np.testing.assert_array_equal(seen, ~np.isnan(mine))
        assert 0.99 < np.corrcoef(mine[seen], theirs[seen])[0, 1] < 0.9999999


def test_what_needs_the_weights_refuses(rounded, tokens, tmp_path):
    tries = (
        lambda: rounded.save(tmp_path / "saved"),
        lambda: rounded.copy("mine"),
        lambda: rounded.network.set_precision(torch.float32),
        lambda: train(rounded.network, lambda _: tokens, TrainingPlan(steps=1), progress=False),
    )
    for refused in tries:
        with pytest.raises(ModelError, match="load it with dtype='float32'"):
            refused()
    assert not any(tmp_path.iterdir())


def test_where_it_cannot_run(monkeypatch):
    monkeypatch.setattr("tahoe.model.loading.has_int8", lambda: False)
    with pytest.raises(DeviceError, match="dtype='int8' needs an x86 CPU with AVX512-VNNI"):
        tahoe.load_model("demo", device="cpu", dtype="int8")
