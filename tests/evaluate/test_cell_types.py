from __future__ import annotations

import importlib.util
import warnings

import anndata
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import silhouette_score
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import tahoe
from tahoe._scores import baselines as _baselines
from tahoe._scores import clusters as _clusters
from tahoe._scores import neighbors as _neighbors
from tahoe._scores.folds import make_folds
from tahoe.errors import InputError, TahoeWarning

BASELINES = {"PCA of log counts", "total counts", "random", "majority class"}
CLASSIFIERS = ("kNN", "logistic regression", "random forest")


def make_cells(n: int = 120, n_types: int = 3, seed: int = 0) -> anndata.AnnData:
    """Cells of types that differ in some genes and in their vectors; four donors, each with all types."""
    random = np.random.default_rng(seed)
    types = np.arange(n) % n_types
    rates = random.gamma(1, 1, (n_types, 40))
    adata = anndata.AnnData(sparse.csr_matrix(random.poisson(3 * rates[types]).astype(np.float32)))
    adata.obs["type"] = [f"t{i}" for i in types]
    adata.obs["donor"] = [f"d{i}" for i in random.integers(0, 4, n)]
    adata.obsm["X_good"] = (3 * np.eye(n_types)[types] + random.normal(size=(n, n_types))).astype(np.float32)
    return adata


