"""Perturbed cells in contexts that were held out, predicted by Arc's State from Tahoe-x1 embeddings, beside baselines.

    python -m benchmarks.paper.state_transition --model 3b --data DIR

Adds obsm["X_tahoe"] to each file of DIR, writes the hold-outs as a TOML file for State, and says how to train and to
predict with it. When its predictions are there (DIR/predicted/*.h5ad), they are judged beside baselines that are made
from the training contexts. Which data set it is, is told by the columns.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import anndata

import tahoe
from benchmarks.paper.common import Needed, cells_once, parse, require, show, table_once

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
        "DMSO_TF",
        ("CVCL_1097", "CVCL_1285", "CVCL_1098", "CVCL_0334", "CVCL_0480"),
    ),
    DataSet("parse", "cytokine", "donor", "cell_type", "PBS", ("Donor1", "Donor4", "Donor9", "Donor12")),
)
NEEDED = (
    Needed(
        ("*.h5ad",),
        "log-normalised cells in X and counts in layers['counts'], one file a plate for Tahoe-100M",
        "https://huggingface.co/datasets/tahoebio/Tahoe-100M, or Parse's 10 million PBMCs"
        " (https://www.parsebiosciences.com/datasets)",
        "hundreds of GB",
    ),
)
TRAIN = """pip install "arc-state==0.11.1" "transformers<5"
state tx train data.kwargs.toml_config_path={toml} data.kwargs.embed_key=X_tahoe data.kwargs.output_space=gene \\
    data.kwargs.pert_col={perturbation} data.kwargs.cell_type_key={context} data.kwargs.control_pert={control} \\
    data.kwargs.batch_col={batch} use_wandb=false output_dir={results} name=state
state tx predict --output-dir {results}/state --checkpoint final.ckpt
mkdir -p {data}/predicted && cp {results}/state/eval*/adata_pred.h5ad {data}/predicted/"""


def main(arguments: Sequence[str] | None = None) -> pd.DataFrame | None:
    """Do the next steps, and print the table if all are done."""
    options = parse(__doc__, arguments)
    (paths,) = require(options.data, NEEDED)
    model: list[tahoe.TahoeModel] = []
    prepared = [_prepared(path, options, model) for path in paths]
    data_set = _which(prepared[0], paths[0])
    toml = _write_split(data_set, options.results)
    predicted = sorted((options.data / "predicted").glob("*.h5ad"))
    if not predicted:
        values = {"toml": toml, "results": options.results, "data": options.data} | vars(data_set)
        print(f"Embedded {len(prepared)} files. Train State and predict, then call this again:\n")
        print(TRAIN.format(**values))
        return None
    table = table_once(options.results / "perturbation.csv", lambda: _evaluate(prepared, predicted, data_set))
    show(f"Held out: {', '.join(data_set.held_out)}", table)
    return table


def _prepared(path: Path, options: object, model: list[tahoe.TahoeModel]) -> anndata.AnnData:
    def embedded() -> anndata.AnnData:
        adata = anndata.read_h5ad(path)
        if "counts" not in adata.layers:
            sys.exit(f"{path.name} has no layers['counts']; copy the counts there before X is log-normalised")
        if not model:
            model.append(tahoe.load_model(options.model, device=options.device))
        tahoe.tl.embed(adata, model[0], layer="counts")
        return adata

    return cells_once(options.results / "prepared" / path.name, embedded)


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
    cells = anndata.concat(prepared)
    is_control = (cells.obs[data_set.perturbation].astype(str) == data_set.control).to_numpy()
    is_held_out = cells.obs[data_set.context].astype(str).isin(data_set.held_out).to_numpy()
    told = {path.stem: anndata.read_h5ad(path) for path in predicted}
    told = {
        name: adata[adata.obs[data_set.perturbation].astype(str) != data_set.control] for name, adata in told.items()
    }
    return tahoe.evaluate.perturbation(
        cells[is_held_out & ~is_control],
        told,
        cells[is_control],
        perturbation_key=data_set.perturbation,
        context_key=data_set.context,
        train=cells[~is_held_out & ~is_control],
    )


if __name__ == "__main__":
    main()
