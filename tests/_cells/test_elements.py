"""Columns in a file in the encodings that anndata has had, and what cannot be written: told before the work."""

from __future__ import annotations

import warnings

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import zarr

import tahoe
from tahoe._cells.elements import read_column
from tahoe.cli.main import main
from tahoe.errors import InputError

KINDS = pd.Categorical(["T", "B", None, "NK"] * 3, categories=["NK", "T", "B"])

# anndata 0.13, on the format that old stores have
pytestmark = pytest.mark.filterwarnings(
    "ignore:This setting will be removed:DeprecationWarning", "ignore:zarr v3 will become:DeprecationWarning"
)


@pytest.fixture
def cells() -> anndata.AnnData:
    source = tahoe.datasets.pbmc68k()[:12].copy()
    obs = pd.DataFrame({"kind": KINDS}, index=source.obs_names)
    return anndata.AnnData(source.X.copy(), obs=obs, var=source.var[[]].copy())


@pytest.fixture
def path(cells, tmp_path):
    cells.write_h5ad(tmp_path / "cells.h5ad")
    return tmp_path / "cells.h5ad"


def make_old(path, column="kind", *, ordered=False):
    """Write a categorical as anndata before 0.8 and SeuratDisk do: codes, which point to the names."""
    with h5py.File(path, "r+") as file:
        obs = file["obs"]
        obs.attrs["encoding-version"] = "0.1.0"
        codes, names = obs[f"{column}/codes"][:], obs[f"{column}/categories"][:]
        del obs[column]
        text = h5py.string_dtype() if names.dtype == object else names.dtype
        categories = obs.create_group("__categories").create_dataset(column, data=names, dtype=text)
        categories.attrs["ordered"] = ordered
        obs.create_dataset(column, data=codes.astype("i1")).attrs["categories"] = categories.ref


def make_old_store(cells, path):
    """The same in a zarr store, where the column has the name of its categories."""
    with anndata.settings.override(zarr_write_format=2):
        cells.write_zarr(path)
    obs = zarr.open_group(path, mode="r+", use_consolidated=False)["obs"]
    codes, names = obs["kind/codes"][:], obs["kind/categories"][:]
    del obs["kind"]
    obs.create_group("__categories").create_array("kind", data=names.astype(object).astype("U"))
    obs["__categories/kind"].attrs["ordered"] = False
    obs.create_array("kind", data=codes.astype("i1")).attrs["categories"] = "__categories/kind"
    zarr.consolidate_metadata(path)


def embedded(source, folder, **options):
    tahoe.embed_file(source, folder / "out.zarr", "demo", **options)
    return anndata.read_zarr(folder / "out.zarr")


@pytest.mark.parametrize("ordered", [False, True])
def test_old_categories_come_along(path, tmp_path, ordered):
    make_old(path, ordered=ordered)
    column = embedded(path, tmp_path, keep_metadata=True).obs["kind"]
    assert column.cat.categories.tolist() == ["NK", "T", "B"]
    assert column.cat.ordered == ordered
    assert (
        column.astype(object).where(column.notna(), None).tolist()
        == KINDS.tolist()[:2]
        + [None, "NK"]
        + [
            "T",
            "B",
            None,
            "NK",
        ]
        * 2
    )


@pytest.mark.filterwarnings("ignore:Consolidated metadata", "ignore:Writing zarr v2", "ignore::FutureWarning")
def test_old_categories_of_a_zarr_store(cells, tmp_path):
    make_old_store(cells, tmp_path / "cells.zarr")
    column = embedded(tmp_path / "cells.zarr", tmp_path, keep_metadata=True).obs["kind"]
    assert column.astype(str).tolist() == pd.Series(KINDS).astype(str).tolist()


@pytest.mark.parametrize("values", [[10, 20], [0.5, 1.5], [True, False]])
def test_old_categories_of_numbers(cells, tmp_path, values):
    cells.obs["kind"] = pd.Categorical(np.array(values * 6))
    cells.write_h5ad(tmp_path / "cells.h5ad")
    make_old(tmp_path / "cells.h5ad")
    with h5py.File(tmp_path / "cells.h5ad") as file:
        assert list(read_column(file["obs"], "kind")) == values * 6
    assert embedded(tmp_path / "cells.h5ad", tmp_path, keep_metadata=True).obs["kind"].tolist() == values * 6


@pytest.mark.parametrize("numbered", [False, True])
def test_drugs_by_old_categories_are_names_and_not_codes(reference, tmp_path, numbered):
    model = tahoe.load_model(reference / "drug-model")
    names = [name for name in model.drugs if name != "<pad>"]
    genes = [str(gene) for gene in model.vocabulary.genes[:200]]
    counts = np.random.default_rng(0).poisson(0.5, (9, 200)).astype(np.float32)
    cells = anndata.AnnData(counts, var=pd.DataFrame({"tahoe_gene": genes}, index=genes))
    cells.obs["drug"] = pd.Categorical([names[place % 3] for place in range(9)])
    known = {name: number for number, name in enumerate(names, start=1)}
    # drugs that are called by numbers are the trap: their codes are numbers too
    known |= {"0": 3, "1": 2, "2": 1} if numbered else {}
    vectors = []
    for kind in ("new", "old"):
        (tmp_path / kind).mkdir()
        cells.write_h5ad(tmp_path / kind / "cells.h5ad")
        if kind == "old":
            make_old(tmp_path / kind / "cells.h5ad", "drug")
        options = {"drug_key": "drug", "drugs": known, "min_coverage": 0}
        tahoe.embed_file(tmp_path / kind / "cells.h5ad", tmp_path / kind / "out.zarr", model, **options)
        vectors.append(anndata.read_zarr(tmp_path / kind / "out.zarr").obsm["X_tahoe"])
    np.testing.assert_array_equal(*vectors)


