"""Provenance in a file may say anything: it steers no run before it was looked at."""

from __future__ import annotations

import anndata
import h5py
import numpy as np
import pytest

import tahoe
from tahoe import cli


def run(*arguments) -> int:
    return cli.main(["--quiet", *map(str, arguments)])


@pytest.fixture(scope="module")
def embedded(tmp_path_factory, heart):
    path = tmp_path_factory.mktemp("provenance") / "embedded.h5ad"
    adata = heart[:5].copy()
    adata.write_h5ad(path.with_name("cells.h5ad"))
    assert run("embed", path.with_name("cells.h5ad"), "-o", path, "-m", "demo", "--max-length", "50") == 0
    return path


DAMAGE = {
    "no model": ("model", None),
    "a model that is a number": ("model", 3),
    "a model that is nowhere": ("model", "no-such-model"),
    "no hash": ("model_sha256", None),
    "another hash": ("model_sha256", "0" * 64),
    "a hash that is a list": ("model_sha256", [1, 2]),
    "no input": ("input", None),
    "an input that is a number": ("input", 7),
    "an input that is none": ("input", "nonsense"),
    "a layer that is not there": ("input", 'layers["no"]'),
    "a length in words": ("max_length", "long"),
    "a negative length": ("max_length", -3),
    "a length that is a list": ("max_length", [1, 2]),
    "a fraction of a length": ("max_length", 5.5),
    "a seed in words": ("seed", "x"),
    "a coverage in words": ("min_coverage", "half"),
    "normalise in words": ("normalize", "perhaps"),
    "a drug column that is not there": ("drug_key", "nothing"),
    "a device that is none": ("device", "abacus"),
    "a precision that is none": ("dtype", "float128"),
    "an attention that is none": ("attention", "divided"),
    "a source that is gone": ("source", "/nowhere/cells.h5ad"),
    "a source that is a number": ("source", 3),
    "a mask that was an array": ("mask_var", "sha256:00"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_provenance(embedded, tmp_path, capsys, damage):
    key, value = DAMAGE[damage]
    path = tmp_path / "changed.h5ad"
    path.write_bytes(embedded.read_bytes())
    with h5py.File(path, "r+") as file:
        record = file["uns/X_tahoe"]
        if key in record:
            del record[key]
        if value is not None:
            record[key] = value
            kind = ("string", "0.2.0") if isinstance(value, str) else ("numeric-scalar", "0.2.0")
            kind = ("array", "0.2.0") if isinstance(value, list) else kind
            record[key].attrs.update({"encoding-type": kind[0], "encoding-version": kind[1]})
    assert run("embed", "--like", path, "-o", tmp_path / "again.zarr") == 1
    told = capsys.readouterr().err
    assert "--debug" not in told, told
    assert told.startswith("tahoe: ")
    assert told.count("\n") == 1
    assert not (tmp_path / "again.zarr").exists()


def test_other_things_in_uns_are_no_provenance(embedded, tmp_path, capsys, heart):
    adata = heart[:3].copy()
    adata.uns |= {"a": "tahoe_version", "b": np.array(["tahoe_version"], dtype=object), "c": 3, "d": {"e": {}}, "f": {}}
    adata.write_h5ad(tmp_path / "other.h5ad")
    assert run("info", tmp_path / "other.h5ad") == 1
    assert "has no result of tahoe" in capsys.readouterr().err


def test_what_is_printed_has_no_control_characters(embedded, tmp_path, capsys):
    adata = anndata.read_h5ad(embedded)
    adata.uns["X_tahoe"]["model"] = "70m\x1b[2J\x07\nmodel_sha256  0000"
    adata.write_h5ad(tmp_path / "changed.h5ad")
    assert run("info", tmp_path / "changed.h5ad") == 0
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert "\nmodel_sha256  0000" not in printed
    assert tahoe.load_model("demo").weights_sha256 in printed
