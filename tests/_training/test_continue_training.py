"""Continued training on files: what it makes, what it refuses, and that a killed run goes on as if it had not been."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

import tahoe
from tahoe.cli.main import main
from tahoe.errors import GeneError, InputError, ModelError, TahoeError, TahoeWarning
from tahoe.model.training import TrainingPlan

PLAN = TrainingPlan.named(
    "continuation",
    **{"steps": 6, "cells_per_step": 8, "max_length": 40, "save_every": 2, "validate_every": 3, "bfloat16": False},
    **{"learning_rate": 1e-3, "tokens_per_pass": 200},
)


@pytest.fixture(scope="module")
def model():
    return tahoe.load_model("demo", device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def adata(model):
    rng = np.random.default_rng(0)
    genes = rng.choice(list(model.vocabulary.genes), 300, replace=False)
    counts = rng.poisson(0.4, (90, 300)).astype(np.float32)
    obs = pd.DataFrame({"id": np.arange(90)}, index=[f"cell{i}" for i in range(90)])
    return anndata.AnnData(sparse.csr_matrix(counts), var=pd.DataFrame(index=genes), obs=obs)


@pytest.fixture(scope="module")
def files(adata, tmp_path_factory, write_zarr):
    folder = tmp_path_factory.mktemp("cells")
    adata.write_h5ad(folder / "a.h5ad")
    write_zarr(adata[:50, ::-1].copy(), folder / "b.zarr")
    return [folder / "a.h5ad", folder / "b.zarr"]


def weights(model):
    return torch.cat([weight.flatten() for weight in model.network.parameters()])


def lines(folder, kind):
    read = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in read if line["kind"] == kind]


def test_trains_on_files_in_shares(files, adata, model, tmp_path):
    before = weights(model).clone()
    mine = tahoe.continue_training([*files, adata], model, PLAN, tmp_path / "mine", shares=[0.5, 0.25, 0.25])
    assert torch.equal(weights(model), before)
    assert not torch.equal(weights(mine), before)
    again = tahoe.load_model(tmp_path / "mine", device="cpu", dtype="float32")
    assert torch.equal(weights(again), weights(mine))
    assert again.fingerprint() == mine.fingerprint()
    assert (mine.name, mine.folder) == ("mine", tmp_path / "mine")
    training = lines(tmp_path / "mine", "training")
    assert [line["step"] for line in training] == [1, 2, 3, 4, 5, 6]
    assert {line["n_cells"] for line in training} == {8}
    assert {line["learning_rate"] for line in training} == {1e-3}
    assert all(line["loss"] == pytest.approx((line["expression_mse"] + line["mvc_mse"]) / 2) for line in training)
    validation = lines(tmp_path / "mine", "validation")
    assert [line["step"] for line in validation] == [0, 3, 6]
    assert len({line["constant_mse"] for line in validation}) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_learns(files, model, tmp_path):
    plan = replace(PLAN, steps=30, cells_per_step=32, validate_every=30)
    tahoe.continue_training(files[0], model, plan, tmp_path / "mine", validation=0.2)
    first, last = lines(tmp_path / "mine", "validation")
    assert last["expression_mse"] < first["expression_mse"]
    assert last["mvc_mse"] < first["mvc_mse"]


WORKER = """
import os, signal, sys
import torch
torch.set_num_threads(1)
import tahoe
from tahoe.model.training import TrainingPlan
from tahoe.model.training import state
from tests._training.test_continue_training import PLAN
moment, output, *files = sys.argv[1:]
replace, calls = os.replace, []
if moment == "before the first state":
    state.StateFile.save = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
elif moment == "while a state is written":
    real = torch.save
    def save(content, path):
        if content["step"] == 4:
            open(path, "wb").write(b"half of it")
            os.kill(os.getpid(), signal.SIGKILL)
        real(content, path)
    torch.save = save
elif moment == "in the middle of a step":
    real = torch.optim.AdamW.step
    def step(self, *arguments):
        calls.append(1)
        if len(calls) == 6:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, *arguments)
    torch.optim.AdamW.step = step
