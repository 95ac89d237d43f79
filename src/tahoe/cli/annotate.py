"""What `tahoe annotate` and `tahoe reference search` do with files: a block of cells at a time."""

from __future__ import annotations

import csv
import logging
import shutil
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm.auto import tqdm

from tahoe._cells.slots import row_of
from tahoe._reference.cells import Cells, opened
from tahoe._reference.embeddings import unit
from tahoe._reference.labels import UNKNOWN
from tahoe._reference.match import check_same_embedding
from tahoe._reference.reference import Reference, load_reference
from tahoe._reference.transfer import CELLS_AT_ONCE, Transfer
from tahoe._store.embed_file import embed_file
from tahoe._store.output import check_output, explain_disk_errors, write_h5ad
from tahoe._store.shards import consolidate, empty_store, encode, write_element
from tahoe.errors import InputError, listed
from tahoe.model.loading import choose_device
from tahoe.settings import settings

if TYPE_CHECKING:
    from collections.abc import Iterator

log = logging.getLogger(__name__)

OUTPUTS = (".zarr", ".csv", ".h5ad")


def annotated(
    source: str,
    reference: str,
    output: str,
    *,
    obs_keys: list[str],
    k: int,
    alpha: float,
    mostly_known: bool,
    exact: bool,
    **how: Any,
) -> None:
    """Label the cells of a file, and write a store, a table, or the file with the labels."""
    target = Path(output).absolute()
    _check(target)
    atlas = load_reference(reference)
    plan = Transfer.plan(
        atlas, obs_keys, k=k, alpha=alpha, exact=exact, device=choose_device(how["device"] or settings.device)
    )
    if target.suffix == ".h5ad":
        _in_memory(source, atlas, target, obs_keys, k=k, alpha=alpha, mostly_known=mostly_known, exact=exact, **how)
        return
    # the store with the embedding, until it has labels
    embedded = target.with_name(f"{target.name}.embedded.zarr")
    is_embedded = _is_embedded(source, atlas)
    if not is_embedded:
        _embed(source, embedded, atlas, **how)
    elif target.suffix == ".zarr":
        _copy(source, embedded, atlas)
    if embedded.exists():
        source = str(embedded)
    with opened(source, atlas.use_rep) as cells:
        check_same_embedding(cells.record, cells.rows.shape[1], atlas)
        if mostly_known:
            plan.check_mostly_known(cells.n_cells)
            plan = plan.mostly_known(
                lambda start, stop: (cells.rows[start:stop], _names(cells, start, stop)), cells.n_cells
            )
        if target.suffix == ".csv":
            _write_table(cells, plan, target)
        else:
            _write_store(cells, plan, embedded)
    if target.suffix == ".zarr":
        embedded.rename(target)
    elif not is_embedded:
        shutil.rmtree(embedded)


def write_neighbors(source: str, reference: str, output: str, *, k: int, cells: tuple[str, ...], exact: bool) -> None:
    """Write a table of the cells of a reference that are nearest to those of a file."""
    atlas = load_reference(reference)
    atlas.check_k(k)
    with opened(source, atlas.use_rep) as queries, _table(Path(output).absolute()) as writer:
        check_same_embedding(queries.record, queries.rows.shape[1], atlas)
        rows = [row_of(queries.adata, cell) for cell in cells] if cells else range(queries.n_cells)
        writer.writerow(["cell", "rank", "distance", "row", "found", *atlas.obs_keys])
        for start in range(0, len(rows), 1024):
            here = rows[start : start + 1024]
            parts = [(row, row + 1) for row in here] if cells else [(here[0], here[-1] + 1)]
            embeddings = np.concatenate([np.asarray(queries.rows[first:end]) for first, end in parts])
            found, distances = atlas.nearest(unit(embeddings), k, exact=exact)
            for row, of_row, far in zip(here, found, distances, strict=True):
                there = of_row >= 0
                known, name = atlas.obs(of_row[there]), queries.names(row, row + 1)[0].decode()
                for rank, (found_name, columns) in enumerate(zip(known.index, known.to_numpy(object), strict=True)):
                    distance = f"{far[there][rank]:.6f}"
                    writer.writerow([name, rank + 1, distance, of_row[there][rank], found_name, *columns])


