"""Where results go: h5ad and zarr by the name, by either door, from here or from a URL; and what stops a run."""

from __future__ import annotations

import errno
from pathlib import Path

import anndata
import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

import tahoe
from tahoe import cli
from tahoe.errors import InputError, TahoeError


@pytest.fixture
def cells(heart, tmp_path):
    """Some cells in a file, and their vectors."""
    cells = heart[:8].copy()
    cells.layers["counts"] = cells.X.copy()
    cells.write_h5ad(tmp_path / "cells.h5ad")
    tahoe.tl.embed(cells, "demo", max_length=100)
    return cells


def by_function(source, output, **options):
    tahoe.embed_file(source, output, "demo", max_length=100, **options)


def by_command(source, output, **options):
    more = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    command = ["-q", "embed", str(source), "-o", str(output), "-m", "demo", "--max-length", "100", "--dtype", "float32"]
    assert cli.main([*command, *more]) == 0


DOORS = pytest.mark.parametrize("door", [by_function, by_command])


@DOORS
@pytest.mark.parametrize("name", ["out.h5ad", "OUT.H5AD"])
def test_an_h5ad_output_is_the_file_with_the_result(cells, tmp_path, door, name):
    door(tmp_path / "cells.h5ad", tmp_path / name)
    found = anndata.read_h5ad(tmp_path / name)
    np.testing.assert_array_equal(found.obsm["X_tahoe"], cells.obsm["X_tahoe"])
    np.testing.assert_array_equal(found.X.toarray(), cells.X.toarray())
    assert set(found.layers) >= {"counts"}
    assert found.obs["cell_type"].tolist() == cells.obs["cell_type"].tolist()
    assert found.uns["X_tahoe"]["source"] == str(tmp_path / "cells.h5ad")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["cells.h5ad", name])


def test_both_doors_write_the_same(cells, tmp_path):
    for door in (by_function, by_command):
        door(tmp_path / "cells.h5ad", tmp_path / f"{door.__name__}.h5ad", gene_key="var_names", organism="human")
    first, second = (anndata.read_h5ad(tmp_path / f"{door.__name__}.h5ad") for door in (by_function, by_command))
    assert list(first.uns["X_tahoe"]) == list(second.uns["X_tahoe"])
    assert {k: str(v) for k, v in first.uns["X_tahoe"].items()} == {k: str(v) for k, v in second.uns["X_tahoe"].items()}
    assert first.uns["X_tahoe"]["gene_key"] == "var_names"
    np.testing.assert_array_equal(first.obsm["X_tahoe"], second.obsm["X_tahoe"])


@pytest.mark.parametrize("name", ["out", "out.h5", "out.h5mu", "out.h5ad.gz", "out.zarr.zip", "out.loom", "out.csv"])
def test_other_names_are_refused(cells, tmp_path, name, capsys):
    with pytest.raises(InputError, match=r"must end in \.zarr, .* or in \.h5ad"):
        by_function(tmp_path / "cells.h5ad", tmp_path / name)
    assert cli.main(["-q", "embed", str(tmp_path / "cells.h5ad"), "-o", str(tmp_path / name), "-m", "demo"]) == 2
    assert "must end in .zarr or .h5ad" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["cells.h5ad"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"resume": True}, "resume="),
        ({"keep_metadata": True}, "keep_metadata="),
        ({"stored_dtype": "float16"}, "stored_dtype="),
        ({"cells_per_shard": 10, "client": object()}, "client=, cells_per_shard="),
    ],
)
def test_what_goes_with_stores_only(cells, tmp_path, options, told):
    with pytest.raises(InputError, match=f"{told} goes with a zarr store"):
        by_function(tmp_path / "cells.h5ad", tmp_path / "out.h5ad", **options)


def test_an_h5ad_output_that_fails_leaves_nothing(cells, tmp_path):
    cells.X.data[0] = -1
    cells.write_h5ad(tmp_path / "cells.h5ad")
    (tmp_path / "there.h5ad").write_text("precious")
    for output, told in (("out.h5ad", "negative values"), ("there.h5ad", "exists"), ("no/out.h5ad", "does not exist")):
        with pytest.raises(InputError, match=told):
            by_function(tmp_path / "cells.h5ad", tmp_path / output)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cells.h5ad", "there.h5ad"]
    assert (tmp_path / "there.h5ad").read_text() == "precious"


def test_a_finished_run_is_not_resumed(cells, tmp_path):
    by_function(tmp_path / "cells.h5ad", tmp_path / "out.zarr", resume=True)
    with pytest.raises(InputError, match="exists, so there is nothing to resume"):
        by_function(tmp_path / "cells.h5ad", tmp_path / "out.zarr", resume=True)