tahoe.continue_training(files, "demo", PLAN, output, device="cpu", resume=moment == "resume")
"""


@pytest.mark.parametrize("moment", ["before the first state", "while a state is written", "in the middle of a step"])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(moment, files, tmp_path):
    script, environment = tmp_path / "worker.py", os.environ | {"OMP_NUM_THREADS": "1"}
    script.write_text(WORKER)
    environment["PYTHONPATH"] = os.pathsep.join([os.getcwd(), *sys.path])  # noqa: PTH109

    def start(moment, output):
        return subprocess.run([sys.executable, script, moment, tmp_path / output, *files], env=environment).returncode

    assert start("", "whole") == 0
    assert start(moment, "killed") == -signal.SIGKILL
    assert not (tmp_path / "killed").exists()
    assert start("resume", "killed") == 0
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert (killed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    for kind in ("training", "validation"):
        told = [[line | {"tokens_per_second": 0} for line in lines(each, kind)] for each in (whole, killed)]
        assert told[0] == told[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["killed", "whole", "worker.py"]


def unfinished(sources, model, output, **options):
    """A run that was stopped after two steps."""
    plan = options.pop("plan", PLAN)
    from tahoe.model.training import loop

    real = loop._one_step

    def stop(step, *arguments):
        if step == 3:
            message = "stopped"
            raise RuntimeError(message)
        return real(step, *arguments)

    loop._one_step = stop
    try:
        with pytest.raises(RuntimeError, match="stopped"):
            tahoe.continue_training(sources, model, plan, output, **options)
    finally:
        loop._one_step = real


def test_another_run_is_refused(files, model, tmp_path):
    output = tmp_path / "mine"
    unfinished(files, model, output)
    with pytest.raises(InputError, match=r"is an unfinished run; pass resume=True"):
        tahoe.continue_training(files, model, PLAN, output)
    for change in ({"learning_rate": 1e-4}, {"seed": 1}, {"cells_per_step": 9}):
        with pytest.raises(ModelError, match=f"another run, which differs in plan.{next(iter(change))}"):
            tahoe.continue_training(files, model, replace(PLAN, **change), output, resume=True)
    with pytest.raises(ModelError, match="another run, which differs in"):
        tahoe.continue_training(files[::-1], model, PLAN, output, resume=True)
    with pytest.raises(ModelError, match=r"differs in sources\[0\] share"):
        tahoe.continue_training(files, model, PLAN, output, shares=[0.5, 0.5], resume=True)
    tahoe.continue_training(files, model, replace(PLAN, save_every=1, steps=7), output, resume=True)
    assert len(lines(output, "training")) == 7


def test_what_cannot_be_used_is_refused(files, adata, model, tmp_path):
    def refused(match, error=InputError, sources=files, plan=PLAN, output=tmp_path / "mine", model=model, **options):
        with pytest.raises(error, match=match):
            tahoe.continue_training(sources, model, plan, output, **options)
        assert list(tmp_path.iterdir()) == []

    refused("sources is empty", sources=[])
    refused("shares has 1 numbers for 2 sources", shares=[1.0])
    refused("add up to 0.9", shares=[0.5, 0.4])
    refused("add up to 1; they must be positive", shares=[1.5, -0.5])
    refused("lies in the source", output=files[1] / "mine")
    refused("lies in the source", output=files[0] / "mine")
    refused("does not exist; make", output=tmp_path / "no" / "mine")
    refused("exists; choose another place", output=files[0].parent)
    refused("does not exist", sources=[tmp_path / "none.h5ad"])
    refused("all of which would be held out", validation=0.999)
    refused("from 0 to less than 1", validation=1.0)
    refused("cells_per_step=3; with 2 sources take at least 4", plan=replace(PLAN, cells_per_step=3))
    refused("is unknown; there are 'stage_1'", plan="stage_9")
    refused("no drug encoder", drug_key="id")
    refused("there is only one", sharded=True)
    unknown = adata.copy()
    unknown.var_names = [f"what{i}" for i in range(adata.n_vars)]
    refused("gene", error=GeneError, sources=[*files, unknown])
    refused("gene", error=GeneError, sources=[*files, unknown], min_coverage=0)
    bad = adata.copy()
    bad.X = bad.X - sparse.csr_matrix(([5.0], ([3], [4])), shape=bad.shape)
    refused("negative values", sources=[bad])


def test_int8_is_refused(files, tmp_path):
    try:
        rounded = tahoe.load_model("demo", device="cpu", dtype="int8")
    except TahoeError:
        pytest.skip("this machine has no int8")
    with pytest.raises(ModelError, match="int8, which is for inference only"):
        tahoe.continue_training(files, rounded, PLAN, tmp_path / "mine")


def test_rounded_weights_are_told(files, tmp_path):
    rounded = tahoe.load_model("demo", device="cpu", dtype="bfloat16")
    with pytest.warns(TahoeWarning, match="begins with rounded weights"):
        tahoe.continue_training(files, rounded, replace(PLAN, steps=1), tmp_path / "mine")


def test_from_a_configuration_file(files, tmp_path, capsys):
    config, output = tmp_path / "config.yaml", tmp_path / "mine"
    about = f"model: demo\noutput: {output}\ndevice: cpu\nvalidation: 0\n"
    fields = "steps: 2, cells_per_step: 8, max_length: 40, learning_rate: 1e-4, bfloat16: false"
    plan = f"plan: {{name: continuation, {fields}}}\n"
    sources = f"sources:\n- {{path: {files[0]}, share: 0.5}}\n- {{path: {files[1]}, share: 0.5}}\n"

    def run(text, *options):
        config.write_text(text)
        return main(["-q", "train", str(config), *options]), capsys.readouterr()

    for text, said in (
        (about + plan + sources + "learning_rate: 1\n", "unknown key 'learning_rate'"),
        (about + plan.replace("steps", "step") + sources, "unknown key 'step'; did you mean 'steps'?"),
        (about + plan + sources.replace("share", "shares"), "unknown key 'shares'; did you mean 'share'?"),
        (about + plan.replace("1e-4", "fast") + sources, "'fast', which is not a number"),
        (about + plan + sources + "shares: [1, 0]\n", "either each of the sources has a path and a share"),
        (about + plan, "has no 'sources'"),
        ("- a\n", "holds no keys"),
        ("a: [", "is not a YAML file"),
    ):
        status, told = run(text)
        assert (status, said in told.err) == (1, True), told.err
        assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]
    status, told = run(about + plan + sources)
    assert (status, told.out.strip()) == (0, str(output)), told.err
    assert [line["learning_rate"] for line in lines(output, "training")] == [1e-4, 1e-4]
