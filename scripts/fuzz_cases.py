"""Broken and hostile input for what reads files and matrices, each case from a seed, and what comes of it."""

from __future__ import annotations

import json
import shutil
import struct
from typing import TYPE_CHECKING

import anndata
import h5py
import numpy as np
import torch
import yaml
import zarr
from fuzz_changes import LINES, arrays_changed, bytes_changed, elements_changed, entry_changed, values_changed
from scipy import sparse

import tahoe
from tahoe._cells.opening import open_source
from tahoe._run.batches import embed_cells
from tahoe._run.inputs import read_inputs
from tahoe.model import ModelConfig, TahoeModel, Vocabulary
from tahoe.model.checkpoint.config_files import contents_of, read_config
from tahoe.model.checkpoint.weights import our_name, read_checkpoint, write_checkpoint
from tahoe.model.files import COLLATOR_FILE, MODEL_FILE, VOCABULARY_FILE, WEIGHTS_FILE
from tahoe.model.training.loop import new_network

if TYPE_CHECKING:
    import random
    from pathlib import Path

GENES = [f"ENSG{number:011d}" for number in range(9)]
CONFIG = ModelConfig(
    d_model=8,
    n_layers=1,
    n_heads=2,
    vocab_size=13,
    activation="relu",
    gene_norm=True,
    decoder_layers=1,
    decoder_activation="relu",
)