def _check(target: Path) -> None:
    if target.suffix not in OUTPUTS:
        message = f"--output {target.name}: the name must end in {', '.join(OUTPUTS)}"
        raise InputError(message)
    check_output("--output ", target)


def _is_embedded(source: str, atlas: Reference) -> bool:
    """Whether a file has the slot that the reference's embeddings came from."""
    with opened(source, atlas.use_rep) as cells:
        return atlas.use_rep in (cells.adata.root.get("obsm") or {})


def _model_of(atlas: Reference, model: str | None) -> str:
    made = atlas.embedding
    return model or str(made.get("model_folder", made["model"]))


def _embed(source: str, embedded: Path, atlas: Reference, *, model: str | None, resume: bool, **how: Any) -> None:
    """Embed a file as the reference was, unless an earlier run has."""
    if embedded.exists():
        if not resume:
            message = f"{str(embedded)!r} is of a run that did not end; pass --resume, or delete it"
            raise InputError(message)
        return
    made = atlas.embedding
    parameters: dict[str, Any] = {
        name: made[name] for name in ("max_length", "seed", "mask_var", "drug_key") if name in made
    }
    parameters |= {"key_added": atlas.use_rep, "keep_metadata": True, "resume": resume}
    embed_file(source, embedded, _model_of(atlas, model), **parameters, **how)


def _copy(source: str, place: Path, atlas: Reference) -> None:
    """Copy an embedding that is there, with obs and var, into a store of its own, a block at a time."""
    shutil.rmtree(place, ignore_errors=True)
    with opened(source, atlas.use_rep) as cells:
        check_same_embedding(cells.record, cells.rows.shape[1], atlas)
        root = empty_store(place)
        encode(root, "anndata")
        obs = root.create_group("obs")
        encode(obs, "dataframe", **{"column-order": cells.adata.copy_obs(obs, True, "")})
        write_element(root, "var", cells.adata.var)
        write_element(root["uns"], atlas.use_rep, cells.record)
        _new(root["obsm"], atlas.use_rep, cells.rows.shape, str(cells.rows.dtype))
        for start in range(0, cells.n_cells, CELLS_AT_ONCE):
            part = slice(start, start + CELLS_AT_ONCE)
            root["obsm"][atlas.use_rep][part] = cells.rows[part]


def _in_memory(source: str, atlas: Reference, target: Path, obs_keys: list[str], **how: Any) -> None:
    from tahoe._cells.opening import open_source
    from tahoe._store.lock import lock_output
    from tahoe.tl import transfer_labels

    how.pop("resume")
    with lock_output(target) as partial:
        with open_source(source) as file:
            adata = file.to_memory()
        transfer_labels(adata, atlas, obs_key=obs_keys, **how)
        written = partial / "cells.h5ad"
        write_h5ad(adata, written, f"--output {str(target)!r}")
        written.replace(target)


