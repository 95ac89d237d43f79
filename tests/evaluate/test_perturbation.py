from __future__ import annotations

import itertools

import anndata
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from scipy.stats import pearsonr, spearmanr

import tahoe
from tahoe._scores.permutation import p_value, pairing_p_value
from tahoe._scores.shifts import energy_distances
from tahoe.errors import InputError, TahoeWarning
from tahoe.evaluate._perturbation import discrimination

GENES = [f"g{i}" for i in range(30)]
BASELINES = ["control mean", "perturbation mean", "linear"]


def make(names, shifts, n=15, seed=0, contexts=None):
    random = np.random.default_rng(seed)
    values = np.concatenate([random.random((n, 30)) + shift for shift in shifts])
    obs = {"perturbation": np.repeat(names, n)} | ({} if contexts is None else {"cell_type": np.repeat(contexts, n)})
    obs = pd.DataFrame(obs).set_axis([f"c{i}" for i in range(len(values))])
    return anndata.AnnData(values, obs=obs, var=pd.DataFrame(index=GENES))


@pytest.fixture(scope="module")
def screen():
    """Six perturbations of genes, each with a shift of its own, and a method that knows half of it."""
    shifts = np.random.default_rng(5).normal(0, 1, (6, 30))
    names = GENES[:6]
    control = make(["control"], [np.zeros(30)], n=40, seed=9)
    return make(names, shifts), make(names, shifts / 2, seed=1), control


@pytest.fixture(scope="module")
def table(screen):
    return tahoe.evaluate.perturbation(*screen)


def row(table, metric, name):
    return table[(table["metric"] == metric) & (table["representation"] == name)].iloc[0]


def test_baselines_are_always_there_and_seeds_repeat(screen, table):
    for _, rows in table.groupby("metric"):
        assert list(rows["representation"]) == ["predicted", *BASELINES]
    pd.testing.assert_frame_equal(table, tahoe.evaluate.perturbation(*screen), check_exact=True)


def test_metrics_against_their_definitions(screen, table):
    true, predicted, control = screen
    values: dict[str, list[float]] = {"Pearson": [], "Spearman": [], "energy": []}
    for name in GENES[:6]:
        t, p = (cells.X[cells.obs["perturbation"] == name] for cells in (true, predicted))
        shifts = t.mean(0) - control.X.mean(0), p.mean(0) - control.X.mean(0)
        values["Pearson"].append(pearsonr(*shifts)[0])
        values["Spearman"].append(spearmanr(*shifts)[0])
        n = len(t)
        within = [cdist(x, x).sum() / (n * (n - 1)) for x in (t, p)]
        values["energy"].append(2 * cdist(t, p).mean() - sum(within))
    for metric, found in (
        ("Pearson of the shift", values["Pearson"]),
        ("Spearman of the shift", values["Spearman"]),
        ("energy distance", values["energy"]),
    ):
        ours = row(table, metric, "predicted")
        assert ours["value"] == pytest.approx(np.mean(found), abs=1e-9)
        assert ours["standard_error"] == pytest.approx(np.std(found, ddof=1) / np.sqrt(6), abs=1e-9)


def test_a_method_that_knows_is_told_from_one_that_does_not(table):
    assert row(table, "discrimination score", "predicted")["value"] > 0.9
    assert row(table, "Pearson of the shift", "predicted")["p_value"] == pytest.approx(1 / 720)
    assert row(table, "discrimination score", "control mean")["value"] == pytest.approx(0.5)
    assert row(table, "Pearson of the shift", "control mean")["value"] == 0
    assert set(table.loc[table["metric"] == "energy distance", "better"]) == {"lower"}
    for metric in table["metric"].unique():
        assert row(table, metric, "control mean")["p_value"] == 1, metric  # all pairings tie


def test_the_mean_baseline_leaves_its_own_perturbation_out(screen):
    true, predicted, control = screen
    table = tahoe.evaluate.perturbation(true, predicted, control)
    shifts = np.stack([true.X[true.obs["perturbation"] == name].mean(0) for name in GENES[:6]]) - control.X.mean(0)
    told = [pearsonr(np.delete(shifts, i, axis=0).mean(0), shifts[i])[0] for i in range(6)]
    assert row(table, "Pearson of the shift", "perturbation mean")["value"] == pytest.approx(np.mean(told), abs=1e-9)


def test_training_cells_make_the_baselines(screen):
    """One perturbation in cell types, one of them held out, as IFN-β in Kang's cells."""
    shift = np.linspace(-1, 1, 30)
    control = make(["none"] * 3, [0, 1, 2], contexts=["a", "b", "c"])
    train = make(["IFN"] * 2, [shift, 1 + shift], contexts=["a", "b"], seed=3)
    true = make(["IFN"], [2 + shift], contexts=["c"], seed=4)
    table = tahoe.evaluate.perturbation(true, {"same": true}, control, context_key="cell_type", train=train)
    assert row(table, "Pearson of the shift", "perturbation mean")["value"] > 0.9
    assert (
        row(table, "energy distance", "same")["value"] < 0.01 < row(table, "energy distance", "control mean")["value"]
    )
    assert np.isnan(row(table, "discrimination score", "same")["value"])
    assert "not among the genes" in row(table, "Pearson of the shift", "linear")["detail"]


