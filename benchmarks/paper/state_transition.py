"""Perturbed cells in contexts that were held out, predicted by Arc's State from Tahoe-x1 embeddings, beside baselines.

    python -m benchmarks.paper.state_transition --model 3b --data DIR

Adds obsm["X_tahoe"] and obsm["X_hvg"] to each file of DIR, writes the hold-outs as a TOML file for State, and says how
to train and to predict with it. When its predictions are there (DIR/predicted/*.h5ad), they are judged beside baselines
that are made from the training contexts. Which data set it is, is told by the columns. The 2,000 highly variable genes,
which State decodes and which are judged, are those of the first file.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import anndata
import numpy as np
import scanpy as sc
from scipy import sparse

import tahoe
from benchmarks.paper.common import Needed, cells_once, parse, require, run, show, table_once

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import pandas as pd


@dataclass(frozen=True)
class DataSet:
    """Columns of a data set, and the contexts that the authors held out."""

    name: str
    perturbation: str
    context: str
    batch: str
    control: str
    held_out: tuple[str, ...]


DATA_SETS = (
    DataSet(
        "tahoe",
        "drugname_drugconc",
        "cell_line_id",
        "plate",
        "[('DMSO_TF', 0.0, 'uM')]",
        ("CVCL_1097", "CVCL_1285", "CVCL_1098", "CVCL_0334", "CVCL_0480"),
    ),
    DataSet("parse", "cytokine", "donor", "cell_type", "PBS", ("Donor1", "Donor4", "Donor9", "Donor12")),
)
NEEDED = (
    Needed(
        ("*.h5ad",),
        "log-normalised cells in X and counts in layers['counts'], all files with the same genes",
        "https://huggingface.co/datasets/arcinstitute/State-Tahoe-Filtered (50 files, one a cell line, not yet logged),"
        " https://huggingface.co/datasets/tahoebio/Tahoe-100M (parquet), or"
        " https://www.parsebiosciences.com/datasets/10-million-human-pbmcs-in-a-single-experiment/",
        "hundreds of GB",
    ),
)
N_GENES = 2000
# For pert_col=drugname_drugconc State sets control_pert itself, since a list of tuples is no value for its command.
TRAIN = """pip install "arc-state==0.11.1" "transformers<5"   # in an environment of its own
state tx train data.kwargs.toml_config_path={toml} data.kwargs.embed_key=X_tahoe data.kwargs.output_space=gene \\
    data.kwargs.pert_col={perturbation} data.kwargs.cell_type_key={context} {control_pert}\\
    data.kwargs.batch_col={batch} use_wandb=false output_dir={results} name=state
state tx predict --output-dir {results}/state --checkpoint final.ckpt --predict-only
mkdir -p {data}/predicted && cp {results}/state/eval_final.ckpt/adata_pred.h5ad {data}/predicted/state.h5ad"""


def main(arguments: Sequence[str] | None = None) -> pd.DataFrame | None:
    """Do the next steps, and print the table if all are done."""
    options = parse(__doc__, arguments)
    (paths,) = require(options.data, NEEDED)
    model: list[tahoe.TahoeModel] = []
    prepared: list[anndata.AnnData] = []
    for path in paths:
        prepared.append(_prepared(path, prepared[0] if prepared else None, options, model))
    data_set = _which(prepared[0], paths[0])
    toml = _write_split(data_set, options.results)
    predicted = sorted((options.data / "predicted").glob("*.h5ad"))
    if not predicted:
        values = {"toml": toml.resolve(), "results": options.results.resolve(), "data": options.data} | vars(data_set)
        values["control_pert"] = "" if data_set.name == "tahoe" else f"data.kwargs.control_pert={data_set.control} "
        print(f"Embedded {len(prepared)} files. Train State and predict, then call this again:\n")
        print(TRAIN.format(**values))
        return None
    table = table_once(options.results / "perturbation.csv", lambda: _evaluate(prepared, predicted, data_set))
    show(f"Held out: {', '.join(data_set.held_out)}", table)
    return table


def _prepared(
    path: Path, first: anndata.AnnData | None, options: object, model: list[tahoe.TahoeModel]
) -> anndata.AnnData:
    def embedded() -> anndata.AnnData:
        adata = anndata.read_h5ad(path)
        if "counts" not in adata.layers:
            sys.exit(f"{path.name} has no layers['counts']; copy the counts there before X is log-normalised")
        if not model:
            model.append(tahoe.load_model(options.model, device=options.device))
        tahoe.tl.embed(adata, model[0], layer="counts")
        if first is None:
            sc.pp.highly_variable_genes(adata, n_top_genes=min(N_GENES, adata.n_vars))
        elif not adata.var_names.equals(first.var_names):
            sys.exit(f"{path.name} has other genes than the first file, or another order; all need the same")
        else:
            adata.var["highly_variable"] = first.var["highly_variable"]
        adata.var["gene_name"] = adata.var_names  # where State looks for them
        adata.obsm["X_hvg"] = _dense(adata[:, adata.var["highly_variable"]].X)
        return adata

    return cells_once(options.results / "prepared" / path.name, embedded)


def _dense(values: object) -> np.ndarray:
    return np.asarray(values.toarray() if sparse.issparse(values) else values, dtype=np.float32)


def _which(adata: anndata.AnnData, path: Path) -> DataSet:
    for data_set in DATA_SETS:
        if {data_set.perturbation, data_set.context, data_set.batch} <= set(adata.obs.columns):
            return data_set
    wanted = " or ".join(f"{d.perturbation}, {d.context}, {d.batch} ({d.name})" for d in DATA_SETS)
    sys.exit(f"{path.name} has the obs columns {', '.join(adata.obs.columns[:10])}; needed are {wanted}")


def _write_split(data_set: DataSet, results: Path) -> Path:
    """What State reads: all cells train but those of the contexts that are held out."""
    lines = ["[datasets]", f'{data_set.name} = "{(results / "prepared").resolve().as_posix()}"', "", "[training]"]
    lines += [f'{data_set.name} = "train"', "", "[zeroshot]"]
    lines += [f'"{data_set.name}.{context}" = "test"' for context in data_set.held_out]
    path = results / "split.toml"
    path.write_text("\n".join([*lines, "", "[fewshot]", ""]))
    return path


def _evaluate(prepared: list[anndata.AnnData], predicted: list[Path], data_set: DataSet) -> pd.DataFrame:
    variable = prepared[0].var["highly_variable"].to_numpy()
    cells = anndata.concat([adata[:, variable] for adata in prepared])
    is_control = (cells.obs[data_set.perturbation].astype(str) == data_set.control).to_numpy()
    is_held_out = cells.obs[data_set.context].astype(str).isin(data_set.held_out).to_numpy()
    told = {path.stem: _predictions(path, cells.var_names, data_set) for path in predicted}
    return tahoe.evaluate.perturbation(
        cells[is_held_out & ~is_control],
        told,
        cells[is_control],
        perturbation_key=data_set.perturbation,
        context_key=data_set.context,
        train=cells[~is_held_out & ~is_control],
    )


def _predictions(path: Path, genes: pd.Index, data_set: DataSet) -> anndata.AnnData:
    """Predicted perturbed cells. State writes numbers in the place of the genes' names."""
    adata = anndata.read_h5ad(path)
    if adata.n_vars != len(genes):
        sys.exit(
            f"{path.name} has {adata.n_vars} genes; State predicts {len(genes)} with data.kwargs.output_space=gene"
        )
    adata.var_names = genes
    return adata[adata.obs[data_set.perturbation].astype(str) != data_set.control].copy()


if __name__ == "__main__":
    run(main)
