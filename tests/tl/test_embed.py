from __future__ import annotations

import copy
import warnings

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

import tahoe
from tahoe.errors import DeviceError, GeneError, InputError, ModelError, TahoeWarning
from tahoe.model import ModelConfig, TahoeModel, Vocabulary
from tahoe.model.training import new_network

# Real counts of about 2,200 genes a cell, and a network that knows all of these genes.
CLOSE = 2e-6


@pytest.fixture(scope="module")
def heart_model(heart):
    vocabulary = Vocabulary({t: i for i, t in enumerate(["<pad>", "<cls>", "<eoc>", *sorted(heart.var_names)])})
    config = ModelConfig(64, 2, 4, len(vocabulary), gene_norm=True, value_norm=True, decoder_layers=1, mvc_scaled=True)
    network = new_network(config, seed=0).eval().requires_grad_(False)
    return TahoeModel("heart", network, vocabulary, torch.device("cpu"), "sdpa")


def vectors(adata, model, **options):
    result = tahoe.tl.embed(adata, model, copy=True, **options)
    return result.obsm[options.get("key_added", "X_tahoe")]


def test_matches_the_reference(tiny, tiny_cells, reference):
    truth = np.load(reference / "tiny-golden.npz")
    nonempty = np.arange(64) != 5
    with pytest.warns(TahoeWarning, match="1 of 64 cells express no gene"):
        raw = vectors(tiny_cells, tiny, normalize=False)
    np.testing.assert_allclose(raw[nonempty], truth["cell_emb_raw"][nonempty], atol=1e-5, rtol=0)
    with pytest.warns(TahoeWarning, match="first: row 5"):
        unit = vectors(tiny_cells, tiny)
    np.testing.assert_allclose(unit[nonempty], truth["cell_emb"][nonempty], atol=1e-6, rtol=0)
    assert np.isnan(raw[5]).all()
    assert np.isnan(unit[5]).all()


def test_slots(tiny, full_cells):
    before = full_cells.copy()
    assert tahoe.tl.embed(full_cells, tiny) is None
    assert full_cells.obsm["X_tahoe"].dtype == np.float32
    assert full_cells.obsm["X_tahoe"].shape == (63, 64)
    in_vocabulary = tiny.vocabulary.tokens_of(full_cells.var_names) >= 0
    assert full_cells.obs["tahoe_n_genes"].tolist() == (before.X[:, in_vocabulary] > 0).sum(1).A1.tolist()
    np.testing.assert_array_equal(full_cells.X.toarray(), before.X.toarray())
    assert full_cells.obs_names.equals(before.obs_names)
    record = full_cells.uns["X_tahoe"]
    assert record["input"] == "X"
    assert record["max_length"] == 2048
    assert record["seed"] == 0
    assert record["normalize"] is True
    assert record["dtype"] == "float32"
    assert record["model_sha256"] == tiny.weights_sha256
    assert len(record["vocabulary_sha256"]) == 64
    assert record["n_genes_in_vocabulary"] == in_vocabulary.sum()


def test_written_files_keep_everything(tiny, full_cells, tmp_path):
    tahoe.tl.embed(full_cells, tiny)
    full_cells.write_h5ad(tmp_path / "cells.h5ad")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Writing zarr v2 data", category=UserWarning)
        full_cells.write_zarr(tmp_path / "cells.zarr")
    for again in (anndata.read_h5ad(tmp_path / "cells.h5ad"), anndata.read_zarr(tmp_path / "cells.zarr")):
        np.testing.assert_array_equal(again.obsm["X_tahoe"], full_cells.obsm["X_tahoe"])
        for key, value in full_cells.uns["X_tahoe"].items():
            found = again.uns["X_tahoe"][key]
            assert (list(found) if isinstance(value, list) else found) == value


def test_copy_leaves_the_original_alone(tiny, full_cells):
    changed = tahoe.tl.embed(full_cells, tiny, copy=True)
    assert "X_tahoe" in changed.obsm
    untouched(full_cells)
    np.testing.assert_array_equal(vectors(full_cells, tiny), changed.obsm["X_tahoe"])


