"""Run notebooks of ``tutorials/`` and save their outputs: ``python scripts/execute_tutorials.py [NAME ...]``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "tutorials"


def execute(path: Path) -> None:
    """Run one notebook from its top; what depends on the hour or the machine is not saved."""
    # bars are off, so nobody misses the package that would draw them
    os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=900, record_timing=False).execute()
    notebook.metadata["language_info"] = {"name": "python"}
    nbformat.write(notebook, path)


if __name__ == "__main__":
    for name in sys.argv[1:] or sorted(path.stem for path in FOLDER.glob("*.ipynb")):
        print(name, flush=True)
        execute(FOLDER / f"{name}.ipynb")
