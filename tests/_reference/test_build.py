"""References are built, resumed, opened and refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import anndata
import numpy as np
import pytest

import tahoe
from tahoe._reference.embeddings import unit
from tahoe.errors import InputError, ModelError, TahoeWarning

if TYPE_CHECKING:
    from pathlib import Path


def test_what_is_in_it(cells, built):
    assert built.n_cells == 300
    assert built.width == 16
    assert built.obs_keys == ["type", "donor"]
    assert built.labels("type") == [f"type {i}" for i in range(4)]
    assert built.embedding["model"] == "demo"
    told = built.obs([5, 0])
    assert told.index.tolist() == ["cell0-5", "cell0-0"]
    assert told["type"].tolist() == cells.obs["type"].iloc[[5, 0]].tolist()
    np.testing.assert_array_equal(np.concatenate(built.vectors.shards), unit(cells.obsm["X_tahoe"]))
    assert "300 cells" in repr(built)
    built.check()


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_file_gives_what_an_anndata_gives(cells, tmp_path, write_zarr):
    cells.write_h5ad(tmp_path / "cells.h5ad")
    write_zarr(cells, tmp_path / "cells.zarr")
    keys = {"obs_keys": "type", "groups": "donor", "cells_per_shard": 70}
    names = ("one", "two", "three")
    for name, source in zip(names, (cells, tmp_path / "cells.h5ad", tmp_path / "cells.zarr"), strict=True):
        tahoe.build_reference(source, tmp_path / name, **keys)
    one, two, three = (files_of(tmp_path / name) for name in names)
    assert one == two == three
    assert sum(name.startswith("vectors/") for name in one) == 5


def test_shards_change_no_answer(cells, built, make_clouds, tmp_path):
    other = tahoe.build_reference(cells, tmp_path / "other", obs_keys="type", groups="donor", cells_per_shard=37)
    queries = unit(make_clouds(40, seed=3).obsm["X_tahoe"])
    for one, two in zip(built.nearest(queries, 9), other.nearest(queries, 9), strict=True):
        np.testing.assert_array_equal(one, two)
    for name in ("rows", "neighbors", "distances"):
        np.testing.assert_array_equal(getattr(built.held_back, name), getattr(other.held_back, name))


def test_half_precision(cells, built, tmp_path):
    half = tahoe.build_reference(cells, tmp_path / "half", obs_keys="type", groups="donor", stored_dtype="float16")
    stored = np.concatenate(half.vectors.shards)
    assert stored.dtype == np.float16
    apart = stored.astype(np.float64) - np.concatenate(built.vectors.shards)
    assert np.sqrt(np.square(apart).sum(axis=1)).max() < 0.0005
    itself, _ = half.nearest(unit(cells.obsm["X_tahoe"]), 5, names=["another"] * 300)
    assert not (itself == np.arange(300)[:, None]).any()


def test_missing_vectors_and_labels(cells, tmp_path):
    cells.obsm["X_tahoe"][[3, 7]] = np.nan
    cells.obs["type"] = cells.obs["type"].astype("category")
    cells.obs.iloc[[1, 2], 0] = np.nan
    with pytest.warns(TahoeWarning, match="2 of 300 cells have no embedding"):
        built = tahoe.build_reference(cells, tmp_path / "atlas", obs_keys="type")
    assert (built.codes("type")[[1, 2]] == -1).all()
    assert built.obs([1])["type"].isna().all()
    rows, _ = built.nearest(unit(cells.obsm["X_tahoe"]), 298)
    assert not np.isin(rows, [3, 7]).any()
    with pytest.raises(InputError, match=r"k=299.*298 cells with an embedding"):
        built.nearest(unit(cells.obsm["X_tahoe"]), 299)


BAD = {
    "no such column": ({"obs_keys": "kind"}, "obs_keys='kind' is not a column.*'type', 'donor'"),
    "no such groups": ({"groups": "patient"}, "groups='patient' is not a column"),
    "no such slot": ({"use_rep": "X_pca"}, r"no obsm\['X_pca'\], only 'X_tahoe'"),
    "decimals": ({"obs_keys": "score"}, "decimal numbers"),
    "empty": ({"obs_keys": "nothing"}, "missing for all cells"),
    "dtype": ({"stored_dtype": "int8"}, "stored_dtype='int8'"),
    "one group": ({"groups": "one"}, "one value only"),
    "shards": ({"cells_per_shard": 0}, "at least 1"),
    "index": ({"index": "hnsw"}, "index='hnsw'"),
}


@pytest.mark.parametrize(("arguments", "told"), BAD.values(), ids=BAD)
def test_bad_arguments_leave_nothing(cells, tmp_path, arguments, told):
    cells.obs["score"], cells.obs["nothing"], cells.obs["one"] = 0.5, None, "a"
    with pytest.raises(InputError, match=told):
        tahoe.build_reference(cells, tmp_path / "atlas", **arguments)
    assert not list(tmp_path.iterdir())


def test_an_embedding_without_a_record(cells, tmp_path):
    joined = anndata.concat([cells])
    with pytest.raises(InputError, match="no record.*uns_merge"):
        tahoe.build_reference(joined, tmp_path / "atlas")
    cells.uns["X_tahoe"]["model_sha256"] = ""
    with pytest.raises(ModelError, match="never saved"):
        tahoe.build_reference(cells, tmp_path / "atlas")


def test_what_is_there_stays(cells, built):
    with pytest.raises(InputError, match="exists"):
        tahoe.build_reference(cells, built.folder)
    with pytest.raises(InputError, match="does not exist; make"):
        tahoe.build_reference(cells, built.folder / "no" / "folder")


def test_no_reference(tmp_path, cells):
    (tmp_path / "empty").mkdir()
    cells.write_h5ad(tmp_path / "cells.h5ad")
    for name, told in {
        "nowhere": "does not exist",
        "empty": "is no reference",
        "cells.h5ad": "is a file of cells",
    }.items():
        with pytest.raises(InputError, match=told):
            tahoe.load_reference(tmp_path / name)
    with pytest.raises(InputError, match="of type AnnData"):
        tahoe.load_reference(cells)


def damaged(folder: Path, name: str) -> Path:
    copied = folder.with_name(f"damaged {name}")
    shutil.copytree(folder, copied)
    return copied


def test_a_damaged_reference(built):
    folder = damaged(built.folder, "missing")
    (folder / "names" / "00000.npy").unlink()
    with pytest.raises(InputError, match="names/00000.npy is missing"):
        tahoe.load_reference(folder)
    folder = damaged(built.folder, "short")
    os.truncate(folder / "vectors" / "00000.npy", 1000)
    with pytest.raises(InputError, match="has 1,000 bytes instead of 19,328"):
        tahoe.load_reference(folder)
    folder = damaged(built.folder, "manifest")
    (folder / "reference.json").write_text("{")
    with pytest.raises(InputError, match="reference.json cannot be read"):
        tahoe.load_reference(folder)
    folder = damaged(built.folder, "later")
    manifest = json.loads((folder / "reference.json").read_text())
    (folder / "reference.json").write_text(json.dumps(manifest | {"tahoe_reference": 9}))
    with pytest.raises(InputError, match="format 9"):
        tahoe.load_reference(folder)
    folder = damaged(built.folder, "bit")
    content = bytearray((folder / "vectors" / "00000.npy").read_bytes())
    content[-7] ^= 1
    (folder / "vectors" / "00000.npy").write_bytes(content)
    with pytest.raises(InputError, match="the content of vectors/00000.npy changed"):
        tahoe.load_reference(folder).check()


SLOW = """
import os, signal, sys, time
import tahoe
from tahoe._reference import build

