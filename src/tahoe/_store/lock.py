"""One run at a time writes an output, also where several machines see it; a run that was killed holds nothing."""

from __future__ import annotations

import errno
import logging
import os
import socket
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from io import FileIO
from typing import TYPE_CHECKING

from tahoe._store.output import explain_disk_errors
from tahoe.errors import InputError
from tahoe.model.causes import UNLOCKABLE

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

log = logging.getLogger(__name__)

LOCK_FILE = "lock"
# What runs leave in their folder; anything else there is not theirs.
OURS = {LOCK_FILE, "store", "run.json", "run.json.new", "cells.h5ad"}
OURS |= {"state.pt", "state.partial", "metrics.jsonl", "tensorboard", "model"}  # of a training run
# Seconds between two heartbeats, and without one after which a run on another machine is taken for dead.
HEARTBEAT, TIMEOUT = 5.0, 20.0


def folder_of(output: Path) -> Path:
    """Where an output is until it is complete."""
    return output.with_name(f"{output.name}.partial")


@contextmanager
def lock_output(output: Path) -> Iterator[Path]:
    """Be the only run that writes `output`; gives the folder in which it may lie until it is complete.

    The lock is one of the operating system, which ends with the process, whatever ends it. Not all cluster file systems
    have locks, or they hold on one machine only. So a run also has a heartbeat, the time of the lock file, which one
    on another machine watches first.

    Raises
    ------
    tahoe.errors.InputError
        If another run writes the output, if it is there already, or if nothing can be written there.
    """
    folder, ended = folder_of(output), threading.Event()
    _refuse_foreign(folder)
    with explain_disk_errors(f"output={str(output)!r}"):
        file = _acquire(folder, output)
    heartbeat = threading.Thread(target=_keep_alive, args=(folder / LOCK_FILE, ended), name="tahoe-lock", daemon=True)
    heartbeat.start()
    try:
        if output.exists():
            message = f"output={str(output)!r} was written meanwhile by another run; there is nothing left to do"
            raise InputError(message)
        yield folder
    finally:
        ended.set()
        heartbeat.join()
        _release(folder, file)


def _refuse_foreign(folder: Path) -> None:
    try:
        foreign = folder.is_file() or bool({path.name for path in folder.glob("*")} - OURS)
    except OSError:
        return  # told when the lock is made
    if foreign:
        message = f"{str(folder)!r} is in the way, and tahoe did not write it; choose another output"
        raise InputError(message)


def _acquire(folder: Path, output: Path) -> FileIO:
    """The file of the lock, locked and signed."""
    lock, me = folder / LOCK_FILE, (socket.gethostname(), os.getpid())
    while True:
        folder.mkdir(exist_ok=True)
        with suppress(FileNotFoundError), ExitStack() as stack:
            file = stack.enter_context(FileIO(os.open(lock, os.O_RDWR | os.O_CREAT, 0o666), "r+"))
            of_system = _try_flock(file)
            if of_system is None or _still_runs(lock, file, of_system):
                raise _busy(output, _owner(file))
            if not os.path.samestat(os.fstat(file.fileno()), lock.stat()):
                continue  # a run that ended removed it; so it did where a file is not found
            _sign(file, *me)
            if not of_system:
                time.sleep(1)  # who signed last has it
                if _owner(file) != me:
                    raise _busy(output, _owner(file))
            stack.pop_all()
            return file


def _try_flock(file: FileIO) -> bool | None:
    """Lock a file: None if another process has locked it, False if this file system cannot."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return None
        if error.errno not in (*UNLOCKABLE, 524):
            raise
        return False
    return True


def _still_runs(lock: Path, file: FileIO, of_system: bool) -> bool:
    """Whether the run that signed last goes on, as far as the operating system has not told already."""
    owner = _owner(file)
    if owner is None:
        return False
    host, process = owner
    if host == socket.gethostname():
        return not of_system and _process_exists(process)
    return _has_heartbeat(lock, host)


def _owner(file: FileIO) -> tuple[str, int] | None:
    """Host and process that signed; None if nobody did, or all of them ended."""
    file.seek(0)
    host, _, process = file.read(1000).decode(errors="replace").rpartition(" ")
    return (host, int(process)) if host and process.isdigit() else None


def _sign(file: FileIO, host: str = "", process: int | str = "") -> None:
    """Say who writes; nobody, without arguments."""
    file.seek(0)
    file.truncate()
    file.write(f"{host} {process}".encode())
    os.fsync(file.fileno())


def _process_exists(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _has_heartbeat(lock: Path, host: str) -> bool:
    """Whether the time of a file changes, by the clock of the file system; it is opened, so that no cache answers."""
    log.info("the last run of this output was on %s; watching for %d s whether it goes on", host, TIMEOUT)

    def stamp() -> int:
        with lock.open("rb") as file:
            return os.fstat(file.fileno()).st_mtime_ns

    before, end = stamp(), time.monotonic() + TIMEOUT
    while time.monotonic() < end:
        time.sleep(min(1, TIMEOUT / 4))
        if stamp() != before:
            return True
    return False


def _keep_alive(lock: Path, ended: threading.Event) -> None:
    while not ended.wait(HEARTBEAT):
        with suppress(OSError):
            os.utime(lock)


def _release(folder: Path, file: FileIO) -> None:
    """Give the lock back, and remove the folder if nothing else is in it."""
    with suppress(OSError):
        _sign(file)
        if {path.name for path in folder.iterdir()} == {LOCK_FILE}:
            # while it is held: what others may have opened is no lock any more
            (folder / LOCK_FILE).unlink()
    file.close()
    with suppress(OSError):
        folder.rmdir()


def _busy(output: Path, owner: tuple[str, int] | None) -> InputError:
    who = "" if owner is None else f" (process {owner[1]} on {owner[0]})"
    return InputError(
        f"another run{who} writes {str(output)!r} at this moment; wait until it ends. Several processes share one run"
        " with --workers or --scheduler (client=), not by each starting it"
    )
