"""Gene sets and essential genes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import average_precision_score, log_loss, roc_auc_score
from sklearn.model_selection import StratifiedKFold

import tahoe
from tahoe._scores import mlp as _mlp
from tahoe.errors import InputError, TahoeWarning
from tahoe.evaluate import _gene_sets
from tahoe.evaluate._essentiality import CALIPER, matched_pairs
from tahoe.evaluate._gene_inputs import family

if TYPE_CHECKING:
    import anndata

BASELINES = {"mean expression and detection", "PCA loadings", "random", "constant"}


@pytest.fixture(scope="module")
def cells() -> anndata.AnnData:
    """Real cells; vectors of genes that know in which of two sets they are."""
    adata = tahoe.datasets.pbmc68k()[::7].copy()
    tahoe.pp.map_genes(adata)
    adata.uns.clear()
    random = np.random.default_rng(0)
    member = np.arange(adata.n_vars) % 3
    adata.varm["good"] = (np.eye(3)[member] + random.normal(0, 0.3, (adata.n_vars, 3))).astype(np.float32)
    adata.varm["gaps"] = adata.varm["good"].copy()
    adata.varm["gaps"][:200] = np.nan
    adata.varm["broken"] = adata.varm["good"].copy()
    adata.varm["broken"][6, 1] = np.nan  # a gene of the first set
    adata.var["set"] = member
    return adata


@pytest.fixture(scope="module")
def sets(cells) -> dict[str, list[str]]:
    return {f"set {i}": list(cells.var_names[cells.var["set"] == i]) for i in (0, 1)}


@pytest.fixture
def few(monkeypatch):
    """Two small networks instead of 24, and not to their end."""
    monkeypatch.setattr(_mlp, "CONFIGURATIONS", _mlp.CONFIGURATIONS[:4:3])
    monkeypatch.setattr(_mlp, "MOST_EPOCHS", 40)
    monkeypatch.setattr(_mlp, "RATE", 1e-2)


def test_the_24_networks_and_the_partition_are_those_of_the_authors():
    assert len(set(_mlp.CONFIGURATIONS)) == 24
    assert {c.hidden for c in _mlp.CONFIGURATIONS} == {64, 512, 1024, 2048}
    split = _mlp.split_genes(1003, seed=4)
    np.random.seed(4)
    order = np.random.permutation(1003)
    bounds = [int(1003 * 0.7), int(1003 * (0.7 + 0.05)), int(1003 * (0.7 + 0.05 + 0.05))]
    np.testing.assert_array_equal(split.train, order[: bounds[0]])
    np.testing.assert_array_equal(split.test, order[bounds[2] :])
    assert sorted(np.concatenate(split)) == list(range(1003))


def test_a_network_has_the_layers_of_the_authors():
    layers = [type(layer).__name__ for layer in _mlp._network(8, 50, _mlp.Configuration(64, 2, 0.5))]
    assert layers == ["Linear", "LeakyReLU", "Dropout", "Linear", "LeakyReLU", "Dropout", "Linear"]
    assert len(_mlp._network(8, 50, _mlp.Configuration(64, 1, 0.5))) == 4


def test_the_network_is_chosen_by_log_loss(monkeypatch):
    random = np.random.default_rng(0)
    x, y = random.normal(size=(100, 4)), random.random((100, 3)) > 0.5
    split = _mlp.split_genes(100, 0)
    shown = {}
    monkeypatch.setattr(_mlp, "CONFIGURATIONS", _mlp.CONFIGURATIONS[:4])

    def untrained(configuration, x, y, split, seed):
        torch.manual_seed(configuration.hidden + int(10 * configuration.dropout))
        network = _mlp._network(4, 3, configuration).eval()
        with torch.no_grad():
            told = network(x[split.choice]).sigmoid().numpy()
        shown[configuration] = log_loss(y[split.choice].numpy().ravel(), told.ravel())
        return network

    monkeypatch.setattr(_mlp, "train", untrained)
    predicted, chosen = _mlp.predict_best(x, y, split, 0, "cpu")
    assert chosen == min(shown, key=shown.__getitem__)
    assert predicted.shape == (20, 3)


def test_hallmarks_as_the_authors_do(cells, sets, few):
    before = torch.random.get_rng_state()
    tables = [tahoe.evaluate.gene_sets(cells, "good", sets, seeds=(0, 1)) for _ in range(2)]
    assert torch.equal(before, torch.random.get_rng_state())
    pd.testing.assert_frame_equal(*tables, check_exact=True)
    table = tables[0].set_index(["metric", "representation"])
    assert set(tables[0]["representation"]) == {"good", *BASELINES}
    micro = table.loc["micro average precision"]
    assert micro.loc["good", "value"] > 0.9
    assert (micro["replicates"] == 2).all()
    assert micro.loc["good", "value"] > 1.3 * micro.loc["random", "value"]


def test_micro_and_macro_average_precision():
    random = np.random.default_rng(0)
    members, told = random.random((40, 3)) > 0.7, random.random((40, 3))
    members[:, 2] = False
    pairs = [(told[i, j], members[i, j]) for i in range(40) for j in range(3)]
    pairs.sort(reverse=True)
    hits = np.cumsum([hit for _, hit in pairs])
    precision = hits / np.arange(1, len(pairs) + 1)
    by_hand = np.mean([p for p, (_, hit) in zip(precision, pairs, strict=True) if hit])
    assert _gene_sets.micro_precision(members, told) == pytest.approx(by_hand)
    each = [average_precision_score(members[:, j], told[:, j]) for j in (0, 1)]
    assert _gene_sets.macro_precision(members, told) == pytest.approx(np.mean(each))


def test_families(cells, sets):
    assert {family(name) for name in ("RPL3", "RPL10A", "rpl7")} == {"RPL"}
    assert family("HLA-DRA") == "HLA"
    table = tahoe.evaluate.gene_sets(cells, "good", sets, protocol="grouped").set_index("representation")
    assert set(table.index) == {"good", *BASELINES}
    assert (table["over"] == "folds").all()
    assert table.loc["good", "n"].nunique() == 1


@given(families=st.lists(st.integers(0, 9), min_size=10, max_size=80), seed=st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_folds_never_share_a_family(families, seed):
    names = np.array(families).astype(str)
    if len(np.unique(names)) < 3:
        with pytest.raises(InputError, match="families"):
            _gene_sets.family_folds(names, 3, seed)
        return
    folds = _gene_sets.family_folds(names, 3, seed)
    for train, test in folds:
        assert not set(names[train]) & set(names[test])
    assert sorted(np.concatenate([test for _, test in folds])) == list(range(len(names)))


def test_genes_without_a_vector_are_left_out_of_all_rows_aloud(cells, sets):
    with pytest.warns(TahoeWarning, match="are missing in one of"):
        table = tahoe.evaluate.gene_sets(cells, ["good", "gaps"], sets, protocol="grouped")
    assert table["n"].nunique() == 1
    whole = tahoe.evaluate.gene_sets(cells, "good", sets, protocol="grouped")
    assert table["n"].iloc[0] < whole["n"].iloc[0]


def test_a_gmt_file_is_read(cells, sets, tmp_path):
    path = tmp_path / "sets.gmt"
    path.write_text("".join(f"{name}\tsource\t" + "\t".join(genes) + "\n" for name, genes in sets.items()))
    by_file = tahoe.evaluate.gene_sets(cells, "good", path, protocol="grouped")
    pd.testing.assert_frame_equal(by_file, tahoe.evaluate.gene_sets(cells, "good", sets, protocol="grouped"))


@pytest.fixture(scope="module")
def essential(cells) -> pd.Series:
    return pd.Series(cells.var["set"] == 0, index=cells.var_names)[cells.var["set"] < 2]


def test_essential_genes_against_scikit_learn(cells, essential):
    table = tahoe.evaluate.essentiality(cells, "good", essential, seed=1, matched=False)
    assert set(table["representation"]) == {"good", *BASELINES}
    ids = dict(zip(cells.var_names, cells.var["tahoe_gene"], strict=True))
    names = sorted((name for name in essential.index if ids[name]), key=ids.get)
    x = cells.varm["good"][cells.var_names.get_indexer(names)]
    y = essential[names].to_numpy()
    aurocs = []
    for train, test in StratifiedKFold(5, shuffle=True, random_state=1).split(x, y):
        forest = RandomForestClassifier(random_state=1).fit(x[train], y[train])
        aurocs.append(roc_auc_score(y[test], forest.predict_proba(x[test])[:, 1]))
    (ours,) = table[(table["metric"] == "AUROC") & (table["representation"] == "good")]["value"]
    assert ours == pytest.approx(np.mean(aurocs), abs=1e-12)
    constant = table[table["representation"] == "constant"].set_index("metric")["value"]
    assert constant["AUROC"] == 0.5
    assert constant["AUPRC"] == pytest.approx(y.mean(), abs=0.01)
    again = tahoe.evaluate.essentiality(cells, "good", essential, seed=1, matched=False)
    pd.testing.assert_frame_equal(table, again, check_exact=True)


def test_matching_takes_expression_away(cells):
    """Labels that are nothing but expression are told well by it, and no longer once it is matched."""
    mean = np.log1p(np.asarray(cells.X.mean(axis=0)).ravel())
    random = np.random.default_rng(0)
    labels = pd.Series(random.random(len(mean)) < mean / mean.max() * 3, index=cells.var_names)
    table = tahoe.evaluate.essentiality(cells, "good", labels)
    of = table[table["representation"] == "mean expression and detection"].set_index("metric")["value"]
    assert of["AUROC"] > 0.65
    assert of["AUROC, matched for expression"] < 0.6


@given(n=st.integers(4, 60), seed=st.integers(0, 20))
@settings(max_examples=40, deadline=None)
def test_pairs_are_near_and_no_gene_is_used_twice(n, seed):
    random = np.random.default_rng(seed)
    values, positive = random.random(n).round(2), random.random(n) > 0.5
    rows = matched_pairs(values, positive)
    assert len(set(rows)) == len(rows)
    assert positive[rows].sum() * 2 == len(rows)
    if len(rows):
        apart = np.sort(values[rows][positive[rows]]) - np.sort(values[rows][~positive[rows]])
        assert np.abs(apart).max() < CALIPER


@pytest.mark.parametrize(
    ("use_rep", "gmt", "options", "told"),
    [
        ("good", {"a": ["nothing", "at all"]}, {}, "none of the genes of 1 sets is known"),
        ("good", {"a": ["TP53TG5"]}, {}, "none of the 1 genes of the list"),
        ("good", "SETS", {"protocol": "mine"}, "protocol='mine'"),
        ("good", "SETS", {"seeds": ()}, "one seed or more"),
        ("good", "SETS", {"n_folds": 5000}, "genes are in a set and have embeddings; at least 5000"),
        ("good", "nowhere.gmt", {}, "cannot be read"),
        ("broken", "SETS", {}, "single NaN"),
        ("absent", "SETS", {}, "does not exist"),
        ("random", "SETS", {}, "name of a baseline"),
        ("good", {"a": ["CD3D", "CD3E", "LYZ"]}, {}, "genes are in a set and have embeddings; at least 40"),
    ],
)
def test_bad_gene_sets(cells, sets, use_rep, gmt, options, told):
    with pytest.raises(InputError, match=told):
        tahoe.evaluate.gene_sets(cells, use_rep, sets if gmt == "SETS" else gmt, **options)


def test_a_file_that_is_no_gmt(cells, tmp_path):
    path = tmp_path / "sets.gmt"
    path.write_text("CD3D\nCD3E\n")
    with pytest.raises(InputError, match="line 1: a name, a description and genes"):
        tahoe.evaluate.gene_sets(cells, "good", path)


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ({"CD3D": True, "LYZ": True}, "both kinds need 5"),
        ({"nothing": True}, "none of 1 names is known"),
        ({"CD3D": 0.5}, "True or False"),
        (pd.Series([True, False], index=["CD3D", "ENSG00000167286"]), "both True and False"),
    ],
)
def test_bad_labels(cells, labels, told):
    with pytest.raises(InputError, match=told):
        tahoe.evaluate.essentiality(cells, "good", labels)
