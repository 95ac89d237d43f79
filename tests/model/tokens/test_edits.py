from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import sparse

from tahoe.errors import InputError
from tahoe.model.tokens.edits import deleted, hide_share, with_drugs, with_genes, with_queries, with_values, without
from tahoe.model.tokens.packed import Tokens
from tahoe.model.training import masked_batch


@pytest.fixture
def tokens(tiny, full_cells):
    return tiny.tokenize(full_cells.X, tiny.vocabulary.tokens_of(full_cells.var_names))


def test_tokens_of_drugs_are_no_genes_and_cells_with_drugs_are_joined():
    bounds = np.array([0, 3, 5])
    ids, values = np.array([1, 2, 9, 1, 2]), np.arange(5, dtype=np.float32)
    cells = Tokens(ids, values, bounds, np.array([1, 0]), drugs=np.array([4, 0]))
    assert cells.is_gene.tolist() == [False, False, True, False, False]
    both = Tokens.joined([cells, cells.cells(0, 1)])
    assert both.ids.tolist() == [1, 2, 9, 1, 2, 1, 2, 9]
    assert (both.bounds.tolist(), both.drugs.tolist()) == ([0, 3, 5, 8], [4, 0, 4])
    without_drugs = replace(cells, drugs=None)
    assert Tokens.joined([without_drugs]).drugs is None
    with pytest.raises(InputError, match="some of these cells carry a drug token"):
        Tokens.joined([cells, without_drugs])


def test_a_share_of_each_cell_is_hidden(tokens):
    hidden = hide_share(tokens, 0.3, seed=4)
    assert not hidden[~tokens.is_gene].any()
    per_cell = np.add.reduceat(hidden, tokens.bounds[:-1])
    np.testing.assert_array_equal(per_cell, np.floor((tokens.lengths - 1) * 0.3))
    again = hide_share(tokens, 0.3, seed=5)
    # a quarter or so of the two choices agree by chance
    assert 0.2 < (hidden & again).sum() / hidden.sum() < 0.4


def test_the_choice_depends_on_the_cell_alone(tiny, full_cells, tokens):
    hidden = hide_share(tokens, 0.5)
    column_tokens = tiny.vocabulary.tokens_of(full_cells.var_names)
    generator = np.random.default_rng(0)
    rows, columns = generator.permutation(full_cells.n_obs), generator.permutation(full_cells.n_vars)
    shuffled = tiny.tokenize(full_cells.X[rows][:, columns], column_tokens[columns])
    choice = hide_share(shuffled, 0.5)
    for place, row in enumerate(rows):
        here, there = (slice(*each.bounds[i : i + 2]) for each, i in ((tokens, row), (shuffled, place)))
        assert set(tokens.ids[here][hidden[here]]) == set(shuffled.ids[there][choice[there]])
        alone = hide_share(tokens.cells(row, row + 1), 0.5)
        np.testing.assert_array_equal(alone, hidden[here])


def test_nothing_to_hide(tiny):
    empty = tiny.tokenize(sparse.csr_array((2, 3), dtype=np.float32), np.array([5, 6, 7]))
    assert not hide_share(empty, 0.9).any()


def test_hidden_values_do_not_reach_the_network(tiny, tokens):
    some = tokens.cells(10, 14)
    hidden = hide_share(some, 0.5)
    other = replace(some, values=np.where(hidden, np.float32(50), some.values))
    for decoder in ("expression", "mvc"):
        assert torch.equal(tiny.predict(some, decoder, hidden), tiny.predict(other, decoder, hidden))


def test_prediction_is_what_training_compares_with_the_truth(tiny, tokens):
    some = tokens.cells(10, 14)
    hidden = hide_share(some, 0.5)
    batch, _ = masked_batch(some, hidden, tiny.config, tiny.device)
    with torch.inference_mode():
        outputs = tiny.network(batch)
        expected = {"expression": tiny.network.decode(outputs), "mvc": tiny.network.decode_mvc(outputs, batch)}
    for decoder, values in expected.items():
        torch.testing.assert_close(tiny.predict(some, decoder, hidden), values, atol=2e-5, rtol=0)


