from __future__ import annotations

import pandas as pd
import pytest

import tahoe
from tahoe import cli


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "cells.h5ad"
    tahoe.datasets.pbmc68k()[:60].copy().write_h5ad(path)
    return str(path)


def test_a_table_is_written(source, tmp_path, capsys):
    output = str(tmp_path / "genes.csv")
    options = ["-m", "demo", "--genes", "CD3D, CD3E,CD3D+CD3E", "--n-cells", "8", "--dtype", "float32"]
    assert cli.main(["-q", "perturb", source, "-o", output, *options]) == 0
    assert capsys.readouterr().out.strip() == output
    found = pd.read_csv(output)
    assert set(found["gene"]) == {"CD3D", "CD3E", "CD3D+CD3E"}
    adata = tahoe.datasets.pbmc68k()[:60].copy()
    tahoe.tl.perturb(adata, "demo", genes=["CD3D", "CD3E", ("CD3D", "CD3E")], n_cells=8)
    pd.testing.assert_frame_equal(found, tahoe.get.perturbation(adata), check_dtype=False)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--genes", "CD3X"], "genes=['CD3X']: not among the genes of the model"),
        (["--goal", "bulk_labels", "nobody", "else"], "has no 'nobody'"),
        (["-o", "no/genes.csv"], "is to be in a folder that does not exist"),
    ],
)
def test_errors_are_one_line_and_leave_nothing(source, tmp_path, capsys, options, told):
    output = tmp_path / "genes.csv"
    assert cli.main(["-q", "perturb", source, "-o", str(output), "-m", "demo", *options]) == 1
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    assert not output.exists()
