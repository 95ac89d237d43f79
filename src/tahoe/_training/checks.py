"""What may not be asked of continued training, and what makes two runs the same."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anndata import AnnData

from tahoe._cells.file import absolute, identity
from tahoe._cells.objects import check_path
from tahoe.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tahoe._run.inputs import Inputs
    from tahoe._training.cells import TrainingCells
    from tahoe.model.training.plan import TrainingPlan


def check_arguments(
    given: list[Any], shares: Sequence[float] | None, validation: float, plan: TrainingPlan, target: Path, resume: bool
) -> None:
    """Refuse, before anything is opened, what cannot be meant."""
    if not given:
        message = "sources is empty; pass at least one file or AnnData"
        raise InputError(message)
    if shares is not None:
        if len(shares) != len(given):
            message = f"shares has {len(shares)} numbers for {len(given)} sources; pass one for each"
            raise InputError(message)
        if not all(share > 0 for share in shares) or abs(sum(shares) - 1) > 1e-6:
            message = f"shares={list(shares)} add up to {sum(shares):g}; they must be positive and add up to 1"
            raise InputError(message)
    if not 0 <= validation < 1:
        message = f"validation={validation}: it is the share of cells that is held out, from 0 to less than 1"
        raise InputError(message)
    for number, source in enumerate(given):
        if isinstance(source, AnnData):
            continue
        check_path(f"sources[{number}]", source)
        if "://" not in str(source) and Path(source).resolve() in (target.resolve(), *target.resolve().parents):
            message = f"output={str(target)!r} lies in the source {str(source)!r}; choose another place"
            raise InputError(message)
    if target.exists():
        done = ", so there is nothing to resume" if resume else ""
        message = f"output={str(target)!r} exists{done}; choose another place, or delete it first"
        raise InputError(message)
    if not target.parent.is_dir():
        message = f"output={str(target)!r} is to be in a folder that does not exist; make {str(target.parent)!r} first"
        raise InputError(message)
    if plan.cells_per_step < 2 * len(given):
        message = f"the plan has cells_per_step={plan.cells_per_step}; with {len(given)} sources take at least"
        msg = f"{message} {2 * len(given)}"
        raise InputError(msg)


def run_of(
    given: list[Any], inputs: list[Inputs], cells: TrainingCells, fingerprint: str, plan: TrainingPlan
) -> dict[str, Any]:
    """All that decides the course of a run: a state is taken by the same run alone."""
    found: dict[str, Any] = {f"plan.{name}": value for name, value in asdict(plan).items()}
    for name in ("save_every", "validate_every", "activation_checkpointing", "tokens_per_pass"):
        del found[f"plan.{name}"]  # these may change on the way
    if plan.schedule == "constant" and not plan.warm_up:
        del found["plan.steps"]  # and a run may become longer
    found["model"] = fingerprint
    for number, (source, each, part) in enumerate(zip(given, inputs, cells.sources, strict=True)):
        about: dict[str, Any]
        about = {"AnnData": each.matrix.n_cells} if isinstance(source, AnnData) else identity(absolute(str(source)))
        about |= {"slot": str(each.matrix.slot), "cells": part.order.n_cells, "share": str(part.share)}
        arrays = {"sums": each.matrix.totals, "tokens": each.column_tokens, "drugs": each.drugs}
        for name, array in arrays.items():
            about[name] = None if array is None else hashlib.sha256(array.tobytes()).hexdigest()[:16]
        found |= {f"sources[{number}] {name}": value for name, value in about.items()}
    return found
