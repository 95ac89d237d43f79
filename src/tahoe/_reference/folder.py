"""The folder of a reference: which files it has, what its manifest says, and whether it is whole."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from tahoe._store.lock import folder_of
from tahoe.errors import InputError
from tahoe.model.causes import first_line
from tahoe.model.files import file_sha256

if TYPE_CHECKING:
    from pathlib import Path

MANIFEST, CARD = "reference.json", "README.md"
FORMAT = 1
VECTORS, NAMES, COLUMNS, HELD_BACK, INDEX = "vectors", "names", "columns", "held_back", "index"


def shard_file(folder: Path, kind: str, number: int, suffix: str = ".npy") -> Path:
    """Where a part of a shard lies."""
    return folder / kind / f"{number:05}{suffix}"


def save_array(path: Path, values: np.ndarray) -> None:
    """Write an array, which appears when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.new")
    with new.open("wb") as file:
        np.save(file, values, allow_pickle=False)
    new.replace(path)


def open_arrays(folder: Path, kind: str) -> list[np.ndarray]:
    """The arrays of all shards, mapped into memory."""
    return [np.load(path, mmap_mode="r", allow_pickle=False) for path in sorted((folder / kind).glob("*.npy"))]


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write what a reference is, with size and digest of each of its files; without it a folder is none."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".new")
    of_files = {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": file_sha256(path)}
        for path in files
        if path.name not in (MANIFEST, CARD)
    }
    new = folder / f"{MANIFEST}.new"
    new.write_text(json.dumps({"tahoe_reference": FORMAT, **manifest, "files": of_files}, indent=1), encoding="utf-8")
    new.replace(folder / MANIFEST)


def read_manifest(folder: Path) -> dict[str, Any]:
    """What a reference says of itself, if all of its files are there in their size.

    Raises
    ------
    tahoe.errors.InputError
        If the folder is none of a reference, is half-built or damaged, or was written by a later version.
    """
    name = str(folder)
    if not (folder / MANIFEST).is_file():
        raise InputError(_no_reference(folder))
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        version, files = manifest["tahoe_reference"], manifest["files"]
        wrong = [path for path, known in files.items() if _size(folder / path) != known["size"]]
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        message = f"reference={name!r} is damaged: {MANIFEST} cannot be read ({first_line(error)}); copy it anew"
        raise InputError(message) from error
    if version != FORMAT:
        message = f"reference={name!r} has format {version}, and this version of tahoe reads {FORMAT}; update tahoe"
        raise InputError(message)
    if wrong:
        size = _size(folder / wrong[0])
        seen = "is missing" if size is None else f"has {size:,} bytes instead of {files[wrong[0]]['size']:,}"
        message = f"reference={name!r} is damaged: {wrong[0]} {seen}; copy or build it anew"
        raise InputError(message)
    return manifest


def check_content(folder: Path, manifest: dict[str, Any]) -> None:
    """Compare the content of all files with their digests, which takes a pass over them.

    Raises
    ------
    tahoe.errors.InputError
        With the first file that differs.
    """
    for path, known in manifest["files"].items():
        if file_sha256(folder / path) != known["sha256"]:
            message = f"reference={str(folder)!r} is damaged: the content of {path} changed; copy or build it anew"
            raise InputError(message)


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _no_reference(folder: Path) -> str:
    name = str(folder)
    partial = folder_of(folder)
    if name.endswith(".partial") or partial.is_dir():
        output = name.removesuffix(".partial")
        return (
            f"reference={output!r} is half-built; go on with tahoe.build_reference(…, {output!r}, resume=True)"
            " (tahoe reference build --resume)"
        )
    if (folder / "zarr.json").is_file() or (folder / ".zgroup").is_file() or folder.is_file():
        return (
            f"reference={name!r} is a file of cells; make a reference of it first: tahoe.build_reference({name!r}, …)"
        )
    if folder.is_dir():
        return f"reference={name!r} is no reference: the folder has no {MANIFEST}, which tahoe.build_reference writes"
    return (
        f"reference={name!r} does not exist here; give a folder that tahoe.build_reference wrote, or the name of a"
        " repository on the Hub, as 'owner/name'"
    )


def plain(value: Any) -> Any:
    """A value of provenance as JSON has it."""
    if isinstance(value, dict):
        return {str(key): plain(value[key]) for key in sorted(value)}
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return [plain(each) for each in value] if isinstance(value, list | tuple) else value
