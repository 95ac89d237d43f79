from __future__ import annotations

import numpy as np
import pytest

import tahoe
from tahoe.errors import InputError, TahoeWarning


def test_one_cell_matches_the_reference(tiny, tiny_cells, reference):
    truth = np.load(reference / "tiny-golden.npz")
    cell = tiny_cells[48:49].copy()
    start, stop = truth["indptr"][48:50]
    place = {token: i for i, token in enumerate(truth["genes"][start:stop])}
    tokens = tiny.vocabulary.tokens_of(cell.var_names)
    columns = np.array([column for column, token in enumerate(tokens) if token in place])
    order = [place[tokens[column]] for column in columns]
    for layer in (0, 1):
        for heads in (None, 2):
            expected = truth["attn_48"][layer]
            expected = expected.mean(0) if heads is None else expected[heads]
            tahoe.tl.attention(cell, tiny, min_cells=1, network_layer=layer, heads=heads)
            ours = cell.varp["tahoe_attention"]
            assert ours.nnz == len(columns) ** 2
            np.testing.assert_allclose(
                ours[columns][:, columns].toarray(), expected[np.ix_(order, order)], atol=1e-6, rtol=0
            )
            np.testing.assert_allclose(
                cell.var["tahoe_attention_from_cell"].to_numpy()[columns], expected[0, order], atol=1e-6, rtol=0
            )
    tahoe.tl.attention(cell, tiny, min_cells=1, network_layer=None)
    expected = truth["attn_48"].mean((0, 1))[np.ix_(order, order)]
    np.testing.assert_allclose(cell.varp["tahoe_attention"][columns][:, columns].toarray(), expected, atol=1e-6, rtol=0)


def per_cell(cells, model):
    """The mean over the cells that express both genes, from single cells."""
    sums, n_cells = np.zeros((2, cells.n_vars, cells.n_vars))
    for row in range(cells.n_obs):
        one = cells[row : row + 1].copy()
        tahoe.tl.attention(one, model, min_cells=1)
        matrix = one.varp["tahoe_attention"].tocoo()
        sums[matrix.row, matrix.col] += matrix.data
        n_cells[matrix.row, matrix.col] += 1
    return np.divide(sums, n_cells, out=np.zeros_like(sums), where=n_cells > 0), n_cells > 0


def test_mean_over_cells_and_groups(tiny, full_cells):
    cells = full_cells[:9].copy()
    expected, seen = per_cell(cells, tiny)
    tahoe.tl.attention(cells, tiny, min_cells=1)
    ours = cells.varp["tahoe_attention"]
    assert ours.nnz == seen.sum()
    np.testing.assert_allclose(ours.toarray(), expected, atol=1e-6, rtol=0)
    cells.obs["half"] = ["a"] * 4 + ["b"] * 5
    tahoe.tl.attention(cells, tiny, min_cells=1, groupby="half", key_added="parts")
    assert cells.uns["parts"]["groups"] == ["a", "b"]
    for group, rows in (("a", slice(0, 4)), ("b", slice(4, 9))):
        expected, _ = per_cell(cells[rows].copy(), tiny)
        np.testing.assert_allclose(cells.varp[f"parts_{group}"].toarray(), expected, atol=1e-6, rtol=0)
        expressing = (cells[rows].X > 0).sum(0).A1 > 0
        known = tiny.vocabulary.tokens_of(cells.var_names) >= 0
        np.testing.assert_array_equal(cells.var[f"parts_{group}_from_cell"].notna(), expressing & known)
    assert cells.uns["parts"]["group_sizes"] == [4, 5]


def test_genes_and_top_k_only_thin_the_result(tiny, full_cells):
    cells = full_cells[:6].copy()
    tahoe.tl.attention(cells, tiny, min_cells=1)
    whole = cells.varp["tahoe_attention"].toarray()
    genes = cells.var_names[[3, 50, 400, 900]]
    tahoe.tl.attention(cells, tiny, min_cells=1, genes=genes)
    part = cells.varp["tahoe_attention"].toarray()
    columns = cells.var_names.get_indexer(genes)
    np.testing.assert_allclose(part[np.ix_(columns, columns)], whole[np.ix_(columns, columns)], rtol=0, atol=1e-7)
    assert (np.delete(part, columns, axis=0) == 0).all()
    tahoe.tl.attention(cells, tiny, min_cells=1, top_k=5)
    top = cells.varp["tahoe_attention"]
    assert (np.diff(top.indptr) <= 5).all()
    rows = np.flatnonzero(np.diff(top.indptr))
    np.testing.assert_allclose(top.max(axis=1).toarray()[rows, 0], whole.max(axis=1)[rows], rtol=1e-6)
    assert top.sum() > 0