@given(st.integers(0, 2**32), st.sampled_from([300, 1500]))
@settings(deadline=None, max_examples=4)
def test_a_cells_vector_is_its_own_to_the_last_bit(heart, heart_model, seed, max_length):
    """Alone, among other cells, in any order of the rows and of the genes: the same bits."""
    rng = np.random.default_rng(seed)
    chosen = rng.choice(heart.n_obs, 4, replace=False)
    together = vectors(heart[chosen].copy(), heart_model, max_length=max_length)
    shuffled = heart[chosen][:, rng.permutation(heart.n_vars)].copy()
    np.testing.assert_array_equal(vectors(shuffled, heart_model, max_length=max_length), together)
    one = rng.integers(4)
    alone = vectors(heart[chosen[one : one + 1]].copy(), heart_model, max_length=max_length)
    np.testing.assert_array_equal(alone[0], together[one])
    np.testing.assert_array_equal(
        vectors(heart[chosen[::-1]].copy(), heart_model, max_length=max_length)[::-1], together
    )


@pytest.mark.parametrize("token_budget", [3000, 7000, 10**6])
def test_any_token_budget(heart, heart_model, token_budget):
    cells = heart[:5].copy()
    with tahoe.settings.override(token_budget=token_budget):
        tahoe.tl.embed(cells, heart_model)
    np.testing.assert_array_equal(cells.obsm["X_tahoe"], vectors(cells, heart_model))
    assert cells.uns["X_tahoe"]["token_budget"] == token_budget


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_number_of_threads(heart, heart_model, dtype):
    cells, model = heart[:5].copy(), copy.deepcopy(heart_model)
    model.network.set_precision(dtype)
    alone = vectors(cells, model)
    try:
        torch.set_num_threads(2)
        np.testing.assert_array_equal(vectors(cells, model), alone)
    finally:
        torch.set_num_threads(1)


def test_blocks_of_rows_do_not_show(heart, heart_model, monkeypatch):
    whole = vectors(heart, heart_model, max_length=500)
    monkeypatch.setattr("tahoe._cells.rows.BLOCK_CELLS", 7)
    np.testing.assert_array_equal(vectors(heart, heart_model, max_length=500), whole)


def test_seed_chooses_genes_only_where_there_are_too_many(heart, heart_model):
    cells = heart[:3].copy()
    np.testing.assert_array_equal(
        vectors(cells, heart_model, seed=1, max_length=4000), vectors(cells, heart_model, seed=2, max_length=4000)
    )
    differ = vectors(cells, heart_model, seed=1, max_length=300) != vectors(cells, heart_model, seed=2, max_length=300)
    assert differ.any(axis=1).all()


def test_counts_and_normalised_values_agree(heart, heart_model):
    counts = heart[:4].copy()
    # a power of two per cell leaves the order, and so the bins, as it was
    scaled = counts.copy()
    scaled.X = sparse.csr_matrix(sparse.diags(2.0 ** np.arange(-2, 2)) @ counts.X).astype(np.float32)
    np.testing.assert_array_equal(vectors(scaled, heart_model), vectors(counts, heart_model))
    logged = counts.copy()
    logged.X = counts.X.log1p()
    cosine = (vectors(logged, heart_model) * vectors(counts, heart_model)).sum(1)
    assert cosine.min() > 0.9999


def as_is(matrix):
    return matrix


def with_stored_zeros(matrix):
    matrix = matrix.tocoo()
    rows, columns = np.r_[matrix.row, [0, 1, 2]], np.r_[matrix.col, [1599, 1598, 1597]]
    out = sparse.csr_matrix((np.r_[matrix.data, [0, 0, 0]], (rows, columns)), shape=matrix.shape)
    assert out.nnz == matrix.nnz + 3
    return out


def unsorted(matrix):
    matrix = matrix.copy()
    for start, stop in zip(matrix.indptr[:-1], matrix.indptr[1:], strict=True):
        matrix.indices[start:stop] = matrix.indices[start:stop][::-1].copy()
        matrix.data[start:stop] = matrix.data[start:stop][::-1].copy()
    matrix.has_sorted_indices = False
    return matrix


def with_duplicates(matrix):
    """Each entry written twice, at half its value."""
    halves = np.repeat(matrix.data / 2, 2), np.repeat(matrix.indices, 2), matrix.indptr * 2
    return sparse.csr_matrix(halves, shape=matrix.shape)


