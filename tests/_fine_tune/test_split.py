"""Which cells are held back from training."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tahoe._fine_tune.split import hold_back
from tahoe._fine_tune.targets import Wanted
from tahoe.errors import InputError, TahoeWarning
from tahoe.model.training import Target


def classes(codes):
    codes = np.asarray(codes)
    return Wanted(Target("type", "classes", tuple("abcdefgh"[: codes.max() + 1])), codes)


def quantities(values):
    return Wanted(Target("age", "quantities", ("age",)), np.asarray(values, dtype=np.float32)[:, None])


@pytest.mark.filterwarnings("ignore::tahoe.errors.TahoeWarning")
@given(
    st.lists(st.tuples(st.integers(-1, 3), st.integers(0, 5)), min_size=2, max_size=60),
    st.floats(0.05, 0.6),
    st.integers(0, 5),
    st.booleans(),
)
def test_held_out_groups_are_never_in_training(cells, share, seed, by_group):
    """Whatever comes in: a split that holds what it promises, or an error that says why there is none."""
    codes, groups = (np.array(each) for each in zip(*cells, strict=True))
    if codes.max() < 0:
        return
    wanted = classes(codes)
    rows = np.flatnonzero(codes >= 0)
    try:
        train, held = hold_back([wanted], rows, groups[rows] if by_group else None, "donor", share, seed)
    except InputError:
        return
    assert sorted([*train, *held]) == rows.tolist()
    assert len(train)
    assert len(held)
    if by_group:
        assert not set(groups[train]) & set(groups[held])
    assert set(codes[train]) == set(codes[rows])
    again = hold_back([wanted], rows, groups[rows] if by_group else None, "donor", share, seed)
    assert np.array_equal(again[0], train)


def test_cells_are_held_back_by_class():
    wanted = classes(np.repeat([0, 1], [100, 20]))
    train, held = hold_back([wanted], np.arange(120), None, None, 0.1, 0)
    assert np.bincount(wanted.values[held]).tolist() == [10, 2]
    assert len(train) == 108


def test_a_class_with_one_cell_is_trained_on():
    wanted = classes([0] * 10 + [1] * 10 + [2])
    with pytest.warns(TahoeWarning, match=r"1 of 3 classes have too few cells to hold one back \('c'\)"):
        train, _ = hold_back([wanted], np.arange(21), None, None, 0.2, 0)
    assert 20 in train


def test_a_class_of_one_group_is_trained_on():
    wanted = classes([0, 1] * 10 + [2] * 5)
    groups = np.array(["x", "x", "y", "y", "z", "z", "u", "u", "v", "v"] * 2 + ["z"] * 5)
    for seed in range(10):
        with pytest.warns(TahoeWarning, match=r"no cells in the held-out groups of obs\['donor'\]"):
            train, held = hold_back([wanted], np.arange(25), groups, "donor", 0.15, seed)
        assert "z" not in groups[held]
        assert len(np.unique(groups[held])) == 1
        assert len(train) + len(held) == 25


def test_groups_that_leave_a_class_without_cells():
    wanted = classes([0] * 5 + [1] * 5)
    with pytest.raises(InputError, match=r"whichever groups of obs\['donor'\] are held back, a class has no cells"):
        hold_back([wanted], np.arange(10), np.repeat(["x", "y"], 5), "donor", 0.2, 0)
    with pytest.raises(InputError, match="has one group, 'x'"):
        hold_back([wanted], np.arange(10), np.repeat(["x"], 10), "donor", 0.2, 0)


def test_quantities_must_be_on_both_sides():
    train, held = hold_back([quantities(range(20))], np.arange(20), None, None, 0.25, 0)
    assert (len(train), len(held)) == (15, 5)
    with pytest.raises(InputError, match="'age' has no values in the cells to"):
        hold_back([quantities([1, 2] + [np.nan] * 8), classes([0, 1] * 5)], np.arange(10), None, None, 0.2, 1)
