"""Files in, stores out: the same vectors, and runs that survive what happens to long runs."""

from __future__ import annotations

import dataclasses
import math
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import zarr
from scipy import sparse

import tahoe
from tahoe.errors import InputError, TahoeWarning
from tahoe.model import Vocabulary

ROWS = 300


@pytest.fixture(scope="module")
def folder(tmp_path_factory, read_cells, reference, write_zarr):
    """Cells of the tiny model, tiled, as h5ad and as zarr v2 and v3."""
    folder = tmp_path_factory.mktemp("files")
    cells = read_cells(reference / "tiny-input.npz")
    matrix = sparse.vstack([cells.X] * 5, format="csr")[:ROWS]
    obs = pd.DataFrame(
        {
            "type": pd.Categorical(np.resize(["a", "b", None, "c"], ROWS)),
            "age": np.arange(ROWS, dtype=np.float64),
            "donor": np.resize(["x", "y"], ROWS).astype(object),
            "healthy": np.arange(ROWS) % 3 == 0,
            "batch": pd.array(np.resize([1, None], ROWS), dtype="Int64"),
        },
        index=[f"cell {i}" for i in range(ROWS)],
    )
    var = pd.DataFrame({"tahoe_gene": cells.var_names, "length": np.arange(cells.n_vars)}, index=cells.var_names)
    adata = anndata.AnnData(matrix, obs=obs, var=var)
    adata.write_h5ad(folder / "cells.h5ad")
    for version in (2, 3):
        write_zarr(adata, folder / f"v{version}.zarr", version)
    return folder


@pytest.fixture(scope="module")
def truth(folder, reference):
    adata = anndata.read_h5ad(folder / "cells.h5ad")
    with pytest.warns(TahoeWarning, match="express no gene"), tahoe.settings.override(device="cpu"):
        tahoe.tl.embed(adata, tahoe.load_model(reference / "tiny-model", dtype="float32"))
    return adata


def embed(source, output, model, **options):
    with pytest.warns(TahoeWarning, match="5 of 300 cells express no gene"):
        tahoe.embed_file(source, output, model, cells_per_shard=50, dtype="float32", **options)
    return anndata.read_zarr(output)


@pytest.fixture
def tiny_model(reference):
    return reference / "tiny-model"


@pytest.mark.parametrize("name", ["cells.h5ad", "v2.zarr", "v3.zarr"])
def test_the_same_as_in_memory(folder, truth, tiny_model, tmp_path, name):
    store = embed(folder / name, tmp_path / "out.zarr", tiny_model)
    np.testing.assert_array_equal(store.obsm["X_tahoe"], truth.obsm["X_tahoe"])
    assert store.obs_names.equals(truth.obs_names)
    assert store.var_names.equals(truth.var_names)
    assert store.obs["tahoe_n_genes"].tolist() == truth.obs["tahoe_n_genes"].tolist()
    assert list(store.obs) == ["tahoe_n_genes"]
    assert list(store.var) == ["tahoe_gene"]
    assert store.X is None
    record = {
        key: list(value) if key in ("slots", "versions") else value for key, value in store.uns["X_tahoe"].items()
    }
    assert record == truth.uns["X_tahoe"] | {"source": str(folder / name)}
    assert [path.name for path in tmp_path.iterdir()] == ["out.zarr"]


@pytest.mark.parametrize("name", ["cells.h5ad", "v2.zarr", "v3.zarr"])
def test_columns_come_along(folder, truth, tiny_model, tmp_path, name):
    store = embed(folder / name, tmp_path / "out.zarr", tiny_model, keep_metadata=True)
    pd.testing.assert_frame_equal(store.obs, truth.obs)
    pd.testing.assert_frame_equal(store.var, truth.var)


def test_the_store_opens_lazily(folder, truth, tiny_model, tmp_path):
    pytest.importorskip("xarray")
    embed(folder / "cells.h5ad", tmp_path / "out.zarr", tiny_model)
    lazy = anndata.experimental.read_lazy(tmp_path / "out.zarr")
    np.testing.assert_array_equal(np.asarray(lazy.obsm["X_tahoe"][150:250]), truth.obsm["X_tahoe"][150:250])


def test_half_precision(folder, truth, tiny_model, tmp_path):
    store = embed(folder / "cells.h5ad", tmp_path / "out.zarr", tiny_model, stored_dtype="float16")
    assert store.obsm["X_tahoe"].dtype == np.float16
    np.testing.assert_array_equal(store.obsm["X_tahoe"], truth.obsm["X_tahoe"].astype(np.float16))


