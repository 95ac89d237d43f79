"""The scripts behind the demo model, on forty cells."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy import sparse

import tahoe

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import demo_batches
    import demo_cells
    import train_demo
    import write_demo_model

    yield demo_cells, demo_batches, train_demo, write_demo_model
    for name in ("demo_batches", "demo_cells", "train_demo", "write_demo_model"):
        del sys.modules[name]


@pytest.fixture
def packed(scripts, heart, tmp_path, monkeypatch):
    demo_cells = scripts[0]
    monkeypatch.setattr(demo_cells, "LEAST_CELLS", 8)
    monkeypatch.setattr(demo_cells, "WIDEST", 16)
    held_out = np.arange(40) >= 34
    genes = heart.var_names.to_numpy(dtype=object)
    counts, labels = sparse.csr_array(heart.X), heart.obs["cell_type"].astype(str).to_numpy(dtype=object)
    files = [
        demo_cells.Cells("all", "here (free)", "0" * 64, genes, counts, labels, held_out),
        demo_cells.Cells("few", "there (free)", "1" * 64, genes[:2000], counts[:, :2000], labels, held_out),
    ]
    demo_cells.pack(files, tmp_path / "cells.npz")
    return files, tmp_path / "cells.npz"


def test_counts_come_back_as_they_were_packed(scripts, packed):
    files, path = packed
    cells = scripts[1].PackedCells(path, 500, torch.device("cpu"))
    assert len(cells.vocabulary.genes) == 500
    bounds, row = cells.counts.bounds_C, 0
    for of_file in files:
        columns = cells.vocabulary.tokens_of(of_file.genes)
        for counts in of_file.counts[:, columns >= 0].toarray():
            entries = slice(bounds[row], bounds[row + 1])
            dense = np.zeros(len(cells.vocabulary))
            dense[cells.counts.ids_E[entries]] = cells.counts.counts_E[entries]
            np.testing.assert_array_equal(dense[columns[columns >= 0]], counts)
            row += 1
    assert [len(rows) for rows in cells.training] == [34, 34]
    assert [len(rows) for rows in scripts[1].PackedCells(path, 500, torch.device("cpu"), ("few",)).training] == [34, 0]


def test_a_run_goes_on_where_it_was_cut_and_becomes_a_model(scripts, packed, tmp_path, monkeypatch, capsys):
    settings = {"width": 16, "heads": 2, "layers": 2, "genes": 500, "lots": 2, "lot_cells": 8, "tokens": [32, 64]}

    def train(folder, steps, start=""):
        (tmp_path / "settings.json").write_text(json.dumps(settings | {"start": str(start)}))
        arguments = [packed[1], "--settings", tmp_path / "settings.json", "--output", folder, "--device", "cpu"]
        monkeypatch.setattr(sys, "argv", ["train", *map(str, arguments), "--steps", str(steps), "--minutes", "1e6"])
        scripts[2].main()
        return load_file(folder / "average.safetensors")

    whole = train(tmp_path / "whole", 4)
    train(tmp_path / "cut", 2)
    resumed = train(tmp_path / "cut", 4)
    for name, weight in whole.items():
        torch.testing.assert_close(resumed[name], weight, rtol=1e-3, atol=1e-5)
    log = [json.loads(line) for line in (tmp_path / "cut" / "log.jsonl").read_text().splitlines()]
    assert [line["wrong_bins"] for line in log if "wrong_bins" in line] == [0, 0]
    arguments = [packed[1], tmp_path / "whole", "--output", tmp_path / "model", "--no-card"]
    monkeypatch.setattr(sys, "argv", ["write", *map(str, arguments)])
    scripts[3].main()
    assert len(tahoe.load_model(tmp_path / "model").vocabulary.genes) == 500
    started = train(tmp_path / "started", 0, start=tmp_path / "model")
    for name, weight in whole.items():
        torch.testing.assert_close(started[name], weight, rtol=1e-3, atol=1e-4)


def test_the_best_of_some_settings_goes_on(scripts, packed, tmp_path, monkeypatch, capsys):
    shared = {"width": 16, "heads": 2, "layers": 1, "lots": 2, "lot_cells": 8, "tokens": [32]}
    candidates = [shared | {"genes": 500}, shared | {"genes": 400}]
    (tmp_path / "settings.json").write_text(json.dumps(candidates))
    arguments = [packed[1], "--settings", tmp_path / "settings.json", "--output", tmp_path / "run", "--device", "cpu"]
    arguments += ["--search-minutes", "1e-6", "--unseen", "few", "--minutes", "1e-6"]
    monkeypatch.setattr(sys, "argv", ["train", *map(str, arguments)])
    scripts[2].main()
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    reached = {
        line["settings"]["genes"]: line["quality"] for line in log if "search" in line["run"] and "quality" in line
    }
    assert set(reached) == {400, 500}
    assert scripts[2].settings_of_state(tmp_path / "run").genes == max(reached, key=reached.get)
    assert (tmp_path / "run" / "best.safetensors").is_file()
