"""A checkpoint's own vocabulary decides first: an id that stands in it is taken as it is, also if it was retired."""

from __future__ import annotations

import warnings

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import tahoe
from tahoe._genes.mapping import resolve

# ids of the small model's vocabulary that Ensembl has retired since; some have a successor, some several or none
N_RETIRED = 53


@pytest.fixture
def retired(tiny):
    genes = tiny.vocabulary.genes
    found, _ = resolve(genes)
    old = genes[found != genes]
    assert len(old) == N_RETIRED
    return old


@pytest.fixture
def unmapped(full_cells):
    cells = full_cells[:12].copy()
    del cells.var["tahoe_gene"]
    return cells


def mapped(cells):
    """As `tahoe.pp.map_genes` leaves them, which knows of no model."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the released models know few of these genes
        return tahoe.pp.map_genes(cells, copy=True)


def vectors(cells, model, **options):
    tahoe.tl.embed(cells, model, min_coverage=0, **options)
    return cells.obsm["X_tahoe"]


@pytest.fixture
def truth(tiny, full_cells):
    return vectors(full_cells[:12].copy(), tiny)


def test_without_a_mapping_and_with_one(tiny, unmapped, truth, retired, caplog):
    before = mapped(unmapped)
    in_data = np.isin(before.var_names, retired)
    assert (before.var["tahoe_gene"] != before.var_names)[in_data].all()
    assert in_data.sum() == 38
    for cells in (unmapped, before):
        caplog.clear()
        with caplog.at_level("INFO", logger="tahoe"):
            np.testing.assert_array_equal(vectors(cells, tiny), truth)
        assert "38 Ensembl ids are taken as they stand in the model's vocabulary" in caplog.text
        assert cells.uns["X_tahoe"]["n_genes_in_vocabulary"] == 1500
    # the mapping belongs to no model: another one, which knows the successors, finds them
    assert unmapped.var["tahoe_gene"].tolist() == before.var["tahoe_gene"].tolist()
    assert unmapped.uns["tahoe_genes"]["genes"] == before.uns["tahoe_genes"]["genes"]


def test_in_files(tiny, unmapped, truth, tmp_path):
    for name, cells in (("unmapped", unmapped), ("mapped", mapped(unmapped))):
        cells.write_h5ad(tmp_path / f"{name}.h5ad")
        tahoe.embed_file(tmp_path / f"{name}.h5ad", tmp_path / f"{name}.zarr", tiny)
        np.testing.assert_array_equal(anndata.read_zarr(tmp_path / f"{name}.zarr").obsm["X_tahoe"], truth)


@pytest.mark.parametrize("spelling", ["{}.7", "gene:{}", "SYMBOL_{}"])
def test_ids_in_a_column_with_versions_or_other_text(tiny, unmapped, truth, spelling):
    unmapped.var["gene_ids"] = [spelling.format(name) for name in unmapped.var_names]
    unmapped.var_names = [f"column {i}" for i in range(unmapped.n_vars)]
    for cells in (mapped(unmapped), unmapped):
        np.testing.assert_array_equal(vectors(cells, tiny), truth)


def test_after_concat_the_mapping_still_yields(tiny, unmapped, truth):
    """The record of the mapping is gone then; how each gene was matched is not."""
    both = anndata.concat([mapped(unmapped[:5].copy()), mapped(unmapped[5:].copy())], merge="same")
    assert "tahoe_match" in both.var
    assert "tahoe_genes" not in both.uns
    np.testing.assert_array_equal(vectors(both, tiny), truth)


def test_what_a_user_says_is_taken_as_it_is(tiny, unmapped, retired):
    chosen = np.isin(unmapped.var_names, retired)
    mine = mapped(unmapped)
    mine.var["tahoe_gene"] = mine.var["tahoe_gene"].where(~chosen, "")
    left_out = unmapped.copy()
    left_out.var["tahoe_gene"] = np.where(chosen, "", left_out.var_names)
    np.testing.assert_array_equal(vectors(mine, tiny), vectors(left_out, tiny))
    assert mine.uns["X_tahoe"]["n_genes_in_vocabulary"] == 1500 - chosen.sum()


def columns(counts, names):
    matrix = sparse.csr_matrix(np.asarray(counts, dtype=np.float32))
    return anndata.AnnData(matrix, var=pd.DataFrame(index=names))


def test_an_id_and_its_successor_are_two_genes_of_a_model_that_has_both(tiny, retired):
    found, match = resolve(retired)
    old, new = next(pair for pair in zip(retired, found, strict=True) if pair[1])
    assert match[retired == old] == "retired"
    known = tiny.vocabulary.genes[-8:].tolist()
    tiny.vocabulary.ids[new] = tiny.vocabulary.ids.pop(known.pop())
    tiny.vocabulary.__dict__.pop("genes", None)
    counts = np.random.default_rng(0).permutation(9 * 4).reshape(4, 9) + 1
    names = [old, new, *known]
    given = columns(counts, names)
    given.var["tahoe_gene"] = names
    for cells in (columns(counts, names), mapped(columns(counts, names))):
        np.testing.assert_array_equal(vectors(cells, tiny), vectors(given, tiny))
        assert cells.var["tahoe_match"].tolist()[:2] == ["duplicate", "ensembl"]


def test_of_several_columns_for_an_id_the_one_with_most_counts_keeps_it(tiny, retired):
    old = next(name for name in retired if resolve([name])[0][0])
    known = tiny.vocabulary.genes[-7:].tolist()
    counts = np.random.default_rng(0).permutation(9 * 4).reshape(4, 9) + 1
    counts[:, 1] += 100
    for order in (slice(None), [1, 0, *range(2, 9)]):
        names = np.array([f"{old}.1", f"{old}.2", *known], dtype=object)[order]
        given = columns(counts[:, order], names)
        given.var["tahoe_gene"] = [old if name == f"{old}.2" else "" if name == f"{old}.1" else name for name in names]
        for cells in (columns(counts[:, order], names), mapped(columns(counts[:, order], names))):
            np.testing.assert_array_equal(vectors(cells, tiny), vectors(given, tiny))


def test_genes_that_are_asked_for(tiny, unmapped, retired):
    absent = [name for name in retired if name not in unmapped.var_names][:2]
    tahoe.tl.predict_expression(unmapped, tiny, genes=absent, key_added="plain")
    tahoe.tl.predict_expression(unmapped, tiny, genes=[f"{absent[0]}.3", f"{absent[1]}.12"], key_added="version")
    np.testing.assert_array_equal(unmapped.obsm["version"].to_numpy(), unmapped.obsm["plain"].to_numpy())
    present = [name for name in retired if name in unmapped.var_names][:2]
    tahoe.tl.predict_expression(unmapped, tiny, genes=present, key_added="present")
    assert unmapped.obsm["present"].notna().all(axis=None)


def test_a_model_of_mouse_genes(tiny, full_cells):
    """Its ids are taken as they are; what it does not know goes to the human ortholog, as ever."""
    cells = full_cells[:12].copy()
    tokens = tiny.vocabulary.tokens_of(cells.var_names)
    mouse = [f"ENSMUSG{i:011d}" for i in range(cells.n_vars)]
    mouse[:3] = ["ENSMUSG00000059552", "ENSMUSG00000029580", "ENSMUSG00000026395"]  # so that something is recognised
    ids = {token: id_ for token, id_ in tiny.vocabulary.ids.items() if token.startswith("<")}
    tiny.vocabulary.ids = ids | {name: int(token) for name, token in zip(mouse, tokens, strict=True) if token >= 0}
    tiny.vocabulary.__dict__.pop("genes", None)
    cells.var["tahoe_gene"] = mouse
    expected = vectors(cells, tiny)
    again = anndata.AnnData(cells.X, var=pd.DataFrame(index=mouse))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tahoe.pp.map_genes(again, organism="mouse")
    np.testing.assert_array_equal(vectors(again, tiny), expected)
