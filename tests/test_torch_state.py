"""What a process has set in torch for its own work changes no result, and is as it was afterwards."""

from __future__ import annotations

import ast
import dataclasses
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

import tahoe
from tahoe.model.cpu.linear import NARROW, has_int8
from tahoe.model.training import TrainingPlan, new_network, train


@contextmanager
def changed(change, restore):
    change()
    try:
        yield
    finally:
        restore()


def deterministic(on):
    torch.use_deterministic_algorithms(on)


STATES = {
    "a device for a block": lambda: torch.device("meta"),
    "a device for all": lambda: changed(
        lambda: torch.set_default_device("meta"), lambda: torch.set_default_device(None)
    ),
    "float64": lambda: changed(
        lambda: torch.set_default_dtype(torch.float64), lambda: torch.set_default_dtype(torch.float32)
    ),
    "bfloat16": lambda: changed(
        lambda: torch.set_default_dtype(torch.bfloat16), lambda: torch.set_default_dtype(torch.float32)
    ),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "inference mode": torch.inference_mode,
    "no gradients": torch.no_grad,
    "gradients": torch.enable_grad,
    "anomaly detection": lambda: torch.autograd.set_detect_anomaly(True),
    "deterministic algorithms": lambda: changed(lambda: deterministic(True), lambda: deterministic(False)),
    "two threads": lambda: changed(lambda: torch.set_num_threads(2), lambda: torch.set_num_threads(1)),
}


