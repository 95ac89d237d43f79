"""What `tahoe perturb` does with a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tahoe._cells.opening import open_source
from tahoe._store.output import check_output, explain_disk_errors
from tahoe.get import perturbation
from tahoe.tl import perturb


def run(source: str, output: str, genes: str | None, *, goal: tuple[str, str, str] | None, **options: Any) -> None:
    """Read a file into memory, perturb its genes, and write their table."""
    check_output("--output ", Path(output), replace=True)
    edits = None if genes is None else [_edit(name) for name in genes.split(",") if name.strip()]
    with open_source(source) as opened:
        adata = opened.to_memory()
    perturb(adata, genes=edits, goal=goal or None, **options)
    with explain_disk_errors(f"--output {output!r}"):
        perturbation(adata).to_csv(output, index=False)


def _edit(text: str) -> str | tuple[str, ...]:
    """A gene, or a combination."""
    names = tuple(name.strip() for name in text.split("+"))
    return names[0] if len(names) == 1 else names
