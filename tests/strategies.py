"""Input for hypothesis to draw: what users have, in every form, and what is broken, harmless or hostile."""

from __future__ import annotations

import copy
import json
import struct
from typing import Any

import dask.array as da
import h5py
import numpy as np
from hypothesis import strategies as st
from scipy import sparse

GENES = [f"ENSG{number:011d}" for number in range(9)]
DTYPES = ["?", "i1", "u1", "<i2", ">i2", "u4", "i8", ">u8", "f2", "f4", ">f4", "f8", ">f8"]
NUMBERS = [0, -1, 1, 2, 3, 7, 51, 1 << 20, 1 << 31, 1 << 63, 1 << 64, -(1 << 63), 10**400, 0.5, -0.5, 1e308, 5e-324]
WORDS = ["", "relu", "cls", "true", "1e9999", "9" * 5000, "\x00", "é", "-", "~", ".nan", "-.inf", "1:30"]

scalars = st.sampled_from(NUMBERS + WORDS) | st.none() | st.booleans() | st.integers(-3, 20) | st.floats() | st.text()
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner), max_leaves=8
)
"""Anything that a file of keys and values can hold."""


@st.composite
def counts(draw, max_cells: int = 5) -> np.ndarray:
    """A few cells by all of `GENES` in float32, zeros among them, as integers or fractions."""
    n_cells = draw(st.integers(1, max_cells))
    entries = st.lists(st.sampled_from([0, 0, 1, 2, 3, 9, 100]), min_size=n_cells * 9, max_size=n_cells * 9)
    return np.array(draw(entries), dtype=np.float32).reshape(n_cells, 9) / draw(st.sampled_from([1, 1, 4]))


STORAGES = {
    "dense": lambda dense: dense,
    "dense by columns": np.asfortranarray,
    "dense with strides": lambda dense: np.repeat(dense, 2, axis=1)[:, ::2],
    "csr_matrix": sparse.csr_matrix,
    "csr_array": sparse.csr_array,
    "csc_matrix": sparse.csc_matrix,
    "csc_array": sparse.csc_array,
    "rows in another order": lambda dense: unsorted(sparse.csr_matrix(dense)),
    "zeros stored": lambda dense: zeros_stored(dense),
    "dask": lambda dense: da.from_array(dense, chunks=(2, -1)),
    "dask of csr": lambda dense: da.from_array(sparse.csr_matrix(dense), chunks=(2, -1)),
}


def unsorted(matrix: sparse.csr_matrix) -> sparse.csr_matrix:
    """The entries of each row from the last to the first, with 64-bit pointers."""
    pointers = matrix.indptr.astype(np.int64)
    order = np.concatenate([[], *(np.arange(*pointers[row : row + 2])[::-1] for row in range(len(pointers) - 1))])
    arrays = {"indptr": pointers, "indices": matrix.indices[order.astype(int)], "data": matrix.data[order.astype(int)]}
    return assembled(sparse.csr_matrix, arrays, matrix.shape)


def zeros_stored(dense: np.ndarray) -> sparse.csr_matrix:
    """Every entry of a matrix, as if none were zero."""
    n_cells, n_genes = dense.shape
    pointers, indices = np.arange(n_cells + 1) * n_genes, np.tile(np.arange(n_genes), n_cells)
    return sparse.csr_matrix((dense.ravel(), indices, pointers), shape=dense.shape)


@st.composite
def matrices(draw) -> tuple[Any, np.ndarray]:
    """A matrix in any storage and of any type of numbers, and the same numbers as a float32 array."""
    dtype, storage = np.dtype(draw(st.sampled_from(DTYPES))), draw(st.sampled_from(sorted(STORAGES)))
    typed = draw(counts()).astype(dtype)
    if "dense" not in storage and (dtype == np.float16 or not dtype.isnative):  # scipy has no such matrices
        typed = typed.astype(np.float64)
    return STORAGES[storage](typed), typed.astype(np.float32)


def assembled(kind: type, arrays: dict[str, np.ndarray], shape: tuple[int, int]) -> Any:
    """Put the three arrays of a sparse matrix together as anndata does: no check of anything."""
    matrix = kind(shape, dtype=np.float32)
    for name, array in arrays.items():
        setattr(matrix, name, array)
    return matrix


def laid_out(arrays: dict[str, np.ndarray], shape: tuple[int, int], kind: type = sparse.csr_matrix) -> np.ndarray:
    """Sum the entries one by one; arrays that do not fit each other raise here, and should have been refused."""
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


