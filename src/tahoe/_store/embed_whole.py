"""Embed the cells of a file that fits into memory, and write all of it again, as h5ad."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from tahoe._cells.file import absolute
from tahoe._cells.opening import open_source
from tahoe._run.embed import embed_in_place
from tahoe._run.inputs import read_inputs
from tahoe._store.lock import lock_output
from tahoe._store.output import write_h5ad

if TYPE_CHECKING:
    import os
    from pathlib import Path

    from tahoe.model import TahoeModel


def embed_whole(
    source: str | os.PathLike[str],
    output: Path,
    model: str | os.PathLike[str] | TahoeModel,
    *,
    normalize: bool,
    max_length: int,
    seed: int,
    key_added: str,
    mapping: dict[str, Any],
    **options: Any,
) -> None:
    """Read a file into memory, embed its cells as `tahoe.tl.embed` does, and write it with the result."""
    with lock_output(output) as folder:
        with open_source(source) as opened:
            adata, path = opened.to_memory(), absolute(opened.path)
        written, what = folder / "cells.h5ad", f"output={str(output)!r}"
        with warnings.catch_warnings():
            # what cannot be written is told before the work; what anndata warns of, only when it is done
            warnings.simplefilter("ignore")
            write_h5ad(adata[:0].copy(), written, what)
        written.unlink()
        inputs = read_inputs(adata, model, **mapping, **options)
        how: dict[str, Any] = {"normalize": normalize, "max_length": max_length, "seed": seed, "key_added": key_added}
        embed_in_place(adata, inputs, **how, origin={"source": path, **mapping})
        write_h5ad(adata, written, what)
        written.replace(output)