STORAGES = {
    "csr_matrix": as_is,
    "csr_array": sparse.csr_array,
    "csc_matrix": lambda m: m.tocsc(),
    "csc_array": sparse.csc_array,
    "dense": lambda m: m.toarray(),
    "dense float64": lambda m: m.toarray().astype(np.float64),
    "dense fortran": lambda m: np.asfortranarray(m.toarray()),
    "uint16": lambda m: m.astype(np.uint16),
    "uint32": lambda m: m.astype(np.uint32),
    "int64": lambda m: m.astype(np.int64),
    "float64": lambda m: m.astype(np.float64),
    "float16": lambda m: m.toarray().astype(np.float16),
    "stored zeros": with_stored_zeros,
    "unsorted": unsorted,
    "duplicates": with_duplicates,
}


@pytest.mark.parametrize("storage", STORAGES)
def test_every_storage_gives_the_same_bits(tiny, full_cells, storage):
    full_cells.X.data[:] = np.minimum(full_cells.X.data, 2000)
    expected = vectors(full_cells, tiny)
    stored = STORAGES[storage](full_cells.X)
    other = anndata.AnnData(stored, obs=full_cells.obs, var=full_cells.var)
    before = [getattr(stored, name).copy() for name in ("data", "indices", "indptr") if sparse.issparse(stored)]
    tahoe.tl.embed(other, tiny)
    np.testing.assert_array_equal(other.obsm["X_tahoe"], expected)
    for name, old in zip(("data", "indices", "indptr"), before, strict=False):
        np.testing.assert_array_equal(getattr(stored, name), old)


def test_values_out_of_range_are_told(tiny, full_cells):
    full_cells.X = full_cells.X.astype(np.float64) * 1e38
    with pytest.raises(InputError, match="infinite values"):
        tahoe.tl.embed(full_cells, tiny)


def test_duplicates_that_overflow_their_type_are_summed(tiny, full_cells):
    full_cells.X.data[:] = np.minimum(full_cells.X.data, 100) * 2
    expected = vectors(full_cells, tiny)
    full_cells.X = with_duplicates(full_cells.X).astype(np.uint8)
    np.testing.assert_array_equal(vectors(full_cells, tiny), expected)


def test_one_dense_cell_is_not_imputed(heart, heart_model):
    cell = heart[:1].copy()
    cell = cell[:, cell.X.toarray()[0] > 0].copy()
    cell.X = cell.X.log1p()
    tahoe.tl.embed(cell, heart_model)
    assert np.isfinite(cell.obsm["X_tahoe"]).all()


def test_genes_that_are_there_twice(tiny, full_cells):
    full_cells.var["tahoe_gene"] = full_cells.var["tahoe_gene"].to_numpy()[[1, *range(1, 1600)]]
    with pytest.raises(InputError, match="in several columns.*map_genes"):
        tahoe.tl.embed(full_cells, tiny)


def test_backed(tiny, full_cells, tmp_path):
    expected = vectors(full_cells, tiny)
    full_cells.write_h5ad(tmp_path / "rows.h5ad")
    backed = anndata.read_h5ad(tmp_path / "rows.h5ad", backed="r")
    tahoe.tl.embed(backed, tiny)
    np.testing.assert_array_equal(backed.obsm["X_tahoe"], expected)
    for call in (lambda: tahoe.tl.embed(backed, tiny, copy=True), lambda: tahoe.tl.embed(backed[:5], tiny)):
        with pytest.raises(InputError, match=r"backed by a file.*to_memory"):
            call()
    backed.file.close()
    full_cells.X = full_cells.X.tocsc()
    full_cells.write_h5ad(tmp_path / "columns.h5ad")
    by_columns = anndata.read_h5ad(tmp_path / "columns.h5ad", backed="r")
    with pytest.raises(InputError, match="by columns"):
        tahoe.tl.embed(by_columns, tiny)
    by_columns.file.close()


def test_raw_of_a_mouse(tiny, full_cells):
    """The organism that map_genes was told holds for raw too."""
    mouse = ["Actb", "Gapdh", "Cd3e", "Cd4", "Cd8a", "Ptprc", "Ms4a1", "Nkg7"]
    cells = anndata.AnnData(full_cells.X[:, : len(mouse)].toarray() + 1, var=pd.DataFrame(index=mouse))
    cells.raw = cells
    tahoe.pp.map_genes(cells, organism="mouse")
    with pytest.raises(GeneError, match="the model knows 0 of 8 genes"):
        tahoe.tl.embed(cells, tiny, use_raw=True)


