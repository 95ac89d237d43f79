"""Attention without a mask, beside the formula with one, in float64: outputs and gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tahoe.model.network.attention import Spans, sdpa
from tahoe.model.training import attention
from tahoe.model.training.attention import Visibility

CPU = torch.device("cpu")


def with_gradients(attend, tensors, upstream):
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    output = attend(*leaves)
    output.backward(upstream)
    return [output.detach(), *(leaf.grad for leaf in leaves)]


@pytest.mark.parametrize("kernel", ["of torch", "the formula"])
@pytest.mark.parametrize("share", [None, 0.0, 0.5, 1.0])
@pytest.mark.parametrize("lengths", [[1], [40], [5, 5, 5], [3, 64, 1, 30, 31, 200, 201, 33]])
def test_is_the_formula(lengths, share, kernel, monkeypatch):
    if kernel == "the formula":
        monkeypatch.setattr(attention, "WITH_KERNEL", set())
    rng = np.random.default_rng(0)
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    masked = None
    if share is not None:
        masked = rng.random(bounds[-1]) < share
        masked[bounds[:-1]] = False
    q, k, v, upstream = torch.from_numpy(rng.normal(size=(4, bounds[-1], 2, 8)))
    who, spans = Visibility.of(bounds, masked, CPU, packed=False), Spans.of(bounds.tolist(), CPU)
    hidden = None if masked is None else torch.from_numpy(masked)
    found = with_gradients(lambda *qkv: who.attend(*qkv, spans, spans), (q, k, v), upstream)
    truth = with_gradients(lambda *qkv: sdpa(*qkv, spans, spans, hidden), (q, k, v), upstream)
    for ours, theirs in zip(found, truth, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_cells_of_like_length_go_together():
    bounds = np.concatenate([[0], np.cumsum([100, 20, 104, 101, 21, 160])])
    who = Visibility.of(bounds, None, CPU, packed=False)
    assert sorted(len(group.queries_BN) for group in who.groups) == [1, 2, 3]
    padding = sum(group.queries_BN.numel() for group in who.groups) / bounds[-1] - 1
    assert 0 < padding < attention.PADDING
