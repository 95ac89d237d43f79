"""Some rows of a matrix through a model, in the order of the rows; the others are not read where that can be helped."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from tahoe._cells.rows import BLOCK_CELLS, row_blocks
from tahoe._run.batches import CellBatches
from tahoe._run.cluster import aggregate_on_workers
from tahoe._run.means import aggregate

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scipy import sparse

    from tahoe._cells.matrix import Matrix
    from tahoe._run.cluster import A
    from tahoe._run.inputs import Inputs


def aggregate_rows(
    inputs: Inputs, rows: np.ndarray, accumulator: A, *, max_length: int, seed: int, token_budget: int | None
) -> A:
    """Add up some cells, whose numbers rise; the accumulator counts them from 0 on.

    On the workers of a cluster, if they are to do it, else here.
    """
    drugs = None if inputs.drugs is None else inputs.drugs[rows]
    if inputs.client is not None:
        task = inputs.task(max_length=max_length, seed=seed, token_budget=token_budget)
        values = inputs.matrix.values[rows]
        return aggregate_on_workers(inputs.client, values, replace(task, drugs=drugs), accumulator)
    used = inputs.column_tokens >= 0
    blocks = _blocks(inputs.matrix, rows, used)
    cells = CellBatches(blocks, inputs.column_tokens, len(rows), max_length, seed, token_budget, drugs)
    return aggregate(inputs.model, cells, accumulator)


def _blocks(matrix: Matrix, rows: np.ndarray, used: np.ndarray) -> Iterator[sparse.csr_array]:
    if matrix.is_lazy:
        for block in row_blocks(matrix.values[rows], 0, len(rows)):
            matrix.check(block, used)
            yield block
        return
    for number in np.unique(rows // BLOCK_CELLS):
        start = int(number) * BLOCK_CELLS
        here = rows[rows // BLOCK_CELLS == number]
        (block,) = matrix.checked_blocks(used, start, min(start + BLOCK_CELLS, matrix.n_cells))
        yield block[here - start]
