"""Whatever comes in, what comes out is right, which a plain reading of the same input tells, or a `TahoeError`."""

from __future__ import annotations

import json
import shutil
import struct
import warnings
from contextlib import suppress

import anndata
import h5py
import numpy as np
import pytest
import torch
import yaml
import zarr
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

import tahoe
from tahoe.errors import TahoeError
from tahoe.model import ModelConfig, TahoeModel, Vocabulary
from tahoe.model.training import new_network
from tests import strategies
from tests.strategies import GENES

AROUND = ["{}", " {}", "{}\r", '"{}"', "b'{}'", "\ufeff{}", "GRCh38_{}", "{} (915)", "\u200b{}\u00a0", "{}-1"]
CONFIG = ModelConfig(8, 1, 2, 13, activation="relu", gene_norm=True, decoder_layers=1, decoder_activation="relu")
FILES = {"model_config.yml", "collator_config.yml", "vocab.json", "model.safetensors"}


@pytest.fixture(scope="module")
def model():
    ids = {"<pad>": 0, "<cls>": 1, "<eoc>": 2} | {gene: 3 + number for number, gene in enumerate(GENES)}
    network = new_network(CONFIG, seed=0).eval().requires_grad_(False)
    return TahoeModel("of nine genes", network, Vocabulary(ids), torch.device("cpu"), "sdpa")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("any")


@pytest.fixture(scope="module")
def checkpoint(model, folder):
    """The files of a checkpoint, by name."""
    model.copy("saved").save(folder / "whole")
    files = {path.name: path.read_bytes() for path in (folder / "whole").iterdir()}
    assert files.keys() == FILES
    return files


@pytest.fixture(scope="module")
def cells():
    dense = np.random.default_rng(0).poisson(0.7, (12, len(GENES))).astype(np.float32)
    return annotated(sparse.csr_matrix(dense))


@pytest.fixture(scope="module")
def stored(cells, folder, write_zarr):
    cells.write_h5ad(folder / "cells.h5ad")
    write_zarr(cells, folder / "cells.zarr")
    return folder


def annotated(matrix):
    """Cells whose genes need no mapping."""
    adata = anndata.AnnData(sparse.csr_matrix(matrix.shape, dtype=np.float32))
    adata.X = matrix
    adata.var_names = GENES[: adata.n_vars]
    adata.var["tahoe_gene"] = adata.var_names
    return adata


def embedded(adata, model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tahoe.tl.embed(adata, model, min_coverage=0)
    return np.asarray(adata.obsm["X_tahoe"])


@given(strategies.matrices())
def test_every_storage_and_type_of_numbers(model, drawn):
    matrix, dense = drawn
    np.testing.assert_array_equal(embedded(annotated(matrix), model), embedded(annotated(dense), model))


@given(st.data())
def test_sparse_matrices_whose_arrays_may_not_fit(model, cells, data):
    kind = data.draw(st.sampled_from([sparse.csr_matrix, sparse.csc_matrix]))
    arrays = data.draw(strategies.changed_arrays(kind(cells.X)))
    try:
        found = embedded(annotated(strategies.assembled(kind, arrays, cells.shape)), model)
    except TahoeError:
        return
    expected = embedded(annotated(strategies.laid_out(arrays, cells.shape, kind)), model)
    np.testing.assert_array_equal(found, expected)


@given(st.data())
def test_files_whose_arrays_may_not_fit(model, cells, stored, data):
    arrays = data.draw(strategies.changed_arrays(cells.X))
    shape = np.add(cells.shape, data.draw(st.sampled_from([(0, 0), (0, 0), (1, 0), (0, -1), (1 << 40, 0)])))
    shutil.copy(stored / "cells.h5ad", path := stored / "arrays.h5ad")
    with h5py.File(path, "r+") as file:
        for name, array in arrays.items():
            del file["X"][name]
            file["X"][name] = array
        file["X"].attrs["shape"] = shape
    try:
        found = embedded_from(path, model)
    except TahoeError:
        return
    expected = embedded(annotated(strategies.laid_out(arrays, tuple(shape))), model)
    np.testing.assert_array_equal(found, expected)


@given(st.data())
def test_files_whose_elements_say_something_else(model, stored, data):
    shutil.copy(stored / "cells.h5ad", path := stored / "elements.h5ad")
    with h5py.File(path, "r+") as file:
        strategies.change_elements(data.draw, file)
    agrees_with_anndata(path, model)


@given(st.data())
def test_stores_with_other_bytes_in_a_file(model, stored, data):
    path = stored / "bytes.zarr"
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(stored / "cells.zarr", path)
    names = sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())
    changed = path / data.draw(st.sampled_from(names))
    changed.write_bytes(data.draw(strategies.changed_bytes(changed.read_bytes())))
    agrees_with_anndata(path, model)


