from __future__ import annotations

import numpy as np
import pytest

from tahoe._perturbation.perturbed_cells import ALTERNATIVE, END, START, Chosen, choose_cells, directions


@pytest.fixture
def cells():
    """Groups, replicates and states of 600 cells, in no order."""
    generator = np.random.default_rng(0)
    return generator.integers(0, 2, 600), generator.integers(0, 4, 600), generator.integers(-1, 2, 600)


def places_of(chosen: Chosen):
    state, unit = np.divmod(chosen.centroid_places, chosen.n_units)
    return state, unit


def test_without_a_goal_and_replicates(cells):
    groups, _, _ = cells
    chosen = choose_cells(groups, None, None, 50, 0)
    assert len(chosen.rows) == 100
    assert (np.diff(chosen.rows) > 0).all()
    np.testing.assert_array_equal(chosen.group_of_unit[chosen.units], groups[chosen.rows])
    assert not len(chosen.centroid_rows)
    np.testing.assert_array_equal(choose_cells(groups, None, None, 50, 0).rows, chosen.rows)
    assert (choose_cells(groups, None, None, 50, 1).rows != chosen.rows).any()
    assert len(choose_cells(groups, None, None, 1000, 0).rows) == 600


def test_replicates_count_alike(cells):
    groups, replicates, _ = cells
    replicates[:500] = 0
    chosen = choose_cells(groups, replicates, None, 40, 0)
    for group in (0, 1):
        here = groups[chosen.rows] == group
        assert np.bincount(replicates[chosen.rows[here]]).tolist() == [10, 10, 10, 10]
        assert len(set(zip(chosen.units[here], replicates[chosen.rows[here]], strict=True))) == 4


def test_centroids_come_from_cells_that_are_not_perturbed(cells):
    groups, replicates, states = cells
    for given in (None, replicates):
        chosen = choose_cells(groups, given, states, 1000, 0)
        assert (states[chosen.rows] == START).all()
        assert not set(chosen.rows) & set(chosen.centroid_rows)
        state, unit = places_of(chosen)
        np.testing.assert_array_equal(states[chosen.centroid_rows], state)
        np.testing.assert_array_equal(chosen.group_of_unit[unit], groups[chosen.centroid_rows])
        for number in range(chosen.n_units):
            n_start = (chosen.units == number).sum()
            assert 0 <= ((state == START) & (unit == number)).sum() - n_start <= 1
        if given is not None:
            for number in range(chosen.n_units):
                rows = np.concatenate([chosen.rows[chosen.units == number], chosen.centroid_rows[unit == number]])
                assert len(set(replicates[rows])) == 1


def test_replicates_that_have_one_state_only_are_joined():
    replicates = np.repeat(np.arange(9), 20)
    states = np.where(replicates < 3, START, END)
    chosen = choose_cells(np.zeros(180, dtype=int), replicates, states, 1000, 0)
    assert chosen.n_units == 3
    state, unit = places_of(chosen)
    for number in range(3):
        start = set(replicates[chosen.rows[chosen.units == number]])
        end = set(replicates[chosen.centroid_rows[(unit == number) & (state == END)]])
        assert (len(start), len(end)) == (1, 2)


def test_groups_with_too_few_cells_are_left_out(cells):
    groups, replicates, states = cells
    rare = np.flatnonzero((groups == 1) & (states == END))[9:]
    states[rare] = -1
    chosen = choose_cells(groups, None, states, 100, 0)
    assert chosen.too_few == [1]
    assert chosen.group_of_unit.tolist() == [0]
    states[(groups == 0) & (replicates > 0)] = -1
    assert choose_cells(groups, replicates, states, 100, 0).n_units == 1


def test_directions_go_from_start_to_end():
    chosen = choose_cells(
        np.zeros(240, dtype=int), np.tile(np.repeat([0, 1], 20), 6), np.repeat([START, END, ALTERNATIVE], 80), 100, 0
    )
    means = np.random.default_rng(0).normal(size=(3, 2, 5))
    found = directions(means, chosen)
    assert found.shape == (2, 3, 5)
    np.testing.assert_allclose(np.linalg.norm(found, axis=-1), 1)
    for unit in (0, 1):
        np.testing.assert_allclose(np.cross(found[unit, 0, :3], means[END].mean(0)[:3]), 0, atol=1e-12)
        line = means[END, unit] - means[START, unit]
        assert found[unit, 1] @ line == pytest.approx(np.linalg.norm(line))
        assert found[unit, 2] @ means[ALTERNATIVE].mean(0) > 0
