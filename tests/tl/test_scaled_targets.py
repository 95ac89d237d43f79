"""Checkpoints whose decoders were trained on -1…1 predict bins, 1…50, in every verb and from every folder."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

import tahoe


@pytest.fixture(params=[-1.0, 0.0, 1.0])
def constant(request):
    """What the decoder gives for every token."""
    return request.param


@pytest.fixture
def model(tiny, tmp_path, constant):
    """Loaded from a folder whose configuration says that targets were scaled."""
    mine = tiny.copy("scaled")
    mine.network.config = dataclasses.replace(mine.config, scaled_targets=True)
    with torch.no_grad():
        mine.network.expression.out.weight.zero_()
        mine.network.expression.out.bias.fill_(constant)
    mine.save(tmp_path / "model")
    return tahoe.load_model(tmp_path / "model", device="cpu", dtype="float32")


def test_predictions_span_the_bins(model, full_cells, constant):
    expected = {-1.0: 1.0, 0.0: 25.5, 1.0: 50.0}[constant]
    cells = full_cells[:3].copy()
    known = cells.var_names[model.vocabulary.tokens_of(cells.var_names) >= 0][:2].tolist()
    tahoe.tl.predict_expression(cells, model, key_added="seen")
    tahoe.tl.predict_expression(cells, model, mask_fraction=0.3, key_added="hidden")
    tahoe.tl.predict_expression(cells, model, genes=known, key_added="asked")
    for values in (cells.layers["seen"].data, cells.layers["hidden"].data, np.ravel(cells.obsm["asked"])):
        assert len(values)
        np.testing.assert_array_equal(values, np.float32(expected))
