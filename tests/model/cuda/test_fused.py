from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest
import torch
from torch import nn

from tahoe.model.cuda import fused

# Triton's interpreter runs the kernels on a CPU. It must be chosen before the first import.
SCRIPT = """
import torch
from tahoe.model.cuda.triton_norms import add_norm, norm

torch.manual_seed(0)
for width in (96, 512, 2560):
    x, update = torch.randn(7, width) * 3 + 5, torch.randn(7, width).bfloat16()
    layer_norm = torch.nn.LayerNorm(width)
    torch.nn.init.normal_(layer_norm.weight)
    torch.nn.init.normal_(layer_norm.bias)
    parameters = layer_norm.weight.data, layer_norm.bias.data, layer_norm.eps
    with torch.inference_mode():
        torch.testing.assert_close(norm(x, *parameters, torch.float32), layer_norm(x), atol=2e-6, rtol=2e-6)
        total, normed = add_norm(x, update, *parameters, torch.float32)
        assert torch.equal(total, x + update)
        torch.testing.assert_close(normed, layer_norm(x + update), atol=2e-6, rtol=2e-6)
        assert add_norm(x, update, *parameters, torch.bfloat16)[1].dtype == torch.bfloat16

from tahoe.model.network.attention import Spans, sdpa
from tahoe.model.cuda.triton_attention import HEAD_SIZES, attention

cells = Spans.of([0, 1, 64, 129, 330], torch.device("cpu"))
for size in HEAD_SIZES:
    q, k, v = (each.unflatten(-1, (3, size)) for each in torch.randn(330, 9 * size).chunk(3, dim=-1))
    found = attention(q, k, v, cells.device_bounds, cells.longest)
    torch.testing.assert_close(found, sdpa(q, k, v, cells, cells), atol=2e-6, rtol=0)
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="torch without CUDA comes without Triton")
def test_kernels_compute_what_torch_does(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_without_kernels_torch_does_it(precision):
    x, update, layer_norm = torch.randn(3, 8), torch.randn(3, 8).to(precision), nn.LayerNorm(8)
    total, normed = fused.add_norm(x, update, layer_norm, precision)
    assert torch.equal(total, x + update)
    assert torch.equal(normed, layer_norm(total).to(precision))
    assert torch.equal(fused.norm(x, layer_norm, precision), layer_norm(x).to(precision))


def test_where_kernels_do_not_compile_there_are_none(caplog):
    """On a machine without a GPU, or without a C compiler, nothing is raised."""
    fused.kernels.cache_clear()
    with caplog.at_level("INFO"):
        found = fused.kernels()
    if torch.cuda.is_available():
        assert found is not None
    else:
        assert found is None
        assert "not fused" in caplog.text


def test_layers_in_parts_compute_the_same_and_call_hooks(tiny, tiny_cells, monkeypatch):
    """On a GPU the sum after a layer is left to the norm of the next one, unless somebody watches the layer."""
    columns = tiny.vocabulary.tokens_of(tiny_cells.var_names)
    batch = tiny.batch(tiny.tokenize(tiny_cells.X[:4], columns))
    with torch.inference_mode():
        expected = tiny.network.embed_cells(batch), tiny.network(batch)
        monkeypatch.setattr("tahoe.model.network.network.infers_on_cuda", lambda _: True)
        called = []
        monkeypatch.setattr(type(tiny.network.layers[0]), "forward", lambda *_: called.append("whole"))
        assert torch.equal(tiny.network.embed_cells(batch), expected[0])
        assert torch.equal(tiny.network(batch), expected[1])
        assert not called
        monkeypatch.undo()
        monkeypatch.setattr("tahoe.model.network.network.infers_on_cuda", lambda _: True)
        tiny.network.layers[0].register_forward_hook(lambda *_: called.append("hook"))
        assert torch.equal(tiny.network(batch), expected[1])
    assert called == ["hook"]
