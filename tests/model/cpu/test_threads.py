from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from tahoe.model.cpu.threads import n_cores, n_threads, parallel_for


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_every_item_once_in_inference_mode(threads):
    done = []
    parallel_for(lambda item: done.append((item, torch.is_inference_mode_enabled())), range(500))
    assert sorted(done) == [(item, True) for item in range(500)]
    parallel_for(done.append, [])
    assert len(done) == 500


def test_a_worker_is_one_thread_and_changes_no_other(threads):
    inside = []
    parallel_for(lambda _: inside.append(torch.get_num_threads()), range(20))
    assert inside == [1] * 20
    assert torch.get_num_threads() == threads
    elsewhere = threading.Thread(target=lambda: inside.append(torch.get_num_threads()))
    elsewhere.start()
    elsewhere.join()
    assert inside[-1] == threads


def test_an_error_ends_the_work_and_surfaces(threads):
    done = []

    def work(item):
        if item == 3:
            message = "item 3"
            raise IndexError(message)
        done.append(item)

    with pytest.raises(IndexError, match="item 3"):
        parallel_for(work, range(10**5))
    assert len(done) < 10**5


def test_callers_share_the_threads(threads):
    names = set()
    with ThreadPoolExecutor(6) as callers:
        calls = [
            callers.submit(parallel_for, lambda _: names.add(threading.current_thread()), range(50)) for _ in range(6)
        ]
        for call in calls:
            call.result()
    assert len(names) <= n_cores()
    assert n_threads() <= threads


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity here")
def test_cores_are_those_that_the_process_may_use():
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from tahoe.model.cpu.threads import n_cores, n_threads; print(n_cores(), n_threads())"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["1", "1"]


def test_omp_num_threads_counts():
    code = "from tahoe.model.cpu.threads import n_threads; print(n_threads())"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    out = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "1"


def test_the_interpreter_ends_after_an_interrupt():
    code = """
import signal, threading, time
from tahoe.model.cpu.threads import parallel_for
def work(item):
    time.sleep(0.001)
    if item == 5:
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
parallel_for(work, range(10**5))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert "KeyboardInterrupt" in run.stderr