@pytest.mark.parametrize("url", ["file", "memory"])
def test_a_url_of_fsspec(folder, truth, tiny_model, tmp_path, url):
    import fsspec

    if url == "file":
        source = f"file://{folder / 'cells.h5ad'}"
    else:
        source = "memory://cells.h5ad"
        fsspec.filesystem("memory").pipe("/cells.h5ad", (folder / "cells.h5ad").read_bytes())
    store = embed(source, tmp_path / "out.zarr", tiny_model)
    np.testing.assert_array_equal(store.obsm["X_tahoe"], truth.obsm["X_tahoe"])


def test_genes_are_mapped_where_they_are_not(heart, tmp_path):
    cells = heart.copy()
    cells.var["symbol"] = cells.var_names
    cells.var_names = [str(i) for i in range(cells.n_vars)]
    cells.write_h5ad(tmp_path / "cells.h5ad")
    tahoe.embed_file(tmp_path / "cells.h5ad", tmp_path / "out.zarr", "demo", gene_key="symbol", max_length=200)
    store = anndata.read_zarr(tmp_path / "out.zarr")
    tahoe.pp.map_genes(cells, gene_key="symbol")
    tahoe.tl.embed(cells, "demo", max_length=200)
    np.testing.assert_array_equal(store.obsm["X_tahoe"], cells.obsm["X_tahoe"])
    assert store.var["tahoe_gene"].tolist() == cells.var["tahoe_gene"].tolist()
    assert store.uns["tahoe_genes"]["gene_key"] == "symbol"


# A run in a process of its own, which a test can kill.
RUN = """
import sys, warnings, torch, tahoe
torch.set_num_threads(1)
warnings.simplefilter("ignore")
tahoe.settings.progress = False
tahoe.embed_file(sys.argv[1], sys.argv[2], sys.argv[3], cells_per_shard=10, dtype="float32", device="cpu", resume=True)
"""


def started(folder, output, model):
    command = [sys.executable, "-c", RUN, str(folder / "cells.h5ad"), str(output), str(model)]
    return subprocess.Popen(command)


def shards(output) -> dict[str, tuple[int, int]]:
    """Finished shards, and which file each is: a shard that is written again is another file."""
    found = output.with_name(f"{output.name}.partial") / "store" / "obsm" / "X_tahoe" / "c"
    files = list(found.glob("*/0")) if found.is_dir() else []
    return {path.parent.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in files}


def test_a_killed_run_goes_on(folder, truth, tiny_model, tmp_path):
    """Kill −9 at two moments; what was finished is kept to the bit, and not computed again."""
    output = tmp_path / "out.zarr"
    finished: dict[str, tuple[int, int]] = {}
    for more in (1, 5):
        run = started(folder, output, tiny_model)
        goal = len(finished) + more
        while len(shards(output)) < goal and run.poll() is None:
            time.sleep(0.002)
        run.send_signal(signal.SIGKILL)
        run.wait()
        assert run.returncode == -signal.SIGKILL
        assert not output.exists()
        now = shards(output)
        assert goal <= len(now) < ROWS // 10
        assert finished.items() <= now.items()
        finished = now
    run = started(folder, output, tiny_model)
    assert run.wait() == 0
    store = anndata.read_zarr(output)
    np.testing.assert_array_equal(store.obsm["X_tahoe"], truth.obsm["X_tahoe"])
    assert store.obs["tahoe_n_genes"].tolist() == truth.obs["tahoe_n_genes"].tolist()
    for name, (inode, _) in finished.items():
        assert (output / "obsm" / "X_tahoe" / "c" / name / "0").stat().st_ino == inode
    assert [path.name for path in tmp_path.iterdir()] == ["out.zarr"]


def test_an_unfinished_run_is_not_overwritten(folder, tiny_model, tmp_path):
    output = tmp_path / "out.zarr"
    unfinished_run(folder, output, tiny_model)
    with pytest.raises(InputError, match=r"unfinished run; pass resume=True"):
        tahoe.embed_file(folder / "cells.h5ad", output, tiny_model, cells_per_shard=50, dtype="float32")
    assert len(shards(output)) == 2