@pytest.fixture(scope="module", autouse=True)
def _fewer_resolutions():
    """Two of the ten, for speed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_clusters, "RESOLUTIONS", (0.4, 1.0))
        yield


@pytest.fixture(scope="module")
def cells() -> anndata.AnnData:
    return make_cells()


@pytest.fixture(scope="module")
def table(cells) -> pd.DataFrame:
    return tahoe.evaluate.cell_types(cells, "X_good", label_key="type", groups="donor", batch_key="donor")


def value(table: pd.DataFrame, metric: str, representation: str = "X_good") -> float:
    (row,) = table[(table["metric"] == metric) & (table["representation"] == representation)]["value"]
    return row


def test_baselines_are_always_there(table):
    for metric, rows in table.groupby("metric"):
        expected = BASELINES if metric.endswith(("accuracy", "macro-F1")) else BASELINES - {"majority class"}
        assert set(rows["representation"]) == {"X_good", *expected}, metric
    assert set(table.loc[table["kind"] == "baseline", "representation"]) == BASELINES


def test_the_same_seed_gives_the_same_bits(cells, table):
    before = cells.copy()
    again = tahoe.evaluate.cell_types(cells, "X_good", label_key="type", groups="donor", batch_key="donor")
    pd.testing.assert_frame_equal(table, again, check_exact=True)
    assert list(cells.obsm) == list(before.obsm)
    assert not cells.uns
    pd.testing.assert_frame_equal(cells.obs, before.obs)


def test_classifiers_against_scikit_learn(cells):
    ours = tahoe.evaluate.cell_types(cells, "X_good", label_key="type", seed=3)
    folds = StratifiedKFold(5, shuffle=True, random_state=3)
    theirs = {
        "kNN": KNeighborsClassifier(15),
        "logistic regression": make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)),
    }
    for name, classifier in theirs.items():
        for metric, scoring in (("accuracy", "accuracy"), ("macro-F1", "f1_macro")):
            scores = cross_val_score(classifier, cells.obsm["X_good"], cells.obs["type"], cv=folds, scoring=scoring)
            row = ours[(ours["metric"] == f"{name} {metric}") & (ours["representation"] == "X_good")].iloc[0]
            assert row["value"] == pytest.approx(scores.mean(), abs=1e-12)
            assert row["standard_error"] == pytest.approx(scores.std(ddof=1) / np.sqrt(5), abs=1e-12)
            assert (row["replicates"], row["over"]) == (5, "folds")
    assert value(ours, "silhouette") == pytest.approx(
        silhouette_score(cells.obsm["X_good"], cells.obs["type"]), abs=1e-6
    )


def test_neighbour_metrics_against_their_definitions(cells, table):
    vectors, types = cells.obsm["X_good"].astype(float), cells.obs["type"].to_numpy()
    far = np.linalg.norm(vectors[:, None] - vectors[None], axis=2)
    np.fill_diagonal(far, np.inf)
    order = far.argsort(axis=1)
    assert value(table, "kNN purity") == pytest.approx((types[order[:, :15]] == types[:, None]).mean())
    chance = sum((types == name).mean() ** 2 for name in np.unique(types))
    same = (types[order[:, :20]] == types[:, None]).mean()
    assert value(table, "kNN purity over chance") == pytest.approx(same / chance)


def test_errors_of_means_over_cells_come_from_donors(cells, table):
    row = table[(table["metric"] == "kNN purity") & (table["representation"] == "X_good")].iloc[0]
    assert (row["replicates"], row["over"]) == (4, "groups")
    assert row["standard_error"] > 0


def test_graph_connectivity_of_a_torn_type():
    vectors = np.concatenate([np.arange(6.0), 100 + np.arange(4.0), 1000 + np.arange(5.0)])[:, None]
    codes = np.array([0] * 10 + [1] * 5)
    neighbors = _neighbors.nearest(vectors, 2)[1]
    assert _neighbors.graph_connectivity(neighbors, codes) == pytest.approx((6 / 10 + 1) / 2)


def test_lisi_counts_the_labels_around_a_cell():
    random = np.random.default_rng(0)
    distances = np.sort(random.random((50, 30)), axis=1)
    for n_labels in (1, 2, 5):
        codes = np.tile(np.arange(n_labels), (50, 30 // n_labels))
        found = _neighbors.lisi(np.ones_like(distances), codes, 30)
        np.testing.assert_allclose(found, n_labels)
    weights = _neighbors._weights(distances, 10)
    entropy = -(weights * np.log(weights)).sum(axis=1)
    np.testing.assert_allclose(entropy, np.log(10), atol=1e-4)
    np.testing.assert_allclose(weights.sum(axis=1), 1)


def test_well_mixed_batches_have_a_high_ilisi():
    random = np.random.default_rng(1)
    cells = make_cells(400)
    cells.obs["batch"] = random.choice(["a", "b"], 400)
    cells.obsm["X_apart"] = cells.obsm["X_good"] + 50 * (cells.obs["batch"] == "a").to_numpy()[:, None]
    table = tahoe.evaluate.cell_types(cells, ["X_good", "X_apart"], label_key="type", batch_key="batch")
    assert value(table, "iLISI") > 0.8
    assert value(table, "iLISI", "X_apart") == pytest.approx(0, abs=1e-6)


@given(
    labels=st.lists(st.integers(0, 3), min_size=12, max_size=60),
    n_groups=st.integers(2, 12),
    n_folds=st.integers(2, 6),
    seed=st.integers(0, 5),
)
@settings(max_examples=60, deadline=None)
def test_folds_never_share_a_group(labels, n_groups, n_folds, seed):
    names = np.array([f"t{i}" for i in labels])
    groups = np.random.default_rng(seed).integers(0, n_groups, len(names)).astype(str)
    if len(np.unique(groups)) < 2:
        return
    try:
        folds = make_folds(names, groups, n_folds, seed)
    except InputError:
        return
    for train, test in folds:
        assert not set(groups[train]) & set(groups[test])
        assert len(train) + len(test) == len(names)
        assert len(np.unique(names[train])) > 1
    tested = np.concatenate([test for _, test in folds])
    assert sorted(tested) == list(range(len(names)))


def test_the_principal_components_are_those_of_scanpy(cells):
    import scanpy as sc

    normalised = cells.copy()
    sc.pp.normalize_total(normalised)
    sc.pp.log1p(normalised)
    sc.pp.pca(normalised, n_comps=39, random_state=0)
    np.testing.assert_array_equal(_baselines.pca(cells.X), normalised.obsm["X_pca"])
    loadings = normalised.varm["PCs"] * np.sqrt(normalised.uns["pca"]["variance"])
    np.testing.assert_array_equal(_baselines.pca_loadings(cells.X), loadings)


def test_without_igraph_the_rest_is_there(cells, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.warns(TahoeWarning, match="igraph"):
        table = tahoe.evaluate.cell_types(cells, "X_good", label_key="type")
    assert np.isnan(value(table, "ARI"))
    assert value(table, "kNN accuracy") > 0.8


def test_the_best_resolution_is_the_one_with_the_highest_nmi(cells):
    vectors, types = cells.obsm["X_good"], cells.obs["type"].to_numpy()
    graph = _clusters.neighbor_graph(vectors)
    each = [_clusters.agreement(types, _clusters.leiden(graph, resolution)) for resolution in (0.4, 1.0)]
    best, detail = _clusters.best_agreement(vectors, types, 0)
    assert best == max(each, key=lambda scores: scores["NMI"])
    assert detail.startswith("resolution ")


def test_leiden_is_that_of_scanpy(cells):
    import scanpy as sc

    sc.pp.neighbors(cells, use_rep="X_good", key_added="n", random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sc.tl.leiden(cells, neighbors_key="n", flavor="igraph", n_iterations=2, random_state=0)
    clusters = _clusters.leiden(_clusters.neighbor_graph(cells.obsm["X_good"]))
    np.testing.assert_array_equal(clusters, cells.obs["leiden"].astype(int))
    del cells.obs["leiden"]


def test_cells_without_a_label_are_left_out_aloud(cells):
    some = cells.copy()
    some.obs["type"] = some.obs["type"].where(np.arange(120) >= 20)
    some.obsm["X_good"][:20] = np.nan  # of no account
    with pytest.warns(TahoeWarning, match="missing for 20 of 120"):
        table = tahoe.evaluate.cell_types(some, "X_good", label_key="type")
    assert (table["n"] == 100).all()


def test_log_normalised_values_are_told(cells):
    some = cells.copy()
    some.X = some.X.log1p()
    with pytest.warns(TahoeWarning, match="log-normalised"):
        tahoe.evaluate.cell_types(some, "X_good", label_key="type")


def test_a_type_of_one_donor_is_told(cells):
    some = cells.copy()
    rare = (some.obs["donor"] == "d0") & (some.obs["type"] == "t0")
    some.obs.loc[rare, "type"] = "rare"
    with pytest.warns(TahoeWarning, match="rare"):
        tahoe.evaluate.cell_types(some, "X_good", label_key="type", groups="donor")


def broken(cells: anndata.AnnData) -> anndata.AnnData:
    cells = cells.copy()
    cells.obs["one"] = "x"
    cells.obs["with_type"] = cells.obs["type"]
    cells.obs["gaps"] = cells.obs["donor"].where(np.arange(cells.n_obs) > 3)
    cells.obsm["X_nan"] = cells.obsm["X_good"].copy()
    cells.obsm["X_nan"][7, 1] = np.nan
    cells.obsm["random"] = cells.obsm["X_good"]
    cells.obsm["X_text"] = np.full((cells.n_obs, 2), "a", dtype=object)
    cells.layers["scaled"] = cells.X.toarray() - 1
    return cells


@pytest.mark.parametrize(
    ("use_rep", "options", "told"),
    [
        ("X_good", {"label_key": "one"}, r"obs\['one'\] has one value"),
        ("X_good", {"label_key": "tpye"}, "near|not a column"),
        ("X_good", {"label_key": "type", "groups": "one"}, "has one group"),
        ("X_good", {"label_key": "type", "groups": "with_type"}, "cannot be told apart"),
        ("X_good", {"label_key": "type", "groups": "gaps"}, "missing for 4 labelled cells"),
        ("X_good", {"label_key": "type", "batch_key": "one"}, "nothing to mix"),
        ("X_nan", {"label_key": "type"}, r"obsm\['X_nan'\] has NaN or infinite values in 1 of 120 rows, first in '7'"),
        ("X_god", {"label_key": "type"}, r"obsm\['X_god'\] does not exist.*X_good"),
        ("random", {"label_key": "type"}, "name of a baseline"),
        (["X_good", "X_good"], {"label_key": "type"}, "twice"),
        ([], {"label_key": "type"}, "one or more"),
        ("X_text", {"label_key": "type"}, "matrix of numbers"),
        ("X_good", {"label_key": "type", "layer": "scaled"}, "negative"),
        ("X_good", {"label_key": "type", "n_folds": 1}, "n_folds=1"),
        ("X_good", {"label_key": "type", "n_folds": 50}, "fewer rows than n_folds=50"),
    ],
)
def test_bad_input(cells, use_rep, options, told):
    with pytest.raises(InputError, match=told):
        tahoe.evaluate.cell_types(broken(cells), use_rep, **options)
