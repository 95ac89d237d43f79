"""A run with drugs that was interrupted goes on with the same drugs of the same cells, or not at all."""

from __future__ import annotations

import json

import anndata
import numpy as np
import pytest

import tahoe
from tahoe._store.shards import Store
from tahoe.errors import InputError


def unfinished_run(reference, read_cells, tmp_path):
    """A run that stopped after the first of six shards: its input, output and model, and its parameters."""
    cells = read_cells(reference / "drug-input.npz")[6:18].copy()
    cells.var["tahoe_gene"] = cells.var_names
    known = json.loads((reference / "drug-model" / "drug_to_id_pad.json").read_text())
    cells.obs["drugs"] = np.resize([name for name in known if name != "<pad>"][:3], 12)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    call = {"drug_key": "drugs", "drugs": known, "cells_per_shard": 2, "dtype": "float32"}
    places = (tmp_path / "cells.h5ad", tmp_path / "out.zarr", reference / "drug-model")
    write = Store.write

    def stop(self, shard, *arrays):
        if shard == 1:
            raise KeyboardInterrupt
        write(self, shard, *arrays)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "write", stop)
        with pytest.raises(KeyboardInterrupt):
            tahoe.embed_file(*places, **call)
    return places, call


def test_other_drugs_do_not_go_on(reference, read_cells, tmp_path):
    """The same column with other ids: cells of one store would have different drugs of one name."""
    places, call = unfinished_run(reference, read_cells, tmp_path)
    names = list(call["drugs"])
    turned = dict(zip(names, reversed(call["drugs"].values()), strict=True))
    with pytest.raises(InputError, match=r"cannot go on, since something differs: drugs \("):
        tahoe.embed_file(*places, **call | {"drugs": turned}, resume=True)


def test_none_instead_of_drugs_does_not_go_on(reference, read_cells, tmp_path):
    places, call = unfinished_run(reference, read_cells, tmp_path)
    with pytest.raises(InputError, match=r"differs: drug_key \(drugs then, None now\), drugs \("):
        tahoe.embed_file(*places, **call | {"drug_key": None, "drugs": None}, resume=True)


def test_the_same_drugs_go_on(reference, read_cells, tmp_path):
    places, call = unfinished_run(reference, read_cells, tmp_path)
    tahoe.embed_file(*places, **call, resume=True)
    whole = anndata.read_h5ad(places[0])
    tahoe.tl.embed(whole, places[2], drug_key="drugs", drugs=call["drugs"], dtype="float32")
    np.testing.assert_array_equal(anndata.read_zarr(places[1]).obsm["X_tahoe"], whole.obsm["X_tahoe"])