class Cases:
    """The input to start from, and one method for each kind of input: it returns what came of one case."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "checkpoint"
        ids = {"<pad>": 0, "<cls>": 1, "<eoc>": 2} | {gene: 3 + number for number, gene in enumerate(GENES)}
        write_checkpoint(self.folder, new_network(CONFIG, seed=0), Vocabulary(ids))
        self.files = {path.name: path.read_bytes() for path in self.folder.iterdir()}
        self.model = tahoe.load_model(self.folder, device="cpu")
        self.model_yaml, self.collator_yaml = contents_of(CONFIG)
        self.h5ad = folder / "cells.h5ad"
        dense = np.random.default_rng(0).poisson(0.7, (12, len(GENES))).astype(np.float32)
        self.cells = self.annotated(sparse.csr_matrix(dense))
        self.cells.write_h5ad(self.h5ad)
        self.zarr = folder / "cells.zarr"
        anndata.io.write_elem(zarr.open_group(self.zarr, mode="w", zarr_format=3), "/", self.cells)
        zarr.consolidate_metadata(self.zarr)

    def annotated(self, matrix: object) -> anndata.AnnData:
        """Cells whose genes need no mapping."""
        adata = anndata.AnnData(matrix)
        adata.var_names = GENES[: adata.n_vars]
        adata.var["tahoe_gene"] = adata.var_names
        return adata

    def embedded(self, adata: anndata.AnnData) -> np.ndarray:
        """Vectors of the cells."""
        tahoe.tl.embed(adata, self.model, min_coverage=0)
        return adata.obsm["X_tahoe"]

    def loads(self) -> str:
        """Read the folder; what loads must compute, and hold the very weights that the file has."""
        network, vocabulary, _ = read_checkpoint(self.folder)
        for name, weight in raw_weights((self.folder / WEIGHTS_FILE).read_bytes()).items():
            ours = network.state_dict()[our_name(name)]
            assert ours.shape == weight.shape, name
            assert np.array_equal(ours.numpy(), weight, equal_nan=True), name
        device = torch.device("cpu")
        loaded = TahoeModel("fuzz", network, vocabulary, device, "sdpa", self.folder)
        genes = vocabulary.genes[:3]
        columns = vocabulary.tokens_of(genes)
        tokens = loaded.tokenize(sparse.csr_array(np.arange(1, len(genes) + 1, dtype=np.float32)[None]), columns)
        assert loaded.embed_cells(tokens).shape == (1, network.config.d_model)
        return "right result"

    def write(self, **changed: bytes) -> None:
        """Put the checkpoint back, with some files changed."""
        for name, content in (self.files | changed).items():
            (self.folder / name).write_bytes(content)

    def yaml(self, rng: random.Random) -> str:
        """A configuration with other bytes, values or lines."""
        name, content = rng.choice([(MODEL_FILE, self.model_yaml), (COLLATOR_FILE, self.collator_yaml)])
        match rng.randrange(4):
            case 0:
                text = bytes_changed(rng, self.files[name])
            case 1:
                text = self.files[name] + rng.choice(LINES).encode()
            case _:
                text = yaml.safe_dump(values_changed(rng, content), allow_unicode=True).encode("utf-8", "replace")
        self.write(**{name: text})
        outcome = self.loads()
        said = yaml.safe_load((self.folder / MODEL_FILE).read_text())
        config = read_config(self.folder)
        assert (config.d_model, config.n_layers, config.n_heads) == (said["d_model"], said["n_layers"], said["n_heads"])
        return outcome

    def vocabulary(self, rng: random.Random) -> str:
        """A vocabulary with other bytes, ids or names."""
        text = self.files[VOCABULARY_FILE]
        match rng.randrange(4):
            case 0:
                text = bytes_changed(rng, text)
            case 1:
                text = text.rstrip().rstrip(b"}") + b', "%s": %s}' % (
                    rng.choice([b"ENSG00000000001", b"<cls>", b"\\ud800", b"\xff", b"new", b""]),
                    rng.choice([b"3", b"99", b"NaN", b"Infinity", b"1" * 5000, b"-1", b"12", b"[" * 2000, b"1e3"]),
                )
            case _:
                text = json.dumps(values_changed(rng, json.loads(text))).encode()
        self.write(**{VOCABULARY_FILE: text})
        outcome = self.loads()
        said = json.loads((self.folder / VOCABULARY_FILE).read_text(encoding="utf-8"))
        assert Vocabulary.read(self.folder / VOCABULARY_FILE).ids == said
        assert len(set(said.values())) == len(said)
        assert all(type(id_) is int and 0 <= id_ < CONFIG.vocab_size for id_ in said.values())
        return outcome

    def safetensors(self, rng: random.Random) -> str:
        """Weights with other bytes, another header, or other tensors."""
        content = self.files[WEIGHTS_FILE]
        (size,) = struct.unpack("<Q", content[:8])
        header, data = content[8 : 8 + size], content[8 + size :]
        match rng.randrange(5):
            case 0:
                content = bytes_changed(rng, content[: rng.choice([8, 8 + size, len(content)])]) + content[8 + size :]
            case 1:
                content = (
                    struct.pack("<Q", rng.choice([0, 1, size - 1, size + 1, 1 << 31, 1 << 40, (1 << 64) - 1]))
                    + content[8:]
                )
            case 2:
                header = bytes_changed(rng, header)
                content = struct.pack("<Q", len(header)) + header + data
            case _:
                entries = json.loads(header)
                for _ in range(rng.choice([1, 1, 2])):
                    name = rng.choice([key for key in entries if isinstance(entries[key], dict)])
                    entries[name] = entry_changed(rng, entries[name])
                    if rng.random() < 0.3:
                        entries[rng.choice([name + "x", name.removeprefix("model."), "", "__metadata__"])] = (
                            entries.pop(name)
                        )
                header = json.dumps(entries).encode()
                content = struct.pack("<Q", len(header)) + header + data
        self.write(**{WEIGHTS_FILE: content})
        return self.loads()

    def csr(self, rng: random.Random) -> str:
        """A sparse matrix in memory whose three arrays may not fit each other."""
        arrays, shape, kind = arrays_changed(rng, self.cells.X)
        matrix = assembled(kind, arrays, shape)
        adata = self.annotated(sparse.csr_matrix(shape, dtype=np.float32))
        adata.X = matrix
        return self.judged(adata, arrays, shape, kind)

    def h5ad_arrays(self, rng: random.Random) -> str:
        """A sparse matrix in a file whose three arrays, or sizes, may not fit each other."""
        shutil.copy(self.h5ad, target := self.h5ad.with_name("changed.h5ad"))
        arrays, shape, _ = arrays_changed(rng, self.cells.X, csc=0)
        if rng.random() < 0.3:
            shape = (shape[0] + rng.choice([-1, 0, 1, 1 << 40]), shape[1] + rng.choice([-1, 0, 1, 1 << 40]))
        with h5py.File(target, "r+") as file:
            for name, array in arrays.items():
                del file["X"][name]
                if rng.random() < 0.05:
                    file["X"].create_dataset(
                        name, shape=(rng.choice([64, 1 << 20, 1 << 45]),), dtype=array.dtype, chunks=(64,)
                    )
                else:
                    file["X"][name] = array
            file["X"].attrs["shape"] = shape
        return self.opened(target, arrays, shape)

    def h5ad_elements(self, rng: random.Random) -> str:
        """A file of cells whose elements are missing, of another kind, or say other things of themselves."""
        shutil.copy(self.h5ad, target := self.h5ad.with_name("changed.h5ad"))
        with h5py.File(target, "r+") as file:
            elements_changed(rng, file)
        return self.streamed(rng, target)

    def zarr_bytes(self, rng: random.Random) -> str:
        """A store of cells with other bytes in one of its files."""
        target = self.zarr.with_name("changed.zarr")
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(self.zarr, target)
        path = rng.choice(sorted(path for path in target.rglob("*") if path.is_file()))
        if rng.random() < 0.1:
            path.unlink()
        else:
            path.write_bytes(bytes_changed(rng, path.read_bytes()))
        return self.streamed(rng, target)

    def h5ad_bytes(self, rng: random.Random) -> str:
        """A file of cells with other bytes. HDF5 itself crashes on some, so this is not among the usual kinds."""
        target = self.h5ad.with_name("changed.h5ad")
        target.write_bytes(bytes_changed(rng, self.h5ad.read_bytes()))
        return self.streamed(rng, target)

    def opened(self, path: Path, arrays: dict, shape: tuple) -> str:
        """Open a file as a user would, which is anndata's work, and embed, which is ours."""
        try:
            adata = anndata.read_h5ad(path, backed="r")
        except Exception:  # noqa: BLE001  not ours
            return "refused by anndata"
        try:
            return self.judged(adata, arrays, shape, sparse.csr_matrix)
        finally:
            adata.file.close()

    def streamed(self, rng: random.Random, path: Path) -> str:
        """Embed from a file, all of which is ours, and compare with what anndata reads from it."""
        if rng.random() < 0.1:
            vectors = self.stored(path)
        else:
            with open_source(path) as source:
                inputs = read_inputs(source, self.model, layer=None, use_raw=False, min_coverage=0)
                stream = inputs.cell_batches(max_length=2048, seed=0, token_budget=None)
                vectors, _ = embed_cells(self.model, stream)
        try:
            adata = anndata.read_zarr(path) if path.suffix == ".zarr" else anndata.read_h5ad(path)
        except Exception:  # noqa: BLE001  not ours
            return "read, where anndata reads nothing"
        np.testing.assert_array_equal(vectors, self.embedded(adata))
        return "right result"

    def stored(self, path: Path) -> np.ndarray:
        """Embed a file into a store."""
        output = self.h5ad.with_name("output.zarr")
        for left in (output, output.with_name(f"{output.name}.partial")):
            shutil.rmtree(left, ignore_errors=True)
        tahoe.embed_file(path, output, self.model, min_coverage=0, keep_metadata=True)
        return np.asarray(zarr.open_group(output, mode="r")["obsm"]["X_tahoe"])

    def judged(self, adata: anndata.AnnData, arrays: dict, shape: tuple, kind: type) -> str:
        """Embed, and compare with the same matrix laid out entry by entry in plain Python."""
        vectors = self.embedded(adata)
        dense = self.annotated(laid_out(arrays, shape, kind))
        np.testing.assert_array_equal(vectors, self.embedded(dense))
        return "right result"


