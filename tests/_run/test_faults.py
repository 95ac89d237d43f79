"""What happens when a run is disturbed: nothing is left half done, and nothing is left running or open."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import anndata
import numpy as np
import pytest
import torch
from scipy import sparse

import tahoe
from tahoe.errors import InputError, ModelError

# Ctrl-C is sent by the process itself, from inside the network or from inside the reader, at a certain cell.
INTERRUPTED = """
import os, signal, sys, threading, time
import anndata, tahoe

folder = sys.argv[1]
tahoe.settings.progress = False
calls = 0

def interrupt(*_):
    global calls
    calls += 1
    if calls == 20:
        os.kill(os.getpid(), signal.SIGINT)

def work(verb, place):
    global calls
    calls = 0
    model = tahoe.load_model(folder + "/model", device="cpu")
    adata = anndata.read_h5ad(folder + "/cells.h5ad")
    before = {name: sorted(getattr(adata, name)) for name in ("obs", "obsm", "uns", "var", "varm", "varp", "layers")}
    if place == "network":
        model.network.layers[0].register_forward_pre_hook(interrupt)
    else:
        tokenize = model.tokenize
        def slowly(*arguments, **options):
            if threading.current_thread() is threading.main_thread():
                raise SystemExit("nothing is read ahead")
            time.sleep(0.3)
            os.kill(os.getpid(), signal.SIGINT)
            return tokenize(*arguments, **options)
        model.tokenize = slowly
    options = {"groupby": "kind"} if verb in ("embed_genes", "attention") else {}
    try:
        getattr(tahoe.tl, verb)(adata, model, **options)
    except KeyboardInterrupt:
        after = {name: sorted(getattr(adata, name)) for name in before}
        # tqdm has a thread for all bars of a process, and the threads of a CPU wait for the next call, doing nothing
        names = {thread.name for thread in threading.enumerate() if type(thread).__name__ != "TMonitor"}
        waiting = {name for name in names if name.startswith("tahoe-thread")} | {"MainThread"}
        counted = calls
        time.sleep(0.2)
        alive = sorted(names - waiting) + ["a thread goes on"] * (calls > counted)
        links = [f"/proc/self/fd/{each}" for each in os.listdir("/proc/self/fd")]
        files = [os.readlink(link) for link in links if os.path.exists(link)]
        return f"interrupted {after == before} {alive} {[file for file in files if folder in file]}"
    return "not interrupted"

for verb, place in (pair.split() for pair in sys.argv[2:]):
    print(verb, place, work(verb, place), flush=True)
