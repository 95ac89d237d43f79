"""What `tahoe perturb` does with a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tahoe._cells.opening import open_source
from tahoe.errors import InputError
from tahoe.get import perturbation
from tahoe.model.causes import why_not_written
from tahoe.tl import perturb


def run(source: str, output: str, genes: str | None, *, goal: tuple[str, str, str] | None, **options: Any) -> None:
    """Read a file into memory, perturb its genes, and write their table."""
    folder = Path(output).absolute().parent
    if not folder.is_dir():
        message = f"--output {output} cannot be written: the folder {str(folder)!r} does not exist; make it first"
        raise InputError(message)
    asked = None if genes is None else [_edit(name) for name in genes.split(",") if name.strip()]
    with open_source(source) as opened:
        adata = opened.to_memory()
    perturb(adata, genes=asked, goal=goal or None, **options)
    try:
        perturbation(adata).to_csv(output, index=False)
    except OSError as error:
        message = f"--output {output} cannot be written: {why_not_written(error)}"
        raise InputError(message) from error


def _edit(text: str) -> str | tuple[str, ...]:
    """A gene, or a combination."""
    names = tuple(name.strip() for name in text.split("+"))
    return names[0] if len(names) == 1 else names
