"""What a GPU would wait for, seen without one: on the meta device nothing can be read back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tahoe.model import ModelConfig, Network, Tokens
from tahoe.model.config import DrugEncoderConfig
from tahoe.model.cuda.transfers import start_copy, to_device
from tahoe.model.network.attention import Spans
from tahoe.model.network.network import Batch

META = torch.device("meta")
CONFIG = ModelConfig(64, 2, 4, 100, gene_norm=True, value_norm=True, drug_encoder=DrugEncoderConfig(5, 8, "relu"))


class Crossings(TorchDispatchMode):
    """Counts what goes from one device to another."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tensors = [each for each in args if isinstance(each, torch.Tensor)]
        if isinstance(result, torch.Tensor) and tensors and {each.device for each in tensors} != {result.device}:
            self.seen.append(str(function))
        return result


@pytest.fixture
def batch():
    ids, bounds = np.arange(12), np.array([0, 5, 12])
    tokens = Tokens(ids, ids.astype(np.float32), bounds, np.diff(bounds) - 2)
    drugs = to_device(np.array([0, 3]), META)
    return Batch(to_device(tokens.ids, META), to_device(tokens.values, META), Spans.of([0, 5, 12], META), None, drugs)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("attention", ["varlen", "sdpa"])
def test_a_forward_pass_reads_nothing_back(batch, precision, attention):
    with META:
        network = Network(CONFIG).set_precision(precision)
    with torch.inference_mode(), Crossings() as crossings:
        cells = network.embed_cells(batch, attention)
        outputs = network(batch, attention)
        assert network.decode(outputs).shape == network.decode_mvc(outputs, batch).shape == (12,)
    assert cells.shape == (2, 64)
    assert crossings.seen == []


def test_what_reads_back_is_noticed(batch):
    with pytest.raises(RuntimeError, match="meta"):
        batch.ids_T.max().item()
    with Crossings() as crossings:
        torch.ones(2).to(META)
    assert len(crossings.seen) == 1


def test_copies_home_are_whole():
    values = torch.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(start_copy(values)(), values.numpy())
