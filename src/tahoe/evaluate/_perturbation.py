from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from tahoe._cells.objects import check_adata
from tahoe._cells.slots import column_of
from tahoe._scores.permutation import pairing_p_value
from tahoe._scores.shifts import energy_distances, linear_shifts, mean_of_others
from tahoe._scores.table import BASELINE, GIVEN, Score, mean_score, to_table
from tahoe.errors import InputError, warn

if TYPE_CHECKING:
    from anndata import AnnData

CONTROL_MEAN, PERTURBATION_MEAN, LINEAR = "control mean", "perturbation mean", "linear"
BASELINES = (CONTROL_MEAN, PERTURBATION_MEAN, LINEAR)
# Counts go far beyond what logarithms reach.
LARGEST_LOG = 30


@dataclass
class _Unit:
    """A perturbation, in one context."""

    perturbation: str
    context: str
    true: np.ndarray
    control: np.ndarray
    predicted: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.perturbation + (f" in {self.context}" if self.context else "")

    @property
    def shift(self) -> np.ndarray:
        return self.true.mean(axis=0) - self.control.mean(axis=0)


def perturbation(
    true: AnnData,
    predicted: AnnData | Mapping[str, AnnData],
    control: AnnData,
    *,
    perturbation_key: str = "perturbation",
    context_key: str | None = None,
    train: AnnData | None = None,
    layer: str | None = None,
    max_cells: int = 500,
    seed: int = 0,
) -> pd.DataFrame:
    """Judge predicted perturbed cells beside what needs no model at all.

    A unit is a perturbation in a context, as a drug in a cell line; metrics are means over units, since cells are no
    replicates. The baselines are always there: the control cells themselves; the control cells moved by the mean shift
    of the other perturbations, which many published models do not beat :cite:p:`AhlmannEltze2025`; and moved by what a
    ridge regression tells from the perturbed gene's loadings on principal components of the control cells.

    Parameters
    ----------
    true
        Perturbed cells as they were measured, log-normalised.
    predicted
        Predicted cells of the same perturbations and genes, or a mapping from names of methods to them.
    control
        Cells without a perturbation.
    perturbation_key
        Column of ``obs`` of `true`, `predicted` and `train` with the perturbation.
    context_key
        Column of ``obs`` of all of them with the context, such as the cell type. A unit is compared with control cells
        of its context.
    train
        Perturbed cells that the methods were trained on. The baselines are made from these; without them, for each unit
        from the other units of `true`, which no method has seen.
    layer
        Where the values are; ``X`` by default.
    max_cells
        Most cells of a unit for the energy distance; a seeded choice of more.
    seed
        Of this choice and of the permutations.

    Returns
    -------
    `pandas.DataFrame` with the columns of `tahoe.evaluate.cell_types`, and ``p_value``; ``replicates`` are units.

    ``Pearson of the shift``, ``Spearman of the shift``
        Correlation over genes of the predicted and the true mean minus that of the controls. 0 where nothing moves.
    ``discrimination score``
        Share of the other true shifts that are farther from the predicted one (L1) than its own; ties count half. 0.5
        is chance. NaN with one unit.
    ``energy distance``
        Of predicted and true cells, Euclidean; lower is better.

    ``p_value`` is how often predictions do as well when they are handed to units at random: all pairings of up to 7
    units, 9,999 drawn ones of more. Ties count against the method. NaN with one unit.

    Raises
    ------
    tahoe.errors.InputError
        If genes differ, a perturbation is not predicted or has no controls, or values are missing.

    Examples
    --------
    >>> import numpy as np, anndata, tahoe
    >>> random = np.random.default_rng(0)
    >>> names = np.repeat(["a", "b", "c"], 20)
    >>> moved = np.repeat(np.eye(3, 30), 20, axis=0)
    >>> true, guess = (anndata.AnnData(moved + random.random((60, 30)), obs={"perturbation": names}) for _ in "12")
    >>> control = anndata.AnnData(random.random((40, 30)))
    >>> table = tahoe.evaluate.perturbation(true, guess, control)
    >>> list(table["representation"].unique())
    ['predicted', 'control mean', 'perturbation mean', 'linear']
    """
    named = dict(predicted) if isinstance(predicted, Mapping) else {"predicted": predicted}
    clash = [name for name in named if name in BASELINES]
    if clash or not named or max_cells < 2:
        message = f"predicted has {list(named)} and max_cells={max_cells}; pass methods that are not called {BASELINES}"
        raise InputError(message)
    _check_genes({"true": true, **named, "control": control} | ({} if train is None else {"train": train}))
    units = _units("true", true, control, perturbation_key, context_key, layer)
    for name, cells in named.items():
        _add_predictions(units, name, cells, perturbation_key, context_key, layer)
    known = None if train is None else _units("train", train, control, perturbation_key, context_key, layer)
    _add_baselines(units, known, list(map(str, true.var_names)), seed)
    kinds = dict.fromkeys(named, GIVEN) | dict.fromkeys(BASELINES, BASELINE)
    scores = []
    for name, kind in kinds.items():
        scores += _scores(units, name, kind, max_cells, seed)
    return to_table(scores, task="perturbation", context_key=context_key, trained=train is not None, seed=seed)