def test_layer_raw_and_view(tiny, full_cells):
    expected = vectors(full_cells, tiny)
    scaled = full_cells.copy()
    scaled.layers["counts"] = scaled.X.copy()
    scaled.raw = full_cells
    scaled.X = scaled.X.toarray() - 1
    np.testing.assert_array_equal(vectors(scaled, tiny, layer="counts"), expected)
    np.testing.assert_array_equal(vectors(scaled[:, :10].copy(), tiny, use_raw=True), expected)
    view = full_cells[10:20]
    with pytest.warns(anndata.ImplicitModificationWarning):
        tahoe.tl.embed(view, tiny)
    np.testing.assert_array_equal(view.obsm["X_tahoe"], expected[10:20])
    untouched(full_cells)


def test_raw_has_its_own_genes(tiny, full_cells):
    full_cells.raw = full_cells.copy()
    part = full_cells[:, :10].copy()
    del part.var["tahoe_gene"]
    np.testing.assert_array_equal(vectors(part, tiny, use_raw=True), vectors(full_cells, tiny))
    tahoe.tl.embed(part, tiny, use_raw=True)
    assert "tahoe_gene" not in part.var
    assert part.uns["X_tahoe"]["input"] == "raw.X"


def test_one_cell_and_duplicated_names(tiny, full_cells):
    expected = vectors(full_cells, tiny)
    one = full_cells[3:4].copy()
    np.testing.assert_array_equal(vectors(one, tiny), expected[3:4])
    names = full_cells.var_names.tolist()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Variable names are not unique", category=UserWarning)
        twice = anndata.concat([full_cells, full_cells[:, :5]], axis=1, merge="same")
        assert twice.var_names.tolist() == [*names, *names[:5]]
        del twice.var["tahoe_gene"]
        tahoe.tl.embed(twice, tiny)
    assert twice.var["tahoe_match"].tolist()[-5:] == ["duplicate"] * 5
    assert twice.obsm["X_tahoe"].shape == expected.shape


def test_mask_var(tiny, full_cells):
    chosen = tiny.vocabulary.tokens_of(full_cells.var_names) >= 0
    chosen[::2] = False
    full_cells = full_cells[full_cells.X[:, chosen].sum(1).A1 > 0].copy()
    expected = vectors(full_cells[:, chosen].copy(), tiny)
    full_cells.var["half"] = chosen
    np.testing.assert_array_equal(vectors(full_cells, tiny, mask_var="half"), expected)
    np.testing.assert_array_equal(vectors(full_cells, tiny, mask_var=chosen), expected)


def test_genes_are_mapped_on_the_way(heart, heart_model):
    cells = heart[:4].copy()
    tahoe.tl.embed(cells, heart_model)
    mapped = tahoe.pp.map_genes(heart[:4].copy(), copy=True)
    assert cells.var.equals(mapped.var)
    assert set(cells.uns) == {"X_tahoe", "tahoe_genes"}


def test_a_mapping_that_is_there_is_used(tiny, full_cells):
    expected = vectors(full_cells, tiny)
    full_cells.var_names = [f"probe{i}" for i in range(full_cells.n_vars)]
    np.testing.assert_array_equal(vectors(full_cells, tiny), expected)


def test_running_again_replaces_only_its_own_slots(tiny, full_cells):
    tahoe.tl.embed(full_cells, tiny)
    first = full_cells.obsm["X_tahoe"].copy()
    tahoe.tl.embed(full_cells, tiny, normalize=False)
    assert full_cells.uns["X_tahoe"]["normalize"] is False
    assert (np.linalg.norm(full_cells.obsm["X_tahoe"], axis=1) > 2 * np.linalg.norm(first, axis=1)).all()
    tahoe.tl.embed(full_cells, tiny, key_added="X_second")
    np.testing.assert_array_equal(full_cells.obsm["X_second"], first)
    assert {"X_tahoe", "X_second"} <= set(full_cells.uns)


def untouched(adata):
    keys = (*adata.obs, *adata.var, *adata.obsm, *adata.uns)
    assert not [key for key in keys if "tahoe" in key.lower() and key != "tahoe_gene"]


def change_values(change):
    def apply(adata):
        adata.layers["counts"] = adata.X.copy()
        adata.X = change(adata.X.toarray())

    return apply


def late(value):
    """One bad value in the last cell, which a look at the first block does not see."""

    def change(x):
        x[-1, 7] = value
        return sparse.csr_matrix(x)

    return change