def unfinished_run(folder, output, model, source="cells.h5ad"):
    """A run that is interrupted after two shards."""
    from tahoe._store.shards import Store

    written = Store.write

    def write(self, shard, *arrays):
        if shard == 2:
            raise KeyboardInterrupt
        written(self, shard, *arrays)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "write", write)
        with pytest.raises(KeyboardInterrupt):
            tahoe.embed_file(folder / source, output, model, cells_per_shard=50, dtype="float32")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, r"seed \(0 then, 1 now\)"),
        ({"normalize": False}, r"normalize \(True then, False now\)"),
        ({"max_length": 100}, r"max_length \(2048 then, 100 now\)"),
        ({"cells_per_shard": 60}, r"cells_per_shard \(50 then, 60 now\)"),
        ({"stored_dtype": "float16"}, r"stored_dtype \(float32 then, float16 now\)"),
        ({"dtype": "bfloat16"}, r"dtype \(float32 then, bfloat16 now\)"),
    ],
)
def test_a_run_with_other_parameters_does_not_go_on(folder, tiny_model, tmp_path, change, message):
    output = tmp_path / "out.zarr"
    unfinished_run(folder, output, tiny_model)
    options = {"cells_per_shard": 50, "dtype": "float32", "resume": True} | change
    with pytest.raises(InputError, match=message):
        tahoe.embed_file(folder / "cells.h5ad", output, tiny_model, **options)
    assert len(shards(output)) == 2


def test_a_run_whose_genes_are_mapped_otherwise_does_not_go_on(folder, tiny_model, tmp_path, monkeypatch):
    """As after a correction of the table of names: the same file, and another token for two of its columns."""
    output, tokens_of = tmp_path / "out.zarr", Vocabulary.tokens_of
    unfinished_run(folder, output, tiny_model)

    def swapped(vocabulary, genes):
        tokens = tokens_of(vocabulary, genes)
        first = np.flatnonzero(tokens >= 0)[:2]
        tokens[first] = tokens[first[::-1]]
        return tokens

    monkeypatch.setattr(Vocabulary, "tokens_of", swapped)
    with pytest.raises(InputError, match="tokens of the genes"):
        tahoe.embed_file(folder / "cells.h5ad", output, tiny_model, cells_per_shard=50, dtype="float32", resume=True)


def test_a_run_that_an_earlier_version_began_goes_on(folder, truth, tiny_model, tmp_path):
    """It called the keyword by another name."""
    output = tmp_path / "out.zarr"
    unfinished_run(folder, output, tiny_model)
    run_file = tmp_path / "out.zarr.partial" / "run.json"
    run_file.write_text(run_file.read_text().replace('"cells_per_shard"', '"shard_cells"'))
    with pytest.raises(InputError, match=r"cells_per_shard \(50 then, 60 now\)"):
        tahoe.embed_file(folder / "cells.h5ad", output, tiny_model, cells_per_shard=60, dtype="float32", resume=True)
    store = embed(folder / "cells.h5ad", output, tiny_model, resume=True)
    np.testing.assert_array_equal(store.obsm["X_tahoe"], truth.obsm["X_tahoe"])


def test_a_run_with_another_model_does_not_go_on(folder, tiny, tiny_model, tmp_path):
    output = tmp_path / "out.zarr"
    unfinished_run(folder, output, tiny_model)
    tiny.network.norm.weight[0] += 1
    tiny.save(tmp_path / "other-model")
    with pytest.raises(InputError, match="model_sha256"):
        tahoe.embed_file(
            folder / "cells.h5ad", output, tmp_path / "other-model", cells_per_shard=50, dtype="float32", resume=True
        )


def test_a_run_with_another_unsaved_model_does_not_go_on(folder, tiny, truth, tmp_path):
    """There is no file, so no hash of it: two such models must still be told apart."""
    output, cells = tmp_path / "out.zarr", folder / "cells.h5ad"
    mine, options = tiny.copy("mine"), {"cells_per_shard": 50, "dtype": "float32", "resume": True}
    unfinished_run(folder, output, mine)
    other = tiny.copy("mine")
    other.network.layers[0].up.weight[3, 3] += 1
    with pytest.raises(InputError, match=r"differs: model \("):
        tahoe.embed_file(cells, output, other, **options)
    other.network.config = dataclasses.replace(mine.config, activation="gelu")
    other.network.layers[0].up.weight[3, 3] -= 1
    with pytest.raises(InputError, match=r"differs: model \("):
        tahoe.embed_file(cells, output, other, **options)
    assert len(shards(output)) == 2
    store = embed(cells, output, tiny.copy("the same"), resume=True)
    np.testing.assert_array_equal(store.obsm["X_tahoe"], truth.obsm["X_tahoe"])


