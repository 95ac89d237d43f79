from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tahoe._cells.objects import check_adata
from tahoe._cells.slots import column_of
from tahoe._scores import clusters
from tahoe._scores.baselines import cell_totals, noise, pca
from tahoe._scores.classifiers import N_NEIGHBORS, classifiers, fold_scores, majority
from tahoe._scores.folds import check_groups, make_folds
from tahoe._scores.neighbors import chance_purity, graph_connectivity, lisi, nearest, purity
from tahoe._scores.table import BASELINE, GIVEN, Score, mean_score, to_table
from tahoe.errors import InputError, warn
from tahoe.evaluate._inputs import check_finite, names_of, read_counts, read_groups, read_representation

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pandas as pd
    from anndata import AnnData

    from tahoe._scores.folds import Fold

PCA, TOTALS, RANDOM, MAJORITY = "PCA of log counts", "total counts", "random", "majority class"
# The number of neighbours in the authors' own measure, and those of the local inverse Simpson's index in scib.
N_NEIGHBORS_OF_AUTHORS, N_NEIGHBORS_OF_LISI, PERPLEXITY = 20, 90, 30
log = logging.getLogger(__name__)


def cell_types(
    adata: AnnData,
    use_rep: str | Sequence[str],
    *,
    label_key: str,
    groups: str | None = None,
    batch_key: str | None = None,
    layer: str | None = None,
    use_raw: bool = False,
    n_folds: int = 5,
    seed: int = 0,
) -> pd.DataFrame:
    """Judge how well representations of cells tell their types, beside baselines.

    The baselines come from the same cells and are always in the table: 50 principal components of log-normalised
    counts, what is known without any gene (total, number of genes, mean expression), random numbers, and the most
    frequent type. Zero-shot embeddings that do not beat the first are common :cite:p:`Kedzierska2025`.

    Parameters
    ----------
    adata
        Annotated data matrix, cells × genes. It is not changed.
    use_rep
        One or more representations in ``adata.obsm``, such as ``["X_tahoe", "X_scvi"]``.
    label_key
        Column of ``adata.obs`` with the types. Cells without one are left out, with a warning.
    groups
        Column of ``adata.obs`` by which cells are left out, such as the donor: no group is both trained and tested on.
        Without it folds are drawn by chance, and cells of one donor help to tell each other.
    batch_key
        Column of ``adata.obs`` with batches; adds how well they are mixed (iLISI).
    layer
        Where the counts for the baselines are; ``adata.X`` by default.
    use_raw
        Take these counts from ``adata.raw``.
    n_folds
        Folds of the cross-validation; as many as groups if these are fewer.
    seed
        Of the folds, the forests, the clusters and the random baseline. The same seed gives the same table.

    Returns
    -------
    `pandas.DataFrame`, one row for each metric and representation, higher being better in all of them. Columns:
    ``metric``, ``representation``, ``kind`` (``"given"`` or ``"baseline"``), ``value``, ``standard_error`` over the
    ``replicates`` (``over`` says what these are: folds or groups), ``n`` (cells), ``detail``. Metrics:

    ``kNN``, ``logistic regression``, ``random forest``, each ``accuracy`` and ``macro-F1``
        In cells of other folds; 15 neighbours, standardised features for the regression, 100 trees.
    ``kNN purity``
        Share of a cell's 15 nearest neighbours with its own type.
    ``kNN purity over chance``
        The same for 20 neighbours, divided by what random neighbours would have. The authors of Tahoe-x1 call this
        «LISI»; it is not the local inverse Simpson's index.
    ``silhouette``
        Mean silhouette of the types, from -1 to 1, not rescaled.
    ``ARI``, ``NMI``
        Of Leiden clusters with the types, at the best of ten resolutions by NMI :cite:p:`Luecken2022`. NaN without
        igraph.
    ``graph connectivity``
        Share of each type's cells that hang together in the graph of 15 neighbours, mean over types.
    ``iLISI``
        Local inverse Simpson's index :cite:p:`Korsunsky2019` of the batches, median over cells, scaled to 0 (apart) … 1
        (mixed).

    Raises
    ------
    tahoe.errors.InputError
        If a slot or column does not exist, a representation has missing values, there are fewer than two types, or
        groups and types cannot be told apart.

    Examples
    --------
    >>> import tahoe
    >>> adata = tahoe.datasets.pbmc68k()
    >>> tahoe.tl.embed(adata, model="demo")
    >>> table = tahoe.evaluate.cell_types(adata, "X_tahoe", label_key="bulk_labels")
    >>> sorted(table["kind"].unique())
    ['baseline', 'given']
    """
    check_adata(adata)
    names = names_of(use_rep, (PCA, TOTALS, RANDOM, MAJORITY))
    vectors = {name: read_representation(adata, "obsm", name) for name in names}
    rows, labels = _labelled(adata, label_key)
    for name in names:
        check_finite(vectors[name][rows], f"obsm[{name!r}]", adata.obs_names[rows])
    if len(labels) <= N_NEIGHBORS + 1 or n_folds < 2:
        message = f"{len(labels)} labelled cells and n_folds={n_folds}; pass more than {N_NEIGHBORS + 1} cells, 2 folds"
        raise InputError(message)
    in_groups = None if groups is None else read_groups(adata, "groups", groups, rows)
    if in_groups is not None and groups is not None:
        check_groups(labels, in_groups, label_key, groups)
    folds = make_folds(labels, in_groups, n_folds, seed)
    batches = None if batch_key is None else _batches(adata, batch_key, rows)
    if not clusters.has_leiden():
        warn(f"no ARI and no NMI: {clusters.NEEDS_IGRAPH}")
    counts, are_counts = read_counts(adata, layer=layer, use_raw=use_raw)
    counts = counts[rows]

    baselines = {
        PCA: pca(counts, are_counts, seed),
        TOTALS: cell_totals(counts, are_counts),
        RANDOM: noise(len(labels), seed),
    }
    judge = _Judge(labels, in_groups, batches, folds, seed)
    scores: list[Score] = []
    for name in names:
        scores += judge.scores(vectors[name][rows], representation=name, kind=GIVEN)
    for name, baseline in baselines.items():
        scores += judge.scores(baseline, representation=name, kind=BASELINE)
    scores += judge.majority_scores()
    return to_table(
        scores,
        task="cell_types",
        label_key=label_key,
        groups=groups,
        batch_key=batch_key,
        n_folds=len(folds),
        seed=seed,
    )


