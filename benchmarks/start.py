"""How long it takes to load a checkpoint of a released shape from a warm cache, each time in a new process.

python benchmarks/start.py [--shape 70m]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from measuring import SHAPES, draw_model, machine

from tahoe.model.checkpoint.weights import write_checkpoint

REPEATS = 5
CODE = """
import sys, time
start = time.perf_counter()
import tahoe
tahoe.load_model
imported = time.perf_counter()
tahoe.load_model(sys.argv[1], device="cpu", dtype=sys.argv[2])
print(imported - start, time.perf_counter() - imported)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="70m")
    shape = parser.parse_args().shape
    print(machine())
    model = draw_model(shape, "cpu", torch.float32)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "random-model"
        write_checkpoint(path, model.network, model.vocabulary)
        for dtype in ("float32", "bfloat16"):
            command = [sys.executable, "-c", CODE, str(path), dtype]
            lines = [
                subprocess.run(command, env=os.environ, capture_output=True, text=True, check=True).stdout.split()
                for _ in range(REPEATS)
            ]
            importing, loading = (statistics.median(map(float, column)) for column in zip(*lines, strict=True))
            print(f"{shape}, {dtype}: imports {importing:.2f} s, loading {loading:.2f} s (medians of {REPEATS})")


if __name__ == "__main__":
    main()