def _check_genes(cells: Mapping[str, AnnData]) -> None:
    first = cells["true"]
    for name, adata in cells.items():
        check_adata(adata)
        if adata.n_vars != first.n_vars or not np.array_equal(adata.var_names, first.var_names):
            message = (
                f"{name} has other genes than true ({adata.n_vars} and {first.n_vars}), or another order; take those in"
                " common: adata[:, true.var_names].copy()"
            )
            raise InputError(message)


def _values(name: str, adata: AnnData, layer: str | None) -> np.ndarray:
    """The values as a dense float64 array; perturbation screens are judged on some thousand genes."""
    if layer is not None and layer not in adata.layers:
        message = f"layers[{layer!r}] does not exist in {name}"
        raise InputError(message)
    matrix = adata.X if layer is None else adata.layers[layer]
    if matrix is None or not adata.n_obs:
        message = f"{name} has no cells" if matrix is not None else f"{name}.X is None; pass layer="
        raise InputError(message)
    dense = np.asarray(matrix.toarray() if hasattr(matrix, "toarray") else matrix, dtype=np.float64)
    if not np.isfinite(dense).all():
        rows = np.flatnonzero(~np.isfinite(dense).all(axis=1))
        message = f"{name} has NaN or infinite values in {len(rows)} cells, first in {adata.obs_names[rows[0]]!r}"
        raise InputError(message)
    if dense.max() > LARGEST_LOG:
        message = (
            f"{name} has values up to {dense.max():g}, which are not logarithms; shifts will be those of few genes"
        )
        warn(message)
    return dense


def _keys(name: str, adata: AnnData, perturbation_key: str | None, context_key: str | None) -> pd.DataFrame:
    """Perturbation and context of each cell, "" where there is no such column to read."""
    columns = {}
    for what, key in (("perturbation", perturbation_key), ("context", context_key)):
        if key is None:
            columns[what] = np.full(adata.n_obs, "", dtype=object)
            continue
        column = column_of(adata, key, f"{what}_key (of {name})")
        if column.isna().any():
            message = f"obs[{key!r}] of {name} is missing for {column.isna().sum()} cells; leave these out"
            raise InputError(message)
        columns[what] = column.astype(str).to_numpy(dtype=object)
    return pd.DataFrame(columns)


def _units(
    name: str, cells: AnnData, control: AnnData, perturbation_key: str, context_key: str | None, layer: str | None
) -> list[_Unit]:
    values, controls = _values(name, cells, layer), _values("control", control, layer)
    keys = _keys(name, cells, perturbation_key, context_key)
    contexts = _keys("control", control, None, context_key)["context"].to_numpy()
    units = []
    rows_of: dict[tuple[str, str], np.ndarray] = keys.groupby(["perturbation", "context"], sort=True).indices  # type: ignore[assignment]
    for (perturbation_name, context), rows in sorted(rows_of.items()):
        own = contexts == context
        if not own.any():
            message = f"control has no cells with obs[{context_key!r}] == {context!r}, which {name} has"
            raise InputError(message)
        units.append(_Unit(perturbation_name, context, values[rows], controls[own]))
    return units