def test_the_linear_baseline_learns_from_the_genes():
    """Shifts that are linear in the loadings of the perturbed gene are told by it, and not by the mean."""
    random = np.random.default_rng(0)
    factors, loadings, effect = random.normal(size=(300, 2)), random.normal(size=(2, 30)), random.normal(size=(2, 30))
    control = anndata.AnnData(factors @ loadings + 0.05 * random.normal(size=(300, 30)), var=pd.DataFrame(index=GENES))
    shifts = loadings.T[:20] @ effect
    true = make(GENES[:20], shifts + control.X.mean(0))
    table = tahoe.evaluate.perturbation(true, true, control)
    assert row(table, "Pearson of the shift", "linear")["value"] > 0.9
    assert row(table, "Pearson of the shift", "perturbation mean")["value"] < 0.5


@given(st.integers(2, 5), st.integers(0, 100), st.booleans())
@settings(max_examples=40, deadline=None)
def test_p_values_of_all_pairings(n, seed, with_ties):
    matrix = np.random.default_rng(seed).random((n, n)).round(1 if with_ties else 9)
    observed = np.trace(matrix) / n
    every = [np.mean([matrix[i, j] for i, j in enumerate(order)]) for order in itertools.permutations(range(n))]
    expected = np.mean([value >= observed - 1e-12 for value in every])
    assert pairing_p_value(matrix, 0) == pytest.approx(expected)


def test_p_values_at_ties_and_without_anything_to_permute():
    assert pairing_p_value(np.full((12, 12), 0.1), 0) == 1  # drawn pairings, sums that differ by rounding
    assert np.isnan(pairing_p_value(np.ones((1, 1)), 0))
    assert p_value(1.0, [0.0] * 99) == 0.01
    assert p_value(1.0, [1.0 + 1e-15, 0.0, 0.0]) == 0.5
    one, two = (pairing_p_value(np.random.default_rng(1).random((15, 15)), 3) for _ in range(2))
    assert one == two


def test_p_values_are_uniform_without_an_effect():
    random = np.random.default_rng(0)
    found = np.array([pairing_p_value(random.random((5, 5)), 0) for _ in range(400)])
    for level in (0.1, 0.5):
        assert (found <= level).mean() <= level + 0.06


def test_discrimination_counts_ties_half():
    true = np.array([[0.0], [1.0], [3.0]])
    np.testing.assert_allclose(discrimination(np.array([[0.1], [0.5], [3.0]]), true).diagonal(), [1, 0.75, 1])


def test_energy_of_one_distribution_is_about_nothing():
    random = np.random.default_rng(0)
    one, other = random.normal(size=(2, 400, 5))
    ((same,),) = energy_distances([one], [other], 500, 0)
    ((apart,),) = energy_distances([one], [other + 2], 500, 0)
    assert abs(same) < 0.05 < apart


def broken(screen, case):
    true, predicted, control = (cells.copy() for cells in screen)
    options = {}
    if case == "genes":
        predicted = predicted[:, ::-1].copy()
    elif case == "perturbation":
        predicted = predicted[predicted.obs["perturbation"] != "g2"].copy()
    elif case == "nan":
        predicted.X[3, 4] = np.nan
    elif case == "key":
        options["perturbation_key"] = "pert"
    elif case == "missing":
        true.obs["perturbation"] = true.obs["perturbation"].where(np.arange(true.n_obs) > 2)
    elif case == "context":
        options["context_key"] = "cell_type"
        true.obs["cell_type"] = predicted.obs["cell_type"] = "a"
        control.obs["cell_type"] = "b"
    elif case == "empty":
        control = control[:0].copy()
    elif case == "name":
        predicted = {"linear": predicted}
    return (true, predicted, control), options


@pytest.mark.parametrize(
    ("case", "told"),
    [
        ("genes", "predicted has other genes than true"),
        ("perturbation", "no cells of 1 of 6 perturbations: g2"),
        ("nan", "predicted has NaN or infinite values in 1 cells, first in 'c3'"),
        ("key", "perturbation"),
        ("missing", "missing for 3 cells"),
        ("context", "control has no cells with"),
        ("empty", "control has no cells"),
        ("name", "not called"),
    ],
)
def test_bad_input(screen, case, told):
    cells, options = broken(screen, case)
    with pytest.raises(InputError, match=told):
        tahoe.evaluate.perturbation(*cells, **options)


def test_counts_are_told(screen):
    true, predicted, control = (cells.copy() for cells in screen)
    true.X = true.X * 100
    with pytest.warns(TahoeWarning, match="not logarithms"):
        tahoe.evaluate.perturbation(true, predicted, control)
