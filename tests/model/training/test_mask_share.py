"""How many genes a step and an evaluation hide is what the configuration of the network says."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from tahoe.model import ModelConfig, Vocabulary, tokenize
from tahoe.model.training import TrainingPlan, evaluate, masked_batch, new_network, train

N_GENES = 40
VOCABULARY = Vocabulary({"<pad>": 0, "<cls>": 1, **{f"ENSG{i:011}": i + 2 for i in range(N_GENES)}})
CONFIG = ModelConfig(16, 1, 2, N_GENES + 2, decoder_layers=1)


def draw(generator, n_cells=6):
    counts = generator.poisson(5, (n_cells, N_GENES)).astype(np.float32) + 1
    rows = (np.arange(n_cells + 1) * N_GENES, np.tile(np.arange(N_GENES), n_cells), counts.ravel())
    return tokenize(*rows, np.arange(N_GENES) + 2, config=CONFIG, vocabulary=VOCABULARY)


@pytest.mark.parametrize("share", [0.15, 0.5, 0.9])
@pytest.mark.parametrize("work", ["train", "evaluate"])
def test_the_share_is_that_of_the_configuration(share, work):
    network = new_network(dataclasses.replace(CONFIG, mask_probability=share))
    hidden = []

    def count(_, arguments):
        (batch, *_) = arguments
        hidden.extend(int(part.sum()) for part in batch.masked_T.split(batch.cells.lengths))

    network.register_forward_pre_hook(count)
    if work == "train":
        train(network, draw, TrainingPlan(steps=2), progress=False)
    else:
        evaluate(network, draw(np.random.default_rng(0), 12))
    assert hidden == [int(N_GENES * share)] * 12


@pytest.mark.parametrize(("scaled", "ends"), [(False, [1, 50]), (True, [-1, 1])])
def test_the_targets_span_the_scale_of_the_decoder(scaled, ends):
    tokens = draw(np.random.default_rng(0))
    _, targets = masked_batch(
        tokens, tokens.is_gene, dataclasses.replace(CONFIG, scaled_targets=scaled), torch.device("cpu")
    )
    assert [targets.min().item(), targets.max().item()] == ends