def _blocks(cells: Cells, plan: Transfer) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Labels of all cells, a block at a time."""
    with tqdm(total=cells.n_cells, unit="cell", disable=not settings.progress) as bar:
        for start in range(0, cells.n_cells, CELLS_AT_ONCE):
            stop = min(start + CELLS_AT_ONCE, cells.n_cells)
            yield start, stop, plan.labels(cells.rows[start:stop], _names(cells, start, stop))[0]
            bar.update(stop - start)


def _names(cells: Cells, start: int, stop: int) -> np.ndarray:
    return np.array([name.decode() for name in cells.names(start, stop)])


@contextmanager
def _table(target: Path) -> Iterator[Any]:
    """Writer of a table that appears when it is whole."""
    new = target.with_name(f"{target.name}.new")
    try:
        with explain_disk_errors(f"--output {str(target)!r}"):
            with new.open("w", newline="", encoding="utf-8") as file:
                yield csv.writer(file)
            new.replace(target)
    finally:
        new.unlink(missing_ok=True)


def _write_table(cells: Cells, plan: Transfer, target: Path) -> None:
    names = [f"{key}_tahoe{end}" for key in plan.obs_keys for end in ("", "_confidence", "_novelty_p", "_set")]
    with _table(target) as writer:
        writer.writerow(["cell", *names])
        for start, stop, labels_of in _blocks(cells, plan):
            columns: list[Any] = [[name.decode() for name in cells.names(start, stop)]]
            for key, labels in labels_of.items():
                known = np.asarray(plan.reference.labels(key), dtype=object)
                sets = [" | ".join(known[row]) for row in labels.in_set]
                columns += [plan.named(key, labels), _rounded(labels.confidence), _rounded(labels.novelty_p), sets]
            writer.writerows(zip(*columns, strict=True))


def _rounded(values: np.ndarray) -> list[str]:
    return ["" if np.isnan(value) else f"{value:.4g}" for value in values]


def _write_store(cells: Cells, plan: Transfer, place: Path) -> None:
    """Add the labels to a store that `embed_file` wrote, as `tahoe.tl.transfer_labels` would."""
    import zarr

    root: Any = zarr.open_group(place, mode="r+", use_consolidated=False)
    obs, n_cells = root["obs"], cells.n_cells
    taken = [f"{key}_tahoe" for key in plan.obs_keys if f"{key}_tahoe" in obs]
    for key in plan.obs_keys:
        name, labels = f"{key}_tahoe", [*plan.reference.labels(key)]
        labels += [] if UNKNOWN in labels else [UNKNOWN]
        for slot in (name, f"{name}_confidence", f"{name}_novelty_p"):
            if slot in obs:
                del obs[slot]
        column = obs.create_group(name)
        encode(column, "categorical", ordered=False)
        write_element(column, "categories", np.array(labels, dtype=object))
        _new(column, "codes", (n_cells,), "int32")
        for end in ("confidence", "novelty_p"):
            _new(obs, f"{name}_{end}", (n_cells,), "float64")
        width = len(plan.reference.labels(key))
        _new(root["obsm"], f"{name}_shares", (n_cells, width), "float32")
        _new(root["obsm"], f"{name}_set", (n_cells, width), "bool")
        write_element(root["uns"], name, {"tahoe_version": version("tahoe-anndata"), **plan.record(key)})
    for start, stop, labels_of in _blocks(cells, plan):
        for key, labels in labels_of.items():
            name, known = f"{key}_tahoe", plan.reference.labels(key)
            unknown = known.index(UNKNOWN) if UNKNOWN in known else len(known)
            obs[name]["codes"][start:stop] = np.where(plan.is_known(labels), labels.codes, unknown)
            obs[f"{name}_confidence"][start:stop] = labels.confidence
            obs[f"{name}_novelty_p"][start:stop] = labels.novelty_p
            root["obsm"][f"{name}_shares"][start:stop] = labels.shares
            root["obsm"][f"{name}_set"][start:stop] = labels.in_set
    names = [f"{key}_tahoe{end}" for key in plan.obs_keys for end in ("", "_confidence", "_novelty_p")]
    order = [name for name in obs.attrs["column-order"] if name not in names]
    obs.attrs["column-order"] = [*order, *names]
    if taken:
        log.warning("obs had %s, which was overwritten", listed(taken))
    consolidate(root)


def _new(group: Any, name: str, shape: tuple[int, ...], dtype: str) -> None:
    chunks = (min(shape[0], CELLS_AT_ONCE), *shape[1:])
    array = group.create_array(name, shape=shape, dtype=dtype, chunks=chunks, overwrite=True)
    encode(array, "array")
