"""Columns of a data frame in a file, in the encodings that anndata has had: read one, or copy it piece by piece."""

from __future__ import annotations

from typing import Any

import h5py
import numpy as np
import pandas as pd
from anndata.io import read_elem

from tahoe._cells.sparse_checks import explain_read_errors
from tahoe._genes.clean import as_text
from tahoe.errors import InputError

# Entries that are copied at once.
COPIED_AT_ONCE = 1 << 16
# Columns that are groups, and their arrays with an entry for each row.
GROUPED = {
    "categorical": ("codes",),
    "nullable-string-array": ("values", "mask"),
    "nullable-integer": ("values", "mask"),
    "nullable-boolean": ("values", "mask"),
}
ENCODINGS = {"array": "0.2.0", "string-array": "0.2.0", "categorical": "0.2.0"}


def length_of(column: Any) -> int:
    """Rows of a column of a data frame; one of categories, or of what may be missing, is a group of arrays."""
    if hasattr(column, "shape"):
        if len(column.shape) != 1:
            message = f"it has the shape {column.shape}"
            raise ValueError(message)
        return column.shape[0]
    kind = column.attrs.get("encoding-type")
    if kind not in GROUPED:
        message = f"it is of the unknown kind {kind!r}"
        raise ValueError(message)
    lengths = {length_of(column[name]) for name in GROUPED[kind]}
    if len(lengths) > 1:
        message = f"{' and '.join(GROUPED[kind])} have {' and '.join(map(str, sorted(lengths)))} entries"
        raise ValueError(message)
    return lengths.pop()


def read_column(frame: Any, name: str) -> Any:
    """A column, as pandas has it."""
    categories = _old_categories(frame, name)
    if categories is None:
        return read_elem(frame[name])
    is_ordered = bool(categories.attrs.get("ordered", False))
    return pd.Categorical.from_codes(np.asarray(frame[name][...]), _rows(categories)[...], ordered=is_ordered)


def copy_column(frame: Any, name: str, target: Any, n_rows: int) -> None:
    """Copy a column into a group of a zarr store, without holding all of it; an old encoding becomes today's.

    Errors of the target's file system are left to the caller.

    Raises
    ------
    tahoe.errors.InputError
        If it is damaged, or holds what zarr cannot.
    """
    with explain_read_errors(f"the column {name!r}"):
        if (length := length_of(frame[name])) != n_rows:
            message = f"it has {length} rows, and obs has {n_rows}"
            raise ValueError(message)
        categories = _old_categories(frame, name)
    if categories is None:
        copy_element(frame[name], target, name)
        return
    group = target.require_group(name)
    is_ordered = bool(categories.attrs.get("ordered", False))
    group.attrs.update({**_encoding("categorical"), "ordered": is_ordered})
    copy_element(frame[name], group, "codes")
    copy_element(categories, group, "categories")


def _old_categories(frame: Any, name: str) -> Any:
    """The categories of a column as anndata before 0.8 wrote it: its codes, which point to them; None if it is not."""
    pointer = frame[name].attrs.get("categories") if hasattr(frame[name], "dtype") else None
    return None if pointer is None else frame[pointer]


def copy_element(element: Any, target: Any, name: str) -> None:
    """Copy an array or a group of arrays, with the attributes that anndata gives them."""
    if not hasattr(element, "dtype"):
        group = target.require_group(name)
        group.attrs.update(_plain(element.attrs))
        for key in element:
            copy_element(element[key], group, key)
        return
    is_text = _is_text(element)
    rows, shape, size = _rows(element), element.shape, max(1, min(element.size, COPIED_AT_ONCE))
    options = {"dtype": "string" if is_text else element.dtype, "chunks": (size, *shape[1:]) if shape else ()}
    attributes = {**_encoding("string-array" if is_text else "array"), **_plain(element.attrs)}
    try:
        copied = target.create_array(name, shape=shape, overwrite=True, attributes=attributes, **options)
    except (TypeError, ValueError) as error:
        message = (
            f"{element.name} is a column of {element.dtype}, which zarr cannot hold ({str(error).partition('. ')[0]});"
            " omit keep_metadata, or take this one out of the file"
        )
        raise InputError(message) from error
    if not shape:
        copied[...] = rows[()]
    for start in range(0, shape[0] if shape else 0, size):
        with explain_read_errors(element.name):
            piece = rows[start : start + size]
        copied[start : start + size] = piece


def _rows(element: Any) -> Any:
    """An array whose slices are text where it holds text."""
    return element.asstr() if isinstance(element, h5py.Dataset) and _is_text(element) else element


def _is_text(element: Any) -> bool:
    is_hdf5 = isinstance(element, h5py.Dataset)
    return h5py.check_string_dtype(element.dtype) is not None if is_hdf5 else element.dtype.kind in "OTU"


def _encoding(kind: str) -> dict[str, str]:
    return {"encoding-type": kind, "encoding-version": ENCODINGS[kind]}


def _plain(attributes: Any) -> dict[str, Any]:
    """Attributes as JSON has them; a pointer into the file means nothing elsewhere."""
    plain = {key: value.tolist() if hasattr(value, "tolist") else value for key, value in attributes.items()}
    plain = {key: as_text(value) if isinstance(value, bytes) else value for key, value in plain.items()}
    return {key: value for key, value in plain.items() if not isinstance(value, h5py.Reference)}
