"""Break the package on purpose, in one place at a time, and see whether the tests notice.

Each fault of ``faults.toml`` is a change of a line or two in a copy of ``src``; the tests that ought to catch it run
against that copy and must fail. A fault whose line is no longer there is an error: change it with the code::

    python scripts/mutation_check.py [--only WORD] [--part 2/3]

It exits with 1 if a fault was not noticed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FAULTS = Path(__file__).with_name("faults.toml")


def copied(place: Path) -> Path:
    """Put a copy of the package somewhere; its data need not be copied."""
    source = place / "src"
    shutil.copytree(ROOT / "src", source, ignore=shutil.ignore_patterns("data", "__pycache__"))
    (source / "tahoe" / "data").symlink_to(ROOT / "src" / "tahoe" / "data")
    return source


def broken(fault: dict[str, Any], text: str) -> str:
    """Make the change; each line to change must be there exactly once."""
    olds, news = ([each] if isinstance(each, str) else each for each in (fault["old"], fault["new"]))
    for old, new in zip(olds, news, strict=True):
        if text.count(old) != 1:
            sys.exit(f"{fault['name']}: {old!r} stands {text.count(old)} times in {fault['file']}")
        text = text.replace(old, new)
    return text


def run_tests(source: Path, tests: list[str]) -> tuple[bool, str]:
    """Run tests against a copy of the package, up to the first failure: whether all passed, and what is to be told."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "-p", "no:cacheprovider", *tests]
    environment = os.environ | {"PYTHONPATH": str(source), "PYTHONDONTWRITEBYTECODE": "1"}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    failed = [line for line in run.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return run.returncode == 0, (failed or run.stdout.splitlines()[-1:] or [run.stderr])[0]


def main() -> None:
    """Try all faults, and print who noticed each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="faults with this word in their name or file")
    parser.add_argument("--part", default="1/1", help="the second of three parts: 2/3")
    options = parser.parse_args()
    part, parts = map(int, options.part.split("/"))
    content = tomllib.loads(FAULTS.read_text(encoding="utf-8"))
    chosen = [fault for fault in content["faults"] if options.only in f"{fault['name']} {fault['file']}"]
    for fault in chosen:
        broken(fault, (ROOT / "src" / "tahoe" / fault["file"]).read_text(encoding="utf-8"))
    faults, unnoticed = chosen[part - 1 :: parts], []
    with tempfile.TemporaryDirectory() as place:
        # one copy for all: what numba compiled for one fault serves the next
        source = copied(Path(place))
        for fault in faults:
            started = time.monotonic()
            path = source / "tahoe" / fault["file"]
            path.write_text(broken(fault, path.read_text(encoding="utf-8")), encoding="utf-8")
            tests = fault["tests"] if isinstance(fault["tests"], list) else content["tests"][fault["tests"]]
            passed, told = run_tests(source, tests)
            shutil.copy2(ROOT / "src" / "tahoe" / fault["file"], path)
            unnoticed += [fault["name"]] * passed
            by = "NOT NOTICED" if passed else told.partition(" - ")[0].removeprefix("FAILED ")
            print(f"{fault['name']:50} {time.monotonic() - started:4.0f} s  {by}", flush=True)
    print(f"{len(faults) - len(unnoticed)} of {len(faults)} faults noticed; not: {', '.join(unnoticed) or 'none'}")
    sys.exit(bool(unnoticed))


if __name__ == "__main__":
    main()
