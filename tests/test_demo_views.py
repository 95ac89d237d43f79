"""Views of cells on a device, beside the tokenizer that defines what they must be."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from demo_losses import Contrast, centred, contrastive_loss, masked_losses, outputs, two_view_losses
from demo_views import CellCounts, draw_views

from tahoe.model import ModelConfig, Tokens, Vocabulary, tokenize
from tahoe.model.training import masked_batch, new_network
from tahoe.model.training import masked_losses as packed_losses


@pytest.fixture(scope="module")
def vocabulary(heart):
    return Vocabulary({token: id_ for id_, token in enumerate(["<pad>", "<cls>", "<eoc>", *sorted(heart.var_names)])})


@pytest.fixture(scope="module")
def config(vocabulary):
    return ModelConfig(
        32, 2, 2, len(vocabulary), gene_norm=True, value_norm=True, decoder_layers=1, mvc_scaled=True, expansion_ratio=2
    )


@pytest.fixture(scope="module")
def cells(heart, vocabulary):
    return on_device(heart.X, vocabulary.tokens_of(heart.var_names))


def on_device(matrix, columns):
    return CellCounts(
        torch.from_numpy(columns[matrix.indices].astype(np.int32)),
        torch.from_numpy(matrix.data.astype(np.float32)),
        matrix.indptr.astype(np.int64),
    )


def chance(seed=0):
    return torch.Generator().manual_seed(seed)


def by_gene(ids, values):
    order = np.argsort(ids)
    return ids[order].tolist(), values[order].tolist()


@pytest.mark.parametrize("panel", [False, True])
def test_bins_are_those_of_the_tokenizer(heart, cells, vocabulary, config, panel):
    """Bit for bit, in real cells, with all of their genes and on a panel of them."""
    columns, panels, panel_of_view = vocabulary.tokens_of(heart.var_names), None, None
    if panel:
        panels = torch.rand(2, len(vocabulary), generator=chance()) < 0.3
        panel_of_view = np.arange(40) % 2
    views = draw_views(
        cells, np.arange(40), chance(), length=6000, cell_token=1, mask_share=0, panels_PV=panels, panel_R=panel_of_view
    )
    for cell in range(40):
        seen = columns if not panel else np.where(panels[cell % 2].numpy()[columns], columns, -1)
        row = heart.X[[cell]]
        tokens = tokenize(
            row.indptr, row.indices, row.data, seen, config=config, vocabulary=vocabulary, max_length=None
        )
        genes = views.is_gene_RN[cell].numpy()
        assert genes.sum() == len(tokens.ids) - 1
        ours = by_gene(views.ids_RN[cell].numpy()[genes], views.values_RN[cell].numpy()[genes])
        assert ours == by_gene(tokens.ids[1:], tokens.values[1:])


def test_longer_cells_keep_some_of_their_genes_with_the_bins_of_all(cells, heart):
    whole = draw_views(cells, np.arange(40), chance(), length=6000, cell_token=1, mask_share=0)
    views = draw_views(cells, np.arange(40), chance(1), length=129, cell_token=1)
    assert views.ids_RN.shape == (40, 129)
    assert views.n_queried == 64
    assert views.is_gene_RN[:, 1:].all()
    assert (views.ids_RN[:, 0] == 1).all()
    for cell in range(40):
        bins = dict(zip(whole.ids_RN[cell].tolist(), whole.values_RN[cell].tolist(), strict=True))
        ids = views.ids_RN[cell, 1:].tolist()
        assert len(set(ids)) == 128
        assert [bins[id_] for id_ in ids] == views.values_RN[cell, 1:].tolist()


def test_short_cells_are_filled_up_behind_both_parts():
    counts = CellCounts(torch.arange(3, 12, dtype=torch.int32), torch.arange(1.0, 10.0), np.array([0, 0, 2, 9]))
    views = draw_views(counts, np.array([0, 1, 2, 2]), chance(), length=9, cell_token=1)
    visible, asked = views.is_gene_RN[:, 1:5], views.is_gene_RN[:, 5:]
    assert visible.sum(1).tolist() == [0, 1, 4, 4]
    assert asked.sum(1).tolist() == [0, 1, 3, 3]
    assert (views.ids_RN[~views.is_gene_RN] <= 1).all()
    assert sorted(views.ids_RN[2][views.is_gene_RN[2]].tolist()) == list(range(5, 12))


def test_thinning_keeps_the_share_of_the_molecules(cells):
    thin_to = np.repeat([0.3, 0.8], 20)
    rows = np.tile(np.arange(20), 2)
    few = draw_views(cells, rows, chance(), length=6000, cell_token=1, mask_share=0, thin_to_R=thin_to)
    n_genes = few.is_gene_RN.sum(1)
    assert (n_genes[:20] < n_genes[20:]).all()
    again = draw_views(cells, rows, chance(), length=6000, cell_token=1, mask_share=0, thin_to_R=thin_to)
    assert torch.equal(few.ids_RN, again.ids_RN)


def test_dense_batches_give_what_packed_ones_give(cells, config):
    network = new_network(config).eval()
    views = draw_views(cells, np.arange(8), chance(), length=100, cell_token=1)
    short = draw_views(on_few(cells), np.arange(8), chance(), length=100, cell_token=1)
    for drawn in (views, short):
        output = outputs(network, drawn)
        losses = masked_losses(network, drawn, output)
        batch, targets, first = packed(drawn, config)
        torch.testing.assert_close(output[:, 0], network(batch)[first], rtol=1e-4, atol=1e-5)
        expected = packed_losses(network, batch, targets)
        torch.testing.assert_close(losses.expression, expected.expression, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(losses.mvc, expected.mvc, rtol=1e-4, atol=1e-3)


def on_few(cells):
    """The same cells with no more than 20 to 60 genes each."""
    lengths = np.minimum(np.diff(cells.bounds_C), 20 + np.arange(40))
    kept = np.concatenate([np.arange(start, start + n) for start, n in zip(cells.bounds_C, lengths, strict=False)])
    return CellCounts(cells.ids_E[kept], cells.counts_E[kept], np.concatenate([[0], np.cumsum(lengths)]))


def packed(views, config):
    """The same tokens end to end, without padding."""
    real = views.is_gene_RN.numpy().copy()
    real[:, 0] = True
    ids, values, lengths = views.ids_RN.numpy()[real], views.values_RN.numpy()[real], real.sum(1)
    tokens = Tokens(ids, values, np.concatenate([[0], np.cumsum(lengths)]), lengths - 1)
    hidden = np.zeros(real.shape, dtype=bool)
    hidden[:, -views.n_queried :] = True
    return *masked_batch(tokens, hidden[real], config, torch.device("cpu")), torch.from_numpy(tokens.bounds[:-1])


def test_contrast_is_the_formula():
    one, other = torch.randn(2, 1, 5, 8, generator=chance())
    cells = torch.arange(5)[None]
    loss = contrastive_loss(one, other, cells, 0.2)
    a, b = (torch.nn.functional.normalize(t[0], dim=-1) for t in (one, other))
    scores, truth = a @ b.T / 0.2, torch.arange(5)
    expected = torch.nn.functional.cross_entropy(scores, truth) + torch.nn.functional.cross_entropy(scores.T, truth)
    torch.testing.assert_close(loss, expected / 2)


def test_cells_that_look_alike_are_told_apart_around_their_mean():
    one = torch.randn(1, 16, 8, generator=chance())
    alike = 1000 + one
    cells = torch.arange(16)[None]
    assert contrastive_loss(alike, alike, cells, 0.1) > 0.99 * np.log(16)
    assert contrastive_loss(centred(alike), centred(alike), cells, 0.1) < 1


def test_a_cell_is_not_set_apart_from_itself():
    one, other = torch.randn(2, 1, 4, 8, generator=chance())
    twice = [torch.cat([t, t[:, :2]], dim=1) for t in (one, other)]
    cells = torch.tensor([[0, 1, 2, 3, 0, 1]])
    with_twice = contrastive_loss(*twice, cells, 0.1)
    assert torch.isfinite(with_twice)
    as_others = contrastive_loss(*twice, torch.arange(6)[None], 0.1)
    assert with_twice < as_others


def test_without_a_weight_the_second_term_is_not_there(cells, config):
    network = new_network(config).eval()
    rows = np.tile(np.arange(12), 2)
    views = draw_views(cells, rows, chance(), length=64, cell_token=1)
    lots = torch.arange(12).view(2, 6)
    total, losses, apart = two_view_losses(network, views, lots, Contrast())
    assert torch.equal(total, losses.total)
    assert apart.tolist() == [0, 0]
    total, losses, apart = two_view_losses(network, views, lots, Contrast(weight=60))
    assert (apart > 0).all()
    torch.testing.assert_close(total, losses.total + 60 * apart.mean())