def embedded_from(path, model):
    """Vectors of the cells of a file that is read by rows, as a user has them from `embed_file`."""
    output = path.with_name("output.zarr")
    for left in (output, output.with_name(f"{output.name}.partial")):
        shutil.rmtree(left, ignore_errors=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tahoe.embed_file(path, output, model, min_coverage=0)
    return np.asarray(zarr.open_group(output, mode="r")["obsm"]["X_tahoe"])


def agrees_with_anndata(path, model):
    """A file that can be read by rows gives what anndata finds in it, if anndata finds anything."""
    try:
        found = embedded_from(path, model)
    except TahoeError:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            adata = anndata.read_zarr(path) if path.suffix == ".zarr" else anndata.read_h5ad(path)
        except Exception:  # noqa: BLE001  it may be stricter
            return
    np.testing.assert_array_equal(found, embedded(adata, model))


@given(st.data())
def test_configurations_with_other_values_or_bytes(checkpoint, folder, data):
    name = data.draw(st.sampled_from(["model_config.yml", "collator_config.yml"]))
    if data.draw(st.booleans()):
        changed = data.draw(strategies.changed_mapping(yaml.safe_load(checkpoint[name])))
        content = yaml.safe_dump(changed, allow_unicode=True).encode("utf-8", "replace")
    else:
        content = data.draw(strategies.changed_bytes(checkpoint[name]))
    with suppress(TahoeError):
        loads(folder, checkpoint | {name: content})


@given(st.data())
def test_vocabularies_with_other_ids_or_bytes(checkpoint, folder, data):
    content = checkpoint["vocab.json"]
    if data.draw(st.booleans()):
        content = json.dumps(data.draw(strategies.changed_mapping(json.loads(content)))).encode()
    else:
        content = data.draw(strategies.changed_bytes(content))
    with suppress(TahoeError):
        assert loads(folder, checkpoint | {"vocab.json": content}).vocabulary.ids == json.loads(content)


@given(st.data())
def test_weights_with_other_tensors_or_bytes(checkpoint, folder, data):
    content = data.draw(strategies.changed_safetensors(checkpoint["model.safetensors"]))
    with suppress(TahoeError):
        loads(folder, checkpoint | {"model.safetensors": content})


def loads(folder, files):
    """A checkpoint that loads computes, and saves the weights that its file has."""
    shutil.rmtree(folder / "changed", ignore_errors=True)
    (folder / "changed").mkdir()
    for name, content in files.items():
        (folder / "changed" / name).write_bytes(content)
    model = tahoe.load_model(folder / "changed", device="cpu", dtype="float32")
    row = sparse.csr_array(np.arange(1, 4, dtype=np.float32)[None])
    tokens = model.tokenize(row, model.vocabulary.tokens_of(list(model.vocabulary.genes)[:3]))
    assert model.embed_cells(tokens).shape == (1, model.config.d_model)
    model.save(folder / "again")
    given_weights, saved = (
        plain_weights(path / "model.safetensors") for path in (folder / "changed", folder / "again")
    )
    assert given_weights.keys() == saved.keys()
    for name, weight in saved.items():
        np.testing.assert_array_equal(weight, given_weights[name])
    return model


def plain_weights(path):
    """Read safetensors by its specification, with nothing but struct, json and numpy."""
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    found = {}
    for name, entry in json.loads(content[8 : 8 + size]).items():
        if name != "__metadata__":
            first, last = entry["data_offsets"]
            kind = {"F32": "<f4", "F16": "<f2", "F64": "<f8"}[entry["dtype"]]
            array = np.frombuffer(content[8 + size + first : 8 + size + last], kind)
            with np.errstate(over="ignore"):
                found[name.removeprefix("model.")] = array.reshape(entry["shape"]).astype(np.float32)
    return found


@given(st.lists(st.text(max_size=20) | st.sampled_from(["CD3E", "TP53", "1-Mar", "ENSG00000141510.18"]), min_size=1))
def test_any_gene_names(names):
    adata = anndata.AnnData(np.ones((2, len(names) + 1), dtype=np.float32))
    adata.var_names = ["GAPDH", *names]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tahoe.pp.map_genes(adata)
    assert adata.var_names.tolist() == ["GAPDH", *names]
    genes = adata.var["tahoe_gene"].astype(object)
    mapped = genes[genes != ""]
    assert mapped.is_unique
    assert mapped.str.fullmatch(r"ENSG\d{11}").all()


@given(st.sampled_from(["CD3E", "TP53", "SEPTIN7", "ENSG00000141510", "HLA-A"]), st.sampled_from(AROUND))
def test_what_files_leave_around_a_name_says_nothing(name, around):
    plain, found = anndata.AnnData(np.ones((2, 1))), anndata.AnnData(np.ones((2, 1)))
    plain.var_names, found.var_names = [name], [around.format(name)]
    for adata in (plain, found):
        tahoe.pp.map_genes(adata)
    assert found.var["tahoe_gene"].iloc[0] == plain.var["tahoe_gene"].iloc[0] != ""