def _add_predictions(
    units: list[_Unit], name: str, cells: AnnData, perturbation_key: str, context_key: str | None, layer: str | None
) -> None:
    values = _values(name, cells, layer)
    keys = _keys(name, cells, perturbation_key, context_key)
    rows_of = keys.groupby(["perturbation", "context"]).indices
    missing = [unit.name for unit in units if (unit.perturbation, unit.context) not in rows_of]
    if missing:
        message = f"{name} has no cells of {len(missing)} of {len(units)} perturbations: {', '.join(missing[:5])}"
        raise InputError(message)
    for unit in units:
        unit.predicted[name] = values[rows_of[unit.perturbation, unit.context]]


def _add_baselines(units: list[_Unit], train: list[_Unit] | None, genes: list[str], seed: int) -> None:
    """Control cells, as they are or moved."""
    shifts = np.stack([unit.shift for unit in units])
    names = [unit.perturbation for unit in units]
    known = None if train is None else (np.stack([unit.shift for unit in train]), [unit.perturbation for unit in train])
    controls = np.concatenate([unit.control for unit in units])
    means = mean_of_others(shifts, known[0] if known else None)
    linear = linear_shifts(shifts, names, known, controls, genes, seed)
    for unit, mean, line in zip(units, means, linear, strict=True):
        unit.predicted[CONTROL_MEAN] = unit.control
        unit.predicted[PERTURBATION_MEAN] = unit.control + mean
        unit.predicted[LINEAR] = unit.control + line


def _scores(units: list[_Unit], name: str, kind: str, max_cells: int, seed: int) -> list[Score]:
    true = np.stack([unit.shift for unit in units])
    predicted = np.stack([unit.predicted[name].mean(axis=0) - unit.control.mean(axis=0) for unit in units])
    detail = "" if np.isfinite(predicted).all() else "the perturbed genes are not among the genes"
    energy = energy_distances([unit.predicted[name] for unit in units], [unit.true for unit in units], max_cells, seed)
    matrices = {
        "Pearson of the shift": correlations(predicted, true),
        "Spearman of the shift": correlations(_ranks(predicted), _ranks(true)),
        "discrimination score": discrimination(predicted, true),
        "energy distance": -energy,
    }
    scores = []
    for metric, matrix in matrices.items():
        lower = metric == "energy distance"
        values = -matrix.diagonal() if lower else matrix.diagonal()
        score = mean_score(metric, name, kind, values, "perturbations", n=len(units), detail=detail)
        scores.append(score._replace(p_value=pairing_p_value(matrix, seed), better="lower" if lower else "higher"))
    return scores


def correlations(predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Pearson correlation of each row with each row, 0 with a row that is constant."""
    predicted, true = (rows - rows.mean(axis=1, keepdims=True) for rows in (predicted, true))
    lengths = np.linalg.norm(predicted, axis=1)[:, None] * np.linalg.norm(true, axis=1)[None]
    return np.divide(predicted @ true.T, lengths, out=np.where(np.isnan(lengths), np.nan, 0.0), where=lengths > 1e-12)


def _ranks(rows: np.ndarray) -> np.ndarray:
    from scipy.stats import rankdata

    return np.where(np.isnan(rows).any(axis=1, keepdims=True), np.nan, rankdata(np.nan_to_num(rows), axis=1))


def discrimination(predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """For each prediction and truth, the share of the other truths that are farther away; ties count half."""
    n = len(true)
    if n < 2:
        return np.full((n, n), np.nan)
    apart = np.abs(predicted[:, None] - true[None]).sum(axis=2)
    nearer = (apart[:, None] < apart[:, :, None]).sum(axis=2)
    ties = (apart[:, None] == apart[:, :, None]).sum(axis=2) - 1
    return np.where(np.isnan(apart), np.nan, 1 - (nearer + ties / 2) / (n - 1))