"""
PLACES = ["embed network", "embed reader", "embed_genes network", "attention network"]


@pytest.fixture(scope="module")
def folder(reference, read_cells, tmp_path_factory):
    place = tmp_path_factory.mktemp("faults")
    (place / "model").symlink_to(reference / "tiny-model")
    cells = read_cells(reference / "tiny-input.npz")
    cells.var["tahoe_gene"] = cells.var_names
    cells.obs["kind"] = np.where(np.arange(cells.n_obs) % 2, "odd", "even")
    cells[np.arange(64) != 5].copy().write_h5ad(place / "cells.h5ad")
    return place


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="looks at open files as Linux lists them")
def test_ctrl_c_leaves_the_data_as_it_was(folder):
    command = [sys.executable, "-c", INTERRUPTED, str(folder), *PLACES]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert run.stdout.splitlines() == [f"{place} interrupted True [] []" for place in PLACES], run.stderr


def test_ctrl_c_at_the_command_line_leaves_finished_shards(folder, tmp_path):
    """A long run, stopped by hand, goes on later; the result is that of one that was never stopped."""
    code = (
        "import os, signal, sys, tahoe, torch\n"
        "torch.set_num_threads(1)  # as the tests have it\n"
        "from tahoe._store.shards import Store\n"
        "write, done = Store.write, []\n"
        "def and_stop(self, *arguments):\n"
        "    write(self, *arguments)\n"
        "    done.append(1)\n"
        "    if len(done) == 2: os.kill(os.getpid(), signal.SIGINT)\n"
        "Store.write = and_stop\n"
        "tahoe.embed_file(sys.argv[1], sys.argv[2], sys.argv[3], cells_per_shard=10, device='cpu', dtype='float32')\n"
    )
    cells, output, model = (str(each) for each in (folder / "cells.h5ad", tmp_path / "out.zarr", folder / "model"))
    command = [sys.executable, "-c", code, cells, output, model]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "KeyboardInterrupt" in run.stderr
    assert not Path(output).exists()
    shards = list(Path(f"{output}.partial").rglob("obsm/X_tahoe/c/*/0"))
    assert len(shards) == 2
    written = [shard.stat().st_mtime_ns for shard in shards]
    tahoe.embed_file(cells, output, model, cells_per_shard=10, device="cpu", resume=True)
    kept = [Path(output, shard.relative_to(f"{output}.partial/store")).stat().st_mtime_ns for shard in shards]
    assert kept == written
    whole = anndata.read_h5ad(cells)
    tahoe.tl.embed(whole, model, device="cpu")
    np.testing.assert_array_equal(anndata.read_zarr(output).obsm["X_tahoe"], whole.obsm["X_tahoe"])


class Breaking(sparse.csr_matrix):
    """A matrix whose later rows cannot be read."""

    def __getitem__(self, key):
        if isinstance(key, slice) and (key.start or 0) > 0:
            raise OSError("the disk is gone")  # noqa: EM101
        return super().__getitem__(key)


def test_an_error_of_the_reading_thread_surfaces(tiny, full_cells, monkeypatch):
    monkeypatch.setattr("tahoe._cells.rows.BLOCK_CELLS", 16)
    full_cells.X = Breaking(full_cells.X)
    threads, slots = threading.active_count(), sorted(full_cells.obsm)
    with pytest.raises(InputError, match=r"rows 16 to 31 cannot be read .*the disk is gone"):
        tahoe.tl.embed(full_cells, tiny)
    assert sorted(full_cells.obsm) == slots
    assert threading.active_count() == threads


@pytest.mark.parametrize("verb", ["embed", "embed_genes", "predict_expression"])
def test_a_network_that_gives_nan_is_caught_and_named(tiny, full_cells, verb):
    with torch.no_grad():
        tiny.network.norm.bias[3] = torch.nan
    before = {name: sorted(getattr(full_cells, name)) for name in ("obs", "obsm", "uns", "varm", "layers")}
    with pytest.raises(ModelError, match="the network gave NaN or infinite values for cell 0"):
        getattr(tahoe.tl, verb)(full_cells, tiny)
    assert {name: sorted(getattr(full_cells, name)) for name in before} == before
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("tahoe-reader")]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="looks at open files as Linux lists them")
def test_no_file_stays_open_and_no_process_runs_on(folder, tmp_path):
    def open_files():
        links = (Path("/proc/self/fd") / each for each in os.listdir("/proc/self/fd"))  # noqa: PTH208
        return sorted(os.readlink(link) for link in links if link.exists())  # noqa: PTH115

    cells, model = folder / "cells.h5ad", str(folder / "model")
    backed = anndata.read_h5ad(cells, backed="r")
    tahoe.tl.embed(backed, model, device="cpu")
    backed.file.close()
    before, threads = open_files(), threading.active_count()
    for number in range(3):
        backed = anndata.read_h5ad(cells, backed="r")
        tahoe.tl.embed(backed, model, device="cpu")
        backed.file.close()
        tahoe.embed_file(cells, tmp_path / f"{number}.zarr", model, device="cpu", cells_per_shard=20)
    assert [file for file in open_files() if str(folder) in file or str(tmp_path) in file] == [
        file for file in before if str(folder) in file
    ]
    # the loop of zarr is there once, whatever the number of runs
    assert threading.active_count() <= threads + 2
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