@dataclass
class _Judge:
    """All metrics for one set of labels."""

    labels: np.ndarray
    groups: np.ndarray | None
    batches: np.ndarray | None
    folds: list[Fold]
    seed: int

    def __post_init__(self) -> None:
        self.codes = np.unique(self.labels, return_inverse=True)[1]

    def scores(self, vectors: np.ndarray, representation: str, kind: str) -> Iterator[Score]:
        log.info("evaluating %s", representation)
        for classifier_name, classifier in classifiers(self.seed, self._n_neighbors).items():
            for metric, values in fold_scores(classifier, vectors, self.labels, self.folds).items():
                yield mean_score(
                    f"{classifier_name} {metric}", representation, kind, values, "folds", n=len(self.labels)
                )
        yield from self._unsupervised(vectors, representation, kind)

    def majority_scores(self) -> Iterator[Score]:
        """The most frequent type as the answer of each classifier."""
        nothing = np.zeros((len(self.labels), 1))
        for metric, values in fold_scores(majority(), nothing, self.labels, self.folds).items():
            for classifier_name in classifiers(self.seed):
                yield mean_score(f"{classifier_name} {metric}", MAJORITY, BASELINE, values, "folds", n=len(self.labels))

    @property
    def _n_neighbors(self) -> int:
        """Fewer if a fold has not so many cells to train on."""
        return min(N_NEIGHBORS, *(len(train) for train, _ in self.folds))

    def _unsupervised(self, vectors: np.ndarray, representation: str, kind: str) -> Iterator[Score]:
        from sklearn.metrics import silhouette_samples

        distances, neighbors = nearest(vectors, N_NEIGHBORS_OF_LISI)
        near = neighbors[:, :N_NEIGHBORS]
        n = len(self.labels)

        def whole(metric: str, value: float, detail: str = "") -> Score:
            return Score(metric, representation, kind, float(value), n=n, detail=detail)

        yield self._mean_of_cells("kNN purity", representation, kind, purity(near, self.codes))
        over_chance = purity(neighbors[:, :N_NEIGHBORS_OF_AUTHORS], self.codes) / chance_purity(self.codes)
        yield self._mean_of_cells("kNN purity over chance", representation, kind, over_chance)
        yield self._mean_of_cells("silhouette", representation, kind, silhouette_samples(vectors, self.codes))
        if clusters.has_leiden():
            agreement, detail = clusters.best_agreement(vectors, self.labels, self.seed)
        else:
            agreement, detail = {"ARI": np.nan, "NMI": np.nan}, clusters.NEEDS_IGRAPH
        for metric, value in agreement.items():
            yield whole(metric, value, detail)
        yield whole("graph connectivity", graph_connectivity(near, self.codes))
        if self.batches is not None:
            n_batches = self.batches.max() + 1
            perplexity = min(PERPLEXITY, neighbors.shape[1] // 3)
            around = lisi(distances, self.batches[neighbors], perplexity)
            yield whole("iLISI", (np.median(around) - 1) / (n_batches - 1), f"{n_batches} batches")

    def _mean_of_cells(self, metric: str, representation: str, kind: str, values: np.ndarray) -> Score:
        """Mean over all cells; its error comes from the means of the groups, since cells are no replicates."""
        score = Score(metric, representation, kind, float(values.mean()), n=len(values))
        if self.groups is None:
            return score
        means = [values[self.groups == group].mean() for group in np.unique(self.groups)]
        spread = mean_score(metric, representation, kind, means, "groups")
        return score._replace(standard_error=spread.standard_error, replicates=spread.replicates, over="groups")


def _labelled(adata: AnnData, label_key: str) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers of the cells with a label, and these labels."""
    column = column_of(adata, label_key, "label_key")
    missing = column.isna().to_numpy()
    if missing.any():
        message = f"obs[{label_key!r}] is missing for {missing.sum()} of {adata.n_obs} cells, which are left out"
        warn(message)
    rows = np.flatnonzero(~missing)
    labels = column[~missing].astype(str).to_numpy(dtype=object).astype(str)
    names = np.unique(labels)
    if len(names) < 2:
        message = f"obs[{label_key!r}] has one value, {names.tolist()}; pass a column with two or more types"
        raise InputError(message)
    return rows, labels


def _batches(adata: AnnData, batch_key: str, rows: np.ndarray) -> np.ndarray:
    names, codes = np.unique(read_groups(adata, "batch_key", batch_key, rows), return_inverse=True)
    if len(names) < 2:
        message = f"obs[{batch_key!r}] has one value, {names.tolist()}: there is nothing to mix; omit batch_key="
        raise InputError(message)
    return codes
