"""Many cells on many cores: each core takes whole cells, one at a time, and computes with a single thread.

Cells do not depend on each other, so nobody waits between operations, as threads inside an operation do. And what
comes out for a cell does not depend on the number of cores.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING

import torch

from tahoe.settings import IMPORTED_BY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_pool_lock = threading.Lock()


def parallel_for(work: Callable[[int], None], items: Iterable[int]) -> None:
    """Call ``work(item)`` for each item, in inference mode, on as many threads as the caller may use.

    They take items in their order. An error, or an interrupt, ends the work and is raised here.
    """
    todo = deque(items)

    @torch.inference_mode()
    def worker() -> None:
        try:
            for item in _drain(todo):
                work(item)
        except BaseException:
            todo.clear()
            raise

    with _pool_lock:
        pool = _pool()
    threads = [pool.submit(worker) for _ in range(min(n_threads(), len(todo)))]
    try:
        for thread in threads:
            thread.result()
    finally:
        # after an interrupt the threads still finish their cell: not behind the caller's back
        todo.clear()
        wait(threads)


def n_threads() -> int:
    """How many threads a call may use: as many as torch may use threads here, if there are so many cores.

    torch counts physical cores, and heeds ``OMP_NUM_THREADS``, which dask sets to 1 in its workers.
    """
    return min(torch.get_num_threads(), n_cores())


def n_cores() -> int:
    """How many cores this process may keep busy: by its affinity and, in a container, by its quota."""
    import joblib  # comes with scanpy; takes a moment to import

    return joblib.cpu_count()


def _drain(items: deque[int]) -> Iterator[int]:
    """The items that are left; other threads take theirs from the same queue."""
    with suppress(IndexError):
        while True:
            yield items.popleft()


@cache
def _pool() -> ThreadPoolExecutor:
    """Threads that all callers share, each with one thread inside of operations. They end with the interpreter."""
    n = n_cores()
    pool, started = ThreadPoolExecutor(n, "tahoe-thread"), threading.Barrier(n + 1, timeout=60)
    before = torch.get_num_threads()

    def start() -> None:
        torch.get_num_threads()  # gives a new thread the default, which would else come later, on top
        torch.set_num_threads(1)
        started.wait()

    for _ in range(n):
        pool.submit(start)
    started.wait()
    # the default for threads to come was changed too
    torch.set_num_threads(before)
    return pool


def _after_fork() -> None:
    """Forget the threads of the parent, which a forked process lacks: it would wait for them without end.

    torch has threads of its own inside of operations, as soon as one was large. With one thread it asks for none.
    """
    global _pool_lock
    _pool_lock = threading.Lock()  # which a thread of the parent may have held
    _pool.cache_clear()
    torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
    if os.getpid() != IMPORTED_BY:
        _after_fork()
