"""Cell types of Tabula Sapiens, told in donors that were not trained on, beside baselines.

    python -m benchmarks.paper.tabula_sapiens --model 3b --data DIR

One table for each tissue, a file each. The authors report the macro-F1 of a logistic regression and their «LISI», which
is here under its true name, the kNN purity over chance.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import anndata

import tahoe
from benchmarks.paper.common import Needed, array_once, parse, require, run, show, table_once

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import pandas as pd

NEEDED = (
    Needed(
        ("*.h5ad",),
        "one file a tissue, counts in X or raw, with obs columns cell_type and donor_id",
        "https://cellxgene.cziscience.com/collections/e5f58829-1a66-40b5-a624-9046778e74f5 (Tabula Sapiens)",
        "0.1 to 5 GB a tissue",
    ),
)


def main(arguments: Sequence[str] | None = None) -> dict[str, pd.DataFrame]:
    """Run what is not done yet, and print the tables."""
    options = parse(__doc__, arguments)
    (paths,) = require(options.data, NEEDED)
    model: list[tahoe.TahoeModel] = []
    tables = {}
    for path in paths:
        tables[path.stem] = table_once(
            options.results / f"{path.stem}.csv", lambda path=path: _evaluate(path, options, model)
        )
        show(f"{path.stem}, {tables[path.stem]['n'].iloc[0]} cells", tables[path.stem])
    return tables


def _evaluate(path: Path, options: object, model: list[tahoe.TahoeModel]) -> pd.DataFrame:
    adata = anndata.read_h5ad(path)
    missing = [key for key in ("cell_type", "donor_id") if key not in adata.obs]
    if missing:
        sys.exit(f"{path.name} has no obs column {missing[0]!r}; it has {', '.join(adata.obs.columns[:10])}")
    use_raw = adata.raw is not None

    def vectors() -> object:
        if not model:
            model.append(tahoe.load_model(options.model, device=options.device))
        return tahoe.tl.embed(adata, model[0], use_raw=use_raw, copy=True).obsm["X_tahoe"]

    adata.obsm["X_tahoe"] = array_once(options.results / f"{path.stem}.npy", vectors)
    groups = "donor_id" if adata.obs["donor_id"].nunique() > 1 else None
    return tahoe.evaluate.cell_types(adata, "X_tahoe", label_key="cell_type", groups=groups, use_raw=use_raw)


if __name__ == "__main__":
    run(main)