def state():
    """What can be read back of torch's state."""
    return {
        "device": torch.get_default_device(),
        "dtype": torch.get_default_dtype(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "inference": torch.is_inference_mode_enabled(),
        "gradients": torch.is_grad_enabled(),
        "anomaly": torch.is_anomaly_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "threads": torch.get_num_threads(),
        "draws": torch.get_rng_state().tolist(),
        "numpy's draws": np.random.get_state()[1].tolist(),
    }


@pytest.fixture(scope="module")
def cells():
    adata = tahoe.datasets.pbmc68k()[:4].copy()
    tahoe.pp.map_genes(adata)
    return adata


@pytest.fixture(scope="module", params=["narrow", "wide", "int8"])
def checkpoint(request, tmp_path_factory):
    """A folder and a precision: the demo model, and one that takes other ways on a CPU."""
    if request.param == "int8" and not has_int8():
        pytest.skip("this CPU does not multiply in eight bits")
    demo = tahoe.load_model("demo", device="cpu", dtype="float32")
    folder = tmp_path_factory.mktemp("model") / request.param
    if request.param == "narrow":
        demo.save(folder)
    else:
        config = dataclasses.replace(demo.config, d_model=NARROW, n_heads=4, n_layers=2, expansion_ratio=2)
        wide = demo.copy("wide")
        wide.network = new_network(config, seed=1).eval().requires_grad_(False)
        wide.save(folder)
    return folder, "int8" if request.param == "int8" else "float32"


def everything(cells, folder, dtype):
    """Results of all verbs, of a model that is loaded here."""
    model = tahoe.load_model(folder, device="cpu", dtype=dtype)
    adata, short = cells.copy(), {"max_length": 100}
    tahoe.tl.embed(adata, model, **short)
    tahoe.tl.embed_genes(adata, model, **short)
    tahoe.tl.embed_genes(adata, model, context=False, key_added="inputs")
    tahoe.tl.attention(adata, model, min_cells=1, genes=list(adata.var_names[:40]), **short)
    tahoe.tl.predict_expression(adata, model, **short)
    tahoe.tl.predict_expression(adata, model, genes=["CD3D", "CD14"], decoder="mvc", key_added="asked", **short)
    tahoe.tl.predict_expression(adata, model, mask_fraction=0.3, key_added="hidden", **short)
    return {
        "cells": adata.obsm["X_tahoe"],
        "genes": adata.varm["tahoe"],
        "inputs": adata.varm["inputs"],
        "attention": adata.varp["tahoe_attention"].toarray(),
        "predicted": adata.layers["tahoe_expression"].toarray(),
        "asked": adata.obsm["asked"].to_numpy(),
        "hidden": adata.layers["hidden"].toarray(),
        "one cell": tahoe.get.gene_embeddings(adata, model, cell=3, **short).to_numpy(),
        "its attention": tahoe.get.attention(adata, model, cell=3, **short).to_numpy(),
    }


@pytest.fixture(scope="module")
def truth(cells, checkpoint):
    with tahoe.settings.override(progress=False):
        return everything(cells, *checkpoint)


@pytest.mark.parametrize("name", STATES)
def test_no_result_depends_on_it(cells, checkpoint, truth, name):
    with STATES[name]():
        before = state()
        found = everything(cells, *checkpoint)
        assert state() == before
    for what, values in found.items():
        assert values.dtype == truth[what].dtype, what
        np.testing.assert_array_equal(values, truth[what], err_msg=what)


@pytest.mark.parametrize(("precision", "rounded"), [("highest", None), ("high", "tf32"), ("medium", "bf16")])
def test_products_that_torch_may_round_are_recorded(cells, precision, rounded):
    """They change float32 on the processors that can do it, and the process asked for it."""
    torch.set_float32_matmul_precision(precision)
    try:
        adata = cells.copy()
        tahoe.tl.embed(adata, "demo")
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision("highest")
    assert adata.uns["X_tahoe"].get("float32_rounded_to") == rounded


@pytest.mark.parametrize("name", STATES)
def test_a_model_that_was_loaded_in_it_can_be_trained(cells, name):
    """Weights that are made in inference mode can never be trained; new ones have a device and a precision."""
    with STATES[name]():
        before = state()
        model = tahoe.load_model("demo", device="cpu", dtype="float32")
        mine = model.copy("mine")
        drawn = new_network(dataclasses.replace(model.config, n_layers=1), seed=3)
        assert state() == before
    assert {(weight.device.type, weight.dtype) for weight in drawn.parameters()} == {("cpu", torch.float32)}
    columns = model.vocabulary.tokens_of(cells.var["tahoe_gene"])
    tokens = model.tokenize(cells.X[:4], columns, max_length=32)
    weights = [network.norm.weight.detach().clone() for network in (model.network, mine.network, drawn)]
    for network, weight in zip((model.network, mine.network, drawn), weights, strict=True):
        train(network, lambda _: tokens, TrainingPlan(steps=2), progress=False)
        assert (network.norm.weight != weight).any()


@pytest.mark.parametrize("name", [name for name in STATES if name != "two threads"])
def test_training_does_not_depend_on_it(cells, name):
    def trained():
        model = tahoe.load_model("demo", device="cpu", dtype="float32").copy("mine")
        columns = model.vocabulary.tokens_of(cells.var["tahoe_gene"])
        tokens = model.tokenize(cells.X[:4], columns, max_length=32)
        train(model.network, lambda _: tokens, TrainingPlan(steps=2), progress=False)
        return torch.cat([weight.detach().flatten() for weight in model.network.parameters()])

    expected = trained()
    with STATES[name]():
        found = trained()
    torch.testing.assert_close(found, expected, atol=0, rtol=0)


def test_every_new_tensor_says_where_and_in_which_precision():
    """What torch makes by itself lies on the default device, in the default precision; both are the caller's."""
    made = {"empty", "zeros", "ones", "full", "arange", "linspace", "tensor", "eye", "rand", "randn", "scalar_tensor"}
    source = Path(tahoe.__file__).parent
    for path in source.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            is_made = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in made
            if is_made and isinstance(node.func.value, ast.Name) and node.func.value.id == "torch":
                given = {keyword.arg for keyword in node.keywords}
                assert {"device", "dtype"} <= given, f"{path.relative_to(source)}, line {node.lineno}"
