from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tahoe._engine import plan


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(1, 120))
def test_plan_covers_all_cells_in_order_within_the_budget(lengths, budget):
    bounds = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    batches = plan(bounds, budget)
    assert [cell for start, stop in batches for cell in range(start, stop)] == list(range(len(lengths)))
    for start, stop in batches:
        assert bounds[stop] - bounds[start] <= budget or stop == start + 1
    for (start, stop), (_, after) in zip(batches, batches[1:], strict=False):
        # no batch could have taken the next cell too
        assert after > stop
        assert bounds[stop + 1] - bounds[start] > budget
