"""What the columns of ``obs`` say of a screen: states of a goal, replicates, and whether there are cells enough."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from tahoe._cells.slots import column_of, groups_of
from tahoe._perturbation.perturbed_cells import ALTERNATIVE, END, LEAST_CELLS, LEAST_OF_REPLICATE, START
from tahoe._perturbation.statistics import least_p
from tahoe.errors import InputError, similar_names, warn

if TYPE_CHECKING:
    from anndata import AnnData

    from tahoe._perturbation.perturbed_cells import Chosen

log = logging.getLogger(__name__)


def states_of(adata: AnnData, goal: Any, alternative: str | None) -> np.ndarray | None:
    """State of each cell: start, end, the one to be avoided, or -1."""
    if goal is None:
        if alternative is not None:
            message = f"alternative={alternative!r} goes with a goal=; pass (column, start, end)"
            raise InputError(message)
        return None
    if isinstance(goal, str) or len(goal) != 3:
        message = f"goal={goal!r}; it must be a column of adata.obs and two of its values: (column, start, end)"
        raise InputError(message)
    key = goal[0]
    column = column_of(adata, key, "the column of goal")
    values = column.astype(str).where(column.notna(), None)
    wanted = [str(goal[1]), str(goal[2]), *([] if alternative is None else [str(alternative)])]
    if len(set(wanted)) < len(wanted):
        message = f"goal={goal!r}, alternative={alternative!r}: the states must differ"
        raise InputError(message)
    states = np.full(adata.n_obs, -1)
    for code, state in zip((START, END, ALTERNATIVE), wanted, strict=False):
        here = np.asarray(values == state)
        if not here.any():
            message = f"obs[{key!r}] has no {state!r} (near: {similar_names(state, values.dropna().unique())})"
            raise InputError(message)
        if here.sum() < LEAST_CELLS:
            message = f"obs[{key!r}] is {state!r} in {here.sum()} cells; a state needs at least {LEAST_CELLS}"
            raise InputError(message)
        states[here] = code
    return states


def replicates_of(adata: AnnData, replicate_key: str | None) -> np.ndarray | None:
    """Number of each cell's replicate."""
    if replicate_key is None:
        return None
    codes, names = groups_of(adata, replicate_key, "replicate_key")
    if len(names) < 2:
        message = (
            f"obs[{replicate_key!r}] has one replicate only, {names[0]!r}, and a test over replicates needs at least"
            " two; omit replicate_key=: percentiles need none"
        )
        raise InputError(message)
    return codes


def check_chosen(
    chosen: Chosen,
    states: np.ndarray | None,
    groups: list[str],
    goal: Any,
    alternative: str | None,
    replicate_key: str | None,
) -> None:
    """Refuse what leaves no group to work with, and say which groups are left out, and what replicates can tell."""
    if not chosen.n_units:
        why = f"of each state of {goal!r}" if alternative is None else f"of each state of {goal!r} and {alternative!r}"
        what = f"{LEAST_CELLS} cells{'' if states is None else ' ' + why}"
        message = f"no group has {what}, or replicates with {LEAST_OF_REPLICATE}; take larger groups, or other states"
        raise InputError(message)
    if chosen.too_few:
        left_out = ", ".join(repr(groups[group]) for group in chosen.too_few[:5])
        message = f"{len(chosen.too_few)} groups have too few cells in a state and are left out: {left_out}"
        warn(message)
    if replicate_key is not None:
        sizes = np.bincount(chosen.group_of_unit)
        n_units = int(sizes[sizes > 0].min())
        if n_units < 2:
            group = groups[int(np.flatnonzero(sizes == n_units)[0])]
            message = (
                f"replicate_key={replicate_key!r}: the cells of {group!r} come from one replicate only, or one has"
                " at least 5 cells of each state; a test over replicates needs two; omit replicate_key="
            )
            raise InputError(message)
        log.info("%d replicates: no p-value can be below %.2g", n_units, least_p(n_units))