REFUSED_VALUES = {
    "negative": (change_values(late(-1.0)), "negative values"),
    "NaN": (change_values(late(np.nan)), "NaN"),
    "infinite": (change_values(late(np.inf)), "infinite values"),
    "z-scored": (change_values(lambda x: (x - x.mean(0)) / (x.std(0) + 1e-3)), "negative values"),
    "imputed": (change_values(lambda x: x + 0.01 + x.mean(0)), "hardly a zero"),
}


@pytest.mark.parametrize("kind", REFUSED_VALUES)
def test_values_that_will_not_do(tiny, full_cells, kind, monkeypatch):
    change, seen = REFUSED_VALUES[kind]
    change(full_cells)
    monkeypatch.setattr("tahoe._cells.rows.BLOCK_CELLS", 16)
    with pytest.raises(InputError, match=rf'X holds {seen}.*pass layer="counts"'):
        tahoe.tl.embed(full_cells, tiny)
    untouched(full_cells)
    full_cells.raw = anndata.AnnData(full_cells.layers.pop("counts"), var=full_cells.var)
    with pytest.raises(InputError, match=r"raw\.X would do: pass use_raw=True, .*adata\.raw\.to_adata"):
        tahoe.tl.embed(full_cells, tiny)
    full_cells.raw = None
    if kind in ("z-scored", "imputed"):
        with pytest.raises(InputError, match="load the counts again"):
            tahoe.tl.embed(full_cells, tiny)


def test_x_among_the_layers_is_no_layer(tiny, full_cells):
    """anndata 0.13 shows X as ``layers[None]``; here it is put there for the older ones too."""
    full_cells.layers[None] = full_cells.X
    with pytest.raises(InputError, match=r"layers\['counts'\] does not exist; adata\.layers has none"):
        tahoe.tl.embed(full_cells, tiny, layer="counts")
    full_cells.layers["counts"] = full_cells.X
    full_cells.X = full_cells.layers[None] = -full_cells.X
    with pytest.raises(InputError, match=r'X holds negative values.*layers\["counts"\] would do: pass layer="counts"'):
        tahoe.tl.embed(full_cells, tiny)
    del full_cells.layers["counts"]
    with pytest.raises(InputError, match=r"X holds negative values.*load the counts again"):
        tahoe.tl.embed(full_cells, tiny)


@pytest.mark.parametrize("dtype", [complex, object])
def test_values_that_are_no_real_numbers(tiny, full_cells, dtype):
    full_cells.layers["odd"] = full_cells.X.toarray().astype(dtype)
    with pytest.raises(
        InputError, match=r'layers\["odd"\] holds (complex128|object).*X would do: omit layer= and use_raw='
    ):
        tahoe.tl.embed(full_cells, tiny, layer="odd")
    untouched(full_cells)


def test_dense_counts_of_a_small_panel_are_fine(tiny, full_cells):
    panel = full_cells[:20, :40].copy()
    panel.X = panel.X.toarray() + 1
    tahoe.tl.embed(panel, tiny)
    assert np.isfinite(panel.obsm["X_tahoe"]).all()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"layer": "nothing"}, InputError, r"layers\['nothing'\] does not exist; adata.layers has 'counts'"),
        ({"layer": "counts", "use_raw": True}, InputError, "pass only one"),
        ({"use_raw": True}, InputError, "adata.raw is None"),
        ({"mask_var": "twice"}, InputError, "var has 2 columns of the name 'twice'; rename or drop all but one"),
        ({"key_added": ""}, InputError, "key_added=''"),
        ({"key_added": "a/b"}, InputError, "without '/'"),
        ({"key_added": "tahoe_genes"}, InputError, "key_added='tahoe_genes'"),
        ({"mask_var": pd.Series(data=True, index=range(1600))}, InputError, "another index than var"),
        ({"mask_var": pd.array([None] + [True] * 1599, dtype="boolean")}, InputError, "missing values"),
        ({"mask_var": "absent"}, InputError, "mask_var='absent' is not a column of var"),
        ({"mask_var": np.ones(3, bool)}, InputError, "must be 1600 booleans"),
        ({"mask_var": np.zeros(1600, bool)}, InputError, "not all of them False"),
        ({"mask_var": np.ones(1600)}, InputError, "float64"),
        ({"max_length": 1}, InputError, "max_length=1: it must be at least 2"),
        ({"model": "7m"}, ModelError, "did you mean '70m'"),
        ({"dtype": "int4"}, DeviceError, "dtype='int4'"),
        pytest.param(
            {"device": "cuda"},
            DeviceError,
            "use device='cpu'",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="the machine has CUDA"),
        ),
    ],
)
def test_bad_arguments(tiny, full_cells, options, error, message, reference):
    full_cells.layers["counts"] = full_cells.X.copy()
    twice = pd.DataFrame(data=True, index=full_cells.var_names, columns=["twice", "twice"])
    full_cells.var = pd.concat([full_cells.var, twice], axis=1)
    model = options.pop("model", reference / "tiny-model" if {"dtype", "device"} & set(options) else tiny)
    with pytest.raises(error, match=message):
        tahoe.tl.embed(full_cells, model, **options)
    untouched(full_cells)


