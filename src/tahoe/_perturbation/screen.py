"""A screen: pass after pass over the chosen cells, and from their sums a table of edits."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from tahoe._perturbation.accumulators import Agreement, ExactEdits, FirstOrder, GeneCounts, UnitMeans
from tahoe._perturbation.edit_effects import Question
from tahoe._perturbation.effect_table import Comparison, effect_table, with_exact
from tahoe._perturbation.perturbed_cells import directions
from tahoe._perturbation.selected_rows import aggregate_rows
from tahoe._perturbation.statistics import matched
from tahoe.errors import InputError

if TYPE_CHECKING:
    from tahoe._perturbation.effect_table import Edit
    from tahoe._perturbation.perturbed_cells import Chosen
    from tahoe._run.inputs import Inputs

log = logging.getLogger(__name__)

# Tokens of a batch in the first order: it is done cell by cell, and this is how often the bar moves.
TOKENS_AT_ONCE = 1 << 14
# Cells of a group whose exact effects check the first order of a whole screen, and genes that are drawn in each.
CHECKED_CELLS, CHECKED_GENES = 30, 20
# Random directions that the shift is estimated from where the first order is checked, in which few cells are averaged.
CHECKED_PROJECTIONS = 24
# Forward passes from which on an exact screen of all genes is refused.
MOST_PASSES = 100_000
# A cell whose first order agrees less than this with its exact edits is named.
POOR = 0.8


@dataclass(frozen=True, eq=False)
class Plan:
    """What is to be done, with all names looked up."""

    inputs: Inputs
    chosen: Chosen
    kind: str
    has_goal: bool
    edits: list[Edit] | None
    """Token ids of the genes of each edit that was requested, or ids of drugs; `None` is every gene of the pool."""
    pool: np.ndarray
    """Token ids of the genes that may be edited, or be compared with, rising."""
    method: str
    min_cells: int
    n_null: int
    n_exact: int
    n_projections: int
    seed: int
    max_length: int

    @property
    def is_short(self) -> bool:
        """Whether so few edits were requested that all are made exactly."""
        return self.edits is not None and len(self.edits) <= self.n_exact


@dataclass(frozen=True, eq=False)
class Screened:
    """What a screen found."""

    table: pd.DataFrame
    agreement: dict[str, Any]
    """Of first order and exact edits; its ``agreement_poor_rows`` are numbers of cells."""
    changes: np.ndarray | None
    """Change of each perturbed cell's embedding, for a single edit."""