def test_pairs_that_few_cells_express_are_left_out(tiny, full_cells):
    cells = full_cells[:9].copy()
    tahoe.tl.attention(cells, tiny, min_cells=1)
    whole = cells.varp["tahoe_attention"].toarray()
    tahoe.tl.attention(cells, tiny, min_cells=3, key_added="common")
    known = tiny.vocabulary.tokens_of(cells.var_names) >= 0
    present = (cells.X.toarray() > 0) & known
    together = present.T.astype(int) @ present
    np.testing.assert_array_equal(cells.varp["common"].toarray(), np.where(together >= 3, whole, 0))
    assert cells.varp["common"].nnz == (together >= 3).sum() > 0
    np.testing.assert_array_equal(cells.var["common_from_cell"].notna(), present.sum(0) >= 3)


def test_groups_with_few_cells(tiny, full_cells):
    cells = full_cells[:14].copy()
    cells.obs["kind"] = ["many"] * 11 + ["few"] * 3
    with pytest.warns(
        TahoeWarning, match="1 of 2 groups of obs.* fewer than min_cells=10 cells.* empty: 'few'"
    ) as told:
        tahoe.tl.attention(cells, tiny, groupby="kind")
    assert told[0].filename == __file__
    assert cells.varp["tahoe_attention_few"].nnz == 0
    assert cells.varp["tahoe_attention_many"].nnz > 0
    assert cells.uns["tahoe_attention"]["min_cells"] == 10
    assert cells.uns["tahoe_attention"]["token_budget"] == 1
    few = full_cells[:9].copy()
    with pytest.raises(InputError, match="min_cells=10, but adata has 9 cells: nothing would be kept"):
        tahoe.tl.attention(few, tiny)
    few.obs["kind"] = ["a"] * 5 + ["b"] * 4
    with pytest.raises(InputError, match=r"min_cells=6, but no group of obs\['kind'\] has so many"):
        tahoe.tl.attention(few, tiny, groupby="kind", min_cells=6)
    assert not few.varp


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"network_layer": 2}, "network_layer=2: the network has 2 layers, 0 to 1; None takes all"),
        ({"network_layer": "last"}, "network_layer='last'"),
        ({"heads": [0, 9]}, r"heads=\[0, 9\]: the network has 4 heads"),
        ({"genes": ["ENSG"]}, r"genes=\['ENSG'\]: not in adata.var_names"),
        ({"genes": []}, r"genes=\[\]"),
        ({"groupby": "nothing"}, "groupby='nothing'"),
        ({"top_k": 0}, "top_k=0"),
        ({"min_cells": 0}, "min_cells=0"),
        ({"drug_key": "drug"}, "has no drug encoder"),
        ({"layer": "nothing"}, "does not exist"),
    ],
)
def test_bad_arguments(tiny, full_cells, options, message):
    with pytest.raises(InputError, match=message):
        tahoe.tl.attention(full_cells, tiny, **options)
    assert not full_cells.varp
    assert not full_cells.uns


def test_names_that_several_columns_bear(tiny, full_cells, monkeypatch):
    """An unknown name among them is told before the pass; a known one means all of its columns."""
    cells = full_cells[:4].copy()
    tokens = tiny.vocabulary.tokens_of(cells.var["tahoe_gene"])
    first, second = np.flatnonzero((tokens >= 0) & (cells.X.min(0).toarray()[0] > 0))[:2]
    names = cells.var_names.to_numpy(dtype=object).copy()
    names[[first, second]] = "twice"
    cells.var_names = names
    tahoe.tl.attention(cells, tiny, min_cells=1, genes=["twice"])
    assert np.unique(cells.varp["tahoe_attention"].nonzero()).tolist() == [first, second]
    monkeypatch.setattr("tahoe.tl._attention.read_inputs", lambda *_, **__: pytest.fail("the work began"))
    for genes in (["twice", "unknown"], ["unknown", "twice"], [names[0], "twice", "unknown", names[1]]):
        with pytest.raises(InputError, match=r"genes=\['unknown'\]: not in adata.var_names"):
            tahoe.tl.attention(cells, tiny, min_cells=1, genes=genes)


def test_genes_that_nobody_expresses(tiny, full_cells):
    cells = full_cells[:3].copy()
    silent = cells.var_names[cells.X.sum(0).A1 == 0][:4]
    with pytest.raises(InputError, match="expressed in any cell"):
        tahoe.tl.attention(cells, tiny, min_cells=1, genes=silent)


def test_a_result_that_does_not_fit(tiny, full_cells, monkeypatch):
    monkeypatch.setattr("os.sysconf", lambda name: 4096 if name == "SC_PAGE_SIZE" else 100)
    with pytest.raises(InputError, match="choose fewer with genes="):
        tahoe.tl.attention(full_cells, tiny, min_cells=1)