@DOORS
@pytest.mark.parametrize("kind", ["zarr", "h5ad"])
def test_a_url_as_source(cells, tmp_path, door, kind):
    url, output = "memory://urls/cells.h5ad", tmp_path / f"out.{kind}"
    fsspec.filesystem("memory").pipe("/urls/cells.h5ad", (tmp_path / "cells.h5ad").read_bytes())
    door(url, output)
    found = anndata.read_zarr(output) if kind == "zarr" else anndata.read_h5ad(output)
    np.testing.assert_array_equal(found.obsm["X_tahoe"], cells.obsm["X_tahoe"])
    assert found.uns["X_tahoe"]["source"] == url
    again = tmp_path / "again.zarr"
    assert cli.main(["-q", "embed", "--like", str(output), "-o", str(again)]) == 0
    np.testing.assert_array_equal(anndata.read_zarr(again).obsm["X_tahoe"], cells.obsm["X_tahoe"])


class Lost(Exception):
    """What a package for a protocol raises by itself, as aiohttp does."""

    __module__ = "aiohttp.client_exceptions"


class Flaky(MemoryFileSystem):
    """Files in memory behind a connection that fails at some point."""

    protocol = "flaky"
    store, pseudo_dirs = {}, [""]
    error: Exception | None = None
    after = 0

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.replace("flaky://", "memory://"))

    def open(self, path, mode="rb", **options):
        file = super().open(path, mode, **options)
        read, left = file.read, [type(self).after]

        def slowly(length=-1):
            left[0] -= 1
            if self.error is not None and left[0] < 0:
                raise self.error
            return read(length)

        file.read = slowly
        return file


@pytest.fixture
def flaky(cells, tmp_path):
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    fsspec.filesystem("flaky").pipe("/cells.h5ad", (tmp_path / "cells.h5ad").read_bytes())
    yield Flaky
    Flaky.error, Flaky.after = None, 0


FAILURES = [
    TimeoutError("timed out"),
    ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
    Lost("Server disconnected"),
]


@pytest.mark.parametrize("error", FAILURES)
@pytest.mark.parametrize("after", [0, 1, 60])
@pytest.mark.parametrize("kind", ["zarr", "h5ad"])
def test_a_connection_that_fails_is_no_full_disk(flaky, tmp_path, error, after, kind):
    by_function("flaky://cells.h5ad", tmp_path / f"whole.{kind}")
    flaky.error, flaky.after = error, after
    with pytest.raises(InputError, match="the connection failed") as caught:
        by_function("flaky://cells.h5ad", tmp_path / f"out.{kind}")
    assert str(error).rpartition("] ")[2] in str(caught.value)
    for wrong in ("written", "whole", "HDF5"):
        assert wrong not in str(caught.value)


def test_urls_that_lead_to_something_else(tmp_path):
    memory = fsspec.filesystem("memory")
    memory.pipe("/page.h5ad", b"<!DOCTYPE html><html>")
    with pytest.raises(InputError, match="'memory://page.h5ad' is a page of a web site"):
        by_function("memory://page.h5ad", tmp_path / "out.zarr")
    for name in ("nothing.h5ad", "nothing.zarr"):
        with pytest.raises(InputError, match=f"'memory://{name}' does not exist there"):
            by_function(f"memory://{name}", tmp_path / "out.zarr")
    assert list(tmp_path.iterdir()) == []


def test_a_cluster_that_is_lost_is_no_full_disk(cells, tmp_path, monkeypatch):
    distributed = pytest.importorskip("distributed")
    gone = distributed.comm.CommClosedError("in <TCP>: CellBatches is closed")

    def lost(*_, **__):
        raise gone

    with (
        distributed.LocalCluster(n_workers=1, processes=False, dashboard_address=":0") as cluster,
        distributed.Client(cluster) as client,
    ):
        monkeypatch.setattr("distributed.as_completed", lost)
        with pytest.raises(
            TahoeError, match=r"CommClosedError.*0 of 4 shards are finished and stay; go on with"
        ) as told:
            by_function(tmp_path / "cells.h5ad", tmp_path / "out.zarr", client=client, cells_per_shard=2)
    assert "written" not in str(told.value)


@pytest.mark.parametrize(
    ("number", "told"),
    [(errno.ENOSPC, "the disk is full"), (errno.EDQUOT, "your quota"), (errno.EACCES, "you may not write there")],
)
def test_what_cannot_be_written_says_why(cells, tmp_path, monkeypatch, number, told):
    def refuse(*_, **__):
        raise OSError(number, "refused")

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(InputError, match=f"cannot be written: {told}.*1 of 1 shards are finished and stay"):
        by_function(tmp_path / "cells.h5ad", tmp_path / "out.zarr")
    monkeypatch.undo()
    by_function(tmp_path / "cells.h5ad", tmp_path / "out.zarr", resume=True)
    np.testing.assert_array_equal(anndata.read_zarr(tmp_path / "out.zarr").obsm["X_tahoe"], cells.obsm["X_tahoe"])
