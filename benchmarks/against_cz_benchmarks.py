"""Our metrics beside those of cz-benchmarks, on the same vectors, labels and folds.

    python benchmarks/against_cz_benchmarks.py

Needs an environment with cz-benchmarks (which brings scib-metrics, JAX and hnswlib). Its classifiers are not ours, so
the column «with theirs» has our folds and scores with classifiers as it makes them: that must be equal. The column
`tahoe` is what `tahoe.evaluate.cell_types` prints.
"""

from __future__ import annotations

import logging
import warnings

import numpy as np
import pandas as pd
from czbenchmarks.tasks import (
    ClusteringTask,
    ClusteringTaskInput,
    EmbeddingTask,
    EmbeddingTaskInput,
    MetadataLabelPredictionTask,
    MetadataLabelPredictionTaskInput,
)
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tahoe.evaluate._classifiers import fold_scores
from tahoe.evaluate._folds import make_folds

import tahoe
from tahoe.evaluate import _baselines, _clusters

SEED, FEWEST = 42, 10
NAMES = {"lr": "logistic regression", "knn": "kNN", "rf": "random forest"}
METRICS = {"mean_fold_accuracy": "accuracy", "mean_fold_f1": "macro-F1"}
# As cz-benchmarks 0.15 makes them.
THEIRS = {
    "lr": make_pipeline(StandardScaler(with_mean=False), LogisticRegression()),
    "knn": make_pipeline(StandardScaler(with_mean=False), KNeighborsClassifier()),
    "rf": RandomForestClassifier(random_state=SEED),
}


def main() -> None:
    warnings.filterwarnings("ignore")
    logging.disable(logging.INFO)
    adata = tahoe.datasets.pbmc68k()
    labels = adata.obs["bulk_labels"].astype(str)
    adata = adata[labels.map(labels.value_counts()) >= FEWEST].copy()  # it leaves rarer types out
    labels = adata.obs["bulk_labels"].astype(str)
    adata.obsm["X_ours"] = _baselines.pca(adata.X)
    vectors, types = adata.obsm["X_ours"], labels.to_numpy()
    ours = tahoe.evaluate.cell_types(adata, "X_ours", label_key="bulk_labels", seed=SEED)
    ours = ours[ours["representation"] == "X_ours"].set_index("metric")["value"]
    folds = make_folds(types, None, 5, SEED)
    rows: dict[str, tuple[float, float, float]] = {}

    task_input = MetadataLabelPredictionTaskInput(labels=labels)
    found = MetadataLabelPredictionTask(random_seed=SEED).run(vectors, task_input)
    told = {(result.params["classifier"], result.metric_type.value): result.value for result in found}
    for short, name in NAMES.items():
        same = fold_scores(THEIRS[short], vectors, types, folds)
        for theirs, metric in METRICS.items():
            rows[f"{name} {metric}"] = (ours[f"{name} {metric}"], np.mean(same[metric]), told[short, theirs])

    (silhouette,) = EmbeddingTask(random_seed=SEED).run(vectors, EmbeddingTaskInput(input_labels=labels))
    rows["silhouette"] = (ours["silhouette"], (ours["silhouette"] + 1) / 2, silhouette.value)

    clustering = ClusteringTaskInput(obs=adata.obs, input_labels=labels)
    found = ClusteringTask(random_seed=SEED).run(vectors, clustering)
    theirs = {result.metric_type.value: result.value for result in found}
    same = _clusters.agreement(types, _clusters.leiden(_clusters.neighbor_graph(vectors, SEED), 1.0, SEED))
    rows["ARI"] = (ours["ARI"], same["ARI"], theirs["adjusted_rand_index"])
    rows["NMI"] = (ours["NMI"], same["NMI"], theirs["normalized_mutual_info"])

    table = pd.DataFrame(rows, index=["tahoe", "with theirs", "cz-benchmarks"], dtype=float).T
    table["difference"] = table["with theirs"] - table["cz-benchmarks"]
    print(f"{len(types)} cells, {len(set(types))} types, seed {SEED}")
    print(table.to_string(float_format="{:.7f}".format))


if __name__ == "__main__":
    main()