n, saved = 0, build.save_array
def slow(path, values):
    global n
    saved(path, values)
    n += 1
    if n == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
build.save_array = slow
tahoe.settings.progress = False
tahoe.build_reference(sys.argv[1], sys.argv[2], obs_keys="type", groups="donor", cells_per_shard=40, resume=True)
"""


def test_a_build_that_is_killed_three_times(cells, tmp_path):
    cells.write_h5ad(tmp_path / "cells.h5ad")
    target = tmp_path / "atlas"
    keys = {"obs_keys": "type", "groups": "donor", "cells_per_shard": 40}
    for moment in (3, 6, 9):
        command = [sys.executable, "-c", SLOW, str(tmp_path / "cells.h5ad"), str(target), str(moment)]
        assert subprocess.run(command, capture_output=True, check=False).returncode == -signal.SIGKILL
        assert not target.exists()
        with pytest.raises(InputError, match="half-built"):
            tahoe.load_reference(target)
        kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("atlas.partial/store/vectors/*.npy")}
    with pytest.raises(InputError, match="resume=True"):
        tahoe.build_reference(tmp_path / "cells.h5ad", target, **keys)
    with pytest.raises(InputError, match="something differs: stored_dtype"):
        tahoe.build_reference(tmp_path / "cells.h5ad", target, **keys, stored_dtype="float16", resume=True)
    time.sleep(0.01)
    tahoe.build_reference(tmp_path / "cells.h5ad", target, **keys, resume=True)
    assert kept
    assert all((target / "vectors" / path.name).stat().st_mtime_ns == written for path, written in kept.items())
    tahoe.build_reference(cells, tmp_path / "undisturbed", **keys)
    assert files_of(target) == files_of(tmp_path / "undisturbed")
    assert not (tmp_path / "atlas.partial").exists()


def test_workers_give_what_one_process_gives(cells, tmp_path):
    distributed = pytest.importorskip("distributed")
    cells.write_h5ad(tmp_path / "cells.h5ad")
    keys = {"obs_keys": "type", "groups": "donor", "cells_per_shard": 40}
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=":0") as cluster,
        distributed.Client(cluster) as client,
    ):
        tahoe.build_reference(tmp_path / "cells.h5ad", tmp_path / "two", **keys, client=client)
        with pytest.raises(InputError, match="an AnnData is in this process"):
            tahoe.build_reference(cells, tmp_path / "three", **keys, client=client)
    tahoe.build_reference(tmp_path / "cells.h5ad", tmp_path / "one", **keys)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")


def test_a_cell_is_left_out_itself(cells, built):
    vectors, names = unit(cells.obsm["X_tahoe"]), cells.obs_names
    with_itself, _ = built.nearest(vectors, 5)
    np.testing.assert_array_equal(with_itself[:, 0], np.arange(300))
    renamed, _ = built.nearest(vectors, 5, names=[f"{name}-1" for name in names])
    assert not (renamed == np.arange(300)[:, None]).any()
    # nearly the same, as by another device, under the same name
    nearly = unit(vectors + 0.002 * np.random.default_rng(0).standard_normal(vectors.shape))
    assert not (built.nearest(nearly, 5, names=names)[0] == np.arange(300)[:, None]).any()
    assert (built.nearest(nearly, 5, names=["another"] * 300)[0][:, 0] == np.arange(300)).all()
    np.testing.assert_array_equal(built.nearest(vectors, 4, names=names)[0], with_itself[:, 1:])
    everyone, _ = built.nearest(vectors, 300, names=names)
    assert (everyone[:, -1] == -1).all()