@pytest.mark.parametrize("name", ["cells.h5ad", "v3.zarr"])
def test_an_input_that_changed_is_noticed(folder, tiny_model, tmp_path, name):
    import shutil

    source = tmp_path / name
    (shutil.copytree if name.endswith("zarr") else shutil.copy2)(folder / name, source)
    output = tmp_path / "out.zarr"
    unfinished_run(tmp_path, output, tiny_model, source=name)
    adata = anndata.read_zarr(source) if name.endswith("zarr") else anndata.read_h5ad(source)
    adata.X.data[0] += 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # how zarr formats will change in future
        (adata.write_zarr if name.endswith("zarr") else adata.write_h5ad)(source)
    with pytest.raises(InputError, match="time of change of the input"):
        tahoe.embed_file(source, output, tiny_model, cells_per_shard=50, dtype="float32", resume=True)
    assert len(shards(output)) == 2


def test_a_truncated_file(folder, tiny_model, tmp_path):
    whole = (folder / "cells.h5ad").read_bytes()
    for share in (0.0, 0.3, 0.9):
        (tmp_path / "cut.h5ad").write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(InputError, match="not a whole HDF5 file"):
            tahoe.embed_file(tmp_path / "cut.h5ad", tmp_path / "out.zarr", tiny_model)
    assert [path.name for path in tmp_path.iterdir()] == ["cut.h5ad"]


def test_a_damaged_store(folder, tiny_model, tmp_path):
    """A chunk in the middle is cut: the shards before it stay, and the error says which rows."""
    import shutil

    shutil.copytree(folder / "v3.zarr", tmp_path / "v3.zarr")
    chunks = sorted((tmp_path / "v3.zarr" / "X" / "indices" / "c").rglob("*"), key=lambda path: path.stat().st_size)
    chunks[-1].write_bytes(chunks[-1].read_bytes()[:1000])
    with pytest.raises(InputError, match="cannot be read"):
        tahoe.embed_file(tmp_path / "v3.zarr", tmp_path / "out.zarr", tiny_model, cells_per_shard=50)
    assert not (tmp_path / "out.zarr").exists()


@pytest.fixture
def mounted(tmp_path):
    """Mount a small file system, where this is allowed."""
    place = tmp_path / "mounted"
    place.mkdir()

    def mount(options):
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            pytest.skip(f"a file system cannot be mounted here: {done.stderr.strip()}")
        return place

    yield mount
    subprocess.run(["umount", str(place)], capture_output=True, check=False)


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a tmpfs")
def test_a_full_disk(folder, truth, tiny_model, mounted):
    with pytest.warns(TahoeWarning, match="express no gene"):
        tahoe.embed_file(folder / "cells.h5ad", folder / "whole.zarr", tiny_model, cells_per_shard=50, dtype="float32")
    pages = sum(math.ceil(path.stat().st_size / 4096) for path in (folder / "whole.zarr").rglob("*") if path.is_file())
    place = mounted(f"size={4 * (pages - 15)}k")  # a shard takes five pages
    with pytest.raises(InputError, match=r"the disk is full\. \d of 6 shards are finished and stay") as caught:
        tahoe.embed_file(folder / "cells.h5ad", place / "out.zarr", tiny_model, cells_per_shard=50, dtype="float32")
    finished = shards(place / "out.zarr")
    assert f"{len(finished)} of 6" in str(caught.value)
    assert 0 < len(finished) < 6
    assert not (place / "out.zarr").exists()
    subprocess.run(["mount", "-o", "remount,size=4m", str(place)], check=True)
    store = embed(folder / "cells.h5ad", place / "out.zarr", tiny_model, resume=True)
    np.testing.assert_array_equal(store.obsm["X_tahoe"], truth.obsm["X_tahoe"])
    after = place / "out.zarr" / "obsm" / "X_tahoe" / "c"
    assert {name: (after / name / "0").stat().st_ino for name in finished} == {n: i for n, (i, _) in finished.items()}


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a tmpfs")
def test_a_read_only_output(folder, tiny_model, mounted):
    place = mounted("size=1m,ro")
    with pytest.raises(InputError, match="cannot be written: .*[Rr]ead-only"):
        tahoe.embed_file(folder / "cells.h5ad", place / "out.zarr", tiny_model)


