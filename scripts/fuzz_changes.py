"""Changes to bytes, to nested values and to the arrays of a sparse matrix, from the harmless to the hostile."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import h5py
import numpy as np
from scipy import sparse

if TYPE_CHECKING:
    import random

WORDS = [
    "",
    "relu",
    "cls",
    "true",
    "1e9999",
    "0x" + "f" * 40,
    "9" * 5000,
    "\x00",
    "é",
    "-",
    "~",
    ".nan",
    "-.inf",
    "1:30",
]
NUMBERS = [0, -1, 1, 2, 3, 7, 51, 1 << 20, 1 << 31, 1 << 63, 1 << 64, -(1 << 63), 10**400, 0.5, -0.5, 1e308, 5e-324]
BOMB = "a: &a [x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGES = "a: &a {x: 1}\n" + "".join(
    f"{name}: &{name} {{<<: [{', '.join([f'*{before}'] * 9)}]}}\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
LINES = [
    BOMB + "precision: *i\n",
    BOMB + "mvc: *i\n",
    MERGES,
    "loop: &loop [*loop]\nd_model: *loop\n",
    "d_model: 8\nd_model: 16\n",
    "x: !!python/object/apply:os.system ['touch hacked']\n",
    "x: !!python/name:os.system\n",
    "x: !!int ''\n",
    "x: !!bool maybe\n",
    "x: !!timestamp soon\n",
    "x: 2001-99-99\n",
    "x: !!binary '?'\n",
    "x: !!set {a, b}\n",
    "? [a, b]\n: c\n",
    "x: " + "[" * 3000 + "\n",
    "x: " + "{a: " * 2000 + "\n",
    "x: *nowhere\n",
    "--- 1\n--- 2\n",
    "%YAML 9.9\n---\n",
    "n_layers: 4096\n",
    "\tx: 1\n",
]


def bytes_changed(rng: random.Random, content: bytes) -> bytes:
    """Flip, drop, double, insert or cut a few bytes."""
    changed = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 5, 20])):
        place, length = rng.randrange(len(changed) + 1), rng.choice([1, 1, 2, 8, 100])
        match rng.randrange(6):
            case 0 if changed:
                changed[place % len(changed)] ^= 1 << rng.randrange(8)
            case 1:
                del changed[place : place + length]
            case 2:
                changed[place:place] = changed[place : place + length]
            case 3:
                changed[place:place] = rng.randbytes(length)
            case 4:
                changed[place : place + length] = bytes([rng.choice(b"0129-{}[]:,\"'&*!%\n\x00\xff")]) * length
            case _ if rng.random() < 0.2:
                del changed[place:]
    return bytes(changed)


def value(rng: random.Random, depth: int = 0) -> object:
    """Anything that a file of keys and values can hold."""
    kind = rng.randrange(8 if depth < 3 else 5)
    if kind < 2:
        return rng.choice(NUMBERS)
    if kind == 2:
        return rng.choice(WORDS)
    if kind == 3:
        return rng.choice([None, True, False, float("nan"), float("inf")])
    if kind == 4:
        return rng.randrange(-3, 20)
    if kind == 5:
        return [value(rng, depth + 1) for _ in range(rng.randrange(4))]
    return {rng.choice([*WORDS, 3, "a", "n_layers"]): value(rng, depth + 1) for _ in range(rng.randrange(4))}


def values_changed(rng: random.Random, content: dict) -> dict:
    """Replace, drop or add some values of nested mappings."""
    content = json.loads(json.dumps(content))
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        place = content
        while (inner := [key for key in place if isinstance(place[key], dict)]) and rng.random() < 0.4:
            place = place[rng.choice(inner)]
        key = rng.choice([*place, "brand_new"])
        if rng.random() < 0.15:
            place.pop(key, None)
        else:
            place[key] = value(rng)
    return content


def entry_changed(rng: random.Random, entry: dict) -> object:
    """Another type, shape or place for one tensor of the header."""
    offsets = entry.get("data_offsets")
    first, last = offsets if isinstance(offsets, list) and len(offsets) == 2 else (0, 4)
    match rng.randrange(5):
        case 0:
            return entry | {"dtype": rng.choice(["F16", "F64", "BF16", "I32", "BOOL", "F8_E4M3", "F4", "C64", "X", 3])}
        case 1:
            shape = rng.choice([[], [-1], [1 << 62, 4], [0], [8, 8], [1, 8], [8, 1], "8", [2.5], [1 << 64]])
            return entry | {"shape": shape}
        case 2:
            offsets = rng.choice([[last, first], [0, 0], [first, last + 4], [-4, last], [first, 1 << 63], [first], "x"])
            return entry | {"data_offsets": offsets}
        case 3:
            return rng.choice([None, [], {}, 1, "F32"])
        case _:
            return {rng.choice([*entry, "z"]): value(rng)} | ({} if rng.random() < 0.5 else entry)


def arrays_changed(rng: random.Random, matrix: sparse.csr_matrix, csc: float = 0.3) -> tuple[dict, tuple, type]:
    """Pointers, indices and values in another order, of another type, or wrong."""
    kind = sparse.csc_matrix if rng.random() < csc else sparse.csr_matrix
    matrix = kind(matrix)
    arrays = {name: getattr(matrix, name).copy() for name in ("indptr", "indices", "data")}
    n_major = len(arrays["indptr"]) - 1
    for _ in range(rng.choice([1, 1, 2, 3])):
        name = rng.choice(list(arrays))
        array, place = arrays[name], rng.randrange(max(len(arrays[name]), 1))
        match rng.randrange(9):
            case 0 | 1 if len(array):
                wild = rng.choice([0, -1, 1, matrix.shape[1] - 1, matrix.shape[1], 2**31 - 1, -(2**31), 3])
                array[place] = np.array(wild).astype(array.dtype)
            case 2:
                arrays[name] = array[: len(array) - rng.choice([0, 1, 3])]
            case 3:
                arrays[name] = np.append(array, array[-1:])
            case 4:
                kinds = [np.int64, np.int32, np.int16, np.uint32, np.uint64, np.float64, np.float32, np.int8, bool]
                with np.errstate(all="ignore"):
                    arrays[name] = array.astype(rng.choice(kinds))
            case 5:
                row = rng.randrange(n_major)  # the order inside a row means nothing
                ends = arrays["indptr"].ravel()[row : row + 2]
                start, stop = map(int, ends) if len(ends) == 2 else (0, 0)
                if 0 <= start <= stop <= min(len(arrays["indices"]), len(arrays["data"])):
                    for each in ("indices", "data"):
                        arrays[each][start:stop] = arrays[each][start:stop][::-1]
            case 6 if len(array) > 1:
                array[place] = array[place - 1]  # a doubled entry, an empty row
            case 7 if name == "data" and len(array) and array.dtype.kind == "f":
                array[place] = rng.choice([np.nan, np.inf, -1.0, 1e39, 0.0, 5e-324, 3e38])
            case 8:
                arrays[name] = rng.choice([array[:, None], array[:0], array[::-1]])
    return arrays, matrix.shape, kind


def elements_changed(rng: random.Random, file: h5py.File) -> None:
    """Remove, rename, retype or relabel elements of an h5ad file."""
    names: list[str] = []
    file.visit(names.append)
    for _ in range(rng.choice([1, 1, 2, 3])):
        name = rng.choice(["/", *names])
        if name not in file:
            continue
        element = file[name]
        attributes = list(element.attrs)
        match rng.randrange(5):
            case 0 if name != "/":
                del file[name]
            case 1 if attributes:
                del element.attrs[rng.choice(attributes)]
            case 2 if attributes:
                words = ["array", "csr_matrix", "csc_matrix", "dataframe", "dict", "nonsense", "", 3, [1, 2], 0.5]
                element.attrs[rng.choice(attributes)] = rng.choice(words)
            case 3 if isinstance(element, h5py.Dataset):
                content = element[()]
                kinds = ["<f8", "<i8", "S8", "<u2", bool, "c16", "<f2"]
                attributes = dict(element.attrs)
                del file[name]
                try:
                    file[name] = np.asarray(content).astype(rng.choice(kinds))
                except (ValueError, TypeError):
                    file[name] = rng.choice([3, "text", np.arange(5), np.zeros((3, 3))])
                if rng.random() < 0.7:
                    file[name].attrs.update(attributes)
            case 4 if isinstance(element, h5py.Dataset) and element.shape:
                content, attributes = element[()], dict(element.attrs)
                del file[name]
                file[name] = rng.choice([content[:-1], content[:0], content[None], np.concatenate([content, content])])
                file[name].attrs.update(attributes)
            case _ if name != "/":
                file.move(name, f"{name}_moved")
