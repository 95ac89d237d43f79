"""Throw broken and hostile input at what reads files and matrices, and count what comes of it.

Each case is made from a seed, so that it can be made again. The only good outcomes are a `TahoeError` and a right
result, which is judged by an independent reading of the same input. Cases run in processes of their own, a few thousand
each, so that a crash or a case without end is seen too::

    python scripts/fuzz.py --cases 100000 --seed 1
    python scripts/fuzz.py --target yaml --first 4711 --cases 1 --seed 1   # one case again

It exits with 1 if there was any other outcome.
"""

from __future__ import annotations

import argparse
import collections
import json
import logging
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

import torch
from fuzz_cases import Cases

import tahoe
from tahoe.errors import TahoeError

SECONDS_A_CASE = 20
CASES_A_PROCESS = 2500
# Percent of the cases: those that open files take longer.
TARGETS = {
    "yaml": 22,
    "vocabulary": 22,
    "safetensors": 22,
    "csr": 22,
    "h5ad_arrays": 9,
    "h5ad_elements": 2,
    "zarr_bytes": 1,
}
ALSO = ("h5ad_bytes",)


def work(target: str, first: int, cases: int, seed: int) -> None:
    """Run some cases in this process, and write one line of JSON for each."""
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    tahoe.settings.progress = False
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        fuzz = Cases(Path(place))
        for number in range(first, first + cases):
            signal.alarm(SECONDS_A_CASE)
            told = {"number": number}
            try:
                told["outcome"] = getattr(fuzz, target)(random.Random(f"{seed} {target} {number}"))
            except TahoeError as error:
                told |= {"outcome": "TahoeError", "message": str(error)[:300]}
            except AssertionError as error:
                told |= {"outcome": "wrong result", "message": str(error)[:300] or traceback.format_exc()[-300:]}
            except Exception as error:  # noqa: BLE001  that is what is looked for
                told |= {"outcome": f"foreign {type(error).__name__}", "message": traceback.format_exc()[-1500:]}
            assert not (Path(place) / "hacked").exists()
            print(json.dumps(told), flush=True)


def run(target: str, first: int, cases: int, seed: int, outcomes: collections.Counter, bad: list[str]) -> None:
    """Run some cases in another process; after a crash or a hang go on behind it."""
    while cases > 0:
        command = [sys.executable, __file__, "--worker", target, str(first), str(cases), str(seed)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        for line in lines:
            outcomes[line["outcome"]] += 1
            if line["outcome"].startswith(("foreign", "wrong")):
                bad.append(f"{target} {line['number']}: {line['outcome']}\n{line.get('message', '')}")
        first, cases = first + len(lines), cases - len(lines)
        if done.returncode:
            kind = "no end" if done.returncode == -signal.SIGALRM else f"crash ({done.returncode})"
            outcomes[kind] += 1
            bad.append(f"{target} {first}: {kind}\n{done.stderr[-1500:]}")
            first, cases = first + 1, cases - 1


def main() -> None:
    """Run all targets, or one, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=6000, help="in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case of each target")
    parser.add_argument("--target", choices=(*TARGETS, *ALSO))
    parser.add_argument("--show", type=int, default=5, help="how many bad outcomes to print")
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.worker[0], *map(int, options.worker[1:]))
        return
    targets, started, bad = [options.target] if options.target else list(TARGETS), time.monotonic(), []
    for target in targets:
        outcomes: collections.Counter = collections.Counter()
        share = options.cases if options.target else options.cases * TARGETS[target] // 100
        for first in range(options.first, options.first + share, CASES_A_PROCESS):
            run(target, first, min(CASES_A_PROCESS, options.first + share - first), options.seed, outcomes, bad)
        print(f"{target:20}", ", ".join(f"{name} {count:,}" for name, count in outcomes.most_common()), flush=True)
    seconds = time.monotonic() - started
    print(f"seed {options.seed}, {options.cases:,} cases, {seconds:.0f} s; neither error nor right: {len(bad)}")
    print("\n".join(bad[: options.show]))
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