def test_what_the_command_writes_has_the_old_categories_too(path, tmp_path):
    make_old(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of anndata, on the old format
        assert main(["-q", "embed", str(path), "-o", str(tmp_path / "out.h5ad"), "-m", "demo"]) == 0
    assert anndata.read_h5ad(tmp_path / "out.h5ad").obs["kind"].dtype == KINDS.dtype


STRINGS = pd.array(["x", None, "y"] * 4, dtype="string")


def with_nullable(cells):
    cells.obs["text"] = STRINGS
    cells.obs["number"] = pd.array([1, None, 3] * 4, dtype="Int64")
    cells.obs["truth"] = pd.array([True, None, False] * 4, dtype="boolean")
    cells.var["text"] = pd.array(["x", None, "y"] * (cells.n_vars // 3), dtype="string")
    cells.uns["table"] = pd.DataFrame({"text": STRINGS[:2]}, index=["a", "b"])
    return cells


@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
def test_values_that_may_be_missing_are_written_again(cells, tmp_path, suffix):
    with anndata.settings.override(allow_write_nullable_strings=True):
        with_nullable(cells).write_h5ad(tmp_path / "cells.h5ad")
    out = tmp_path / f"out.{suffix}"
    more = ["--keep-metadata"] if suffix == "zarr" else []
    assert main(["-q", "embed", str(tmp_path / "cells.h5ad"), "-o", str(out), "-m", "demo", *more]) == 0
    written = anndata.read_h5ad(out) if suffix == "h5ad" else anndata.read_zarr(out)
    assert written.obs["text"].astype(object).where(written.obs["text"].notna(), None).tolist() == ["x", None, "y"] * 4
    assert written.obs["number"].dtype == "Int64"
    assert written.var["text"].isna().sum() == cells.n_vars // 3
    assert written.obs_names.tolist() == cells.obs_names.tolist()
    assert not list(tmp_path.glob("*.partial"))


def replaced(file, values):
    del file["obs/kind"]
    file["obs"].create_dataset("kind", data=values)


UNWRITABLE = {
    "pointers": lambda file: replaced(file, np.array([file["obs"].ref] * 12, dtype=h5py.ref_dtype)),
    "lists": lambda file: (
        file.__delitem__("obs/kind"),
        file["obs"].create_dataset("kind", shape=(12,), dtype=h5py.vlen_dtype(np.int32)),
    ),
    "two dimensions": lambda file: replaced(file, np.zeros((12, 2))),
    "too few": lambda file: replaced(file, np.zeros(5)),
    "too few codes": lambda file: (
        file.__delitem__("obs/kind/codes"),
        file["obs/kind"].create_dataset("codes", data=np.zeros(5, dtype="i1")),
    ),
    "nothing": lambda file: file.__delitem__("obs/kind"),
}


@pytest.mark.parametrize("kind", UNWRITABLE)
def test_a_column_that_cannot_come_along_is_told_before_the_work(path, tmp_path, monkeypatch, kind):
    with h5py.File(path, "r+") as file:
        UNWRITABLE[kind](file)
    monkeypatch.setattr("tahoe._run.cluster.embed_cells", lambda *_, **__: pytest.fail("cells were computed"))
    with pytest.raises(InputError, match="kind"):
        tahoe.embed_file(path, tmp_path / "out.zarr", "demo", keep_metadata=True)
    monkeypatch.setattr("tahoe.tl.embed", lambda *_, **__: pytest.fail("cells were computed"))
    assert main(["-q", "embed", str(path), "-o", str(tmp_path / "out.h5ad"), "-m", "demo"]) == 1
    assert [each.name for each in tmp_path.iterdir()] == ["cells.h5ad"]


def test_without_the_columns_it_works(path, tmp_path):
    with h5py.File(path, "r+") as file:
        UNWRITABLE["pointers"](file)
    assert list(embedded(path, tmp_path).obs) == ["tahoe_n_genes"]


def test_attributes_that_are_bytes(path, tmp_path):
    """As programs write them that know no strings."""
    with h5py.File(path, "r+") as file:
        obs = file["obs"]
        obs.attrs["_index"] = np.bytes_(obs.attrs["_index"])
        obs.attrs["column-order"] = np.array(["kind"], dtype="S")
        obs["kind/codes"].attrs["note"] = np.bytes_("more")
    store = embedded(path, tmp_path, keep_metadata=True)
    assert store.obs["kind"].dtype == KINDS.dtype
    assert store.obs_names.tolist() == anndata.read_h5ad(path).obs_names.tolist()


@pytest.mark.filterwarnings("ignore::anndata.OldFormatWarning")
def test_genes_that_are_no_data_frame(path, tmp_path):
    with h5py.File(path, "r+") as file:
        del file["var"].attrs["encoding-type"], file["var"].attrs["encoding-version"]
    with pytest.raises(InputError, match="var cannot be read .*no data frame"):
        tahoe.embed_file(path, tmp_path / "out.zarr", "demo")


@pytest.mark.filterwarnings("ignore:Forward slashes")
def test_names_with_a_slash(cells, tmp_path):
    cells.obs["a/b"] = range(12)
    cells.var.index.name = "gene/id"
    try:
        cells.write_h5ad(tmp_path / "cells.h5ad")
    except ValueError:
        pytest.skip("this version of anndata writes no such names")
    store = embedded(tmp_path / "cells.h5ad", tmp_path, keep_metadata=True)
    assert store.obs["a/b"].tolist() == list(range(12))
    assert store.var_names.tolist() == cells.var_names.tolist()
    cells.var["c/d"] = 1.0
    cells.write_h5ad(tmp_path / "more.h5ad")
    with pytest.raises(InputError, match=r"var cannot be written .*'c/d'"):
        tahoe.embed_file(tmp_path / "more.h5ad", tmp_path / "second.zarr", "demo", keep_metadata=True)
    tahoe.embed_file(tmp_path / "more.h5ad", tmp_path / "second.zarr", "demo")
    assert main(["-q", "embed", str(tmp_path / "more.h5ad"), "-o", str(tmp_path / "o.h5ad"), "-m", "demo"]) == 0
    assert anndata.read_h5ad(tmp_path / "o.h5ad").var["c/d"].tolist() == [1.0] * cells.n_vars


@pytest.mark.parametrize("command", [["embed", "-m", "demo"], ["map-genes"]])
@pytest.mark.parametrize("output", ["no/folder/out.h5ad", "no/folder/out.zarr"])
def test_a_folder_that_is_not_there_is_told_before_the_work(path, tmp_path, monkeypatch, capsys, command, output):
    for name in ("tahoe._run.cluster.embed_cells", "tahoe.tl.embed", "tahoe._genes.mapping.map_genes"):
        monkeypatch.setattr(name, lambda *_, **__: pytest.fail("work was done"))
    assert main(["-q", *command, str(path), "-o", str(tmp_path / output)]) == 1
    assert "make" in capsys.readouterr().err
    assert [each.name for each in tmp_path.iterdir()] == ["cells.h5ad"]


def test_a_run_that_was_interrupted_takes_its_columns_again(path, tmp_path, monkeypatch):
    """What is not per shard is written at the start of each run, also of one that goes on."""
    calls = []

    def interrupted(self, shard, *arguments):
        calls.append(shard)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return write(self, shard, *arguments)

    from tahoe._store.shards import Store

    write = Store.write
    monkeypatch.setattr(Store, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tahoe.embed_file(path, tmp_path / "out.zarr", "demo", cells_per_shard=5)
    monkeypatch.setattr(Store, "write", write)
    store = embedded(path, tmp_path, cells_per_shard=5, keep_metadata=True, resume=True)
    assert store.obs["kind"].astype(str).tolist() == pd.Series(KINDS).astype(str).tolist()
    assert not np.isnan(store.obsm["X_tahoe"]).any()


def test_an_unfinished_run_survives_a_later_one_that_cannot_write(path, tmp_path, monkeypatch):
    from tahoe._store.shards import Store

    write = Store.write
    monkeypatch.setattr(Store, "write", lambda self, shard, *rest: write(self, shard, *rest) or interrupt())
    with pytest.raises(KeyboardInterrupt):
        tahoe.embed_file(path, tmp_path / "out.zarr", "demo", cells_per_shard=5)
    monkeypatch.setattr("tahoe._store.shards.write_elem", lambda *_: 1 / 0)
    with pytest.raises(InputError, match="cannot be written"):
        tahoe.embed_file(path, tmp_path / "out.zarr", "demo", cells_per_shard=5, resume=True)
    assert (tmp_path / "out.zarr.partial" / "store" / "obsm" / "X_tahoe" / "c" / "0" / "0").is_file()


def interrupt():
    raise KeyboardInterrupt


@pytest.mark.filterwarnings("ignore:Writing zarr v2")
def test_a_store_without_raw_is_read(cells, tmp_path):
    """anndata writes that there is none."""
    with anndata.settings.override(zarr_write_format=2):
        cells.write_zarr(tmp_path / "cells.zarr")
    assert np.isfinite(embedded(tmp_path / "cells.zarr", tmp_path).obsm["X_tahoe"]).all()
    with pytest.raises(InputError, match=r"adata.raw is None"):
        tahoe.embed_file(tmp_path / "cells.zarr", tmp_path / "second.zarr", "demo", use_raw=True)
