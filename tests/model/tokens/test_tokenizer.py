from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from tahoe.errors import InputError
from tahoe.model.config import ModelConfig
from tahoe.model.tokens import tokenizer
from tahoe.model.tokens.tokenizer import QUANTILES, tokenize
from tahoe.model.tokens.vocabulary import Vocabulary

N_COLUMNS = 300
VOCABULARY = Vocabulary({"<pad>": 0, "<cls>": 1, "<eoc>": 2, **{f"ENSG{i:011}": i + 3 for i in range(N_COLUMNS)}})
CONFIG = ModelConfig(d_model=8, n_layers=1, n_heads=1, vocab_size=len(VOCABULARY))
COLUMNS = np.arange(N_COLUMNS) + 3


@pytest.fixture(params=["numba", "numpy"], autouse=True, scope="module")
def way(request):
    """Every test with the compiled loops, and without."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "numpy":
            patch.setattr(tokenizer, "_compiled", lambda: None)
        else:
            assert tokenizer._compiled() is not None
        yield


def run(matrix, columns=COLUMNS, config=CONFIG, vocabulary=VOCABULARY, max_length=None, **options):
    matrix, options = sparse.csr_array(matrix), options | {"config": config, "vocabulary": vocabulary}
    return tokenize(matrix.indptr, matrix.indices, matrix.data, columns, max_length=max_length, **options)


def slow_bins(values):
    """The definition, for one cell, in torch."""
    row = torch.as_tensor(np.asarray(values, dtype=np.float32))
    ordered = row.sort().values
    rank = torch.from_numpy(QUANTILES) * (len(row) - 1)
    edges = torch.lerp(ordered[rank.floor().long()], ordered[rank.ceil().long()], rank - rank.floor())
    return torch.searchsorted(edges, row).float().numpy() + 1


def random_counts(seed, n_cells=20, density=0.5):
    rng = np.random.default_rng(seed)
    counts = rng.negative_binomial(1, 0.2, (n_cells, N_COLUMNS)).astype(np.float32)
    return counts * (rng.random(counts.shape) < density * rng.random((n_cells, 1)))


@given(st.integers(0, 2**32), st.sampled_from(["counts", "normalised", "log"]))
@settings(deadline=None, max_examples=40)
def test_bins_are_those_of_the_definition(seed, kind):
    values = random_counts(seed)
    if kind != "counts":
        values = values / np.maximum(values.sum(1, keepdims=True), 1) * np.float32(1e4)
    if kind == "log":
        values = np.log1p(values)
    tokens = run(values)
    for cell, row in enumerate(values):
        start, stop = tokens.bounds[cell : cell + 2]
        expressed = np.flatnonzero(row)
        np.testing.assert_array_equal(tokens.ids[start:stop], [1, *COLUMNS[expressed]])
        assert tokens.values[start] == -2
        if len(expressed):
            np.testing.assert_array_equal(tokens.values[start + 1 : stop], slow_bins(row[expressed]))


def test_special_tokens_are_no_genes():
    vocabulary = Vocabulary({"<pad>": 0, "<cls>": 1, "A": 2})
    assert vocabulary.tokens_of(["<cls>", "<pad>", "", "A"]).tolist() == [-1, -1, -1, 2]


@pytest.mark.parametrize("index", [N_COLUMNS, -1])
def test_an_index_just_beyond_the_columns_is_refused(index):
    """Compiled code would read there."""
    row = np.array([0, 1]), np.array([index]), np.ones(1, dtype=np.float32)
    with pytest.raises(InputError, match="not those of rows of a CSR matrix"):
        tokenize(*row, COLUMNS, config=CONFIG, vocabulary=VOCABULARY)


def test_only_values_of_genes_must_not_be_negative():
    columns = COLUMNS.copy()
    columns[0] = -1
    row = np.array([0, 2]), np.array([0, 1]), np.array([-1, 0.25], dtype=np.float32)
    assert tokenize(*row, columns, config=CONFIG, vocabulary=VOCABULARY).n_genes.tolist() == [1]
    with pytest.raises(InputError, match=r"values like -0\.25"):
        tokenize(*row[:2], -row[2], columns, config=CONFIG, vocabulary=VOCABULARY)


def test_bins_of_real_cells(heart):
    vocabulary = Vocabulary({"<pad>": 0, "<cls>": 1, **{gene: i + 2 for i, gene in enumerate(heart.var_names)}})
    columns = vocabulary.tokens_of(heart.var_names)
    compared = 0
    for scale in (1.0, 0.37, 1e4):
        for values in (heart.X * np.float32(scale), (heart.X * np.float32(scale)).log1p()):
            tokens = run(values, columns, vocabulary=vocabulary)
            for cell in range(heart.n_obs):
                start, stop = tokens.bounds[cell : cell + 2]
                truth = slow_bins(values[cell].data)
                np.testing.assert_array_equal(tokens.values[start + 1 : stop], truth)
                compared += len(truth)
    assert compared == 6 * heart.X.nnz


def test_rank_rounds_as_in_float32():
    # in exact arithmetic, count 8 of the counts 1…50 is the edge of bin 8 itself
    values = np.zeros((1, N_COLUMNS), dtype=np.float32)
    values[0, :50] = np.arange(1, 51)
    assert run(values).values[8] == 9


def test_few_and_equal_values():
    values = np.zeros((4, N_COLUMNS), dtype=np.float32)
    values[1, 7] = 3  # one gene
    values[2, :9] = 4  # all equal
    values[3, :2] = 1, 5
    tokens = run(values)
    assert tokens.bounds.tolist() == [0, 1, 3, 13, 16]
    assert tokens.n_genes.tolist() == [0, 1, 9, 2]
    assert tokens.values.tolist() == [-2, -2, 1, -2, *[1] * 9, -2, 1, 50]


def test_genes_outside_the_vocabulary_and_stored_zeros_change_nothing():
    counts = random_counts(0)
    with_zeros = sparse.csr_array(counts)
    with_zeros.data[::3] = 0
    without = with_zeros.copy()
    without.eliminate_zeros()
    same(run(with_zeros), run(without))
    columns = COLUMNS.copy()
    columns[::4] = -1
    dropped = counts.copy()
    dropped[:, ::4] = 0
    same(run(counts, columns), run(dropped))


@given(st.integers(0, 2**32), st.integers(2, 60), st.integers(0, 2**63))
@settings(deadline=None, max_examples=30)
def test_choice_above_max_length_is_the_cells_own(shuffle, max_length, seed):
    counts = random_counts(1, density=0.9)
    whole = run(counts, max_length=max_length, seed=seed)
    assert (whole.lengths <= max_length).all()
    assert (whole.lengths == np.minimum(1 + (counts > 0).sum(1), max_length)).all()
    assert whole.n_genes.tolist() == (counts > 0).sum(1).tolist()
    rng = np.random.default_rng(shuffle)
    genes, cells = rng.permutation(N_COLUMNS), rng.permutation(len(counts))
    same(run(counts[:, genes], COLUMNS[genes], max_length=max_length, seed=seed), whole)
    moved = run(counts[cells], max_length=max_length, seed=seed)
    for place, cell in enumerate(cells):
        same(moved.cells(place, place + 1), whole.cells(cell, cell + 1))
        same(run(counts[cell : cell + 1], max_length=max_length, seed=seed), whole.cells(cell, cell + 1))


def test_choice_keeps_bins_and_spreads():
    counts = random_counts(2, n_cells=400, density=1.9)
    whole, some = run(counts), run(counts, max_length=41, seed=3)
    bins = {(c, i): v for c in range(400) for i, v in items(whole.cells(c, c + 1))}
    assert all(bins[c, i] == v for c in range(400) for i, v in items(some.cells(c, c + 1)))
    other = run(counts, max_length=41, seed=4)
    assert (some.ids != other.ids).mean() > 0.5
    # each gene that could be chosen is chosen about as often as the others
    long = (counts > 0).sum(1) > 40
    expected = ((counts[long] > 0) * 40 / (counts[long] > 0).sum(1, keepdims=True)).sum(0)
    seen = np.bincount(np.concatenate([some.cells(c, c + 1).ids[1:] for c in np.flatnonzero(long)]) - 3, minlength=300)
    assert np.abs((seen - expected) / np.sqrt(expected)).max() < 4.5


def test_drug_token_takes_the_second_place():
    vocabulary = Vocabulary({**VOCABULARY.ids, "<drug>": 303})
    counts = random_counts(3)
    tokens = run(counts, vocabulary=vocabulary, drugs=np.arange(20), max_length=30)
    plain = run(counts, vocabulary=vocabulary, max_length=29)
    starts = tokens.bounds[:-1]
    assert (tokens.ids[starts + 1] == 303).all()
    assert (tokens.values[starts + 1] == -2).all()
    assert tokens.lengths.tolist() == (plain.lengths + 1).tolist()
    np.testing.assert_array_equal(np.delete(tokens.ids, starts + 1), plain.ids)
    assert tokens.cells(4, 7).drugs.tolist() == [4, 5, 6]


def test_log_transform_instead_of_bins():
    config = ModelConfig(
        d_model=8, n_layers=1, n_heads=1, vocab_size=303, binning=False, log_transform=True, target_sum=100.0
    )
    counts = random_counts(4)
    tokens = run(counts, config=config)
    row = counts[0][counts[0] > 0]
    np.testing.assert_allclose(tokens.values[1 : tokens.bounds[1]], np.log1p(row / (row.sum() + 1e-9) * 100), rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.uint32, np.float64])
def test_every_number_type(dtype):
    counts = np.minimum(random_counts(5), 200)
    same(run(counts.astype(dtype)), run(counts))


def test_seed_of_any_kind():
    counts = random_counts(6, density=0.9)
    same(run(counts, max_length=20, seed=np.int64(3)), run(counts, max_length=20, seed=3))
    same(run(counts, max_length=20, seed=-1), run(counts, max_length=20, seed=2**64 - 1))


@given(st.integers(0, 2**32), st.sampled_from(["counts", "large counts", "log"]), st.none() | st.integers(1, 80))
@settings(deadline=None, max_examples=60)
def test_numba_and_numpy_give_the_same_tokens(seed, kind, max_length):
    rng = np.random.default_rng(seed)
    values = random_counts(seed, density=1.5)
    if kind == "large counts":
        values *= rng.integers(1, 10**4, values.shape)
    elif kind == "log":
        values = np.log1p(values / np.maximum(values.sum(1, keepdims=True), 1) * np.float32(1e4))
    columns = np.where(rng.random(N_COLUMNS) < 0.9, rng.permutation(COLUMNS), -1)
    matrix = sparse.csr_array(values)
    matrix.data[rng.random(len(matrix.data)) < 0.05] = 0
    found = run(matrix, columns, max_length=max_length, seed=seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer, "_compiled", lambda: None)
        expected = run(matrix, columns, max_length=max_length, seed=seed)
    same(found, expected)
    np.testing.assert_array_equal(found.n_genes, expected.n_genes)


def items(tokens):
    return zip(tokens.ids.tolist(), tokens.values.tolist(), strict=True)


def same(a, b):
    np.testing.assert_array_equal(a.ids, b.ids)
    np.testing.assert_array_equal(a.values, b.values)
    np.testing.assert_array_equal(a.bounds, b.bounds)
