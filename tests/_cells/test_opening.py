"""Files that are not what they are taken for: each is read, or named for what it is, with the way on."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import warnings
from pathlib import Path

import anndata
import h5py
import numpy as np
import pytest
import zarr

import tahoe
from tahoe.errors import InputError

HTML = b"\n<!DOCTYPE html>\n<html><head><title>Sign in</title>"
TABLE = b",GENE1,GENE2\ncell1,0,3\ncell2,1,0\n"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.fixture
def cells(heart):
    return heart[:4, ::4].copy()


@pytest.fixture
def h5ad(cells, tmp_path):
    cells.write_h5ad(tmp_path / "cells.h5ad")
    return tmp_path / "cells.h5ad"


@pytest.fixture
def store(cells, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # how zarr formats will change in future
        cells.write_zarr(tmp_path / "cells.zarr")
    return tmp_path / "cells.zarr"


def refusal(path) -> str:
    """What is said of an input; the same by all doors, and nothing is left."""
    path = Path(path) if "://" not in str(path) else path
    output = (path.parent if isinstance(path, Path) else Path.cwd()) / "out.zarr"
    with pytest.raises(InputError) as caught:
        tahoe.embed_file(path, output, "demo")
    with pytest.raises(InputError) as again:
        tahoe.embed_file(path, output.with_suffix(".h5ad"), "demo")
    assert str(again.value) == str(caught.value)
    assert not list(output.parent.glob("out.*"))
    assert "copied to the end" not in str(caught.value) or path.name.startswith("cut")
    return str(caught.value)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (HTML, "is a page of a web site"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code>", "is an answer in XML"),
        (POINTER, "is a pointer of Git LFS, not the file itself; call `git lfs pull`"),
        (b"/annex/objects/SHA256E-s123--abc.h5ad\n", "git annex get"),
        (TABLE, "sc.read_csv("),
        (TABLE.replace(b",", b"\t"), r"delimiter='\t', first_column_names=True"),
        (gzip.compress(TABLE, mtime=0), "sc.read_csv("),
        (bz2.compress(b"123"), "bunzip2"),
        (lzma.compress(b"123"), "unxz"),
        (b"\x28\xb5\x2f\xfd123", "unzstd"),
        (gzip.compress(b"RDX3\nX\n\x00\x00\x00\x03", mtime=0), "is a file of R; in R: anndataR::write_h5ad(readRDS("),
        (
            gzip.compress(b"X\n\x00\x00\x00\x03\x00\x04", mtime=0),
            "is a file of R (rds); in R: anndataR::write_h5ad(readRDS(",
        ),
        (b"%%MatrixMarket matrix coordinate integer general\n%\n2 2 1\n1 1 5\n", "sc.read_10x_mtx"),
        (gzip.compress(b"%%MatrixMarket matrix coordinate integer general\n", mtime=0), "sc.read_10x_mtx"),
        (b"PAR1\x15\x04", "pandas.read_parquet"),
        (pickle.dumps({"a": 1}), "is a pickle"),
        (gzip.compress(b"\x00\x01\x02", mtime=0), "is compressed by gzip; unpack it first: `gunzip -k"),
        (b"", "is not a whole HDF5 file"),
        (b"\x00" * 600, "is not a whole HDF5 file"),
    ],
)
def test_files_of_other_kinds(tmp_path, content, told):
    path = tmp_path / ("cut.h5ad" if "whole" in told else "cells.h5ad")
    path.write_bytes(content)
    assert told in refusal(path)


def test_h5ad_and_archives(h5ad, store):
    folder = h5ad.parent
    (folder / "cells.h5ad.gz").write_bytes(gzip.compress(h5ad.read_bytes()))
    assert "is compressed by gzip; unpack it first: `gunzip -k" in refusal(folder / "cells.h5ad.gz")
    for mode, how in (("w", "tar xf"), ("w:gz", "tar xzf")):
        with tarfile.open(folder / "cells.tar", mode) as archive:
            archive.add(h5ad)
        assert how in refusal(folder / "cells.tar")
    shutil.make_archive(str(folder / "plain"), "zip", folder, "cells.h5ad")
    assert "is a zip archive without a zarr store; unpack it first" in refusal(folder / "plain.zip")
    np.savez(folder / "arrays.npz", a=np.ones(3))
    assert "scipy.sparse.load_npz" in refusal(folder / "arrays.npz")
    shutil.make_archive(str(folder / "cut"), "zip", store)
    (folder / "cut.zip").write_bytes((folder / "cut.zip").read_bytes()[:5000])
    assert "is not a whole zip archive" in refusal(folder / "cut.zip")


def test_other_files_in_hdf5(tmp_path):
    def written(name, **groups):
        with h5py.File(tmp_path / name, "w") as file:
            for group, names in groups.items():
                for each in names:
                    file.create_dataset(f"{group}/{each}", data=[1])
        return refusal(tmp_path / name)

    assert "loom file; sc.read_loom" in written("a.loom", matrix=["x"], row_attrs=["Gene"], col_attrs=["CellID"])
    assert "mudata.read" in written("a.h5mu", mod=["rna"], obs=["x"], var=["x"])
    assert "SeuratDisk::Convert" in written("a.h5seurat", assays=["RNA"], **{"meta.data": ["x"]})
    assert "is not an AnnData: it has no obs and var, but 'metrics', 'umis'" in written(
        "molecule_info.h5", umis=["x"], metrics=["x"]
    )
    assert "anndata before 0.7" in written("old.h5ad", obs=["x"], var=["x"], X=["x"])


def test_folders(tmp_path, h5ad, store):
    other = tmp_path / "other"
    other.mkdir()
    assert "is a folder, and no zarr store; it has neither zarr.json nor .zgroup" in refusal(other)
    shutil.copy(h5ad, other / "inside.h5ad")
    assert f"it has {str(other / 'inside.h5ad')!r}: pass that" in refusal(other)
    mtx = tmp_path / "outs" / "filtered_feature_bc_matrix"
    mtx.mkdir(parents=True)
    (mtx / "matrix.mtx.gz").write_bytes(b"")
    assert f"sc.read_10x_mtx({str(mtx)!r})" in refusal(mtx)
    assert f"it has {str(mtx)!r}: pass that" in refusal(mtx.parent)
    for part in ("X/data", "X", "obs", "layers"):
        assert f"is a part of {str(store)!r}; pass that" in refusal(store / part)
    assert "mudata.read" in refusal(group(tmp_path / "mu.zarr", "mod/rna"))
    assert f"pass its table, such as {str(tmp_path / 'sd.zarr')}/tables/table" in refusal(
        group(tmp_path / "sd.zarr", "tables/table")
    ).replace("'", "")


def group(path, inside):
    zarr.create_group(path).create_group(inside)
    return path


def test_an_unfinished_run_is_no_input(tmp_path):
    run = tmp_path / "atlas.zarr.partial"
    (run / "store").mkdir(parents=True)
    (run / "run.json").write_text("{}")
    assert "is an unfinished run; finish it with resume=True" in refusal(run)


def test_what_is_not_there(tmp_path):
    assert "does not exist; give an h5ad file" in refusal(tmp_path / "nothing.zarr")
    (tmp_path / "link.h5ad").symlink_to(tmp_path / "gone.h5ad")
    assert f"is a link to {str(tmp_path / 'gone.h5ad')!r}, which does not exist" in refusal(tmp_path / "link.h5ad")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.h5ad")
        assert "is neither a file nor a folder" in refusal(tmp_path / "pipe.h5ad")


@pytest.mark.parametrize("source", [None, 3, ["cells.h5ad"], anndata.AnnData(np.ones((2, 2)))])
def test_what_is_no_path(source, tmp_path):
    hint = ".*tahoe.tl.embed" if isinstance(source, anndata.AnnData) else ""
    with pytest.raises(InputError, match=rf"source is .*; pass one path, a string{hint}"):
        tahoe.embed_file(source, tmp_path / "out.zarr", "demo")


def vectors(path, **options):
    output = Path(str(path) + ".out.zarr")
    tahoe.embed_file(path, output, "demo", max_length=200, **options)
    return anndata.read_zarr(output)


@pytest.fixture
def truth(cells):
    tahoe.tl.embed(cells, "demo", max_length=200)
    return cells


@pytest.mark.parametrize("top", ["", "cells.zarr"])
def test_a_zipped_store_is_read(truth, store, top):
    place = store.parent / "zips"
    place.mkdir()
    shutil.make_archive(str(place / "cells.zarr"), "zip", store.parent if top else store, top or None)
    found = vectors(place / "cells.zarr.zip", cells_per_shard=2, keep_metadata=True)
    np.testing.assert_array_equal(found.obsm["X_tahoe"], truth.obsm["X_tahoe"])
    assert found.obs_names.equals(truth.obs_names)
    assert found.obs["cell_type"].tolist() == truth.obs["cell_type"].tolist()


def test_content_decides_not_the_name(truth, h5ad, store):
    """An h5ad that is called .zarr or .h5, a store that is called .h5ad, as an earlier version of this made them."""
    for name in ("really.zarr", "really.h5", "no suffix"):
        shutil.copy(h5ad, h5ad.parent / name)
    store.rename(h5ad.parent / "store.h5ad")
    for name in ("really.zarr", "really.h5", "no suffix", "store.h5ad"):
        np.testing.assert_array_equal(vectors(h5ad.parent / name).obsm["X_tahoe"], truth.obsm["X_tahoe"])


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs permissions as POSIX has them")
@pytest.mark.parametrize("name", ["cells.h5ad", "cells.zarr"])
def test_permission_denied(h5ad, store, name):
    path = h5ad.parent / name
    if os.geteuid():
        path.chmod(0)
        assert "cannot be opened (Permission denied); you may not read it" in refusal(path)
        path.chmod(0o700)
        return
    # root may read everything: so another user tries, in a process of its own
    code = (
        "import os, sys, tahoe, h5py, zarr, tahoe._cells.opening\n"
        "os.seteuid(65534)\n"
        "with tahoe._cells.opening.open_source(sys.argv[1]): pass\n"
    )
    path.chmod(0)
    run = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert "cannot be opened (Permission denied); you may not read it" in run.stderr.splitlines()[-1]


OPEN = "import h5py, sys, time; file = h5py.File(sys.argv[1], 'r+'); print(1, flush=True); time.sleep(60)"
DIE = (
    "import h5py, os, sys; file = h5py.File(sys.argv[1], 'w', libver='latest'); file['x'] = [1]; file.flush();"
    " os.kill(os.getpid(), 9)"
)


def test_a_file_that_is_open_for_writing(h5ad):
    with subprocess.Popen([sys.executable, "-c", OPEN, str(h5ad)], stdout=subprocess.PIPE) as writer:
        writer.stdout.readline()
        try:
            assert "is locked: a program has it open for writing" in refusal(h5ad)
        finally:
            writer.kill()


@pytest.mark.skipif(sys.platform == "win32", reason="kills as POSIX does")
def test_a_file_whose_writer_died(tmp_path):
    subprocess.run([sys.executable, "-c", DIE, str(tmp_path / "cells.h5ad")], check=False)
    assert "is marked as open for writing" in refusal(tmp_path / "cells.h5ad")


def test_a_file_system_without_locks(truth, h5ad, monkeypatch):
    """Then HDF5 opens nothing, unless it is told not to lock; nobody can have locked the file either."""

    init = h5py.File.__init__

    def refused(self, name, mode="r", **options):
        if isinstance(name, str) and mode == "r" and options.get("locking") is not False:
            message = "[Errno 524] Unable to open file (unable to lock file, errno = 524, error message = '...')"
            raise OSError(message)
        init(self, name, mode, **options)

    monkeypatch.setattr("h5py.File.__init__", refused)
    np.testing.assert_array_equal(vectors(h5ad).obsm["X_tahoe"], truth.obsm["X_tahoe"])
    tahoe.embed_file(h5ad, h5ad.parent / "out.h5ad", "demo", max_length=200)
    monkeypatch.undo()
    np.testing.assert_array_equal(anndata.read_h5ad(h5ad.parent / "out.h5ad").obsm["X_tahoe"], truth.obsm["X_tahoe"])


def test_a_filter_that_is_missing(h5ad):
    """A file that was compressed by a plugin is whole."""
    with h5py.File(h5ad, "r+") as file:
        n = len(file["X/data"])
        del file["X/data"]
        creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        creation.set_chunk((n,))
        creation.set_filter(32015, h5py.h5z.FLAG_OPTIONAL, ())
        space = h5py.h5s.create_simple((n,))
        data = h5py.h5d.create(file["X"].id, b"data", h5py.h5t.NATIVE_FLOAT, space, creation)
        data.write_direct_chunk((0,), b"1234", 0)
    with pytest.raises(InputError, match="pip install hdf5plugin") as caught:
        tahoe.embed_file(h5ad, h5ad.parent / "out.zarr", "demo")
    assert "whole" not in str(caught.value)
