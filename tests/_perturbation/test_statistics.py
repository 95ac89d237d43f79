"""The matched null, and the test over replicates: sizes under the null, power where there is an effect."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.stats import false_discovery_control, kstest, ttest_1samp

from tahoe._perturbation import statistics
from tahoe._perturbation.statistics import least_p, matched, over_replicates, percentiles, sign_flips


@pytest.fixture
def generator():
    return np.random.default_rng(0)


def test_genes_are_matched_by_detection_and_bin(generator):
    detection, mean_bin = generator.uniform(size=(2, 500))
    null = matched(detection, mean_bin, 30, seed=0)
    assert null.shape == (500, 30)
    assert not (null == np.arange(500)[:, None]).any()
    assert all(len(set(row)) == 30 for row in null.tolist())
    for feature in (detection, mean_bin):
        assert np.abs(feature[null] - feature[:, None]).mean() < 0.15 * np.abs(feature[:, None] - feature).mean() * 3
    np.testing.assert_array_equal(matched(detection, mean_bin, 30, seed=0), null)


def test_genes_that_are_all_alike_are_drawn():
    first, second = (matched(np.zeros(100), np.zeros(100), 25, seed=seed) for seed in (0, 1))
    assert (np.sort(first) != np.sort(second)).any()
    assert matched(np.zeros(100), np.zeros(100), 5, seed=0) is None
    assert matched(np.zeros(15), np.zeros(15), 100, seed=0) is None


def test_a_gene_that_stands_out(generator):
    effects = generator.normal(size=300)
    effects[7] = 6
    null = matched(*generator.uniform(size=(2, 300)), 50, seed=0)
    percentile, z = percentiles(effects, null)
    assert percentile[7] == 100
    assert z[7] > 4
    others = effects[null[3]]
    assert z[3] == pytest.approx((effects[3] - others.mean()) / others.std(ddof=1))
    assert percentile[3] == pytest.approx(100 * (others < effects[3]).mean())
    assert all(np.isnan(each).all() for each in percentiles(effects, None))


def test_sign_flips_count_all_signs(generator):
    differences = generator.normal(size=(5, 3))
    for gene, p in enumerate(sign_flips(differences, 0)):
        sums = [abs(np.dot(signs, differences[:, gene])) for signs in itertools.product((1, -1), repeat=5)]
        assert p == pytest.approx(np.mean(np.array(sums) >= abs(differences[:, gene].sum()) - 1e-12))
    assert sign_flips(np.ones((6, 1)), 0)[0] == least_p(6) == 2 / 64
    assert sign_flips(np.ones((20, 1)), 0)[0] == pytest.approx(least_p(20), rel=0.1)


def test_drawn_signs_agree_with_all_of_them(generator, monkeypatch):
    differences = generator.normal(0.3, 1, size=(10, 50))
    whole = sign_flips(differences, 0)
    monkeypatch.setattr(statistics, "ALL_SIGNS", 9)
    np.testing.assert_allclose(sign_flips(differences, 0), whole, atol=0.02)


def test_p_values_keep_their_size_without_an_effect(generator):
    """Replicates share nothing; genes are compared with genes whose effects are like theirs."""
    shares = []
    for _ in range(20):
        effects = generator.normal(size=(8, 400)) * generator.uniform(0.2, 3, size=(8, 1))
        p, q = over_replicates(effects, matched(*generator.uniform(size=(2, 400)), 50, seed=0), 0)
        shares.append((p < 0.05).mean())
        assert (q < 0.05).mean() < 0.01
    # with eight replicates 12 of 256 signs are below 0.05
    assert np.mean(shares) == pytest.approx(12 / 256, abs=0.01)


def test_an_effect_in_all_replicates_is_found_and_one_of_a_single_one_is_not(generator):
    effects = generator.normal(size=(10, 300))
    effects[:, 0] += 4
    effects[3, 1] += 40
    p, q = over_replicates(effects, matched(*generator.uniform(size=(2, 300)), 50, seed=0), 0)
    assert p[0] == least_p(10)
    assert p[1] > 0.05
    np.testing.assert_allclose(q, false_discovery_control(p))


def test_genes_that_some_replicates_lack(generator):
    effects = generator.normal(size=(6, 60))
    effects[1:, 0] = np.nan
    effects[3:, 1] = np.nan
    p, q = over_replicates(effects, matched(*generator.uniform(size=(2, 60)), 30, seed=0), 0)
    assert np.isnan([p[0], q[0]]).all()
    assert np.isfinite([p[1], q[1]]).all()
    assert p[1] >= 2 / 2**3
    for few in (effects[:1], effects):
        missing, _ = over_replicates(few, None, 0)
        assert np.isnan(missing).all()


def test_why_cells_are_no_replicates(generator):
    """Eight donors with 50 cells each share their donor's direction: a test over cells finds genes in pure noise."""
    over_cells, over_donors = [], []
    for _ in range(200):
        donor = generator.normal(size=8)
        cells = np.repeat(donor, 50) + generator.normal(size=400)
        over_cells.append(ttest_1samp(cells, 0).pvalue)
        over_donors.append(sign_flips(cells.reshape(8, 50).mean(1)[:, None], 0)[0])
    assert np.mean(np.array(over_cells) < 0.05) > 0.5
    assert np.mean(np.array(over_donors) < 0.05) < 0.1
    assert kstest(over_cells, "uniform").pvalue < 1e-6
