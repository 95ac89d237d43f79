from __future__ import annotations

import shutil

import h5py
import numpy as np
import pandas as pd
import pytest

import tahoe
from tahoe import cli


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    adata = tahoe.datasets.pbmc68k()[:150].copy()
    adata.obsm["X_a"] = adata.X[:, :20].toarray()
    adata.obsm["X_b"] = np.random.default_rng(0).normal(size=(150, 4))
    adata.obs["type"] = np.where(adata.obs["bulk_labels"].astype(str).str.startswith("CD"), "T", "other")
    path = tmp_path_factory.mktemp("cells") / "cells.h5ad"
    adata.write_h5ad(path)
    return path


def test_it_writes_a_table_and_a_picture(path, tmp_path, capsys):
    folder = tmp_path / "new" / "report"
    command = ["-q", "evaluate", str(path), "--label-key", "type", "--rep", "X_a", "X_b", "-o", str(folder)]
    assert cli.main(command) == 0
    printed = capsys.readouterr().out
    assert "PCA of log counts" in printed
    table = pd.read_csv(folder / "evaluation.csv")
    assert {"X_a", "X_b", "random", "majority class"} <= set(table["representation"])
    assert (folder / "evaluation.png").read_bytes().startswith(b"\x89PNG")


def test_a_wrong_call_leaves_nothing(path, tmp_path, capsys):
    folder = tmp_path / "report"
    assert cli.main(["evaluate", str(path), "--label-key", "typ", "--rep", "X_a", "-o", str(folder)]) == 1
    assert "'type'" in capsys.readouterr().err
    assert not folder.exists()
    folder.write_text("")
    assert cli.main(["evaluate", str(path), "--label-key", "type", "--rep", "X_a", "-o", str(folder)]) == 1
    assert "this is a file" in capsys.readouterr().err


def test_a_representation_of_another_length(path, tmp_path, capsys):
    short, folder = tmp_path / "short.h5ad", tmp_path / "report"
    shutil.copy(path, short)
    with h5py.File(short, "r+") as file:
        first, encoding = file["obsm/X_a"][:50], dict(file["obsm/X_a"].attrs)
        del file["obsm/X_a"]
        file["obsm"].create_dataset("X_a", data=first).attrs.update(encoding)
    assert cli.main(["evaluate", str(short), "--label-key", "type", "--rep", "X_b", "X_a", "-o", str(folder)]) == 1
    message = capsys.readouterr().err
    assert "'X_a'" in message
    assert "(150,)" in message
    assert not folder.exists()