@pytest.mark.parametrize(
    ("cells", "genes", "message"), [(0, 1600, "has 0 cells and 1600 genes"), (63, 0, "has 63 cells and 0 genes")]
)
def test_nothing_to_embed(tiny, full_cells, cells, genes, message):
    empty = full_cells[:cells, :genes].copy()
    with pytest.raises(InputError, match=message):
        tahoe.tl.embed(empty, tiny)
    untouched(empty)


def test_no_matrix(tiny):
    adata = anndata.AnnData(obs=pd.DataFrame(index=["a", "b"]), var=pd.DataFrame(index=["x", "y"]))
    adata.layers["counts"] = np.ones((2, 2))
    with pytest.raises(InputError, match=r'adata.X is None.*pass layer="counts"'):
        tahoe.tl.embed(adata, tiny)


def test_names_that_no_table_knows(tiny, full_cells):
    full_cells.var_names = [f"{i}_at" for i in range(full_cells.n_vars)]
    del full_cells.var["tahoe_gene"]
    with pytest.raises(GeneError, match="0_at"):
        tahoe.tl.embed(full_cells, tiny)
    untouched(full_cells)


def test_mouse_names(tiny, full_cells):
    mouse = ["Actb", "Gapdh", "Malat1", "Cd3e", "Cd4", "Cd8a", "Ptprc", "Lyz2", "Ms4a1", "Nkg7"]
    cells = anndata.AnnData(full_cells.X[:, : len(mouse)], var=pd.DataFrame(index=mouse))
    with pytest.raises(GeneError, match="mouse"):
        tahoe.tl.embed(cells, tiny)
    untouched(cells)


def test_genes_of_another_vocabulary(heart_model, full_cells):
    real = tahoe.datasets.pbmc68k()[:, :40].copy()
    real.var_names = [f"ENSG{i:011}" for i in range(40)]
    with pytest.raises(GeneError, match="the model knows"):
        tahoe.tl.embed(real, heart_model)
    untouched(real)


def test_a_user_may_insist_on_few_known_genes(tiny, full_cells):
    lost = full_cells.copy()
    lost.var["tahoe_gene"] = np.where(np.arange(lost.n_vars) < 200, lost.var["tahoe_gene"], "")
    lost = lost[lost.X[:, :100].sum(1).A1 > 0].copy()
    with pytest.raises(GeneError, match="the model knows"):
        tahoe.tl.embed(lost, tiny)
    with pytest.warns(TahoeWarning, match="the model knows") as warned:
        tahoe.tl.embed(lost, tiny, min_coverage=0)
    assert warned[0].filename == __file__  # the user's line, not one of ours
    assert np.isfinite(lost.obsm["X_tahoe"]).all()


def test_a_network_that_gives_nan_is_named(tiny, full_cells):
    tiny.network.norm.weight[0] = torch.nan
    with pytest.raises(ModelError, match="NaN or infinite values for cell 0"):
        tahoe.tl.embed(full_cells, tiny)
    untouched(full_cells)


def test_two_runs_are_the_same_bits(heart, heart_model):
    cells = heart[:3].copy()
    np.testing.assert_array_equal(vectors(cells, heart_model), vectors(cells, heart_model))


def test_progress_counts_cells(tiny, full_cells, capsys):
    with tahoe.settings.override(progress=True):
        tahoe.tl.embed(full_cells, tiny)
    assert "63/63" in capsys.readouterr().err


def test_the_log_says_where(tiny, full_cells, caplog, reference):
    with caplog.at_level("INFO", logger="tahoe"):
        tahoe.tl.embed(full_cells, reference / "tiny-model", device=None)
    assert f"float32 on cpu, {tiny.attention} attention" in caplog.text
    assert "63 cells of X" in caplog.text
