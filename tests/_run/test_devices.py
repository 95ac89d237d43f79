"""What a device may lack."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import tahoe
from tahoe.model.training import TrainingPlan, evaluate, train


class NoFloat64(TorchDispatchMode):
    """A device without float64, as Apple's GPUs are."""

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        if any(isinstance(each, torch.Tensor) and each.dtype == torch.float64 for each in tree_leaves(result)):
            message = f"{function}: the MPS framework doesn't support float64"
            raise TypeError(message)
        return result


@pytest.fixture
def on_such_a_device(monkeypatch):
    # the mode holds in this thread alone
    monkeypatch.setattr("tahoe.model.computing.parallel_for", lambda work, items: [work(item) for item in items])
    with NoFloat64():
        yield


@pytest.mark.usefixtures("on_such_a_device")
def test_it_refuses():
    with pytest.raises(TypeError, match="float64"):
        torch.ones(3).mean(dtype=torch.float64)


@pytest.mark.usefixtures("on_such_a_device")
def test_all_verbs_do_without_float64(tiny, full_cells):
    cells = full_cells[:4].copy()
    known = cells.var_names[tiny.vocabulary.tokens_of(cells.var_names) >= 0].tolist()
    tahoe.tl.embed(cells, tiny)
    tahoe.tl.embed_genes(cells, tiny)
    tahoe.tl.embed_genes(cells, tiny, context=False, key_added="input")
    tahoe.tl.attention(cells, tiny, min_cells=1, network_layer=None)
    tahoe.tl.attention(cells, tiny, min_cells=1, heads=[0, 2], key_added="two")
    for number, options in enumerate(({}, {"mask_fraction": 0.2}, {"genes": known[:3]}, {"decoder": "mvc"})):
        tahoe.tl.predict_expression(cells, tiny, key_added=f"predicted_{number}", **options)
    assert np.isfinite(tahoe.get.gene_embeddings(cells, tiny, cell=0).to_numpy()).all()
    np.testing.assert_allclose(tahoe.get.attention(cells, tiny, cell=0).sum(axis=1), 1, rtol=1e-5)
    assert cells.varp["two"].nnz == cells.varp["tahoe_attention"].nnz > 0


@pytest.mark.usefixtures("on_such_a_device")
def test_training_does_without_float64(tiny, full_cells):
    mine = tiny.copy("mine")
    tokens = mine.tokenize(full_cells.X[:4], mine.vocabulary.tokens_of(full_cells.var_names), max_length=64)
    train(mine.network, lambda _: tokens, TrainingPlan(steps=2), progress=False)
    assert np.isfinite(list(evaluate(mine.network, tokens).values())).all()