def raw_weights(content: bytes) -> dict[str, np.ndarray]:
    """Read safetensors by its specification, with nothing but struct, json and numpy."""
    (size,) = struct.unpack("<Q", content[:8])
    kinds = {"F32": "<f4", "F16": "<f2", "F64": "<f8"}
    found = {}
    for name, entry in json.loads(content[8 : 8 + size]).items():
        if name != "__metadata__" and entry["dtype"] in kinds:
            first, last = entry["data_offsets"]
            array = np.frombuffer(content[8 + size + first : 8 + size + last], kinds[entry["dtype"]])
            with np.errstate(over="ignore"):
                found[name] = array.reshape(entry["shape"]).astype(np.float32)
    return found


def assembled(kind: type, arrays: dict, shape: tuple) -> object:
    """Put arrays together as anndata does: no check of anything."""
    matrix = kind(shape, dtype=np.float32)
    for name, array in arrays.items():
        setattr(matrix, name, array)
    return matrix


def laid_out(arrays: dict, shape: tuple, kind: type) -> np.ndarray:
    """Sum the entries one by one; an array that does not fit raises here, and then it should have been refused."""
    pointers, indices, data = (arrays[name].tolist() for name in ("indptr", "indices", "data"))
    n_major, n_minor = shape if kind is sparse.csr_matrix else shape[::-1]
    assert len(pointers) == n_major + 1
    assert pointers[0] == 0
    assert pointers[-1] == len(indices) == len(data)
    dense = np.zeros((n_major, n_minor), dtype=np.float64)
    for major in range(n_major):
        assert pointers[major] <= pointers[major + 1]
        for entry in range(pointers[major], pointers[major + 1]):
            assert 0 <= indices[entry] < n_minor
            dense[major, indices[entry]] += data[entry]
    return (dense if kind is sparse.csr_matrix else dense.T).astype(np.float32)