def test_scaled_targets_come_back_as_bins(tiny, tokens):
    some = tokens.cells(10, 12)
    plain = tiny.predict(some)
    tiny.network.config = replace(tiny.config, scaled_targets=True)
    torch.testing.assert_close((tiny.predict(some) - 1) / 49 * 2 - 1, plain)


def test_asking_adds_tokens_and_takes_the_own_ones_away(tokens):
    some = tokens.cells(3, 9)
    own = some.ids[some.bounds[2] + 1]
    genes = np.array([own, 1999])
    longer, asking = with_queries(without(some, genes), genes, -1.0)
    for cell in range(len(some)):
        here, before = slice(*longer.bounds[cell : cell + 2]), slice(*some.bounds[cell : cell + 2])
        kept = ~np.isin(some.ids[before], genes)
        np.testing.assert_array_equal(longer.ids[here], [*some.ids[before][kept], *genes])
        np.testing.assert_array_equal(longer.values[here], [*some.values[before][kept], -1, -1])
        np.testing.assert_array_equal(asking[here], [*np.zeros(kept.sum(), dtype=bool), True, True])


def test_a_deleted_gene_leaves_all_others_as_they_were(tokens):
    cell = tokens.cells(10, 11)
    places = np.array([[1, 4], [7, 3], [len(cell.ids) - 1, 2]])
    copies = deleted(cell, places)
    assert len(copies) == 3
    assert copies.n_genes.tolist() == [cell.n_genes[0] - 2] * 3
    for number, gone in enumerate(places):
        expected = without(cell, cell.ids[gone])
        found = copies.cells(number, number + 1)
        np.testing.assert_array_equal(found.ids, expected.ids)
        np.testing.assert_array_equal(found.values, expected.values)


def test_a_raised_gene_and_one_that_was_added(tokens):
    cell = tokens.cells(10, 11)
    raised = with_values(cell, np.array([[5], [9]]), 50)
    expected = np.tile(cell.values, (2, 1))
    expected[[0, 1], [5, 9]] = 50
    np.testing.assert_array_equal(raised.values.reshape(2, -1), expected)
    np.testing.assert_array_equal(raised.ids, np.tile(cell.ids, 2))
    new = np.setdiff1d(np.arange(3, 2000), cell.ids)[[900, 1, 70, 3]].reshape(2, 2)
    added = with_genes(cell, new, 50)
    assert added.n_genes.tolist() == [cell.n_genes[0] + 2] * 2
    for number, genes in enumerate(new):
        copy = added.cells(number, number + 1)
        assert copy.ids[0] == cell.ids[0]
        assert (np.diff(copy.ids[1:]) > 0).all()
        is_new = np.isin(copy.ids, genes)
        assert is_new.sum() == 2
        np.testing.assert_array_equal(copy.values[is_new], [50, 50])
        np.testing.assert_array_equal(copy.ids[~is_new], cell.ids)
        np.testing.assert_array_equal(copy.values[~is_new], cell.values)


def test_what_is_taken_and_added_again_gives_the_same_bits(tiny, tokens):
    cell = tokens.cells(10, 11)
    place = int(np.flatnonzero(cell.values == 50)[0])
    gone = deleted(cell, np.array([[place]]))
    back = with_genes(gone, cell.ids[[[place]]], 50)
    np.testing.assert_array_equal(back.ids, cell.ids)
    for same in (back, with_values(cell, np.array([[place]]), 50)):
        assert torch.equal(tiny.embed_cells(same), tiny.embed_cells(cell))


def test_copies_with_other_drugs(tokens):
    cell = replace(tokens.cells(10, 11), drugs=np.array([0]))
    copies = with_drugs(cell, np.array([4, 2]))
    assert copies.drugs.tolist() == [4, 2]
    np.testing.assert_array_equal(copies.ids, np.tile(cell.ids, 2))
    new = np.setdiff1d(np.arange(3, 2000), cell.ids)[:1]
    added = with_genes(cell, new[None], 50)
    assert added.ids[:2].tolist() == cell.ids[:2].tolist()
    assert added.drugs.tolist() == [0]
