"""Which cells are perturbed, and which tell where their states lie: plain arrays of codes, one for each cell.

Centroids come from cells that are not perturbed: a cell is no witness of how near it is to its own state.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# A state needs so many cells in a group, and a replicate so many in each state, to count.
LEAST_CELLS, LEAST_OF_REPLICATE = 10, 5
START, END, ALTERNATIVE = 0, 1, 2


@dataclass(frozen=True, eq=False)
class Chosen:
    """Cells of one or several groups, and the unit of each: a replicate of a group, or the whole group."""

    rows: np.ndarray
    """Numbers of the cells that are perturbed, rising."""
    units: np.ndarray
    """Unit of each."""
    group_of_unit: np.ndarray
    centroid_rows: np.ndarray
    """Numbers of the cells that the centroids are made of, rising; none of them is perturbed."""
    centroid_places: np.ndarray
    """State and unit of each: ``state * n_units + unit``."""
    too_few: list[int]
    """Groups with too few cells in a state, which are left out."""

    @property
    def n_units(self) -> int:
        """How many units all groups have together."""
        return len(self.group_of_unit)


def choose_cells(
    groups: np.ndarray, replicates: np.ndarray | None, states: np.ndarray | None, n_cells: int, seed: int
) -> Chosen:
    """Draw cells, about as many of each replicate.

    Parameters
    ----------
    groups
        Group of each cell.
    replicates
        Replicate of each cell; `None` takes all cells of a group together.
    states
        `START`, `END`, `ALTERNATIVE` or -1 for each cell; `None` perturbs cells whatever they are.
    n_cells
        Most cells of a group that are perturbed, and of each state that make a centroid.
    seed
        Of the draw.
    """
    generator = np.random.default_rng([seed % 2**32, 4])
    group_of_unit: list[int] = []
    rows, units, centroid_rows, places, too_few = [], [], [], [], []
    for group in np.unique(groups):
        here = np.flatnonzero(groups == group)
        parts = _units(here, replicates, states)
        if not parts:
            too_few.append(int(group))
            continue
        quota = -(-n_cells // len(parts))
        for by_state in parts:
            unit = len(group_of_unit)
            group_of_unit.append(int(group))
            start = generator.permutation(by_state[START])
            n_perturbed = min(quota, len(start) if states is None else len(start) // 2)
            rows.append(start[:n_perturbed])
            units.append(np.full(n_perturbed, unit))
            if states is None:
                continue
            by_state = {**by_state, START: start[n_perturbed:]}
            for state, cells in by_state.items():
                some = generator.permutation(cells)[:quota]
                centroid_rows.append(some)
                places.append(np.stack([np.full(len(some), state), np.full(len(some), unit)]))
    order, chosen = _sorted(rows)
    centroid_order, centroids = _sorted(centroid_rows)
    n_units = len(group_of_unit)
    codes = np.concatenate(places, axis=1)[:, centroid_order] if places else np.zeros((2, 0), dtype=np.int64)
    return Chosen(
        chosen,
        np.concatenate(units)[order] if units else np.zeros(0, dtype=np.int64),
        np.array(group_of_unit, dtype=np.int64),
        centroids,
        codes[0] * n_units + codes[1],
        too_few,
    )


def _sorted(parts: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    rows = np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)
    order = np.argsort(rows)
    return order, rows[order]


def _units(here: np.ndarray, replicates: np.ndarray | None, states: np.ndarray | None) -> list[dict[int, np.ndarray]]:
    """Cells of each unit of a group by state; nothing if a state has too few."""
    if states is None:
        if replicates is None:
            return [{START: here}]
        each = [here[replicates[here] == number] for number in np.unique(replicates[here])]
        return [{START: cells} for cells in each if len(cells) >= LEAST_OF_REPLICATE]
    present = [state for state in (START, END, ALTERNATIVE) if (states == state).any()]
    by_state = {state: here[states[here] == state] for state in present}
    if any(len(cells) < LEAST_CELLS for cells in by_state.values()):
        return []
    if replicates is None:
        return [by_state]
    members = {state: _members(cells, replicates) for state, cells in by_state.items()}
    common = set.intersection(*(set(each) for each in members.values()))
    if len(common) > 1:
        return [{state: members[state][number] for state in present} for number in sorted(common)]
    # Each replicate has one state only: as many units as the rarer state has replicates, each with some of both.
    n_units = min(len(each) for each in members.values())
    lists = {state: [each[number] for number in sorted(each)] for state, each in members.items()}
    return [{state: np.concatenate(lists[state][unit::n_units]) for state in present} for unit in range(n_units)]


def _members(cells: np.ndarray, replicates: np.ndarray) -> dict[int, np.ndarray]:
    """Cells of each replicate that has enough of them."""
    each = {int(number): cells[replicates[cells] == number] for number in np.unique(replicates[cells])}
    return {number: members for number, members in each.items() if len(members) >= LEAST_OF_REPLICATE}


def directions(means: np.ndarray, chosen: Chosen) -> np.ndarray:
    """Where the cells of each unit are to go, (units, directions, d_model), each of length 1.

    First to the centroid of the end state of the group, which counts all its replicates alike; then along the line from
    start to end in the unit itself, so that replicates do not share their errors; then to the state to be avoided.

    Parameters
    ----------
    means
        Mean embedding of each state in each unit, (states, units, d_model).
    chosen
        The units.
    """
    of_group = np.empty_like(means)
    for group in np.unique(chosen.group_of_unit):
        here = chosen.group_of_unit == group
        of_group[:, here] = means[:, here].mean(1, keepdims=True)
    parts = [of_group[END], means[END] - means[START]]
    if len(means) > ALTERNATIVE:
        parts.append(of_group[ALTERNATIVE])
    found = np.stack(parts, axis=1)
    return found / np.linalg.norm(found, axis=-1, keepdims=True)
