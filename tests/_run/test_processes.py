"""Models in processes that were forked from one that has computed already, or were started anew."""

from __future__ import annotations

import contextlib
import copy
import os
import pickle
import signal
import subprocess
import sys

import pytest
import torch

import tahoe
from tahoe.errors import DeviceError, ModelError
from tahoe.model.cpu.linear import has_int8

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")

# The parent computes with two threads, in its own threads and inside of torch, before there are children.
HEAD = """
import multiprocessing, os, sys, tempfile, threading, time, warnings
import anndata, torch, tahoe
warnings.simplefilter("ignore")
tahoe.settings.progress = False
tahoe.settings.device, tahoe.settings.dtype = "cpu", "float32"
torch.set_num_threads(2)

def cells():
    adata = tahoe.datasets.pbmc68k()[:6].copy()
    tahoe.pp.map_genes(adata)
    return adata

def embed(model="demo"):
    adata = cells()
    tahoe.tl.embed(adata, model)
    tahoe.tl.embed_genes(adata, model, context=False)
    return adata.obsm["X_tahoe"].tobytes() + adata.varm["tahoe"].tobytes()
"""

LOADED_OR_GIVEN_IN_A_FORK = """
model = tahoe.load_model("demo")
want = embed(model)
with multiprocessing.get_context("fork").Pool(2) as pool:
    assert pool.map_async(embed, ["demo", model] * 2).get(60) == [want] * 4
"""

# torch was used before the package was: nothing of ours ran in the parent
FORKED_BEFORE_THE_FIRST_USE = """
torch.rand(1 << 22).sum()
child = os.fork()
if child:
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
else:
    embed()
    os._exit(0)
"""

FORKED_WHILE_IT_COMPUTES = """
adata, model = cells(), tahoe.load_model("demo")
tokens = model.tokenize(adata.X, model.vocabulary.tokens_of(adata.var["tahoe_gene"]))
want, going = model.embed_cells(tokens).numpy(), True
thread = threading.Thread(target=lambda: [model.embed_cells(tokens) for _ in iter(lambda: going, False)])
thread.start()
for _ in range(4):
    time.sleep(0.05)
    if not (child := os.fork()):
        os._exit(int((model.embed_cells(tokens).numpy() != want).any()))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
going = False
thread.join()
"""

OTHER_VERBS_IN_A_FORK = """
from tahoe.model.training import TrainingPlan, train

def work(_):
    adata, model = cells(), tahoe.load_model("demo").copy("mine")
    tahoe.tl.attention(adata, model, min_cells=1, top_k=5, max_length=64)
    tahoe.tl.predict_expression(adata, model, max_length=64)
    tokens = model.tokenize(adata.X[:4], model.vocabulary.tokens_of(adata.var["tahoe_gene"]), max_length=64)
    train(model.network, lambda _: tokens, TrainingPlan(steps=1), progress=False)
    with tempfile.TemporaryDirectory() as folder:
        model.save(f"{folder}/model")
        adata.write_h5ad(f"{folder}/cells.h5ad")
        tahoe.embed_file(f"{folder}/cells.h5ad", f"{folder}/out.zarr", f"{folder}/model", max_length=64)
        return anndata.read_zarr(f"{folder}/out.zarr").shape

assert work(0) == (6, 765)
with multiprocessing.get_context("fork").Pool(1) as pool:
    assert pool.map_async(work, [0]).get(100) == [(6, 765)]
"""


@pytest.fixture
def run(tmp_path):
    """Run a script, and end it with all of its children when it hangs."""

    def run(code):
        (tmp_path / "script.py").write_text(HEAD + code)
        with (tmp_path / "errors.txt").open("w+") as errors:
            command = [sys.executable, "-W", "ignore", str(tmp_path / "script.py")]
            process = subprocess.Popen(command, stderr=errors, start_new_session=True)
            try:
                process.wait(timeout=150)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            errors.seek(0)
            assert process.returncode == 0, errors.read()

    return run


@pytest.mark.parametrize(
    "code",
    [LOADED_OR_GIVEN_IN_A_FORK, FORKED_BEFORE_THE_FIRST_USE, FORKED_WHILE_IT_COMPUTES, OTHER_VERBS_IN_A_FORK],
    ids=[
        "loaded or given in a fork",
        "forked before the first use",
        "forked while it computes",
        "other verbs in a fork",
    ],
)
def test_a_forked_process_does_not_hang(run, code):
    run(code)


def test_a_loaded_model_goes_to_other_processes(run):
    run("""
if __name__ == "__main__":
    model = tahoe.load_model("demo")
    want = embed(model)
    for method in ("spawn", "forkserver"):
        with multiprocessing.get_context(method).Pool(1) as pool:
            assert pool.map_async(embed, [model] * 2).get(120) == [want] * 2
""")


@pytest.mark.skipif(not has_int8(), reason="this CPU does not multiply in eight bits")
@pytest.mark.parametrize("send", [pickle.dumps, copy.deepcopy])
def test_a_model_in_int8_says_that_it_cannot_be_sent(send):
    with pytest.raises(ModelError, match="load it there, by its name or its folder"):
        send(tahoe.load_model("demo", device="cpu", dtype="int8"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("device", [None, "cuda", "cuda:0"])
def test_cuda_in_a_forked_process_is_refused(device):
    torch.zeros(1, device="cuda")
    reading, writing = os.pipe()
    if not (child := os.fork()):
        try:
            tahoe.load_model("demo", device=device)
            told = "loaded"
        except DeviceError as error:
            told = str(error)
        os.write(writing, told.encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert "multiprocessing.get_context('spawn')" in os.read(reading, 10_000).decode()