class Screen:
    """The passes of one screen. The first, over tokens alone, is done when it is made."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        chosen, config = plan.chosen, plan.inputs.model.config
        self.width, self.vocab_size = config.d_model, config.vocab_size
        self.counts = self._pass(chosen.rows, GeneCounts(chosen.units, chosen.n_units, self.vocab_size))
        score = "projection" if plan.has_goal else "shift"
        self.comparison = Comparison(
            chosen.group_of_unit, self.counts, plan.kind, score, plan.min_cells, plan.n_null, plan.seed
        )

    def run(self) -> Screened:
        """All passes, in the order of what they need of each other."""
        plan = self.plan
        singles, combined = self._edits()
        alone: list[Edit] = [(gene,) for gene in singles.tolist()]
        if plan.method == "exact" or plan.kind == "drug":
            self._refuse_days(singles)
            return self._all_exact(self._question(_genes_of(alone + combined)), alone + combined)
        candidates = self._candidates(singles)
        question = self._question(candidates)
        table = self._first_order(question, alone)
        if plan.method == "first_order":
            return Screened(table, {}, None)
        table, changes = self._with_exact(question, table, alone, combined)
        return Screened(table, self._agreement(question) if alone else {}, changes)

    def _pass(self, rows: np.ndarray, accumulator: Any, *, token_budget: int | None = None) -> Any:
        plan = self.plan
        options: dict[str, Any] = {"max_length": plan.max_length, "seed": plan.seed, "token_budget": token_budget}
        return aggregate_rows(plan.inputs, rows, accumulator, **options)

    def _edits(self) -> tuple[np.ndarray, list[Edit]]:
        """Genes (or drugs) that are edited alone, rising, and combinations."""
        plan = self.plan
        if plan.edits is not None:
            singles = np.unique([edit[0] for edit in plan.edits if len(edit) == 1]).astype(np.int64)
            return singles, [edit for edit in plan.edits if len(edit) > 1]
        singles = plan.pool[self.comparison.editable(plan.pool).max(0) >= plan.min_cells]
        if not len(singles):
            message = (
                f"no gene can be edited in min_cells={plan.min_cells} of the {len(plan.chosen.rows)} cells that were"
                " chosen; lower min_cells, or raise n_cells"
            )
            raise InputError(message)
        return singles, []

    def _candidates(self, singles: np.ndarray) -> np.ndarray:
        """Genes of the first order: those that were requested, and others to compare them with."""
        plan = self.plan
        if plan.edits is None:
            return singles
        enough = self.comparison.editable(plan.pool).max(0) >= plan.min_cells
        pool = np.union1d(plan.pool[enough], singles)
        if plan.kind == "delete":  # they cost nothing
            return pool
        nearest = matched(*self.comparison.features(pool), plan.n_null, plan.seed)
        if nearest is None:
            return pool
        return np.union1d(singles, pool[np.unique(nearest[np.searchsorted(pool, singles)])])

    def _question(self, candidates: np.ndarray) -> Question:
        plan = self.plan
        goal = self._directions() if plan.has_goal else None
        n_projections = min(plan.n_projections, self.width)
        return Question(plan.kind, plan.chosen.units, plan.chosen.n_units, goal, n_projections, candidates, plan.seed)

    def _directions(self) -> np.ndarray:
        chosen = self.plan.chosen
        n_states = int(chosen.centroid_places.max()) // chosen.n_units + 1
        means = UnitMeans(chosen.centroid_places, n_states * chosen.n_units, self.width)
        found = self._pass(chosen.centroid_rows, means).result().reshape(n_states, chosen.n_units, self.width)
        if np.isnan(found).any():
            message = "a state has no cell that expresses a gene of the model; remove such cells, or name other states"
            raise InputError(message)
        return directions(found, chosen)

    def _first_order(self, question: Question, alone: list[Edit]) -> pd.DataFrame:
        """Effects of single genes, to first order, and where they stand among all candidates."""
        rows = self.plan.chosen.rows
        log.info("first order: %d genes in %d cells", len(question.candidates), len(rows))
        found = self._pass(rows, FirstOrder(question, self.vocab_size), token_budget=TOKENS_AT_ONCE)
        everything: list[Edit] = [(gene,) for gene in question.candidates.tolist()]
        table = effect_table(self.comparison, everything, question.names, *found.result())
        wanted = set(alone)
        table = table[[edit in wanted for edit in table["edit"]]]
        if self.plan.edits is None:
            table = table[table["n_cells"] >= self.plan.min_cells]
        return table.reset_index(drop=True)

    def _refuse_days(self, genes: np.ndarray) -> None:
        """Refuse a screen of all genes that would take too many forward passes."""
        plan = self.plan
        if plan.edits is not None:
            return
        n_passes = int(self.comparison.editable(genes).sum())
        if n_passes > MOST_PASSES:
            message = (
                f"genes=None with method='exact' takes {n_passes:,} forward passes, one for each gene of each of"
                f" {len(plan.chosen.rows)} cells, and above {MOST_PASSES:,} it is refused; method='auto' takes a"
                " forward and a backward pass a cell and checks the top exactly, genes= or n_cells= makes it less"
            )
            raise InputError(message)

    def _exact(self, question: Question, edits: list[Edit], cells: np.ndarray, *, keep: bool) -> ExactEdits:
        """Exact effects of edits in some of the chosen cells."""
        log.info("exact edits: %d in %d cells", len(edits), len(cells))
        in_cells = replace(question, units=question.units[cells], candidates=_genes_of(edits))
        exact = ExactEdits(in_cells, edits, self.width, keep)
        return self._pass(self.plan.chosen.rows[cells], exact, token_budget=1)

    def _all_exact(self, question: Question, edits: list[Edit]) -> Screened:
        """A table of exact effects alone; they stand in both sets of columns."""
        keep = len(edits) == 1
        found = self._exact(question, edits, np.arange(len(self.plan.chosen.rows)), keep=keep)
        single = [place for place, edit in enumerate(edits) if len(edit) == 1]
        several = [place for place, edit in enumerate(edits) if len(edit) > 1]
        effects, n_cells = found.result()
        parts = [
            effect_table(
                self.comparison,
                [edits[i] for i in places],
                question.exact_names,
                effects[..., places],
                n_cells[:, places],
            )
            for places in (single, several)
            if places
        ]
        table = pd.concat(parts, ignore_index=True)
        if self.plan.edits is None:
            table = table[table["n_cells"] >= self.plan.min_cells].reset_index(drop=True)
        exact = {f"{name}_exact": table[name] for name in question.exact_names}
        table = table.assign(**exact, n_cells_exact=table["n_cells"])
        return Screened(table, {}, np.concatenate(found.changes) if keep else None)

    def _with_exact(
        self, question: Question, table: pd.DataFrame, alone: list[Edit], combined: list[Edit]
    ) -> tuple[pd.DataFrame, np.ndarray | None]:
        """Exact edits: of what was requested if that is little, else of the top of each group in some of its cells."""
        plan, changes = self.plan, None
        everywhere = np.arange(len(plan.chosen.rows))
        edits = alone if plan.is_short else self._top(table)
        if edits:
            keep = plan.is_short and len(edits) == 1 and not combined
            found = self._exact(question, edits, everywhere if plan.is_short else self._some_cells(), keep=keep)
            table = with_exact(self.comparison, table, edits, question.exact_names, *found.result())
            changes = np.concatenate(found.changes) if keep else None
        if combined:
            together = self._all_exact(question, combined)
            table = pd.concat([table, together.table], ignore_index=True) if alone else together.table
            changes = None if alone else together.changes
        return table, changes

    def _top(self, table: pd.DataFrame) -> list[Edit]:
        """The largest effects of each group, either way."""
        ranked = table[table["n_cells"] >= self.plan.min_cells]
        ranked = ranked.assign(size=ranked[self.comparison.score].abs()).sort_values("size", ascending=False)
        return sorted(set(ranked.groupby("group").head(self.plan.n_exact)["edit"]))

    def _some_cells(self) -> np.ndarray:
        """Places of some of the chosen cells of each group, spread evenly."""
        groups = self.plan.chosen.group_of_unit[self.plan.chosen.units]
        places = []
        for group in np.unique(groups):
            here = np.flatnonzero(groups == group)
            places.append(here[np.unique(np.linspace(0, len(here) - 1, CHECKED_CELLS).astype(int))])
        return np.sort(np.concatenate(places))

    def _agreement(self, question: Question) -> dict[str, Any]:
        """How good the first order is in some cells, for genes that are drawn at random."""
        some = self._some_cells()
        rows = self.plan.chosen.rows[some]
        in_cells = replace(question, units=question.units[some], n_projections=min(CHECKED_PROJECTIONS, self.width))
        found = self._pass(rows, Agreement(in_cells, CHECKED_GENES), token_budget=1).result()
        known = np.isfinite(found)
        if not known.any():
            return {}
        poor = rows[known & (np.nan_to_num(found) < POOR)]
        log.info(
            "first order and exact edits agree: median Spearman %.3f in %d cells; %d of them below %.1f",
            *(np.median(found[known]), known.sum(), len(poor), POOR),
        )
        return {
            "agreement_median": float(np.median(found[known])),
            "agreement_lowest": float(found[known].min()),
            "agreement_cells": int(known.sum()),
            "agreement_poor_rows": poor,
        }


def _genes_of(edits: list[Edit]) -> np.ndarray:
    return np.unique([gene for edit in edits for gene in edit]).astype(np.int64)