def test_a_folder_in_the_way_is_left_alone(folder, tiny_model, tmp_path):
    (tmp_path / "out.zarr.partial").mkdir()
    (tmp_path / "out.zarr.partial" / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match="tahoe did not write it"):
        tahoe.embed_file(folder / "cells.h5ad", tmp_path / "out.zarr", tiny_model, resume=True)
    assert (tmp_path / "out.zarr.partial" / "thesis.txt").read_text() == "precious"


def test_a_run_that_died_while_it_began(folder, truth, tiny_model, tmp_path):
    (tmp_path / "out.zarr.partial" / "store" / "obsm").mkdir(parents=True)
    store = embed(folder / "cells.h5ad", tmp_path / "out.zarr", tiny_model)
    np.testing.assert_array_equal(store.obsm["X_tahoe"], truth.obsm["X_tahoe"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output": "."}, "output='.' exists"),
        ({"output": "no/such/folder/out.zarr"}, "folder that does not exist"),
        ({"stored_dtype": "int8"}, "stored_dtype='int8'"),
        ({"cells_per_shard": 0}, "cells_per_shard=0: it must be at least 1"),
        ({"key_added": "a/b"}, "key_added='a/b'"),
        ({"layer": "counts"}, r"layers\['counts'\] does not exist"),
        ({"use_raw": True}, "adata.raw is None"),
        ({"source": "nothing.h5ad"}, "'nothing.h5ad' does not exist"),
        ({"source": "nothing.zarr"}, "'nothing.zarr' does not exist"),
        ({"source": "nonsense://bucket/cells.h5ad"}, "cannot be opened"),
        ({"drug_key": "drug"}, "no drug encoder"),
    ],
)
def test_bad_arguments(folder, tiny_model, tmp_path, options, message, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = {"source": folder / "cells.h5ad", "output": "out.zarr"} | options
    with pytest.raises(InputError, match=message):
        tahoe.embed_file(arguments.pop("source"), arguments.pop("output"), tiny_model, **arguments)
    assert list(tmp_path.iterdir()) == []


def test_storage_by_columns_is_refused(folder, tiny_model, tmp_path):
    adata = anndata.read_h5ad(folder / "cells.h5ad")
    adata.X = adata.X.tocsc()
    adata.write_h5ad(tmp_path / "csc.h5ad")
    with pytest.raises(InputError, match=r"by columns \(CSC\)"):
        tahoe.embed_file(tmp_path / "csc.h5ad", tmp_path / "out.zarr", tiny_model)


def test_a_file_that_is_no_anndata(tiny_model, tmp_path):
    import h5py

    with h5py.File(tmp_path / "other.h5ad", "w") as file:
        file["X"] = np.zeros((3, 3))
    with pytest.raises(InputError, match="is not an AnnData"):
        tahoe.embed_file(tmp_path / "other.h5ad", tmp_path / "out.zarr", tiny_model)
    zarr.create_group(tmp_path / "other.zarr")
    with pytest.raises(InputError, match="is not an AnnData"):
        tahoe.embed_file(tmp_path / "other.zarr", tmp_path / "out.zarr", tiny_model)


def test_no_file_stays_open(folder, tiny_model, tmp_path):
    def opened():
        return [link for link in Path("/proc/self/fd").iterdir() if "only here.h5ad" in os.path.realpath(link)]

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("needs /proc")
    # a file of its own: what other tests left open is closed when Python likes
    source = shutil.copy(folder / "cells.h5ad", tmp_path / "only here.h5ad")
    with source.open():
        assert opened()
    embed(source, tmp_path / "out.zarr", tiny_model)
    assert not opened()


def test_former_names_of_keywords(tiny, full_cells, tmp_path):
    full_cells.obs["kind"] = "a"
    full_cells.write_h5ad(tmp_path / "cells.h5ad")
    with pytest.warns(FutureWarning, match=r"(columns|shard_cells)= of embed_file\(\) is now called") as warned:
        tahoe.embed_file(tmp_path / "cells.h5ad", tmp_path / "out.zarr", tiny, columns=True, shard_cells=40)
    assert {warning.filename for warning in warned} == {__file__}
    assert set(anndata.read_zarr(tmp_path / "out.zarr").obs) == {"kind", "tahoe_n_genes"}
    with pytest.warns(FutureWarning), pytest.raises(TypeError, match="now called keep_metadata="):
        tahoe.embed_file("a.h5ad", "b.zarr", tiny, columns=True, keep_metadata=True)
