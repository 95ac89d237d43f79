"""Switches that are set to debug or to measure other things: the results stay, and what cannot run is not chosen."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

import tahoe
from tahoe.errors import DeviceError
from tahoe.model.cpu.linear import NARROW, has_int8, has_numba
from tahoe.model.model import TahoeModel

CODE = """
import dataclasses, sys, warnings
warnings.simplefilter("ignore")
import anndata, numpy as np, torch, tahoe
torch.set_num_threads(1)
tahoe.settings.progress = False
tahoe.settings.device, tahoe.settings.dtype = "cpu", "float32"
adata = anndata.read_h5ad(sys.argv[3])
for name in ("demo", sys.argv[1]):
    tahoe.tl.embed(adata, name, key_added=f"X_{name == 'demo'}")
tahoe.tl.embed(adata, "demo", max_length=64, key_added="X_short")
np.savez(sys.argv[2], **adata.obsm, attention=adata.uns["X_False"]["attention"])
"""
SWITCHES = {
    "nothing": ({}, []),
    "numba off": ({"NUMBA_DISABLE_JIT": "1"}, []),
    "numba broken": ({"PYTHONPATH": "BROKEN"}, []),
    "numba's bounds": ({"NUMBA_BOUNDSCHECK": "1"}, []),
    "numba as it is": ({"NUMBA_OPT": "0"}, []),
    "numba without a cache": ({"NUMBA_CACHE_DIR": "/proc/nowhere"}, []),
    "without asserts": ({}, ["-O"]),
    "floating-point errors": ({}, ["-c", "import numpy; numpy.seterr(all='raise')\n" + CODE]),
}


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """Folder of a network that is wide enough for the compiled attention."""
    from dataclasses import replace

    from tahoe.model.training import new_network

    demo = tahoe.load_model("demo", device="cpu", dtype="float32")
    config = replace(demo.config, d_model=NARROW, n_heads=4, n_layers=2)
    network = new_network(config, seed=1).eval().requires_grad_(False)
    folder = tmp_path_factory.mktemp("wide") / "model"
    TahoeModel("wide", network, demo.vocabulary, torch.device("cpu"), "sdpa").save(folder)
    return folder


@pytest.fixture(scope="module")
def results(wide, tmp_path_factory):
    """Results with each of the switches, each in a process of its own."""
    place = tmp_path_factory.mktemp("switches")
    (place / "numba").mkdir()
    (place / "numba" / "__init__.py").write_text('raise ImportError("Numba needs NumPy 2.0 or less. Got NumPy 9.9.")\n')
    tahoe.datasets.pbmc68k()[:3].write_h5ad(place / "cells.h5ad")
    found = {}

    def of(name):
        if name not in found:
            variables, options = SWITCHES[name]
            own = os.environ.get("PYTHONPATH", "")
            variables = {key: value.replace("BROKEN", f"{place}{os.pathsep}{own}") for key, value in variables.items()}
            options = options if "-c" in options else [*options, "-c", CODE]
            command = [sys.executable, *options, str(wide), str(place / f"{name}.npz"), str(place / "cells.h5ad")]
            run = subprocess.run(command, capture_output=True, text=True, env=os.environ | variables, check=False)
            assert run.returncode == 0, run.stderr
            with np.load(place / f"{name}.npz") as file:
                found[name] = dict(file)
        return found[name]

    return of


@pytest.mark.parametrize("name", [name for name in SWITCHES if name != "nothing"])
def test_results_agree(results, name):
    found, expected = results(name), results("nothing")
    for key in ("X_True", "X_short"):
        np.testing.assert_array_equal(found[key], expected[key], err_msg=key)
    # attention that is not compiled, or compiled in another way, may round otherwise
    np.testing.assert_allclose(found["X_False"], expected["X_False"], atol=2e-6, rtol=0)
    if has_numba() and name in ("numba off", "numba broken") and str(expected["attention"]) == "blocked":
        assert str(found["attention"]) == "sdpa"


def test_numba_that_is_switched_off_later(wide, monkeypatch):
    """As a debugger does it: tokens come from numpy, attention from torch, from then on."""
    adata = tahoe.datasets.pbmc68k()[:3].copy()
    model = tahoe.load_model(wide)
    tahoe.tl.embed(adata, model)
    expected = adata.obsm["X_tahoe"]
    monkeypatch.setattr("numba.config.DISABLE_JIT", 1)
    assert not has_numba()
    tahoe.tl.embed(adata, model)
    np.testing.assert_allclose(adata.obsm["X_tahoe"], expected, atol=2e-6, rtol=0)
    with pytest.raises(DeviceError, match="NUMBA_DISABLE_JIT"):
        tahoe.load_model("demo", attention="blocked")
    with pytest.raises(DeviceError, match="NUMBA_DISABLE_JIT"):
        tahoe.load_model("demo", dtype="int8")
    assert not has_int8()