@st.composite
def changed_arrays(draw, matrix: sparse.csr_matrix) -> dict[str, np.ndarray]:
    """Pointers, indices and values of a sparse matrix, of which one or two are of another type or length, or wrong."""
    arrays = {name: getattr(matrix, name).copy() for name in ("indptr", "indices", "data")}
    for name in draw(st.lists(st.sampled_from(sorted(arrays)), min_size=1, max_size=3)):
        array = arrays[name]
        match draw(st.sampled_from(["entry", "length", "type", "doubled", "shape"])):
            case "entry" if len(array):
                wild = [0, -1, 1, 8, 9, 2**31 - 1, *([np.nan, np.inf, -1.5, 5e-324] if array.dtype.kind == "f" else [])]
                array = array.copy()
                with np.errstate(all="ignore"):
                    wrapped = np.array(draw(st.sampled_from(wild))).astype(array.dtype)
                array[draw(st.integers(0, len(array) - 1))] = wrapped
            case "length":
                array = draw(st.sampled_from([array[:-1], array[:-3], array[:0], np.append(array, array[-1:])]))
            case "type":
                with np.errstate(all="ignore"):
                    array = array.astype(draw(st.sampled_from(["i8", "i4", "i2", "u4", "u8", "f8", "f4", "i1", "?"])))
            case "doubled" if len(array) > 1:
                place = draw(st.integers(1, len(array) - 1))
                array = np.concatenate([array[:place], array[place - 1 : place], array[place + 1 :]])
            case "shape":
                array = draw(st.sampled_from([array[:, None], array[::-1]]))
        arrays[name] = array
    return arrays


@st.composite
def changed_bytes(draw, content: bytes) -> bytes:
    """Some bytes dropped, doubled, put in or replaced."""
    for _ in range(draw(st.integers(1, 4))):
        place, length = draw(st.integers(0, len(content))), draw(st.sampled_from([0, 1, 2, 8, 100, 1 << 30]))
        new = draw(
            st.binary(max_size=9) | st.sampled_from([b'"', b"[", b"9" * 30, b"\x00", content[place : place + 9]])
        )
        content = content[:place] + new + content[place + length :]
    return content


@st.composite
def changed_mapping(draw, content: dict[str, Any]) -> dict[str, Any]:
    """Some values of nested mappings dropped, put in or replaced."""
    content = copy.deepcopy(content)
    for _ in range(draw(st.integers(1, 3))):
        places = [content, *(inner for inner in content.values() if isinstance(inner, dict))]
        place = places[draw(st.integers(0, len(places) - 1))]
        key = draw(st.sampled_from([*place, "brand_new"]))
        if draw(st.integers(0, 5)):
            place[key] = draw(values)
        else:
            place.pop(key, None)
    return content


@st.composite
def changed_safetensors(draw, content: bytes) -> bytes:
    """Weights with other bytes, another length of the header, or another name, type, shape or place of a tensor."""
    (size,) = struct.unpack("<Q", content[:8])
    header, data = content[8 : 8 + size], content[8 + size :]
    match draw(st.sampled_from(["bytes", "size", "header", "entry", "entry", "name"])):
        case "bytes":
            return draw(changed_bytes(content))
        case "size":
            return (
                struct.pack("<Q", draw(st.sampled_from([0, size - 1, size + 1, 1 << 31, (1 << 64) - 1]))) + content[8:]
            )
        case "header":
            header = draw(changed_bytes(header))
        case what:
            entries = json.loads(header)
            name = draw(st.sampled_from(sorted(entries.keys() - {"__metadata__"})))
            first, last = entries[name]["data_offsets"]
            changes = {
                "dtype": ["F16", "F64", "BF16", "I32", "BOOL", "F8_E4M3", "X", 3],
                "shape": [[], [-1], [1 << 62, 4], [0], [8, 8], [1, 8], [8, 1], "8", [2.5], [1 << 64]],
                "data_offsets": [[last, first], [0, 0], [first, last + 4], [-4, last], [first, 1 << 63], [first], "x"],
            }
            if what == "entry":
                key = draw(st.sampled_from(sorted(changes)))
                entries[name][key] = draw(st.sampled_from(changes[key]))
            else:
                other = [f"{name}x", name.removeprefix("model."), "", "__metadata__"]
                entries[draw(st.sampled_from(other))] = entries.pop(name)
            header = json.dumps(entries).encode()
    return struct.pack("<Q", len(header)) + header + data


def change_elements(draw, file: h5py.File) -> None:
    """Remove, rename, relabel, retype or cut some elements of an h5ad file."""
    for _ in range(draw(st.integers(1, 2))):
        names: list[str] = []
        file.visit(names.append)
        name = draw(st.sampled_from(names))
        element = file[name]
        match draw(st.sampled_from(["removed", "renamed", "relabelled", "retyped", "cut"])):
            case "removed":
                del file[name]
            case "renamed":
                file.move(name, f"{name}_moved")
            case "relabelled" if len(element.attrs):
                attribute = draw(st.sampled_from(sorted(element.attrs)))
                words = ["array", "csr_matrix", "csc_matrix", "dataframe", "dict", "nonsense", "", 3, [1, 2], 0.5]
                element.attrs[attribute] = draw(st.sampled_from(words))
            case "retyped" if isinstance(element, h5py.Dataset):
                other = ["<f8", "<i8", "<u2", "f2", "c16"] if element.dtype.kind in "biuf" else ["S8"]
                replace(file, name, element[()].astype(draw(st.sampled_from(other))))
            case "cut" if isinstance(element, h5py.Dataset) and element.shape:
                content = element[()]
                replace(file, name, draw(st.sampled_from([content[:-1], content[:0], content[None]])))


def replace(file: h5py.File, name: str, content: Any) -> None:
    """Put other content in the place of a dataset, under the same label."""
    attributes = dict(file[name].attrs)
    del file[name]
    file[name] = content
    file[name].attrs.update(attributes)
