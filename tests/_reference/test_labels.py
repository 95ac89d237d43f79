"""Labels, confidence, novelty and sets, on arrays: formulas by hand, and promises on data where they must hold."""

from __future__ import annotations

import numpy as np
import pytest

from tahoe._reference.embeddings import Embeddings, unit
from tahoe._reference.exact import nearest
from tahoe._reference.held_back import OF_EACH_LABEL, hold_back
from tahoe._reference.labels import Calibration, label_shares, share_above, vote, weights_of


def test_weights_have_no_scale():
    distances = np.array([[0.0, 1, 2], [0, 10, 20], [1, np.inf, np.inf], [0, 0, 0]])
    weights = weights_of(distances)
    np.testing.assert_allclose(weights[0], np.exp([0, -0.25, -1]))
    np.testing.assert_array_equal(weights[0], weights[1])
    np.testing.assert_allclose(weights[2], [np.exp(-1), 0, 0])
    np.testing.assert_array_equal(weights[3], 1)


def test_shares_by_hand():
    codes = np.array([0, 1, 1, -1])
    neighbors, distances = (
        np.array([[0, 1, 3, 2], [3, -1, -1, -1]]),
        np.array([[1.0, 1, 1, 2], [1, np.inf, np.inf, np.inf]]),
    )
    shares = label_shares(neighbors, distances, codes, 3)
    near, last = np.exp(-0.25), np.exp(-1)
    np.testing.assert_allclose(shares[0], np.array([near, near + last, 0]) / (2 * near + last), rtol=1e-6)
    np.testing.assert_array_equal(shares[1], 0)  # its only neighbour has no label


def test_share_above_by_hand():
    above = share_above(np.array([[0.5, 0.25, 0.25, 0], [1, 0, 0, 0]], dtype=np.float32))
    np.testing.assert_allclose(above, [[0, 0.5, 0.5, 1], [0, 1, 1, 1]])


def test_clusters_vote():
    shares = np.array([[1, 0], [0.9, 0.1], [0, 1], [0, 1], [1, 0]])
    codes, known = shares.argmax(axis=1), np.array([True, True, True, False, False])
    assert vote(codes, shares, known, np.array([0, 0, 0, 1, 1]), 2).tolist() == [0, -1]


@pytest.fixture(scope="module")
def drawn():
    """Overlapping types, drawn alike: a reference of 3,000 cells, and 3,000 others."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((5, 8))
    codes = rng.choice(5, 6000, p=[0.4, 0.3, 0.15, 0.1, 0.05])
    vectors = unit(centres[codes] + 0.9 * rng.standard_normal((6000, 8)))
    return vectors[:3000], codes[:3000], vectors[3000:], codes[3000:]


@pytest.fixture(scope="module")
def calibrated(drawn):
    vectors, codes, _, _ = drawn
    held_back = hold_back(Embeddings([vectors]), [codes], None, 1500, 0)
    return held_back, Calibration.of(held_back, codes, 5, 30)


def told(drawn, calibration, alpha, vectors=None):
    reference, codes, others, _ = drawn
    rows, distances = nearest(others if vectors is None else vectors, Embeddings([reference]), 30)
    return calibration.labels(rows, distances, distances[:, -1], codes, alpha)


@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.3])
def test_sets_hold_the_truth(drawn, calibrated, alpha):
    labels, truth = told(drawn, calibrated[1], alpha), drawn[3]
    coverage = labels.in_set[np.arange(3000), truth].mean()
    assert coverage > 1 - alpha - 0.02
    # the first label is always in: more than was asked for if it is right more often than that
    assert coverage < max(1 - alpha, (labels.codes == truth).mean()) + 0.02
    assert labels.in_set[np.arange(3000), labels.codes].all()


def test_confidence_is_how_often_it_is_right(drawn, calibrated):
    labels, truth = told(drawn, calibrated[1], 0.05), drawn[3]
    right, bins = labels.codes == truth, np.digitize(labels.confidence, np.linspace(0, 1, 11)[1:-1])
    gaps = [(bins == b).mean() * abs(labels.confidence[bins == b].mean() - right[bins == b].mean()) for b in set(bins)]
    assert sum(gaps) < 0.05
    assert (labels.confidence < 1).all()
    order = np.argsort(labels.shares.max(axis=1))
    assert (np.diff(labels.confidence[order]) >= 0).all()


def test_novelty(drawn, calibrated):
    p = told(drawn, calibrated[1], 0.05).novelty_p
    assert 0.03 < (p <= 0.05).mean() < 0.08
    rng = np.random.default_rng(5)
    strange = told(drawn, calibrated[1], 0.05, unit(rng.standard_normal((500, 8))))
    assert strange.novelty_p.mean() < 0.3 < p.mean()


def test_novelty_by_hand(drawn, calibrated):
    held_back, calibration = calibrated
    labels, codes = told(drawn, calibration, 0.05), drawn[1]
    rows, distances = nearest(drawn[2][:1], Embeddings([drawn[0]]), 30)
    known = held_back.distances[codes[held_back.rows] == labels.codes[0], 29]
    assert labels.novelty_p[0] == (1 + (known >= distances[0, -1]).sum()) / (1 + len(known))


def test_who_is_held_back(drawn):
    vectors, codes, _, _ = drawn
    donors = np.random.default_rng(1).integers(0, 4, 3000)
    held_back = hold_back(Embeddings([vectors]), [codes], donors, 200, 0)
    assert held_back.is_sample.sum() == 200
    assert (np.bincount(codes[held_back.rows]) >= OF_EACH_LABEL).all()
    assert not (donors[held_back.neighbors] == donors[held_back.rows][:, None]).any()
    again = hold_back(Embeddings([vectors]), [codes], donors, 200, 0)
    np.testing.assert_array_equal(again.rows, held_back.rows)


def test_without_held_back_cells_nothing_is_promised(drawn):
    held_back = hold_back(Embeddings([drawn[0][:30]]), [np.full(30, -1)], None, 10, 0)
    calibration = Calibration.of(held_back, np.full(30, -1), 2, 5)
    assert calibration.n_sample == 0
    assert calibration.threshold(0.05) == 1
