"""Runs that write one output at the same time: one of them does, the others are told, and a dead one holds nothing."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import anndata
import numpy as np
import pytest

import tahoe
from tahoe._store import lock as _lock
from tahoe._store.lock import folder_of, lock_output
from tahoe.errors import InputError

HOLDER = """
import pathlib, sys, time
from tahoe._store.lock import lock_output
with lock_output(pathlib.Path(sys.argv[1])) as folder:
    (folder / "run.json").write_text("{}")
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def output(tmp_path):
    return tmp_path / "out.zarr"


@pytest.fixture
def holder(output):
    """Another process that holds the lock."""
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(output)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def no_locks(*_):
    raise OSError(errno.ENOLCK, "No locks available")


@pytest.fixture(params=["locks of the system", "a file system without locks"])
def system(request, monkeypatch):
    """With flock, and as where a cluster file system has none."""
    if request.param == "a file system without locks":
        monkeypatch.setattr("fcntl.flock", no_locks)


def test_a_second_run_is_told_who_writes(holder, output, system):
    with pytest.raises(InputError, match=rf"another run \(process {holder.pid} on {socket.gethostname()}\) writes"):
        lock_output(output).__enter__()
    # and it leaves the first one alone
    assert holder.poll() is None
    with pytest.raises(InputError, match="another run"), lock_output(output):
        pass


def test_a_killed_run_holds_nothing(holder, output, system):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    start = time.monotonic()
    with lock_output(output) as folder:
        assert (folder / "run.json").is_file()
    assert time.monotonic() - start < 5
    with lock_output(output):
        pass


def test_nothing_is_left_behind(output, system):
    def end(with_what):
        with lock_output(output) as folder:
            assert folder == folder_of(output)
            assert folder.is_dir()
            raise with_what

    for ending in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(ending):
            end(ending)
        assert list(output.parent.iterdir()) == []
    assert not [thread for thread in threading.enumerate() if thread.name == "tahoe-lock"]


@pytest.fixture
def elsewhere(output, monkeypatch):
    """What a run on another machine left, or is leaving."""
    monkeypatch.setattr(_lock, "TIMEOUT", 2.0)
    lock = folder_of(output) / "lock"
    lock.parent.mkdir()
    lock.write_text("another-machine 17")
    os.utime(lock, (0, 0))
    return lock


def test_a_run_on_another_machine_that_gives_no_sign_is_dead(elsewhere, output, system):
    with lock_output(output):
        assert elsewhere.read_text() == f"{socket.gethostname()} {os.getpid()}"
    assert not elsewhere.parent.exists()


def test_a_run_on_another_machine_that_gives_signs_goes_on(elsewhere, output, system):
    ended = threading.Event()
    _send_heartbeats = threading.Thread(
        target=lambda: [os.utime(elsewhere) for _ in iter(lambda: ended.wait(0.3), True)]
    )
    _send_heartbeats.start()
    with pytest.raises(InputError, match=r"another run \(process 17 on another-machine\) writes"):
        lock_output(output).__enter__()
    ended.set()
    _send_heartbeats.join()
    assert elsewhere.read_text() == "another-machine 17"


def test_a_run_gives_signs(output, monkeypatch):
    monkeypatch.setattr(_lock, "HEARTBEAT", 0.1)
    with lock_output(output) as folder:
        os.utime(folder / "lock", (0, 0))
        time.sleep(0.5)
        assert (folder / "lock").stat().st_mtime > 0


def test_an_output_that_was_finished_meanwhile(output):
    output.mkdir()
    with pytest.raises(InputError, match="was written meanwhile by another run"), lock_output(output):
        pass
    assert list(output.parent.iterdir()) == [output]


def test_other_errors_of_a_lock_are_told(output, monkeypatch):
    def broken(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("fcntl.flock", broken)
    with pytest.raises(InputError, match="cannot be written: .*Input/output error"), lock_output(output):
        pass


@pytest.mark.parametrize("kind", ["zarr", "h5ad"])
def test_runs_that_start_together(heart, tmp_path, kind):
    """As the jobs of an array do; one of them finishes, whoever is late is told, and none is to look for a bug."""
    cells, output = tmp_path / "cells.h5ad", tmp_path / f"out.{kind}"
    heart[:30, ::4].copy().write_h5ad(cells)
    options = ["--cells-per-shard", "5", "--resume"] if kind == "zarr" else []
    command = ["-q", "embed", str(cells), "-o", str(output), "-m", "demo", "--max-length", "200", *options]
    runs = [
        subprocess.Popen([sys.executable, "-m", "tahoe.cli", *command], stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    told = [run.communicate()[1] for run in runs]
    assert sorted(run.returncode for run in runs) == [0, 1]
    for message in (message for message, run in zip(told, runs, strict=True) if run.returncode):
        assert message.count("\n") == 1
        assert "another run" in message or "exists" in message
    store = anndata.read_zarr(output) if kind == "zarr" else anndata.read_h5ad(output)
    whole = anndata.read_h5ad(cells)
    tahoe.tl.embed(whole, "demo", max_length=200, dtype=store.uns["X_tahoe"]["dtype"])
    np.testing.assert_array_equal(store.obsm["X_tahoe"], whole.obsm["X_tahoe"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cells.h5ad", f"out.{kind}"]


@pytest.mark.parametrize("kind", ["zarr", "h5ad"])
def test_a_run_beside_another_computes_nothing(heart, tmp_path, kind, monkeypatch):
    """It is told before the weights are loaded."""
    output = tmp_path / f"out.{kind}"
    heart[:5, ::4].copy().write_h5ad(tmp_path / "cells.h5ad")
    monkeypatch.setattr("tahoe.model.loading.read_checkpoint", lambda _: pytest.fail("the weights were loaded"))
    with lock_output(output), pytest.raises(InputError, match="another run"):
        tahoe.embed_file(tmp_path / "cells.h5ad", output, "demo")
