"""Files of cells whose elements are missing, of another kind, or say other things of themselves."""

from __future__ import annotations

import json

import anndata
import h5py
import numpy as np
import pytest

import tahoe
from tahoe.errors import InputError


def replaced(file, name, content, **attributes):
    kept = dict(file[name].attrs)
    del file[name]
    file[name] = content
    file[name].attrs.update(kept | attributes)


def shortened(file, name):
    """Leave out the last entry of names, which are an array, or a group of two."""
    arrays = [name] if isinstance(file[name], h5py.Dataset) else [f"{name}/{array}" for array in file[name]]
    for array in arrays:
        replaced(file, array, file[array][:-1])


DAMAGE = {
    "no matrix": lambda f: f.__delitem__("X"),
    "no pointers": lambda f: f.__delitem__("X/indptr"),
    "no values": lambda f: f.__delitem__("X/data"),
    "no shape": lambda f: f["X"].attrs.__delitem__("shape"),
    "a shape of one number": lambda f: f["X"].attrs.__setitem__("shape", 3),
    "a shape of fractions": lambda f: f["X"].attrs.__setitem__("shape", [2.5, 2.5]),
    "a shape of words": lambda f: f["X"].attrs.__setitem__("shape", "many"),
    "an unknown kind of matrix": lambda f: f["X"].attrs.__setitem__("encoding-type", "nonsense"),
    "a kind that is a list": lambda f: f["X"].attrs.__setitem__("encoding-type", [1, 2]),
    "a matrix that is a number": lambda f: replaced(f, "X", 3.0),
    "a matrix of words": lambda f: replaced(f, "X", np.array([["a"]], dtype="S")),
    "a matrix of one dimension": lambda f: replaced(f, "X", np.zeros(9), **{"encoding-type": "array"}),
    "values that are words": lambda f: replaced(f, "X/data", np.array(["a"] * len(f["X/data"]), dtype="S")),
    "values that are complex": lambda f: replaced(f, "X/data", np.zeros(len(f["X/data"]), dtype="c16")),
    "no genes": lambda f: f.__delitem__("var"),
    "genes that are a number": lambda f: replaced(f, "var", 3.0),
    "genes without an index": lambda f: f["var"].attrs.__delitem__("_index"),
    "genes with another index": lambda f: f["var"].attrs.__setitem__("_index", "nowhere"),
    "a column of genes that is not there": lambda f: f.__delitem__("var/tahoe_gene"),
    "too few genes": lambda f: (shortened(f, "var/_index"), f.__delitem__("var/tahoe_gene")),
    "genes of no kind": lambda f: f["var/_index"].attrs.clear(),
    "names of columns that are a number": lambda f: f["var"].attrs.__setitem__("column-order", 0.5),
    "no cells": lambda f: f.__delitem__("obs"),
    "cells without an index": lambda f: f["obs"].attrs.__delitem__("_index"),
    "cells with another index": lambda f: f["obs"].attrs.__setitem__("_index", "nowhere"),
    "too few cells": lambda f: shortened(f, "obs/_index"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_file(tiny, full_cells, tmp_path, damage):
    full_cells.write_h5ad(tmp_path / "cells.h5ad")
    with h5py.File(tmp_path / "cells.h5ad", "r+") as file:
        DAMAGE[damage](file)
    with pytest.raises(InputError):
        tahoe.embed_file(tmp_path / "cells.h5ad", tmp_path / "out.zarr", tiny)
    assert [path.name for path in tmp_path.iterdir()] == ["cells.h5ad"]


NULLABLE_DAMAGE = {
    "no values": lambda f, names: f.__delitem__(f"{names}/values"),
    "no mask": lambda f, names: f.__delitem__(f"{names}/mask"),
    "a short mask": lambda f, names: shortened(f, f"{names}/mask"),
    "one entry less": lambda f, names: shortened(f, names),
    "values that are a number": lambda f, names: replaced(f, f"{names}/values", 3.0),
    "of no kind": lambda f, names: f[names].attrs.clear(),
    "of another kind": lambda f, names: f[names].attrs.__setitem__("encoding-type", "categorical"),
}


@pytest.mark.parametrize("names", ["obs/_index", "var/_index"])
@pytest.mark.parametrize("damage", NULLABLE_DAMAGE)
def test_damaged_names_that_may_be_missing(tiny, full_cells, tmp_path, names, damage):
    full_cells.obs_names, full_cells.var_names = (
        index.astype("string") for index in (full_cells.obs_names, full_cells.var_names)
    )
    with anndata.settings.override(allow_write_nullable_strings=True):
        full_cells.write_h5ad(tmp_path / "cells.h5ad")
    with h5py.File(tmp_path / "cells.h5ad", "r+") as file:
        NULLABLE_DAMAGE[damage](file, names)
    with pytest.raises(InputError, match=r"the index of obs|var|says that its shape is"):
        tahoe.embed_file(tmp_path / "cells.h5ad", tmp_path / "out.zarr", tiny)
    assert [path.name for path in tmp_path.iterdir()] == ["cells.h5ad"]


STORE_DAMAGE = {
    "a key that zarr does not know": lambda told: json.dumps({**told, "unknown": 1}),
    "a key inside of one that zarr does not know": lambda told: json.dumps(told).replace(
        '"X": {', '"X": {"unknown": 1, '
    ),
    "no format": lambda told: json.dumps({**told, "zarr_format": None}),
    "another node": lambda told: json.dumps({**told, "node_type": "array"}),
    "no object": lambda told: "[]",
    "no JSON": lambda told: json.dumps(told)[:-1],
    "nothing": lambda told: "",
}


@pytest.mark.parametrize("damage", STORE_DAMAGE)
def test_damaged_store(tiny, full_cells, tmp_path, write_zarr, damage):
    write_zarr(full_cells, tmp_path / "cells.zarr")
    metadata = tmp_path / "cells.zarr" / "zarr.json"
    told = metadata.read_text()
    changed = STORE_DAMAGE[damage](json.loads(told))
    assert changed != told
    metadata.write_text(changed)
    with pytest.raises(InputError, match=r"cells\.zarr"):
        tahoe.embed_file(tmp_path / "cells.zarr", tmp_path / "out.zarr", tiny)
    assert [path.name for path in tmp_path.iterdir()] == ["cells.zarr"]
