"""The files of a checkpoint folder: their names, whether they are there, and their digests. Needs no torch."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

from tahoe.errors import ModelError
from tahoe.model.causes import first_line
from tahoe.model.formats import HEAD, stand_in

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

WEIGHTS_FILE = "model.safetensors"
MODEL_FILE = "model_config.yml"
COLLATOR_FILE = "collator_config.yml"
VOCABULARY_FILE = "vocab.json"
DRUGS_FILE = "drug_to_id_pad.json"
# What was taught to a model: a head, and adapters if there are any. Beside weights, or in their place.
FINE_TUNED_FILE = "fine_tuned.safetensors"
FILES = (WEIGHTS_FILE, MODEL_FILE, COLLATOR_FILE, VOCABULARY_FILE)
# How far below a folder checkpoints are looked for: a cache of the Hub has them under models--…/snapshots/<commit>.
MAX_DEPTH, MAX_FOLDERS = 4, 500


def weights_sha256(folder: Path) -> str:
    """Hash of the weights, which takes a pass over them unless they are in the cache of the Hub."""
    return sha256_by_name(folder / WEIGHTS_FILE) or file_sha256(folder / WEIGHTS_FILE)


def sha256_by_name(path: Path) -> str | None:
    """Hash of a large file as the cache of the Hub names it; `tahoe download NAME --verify` compares the content."""
    file = path.resolve()
    in_cache = file.parent.name == "blobs" and file.parents[1].name.startswith("models--")
    return file.name if in_cache and re.fullmatch("[0-9a-f]{64}", file.name) else None


def file_sha256(path: Path) -> str:
    """Hash of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def was_taught(folder: Path) -> bool:
    """Whether a folder has what was taught to a model; one that may not be read has nothing."""
    try:
        return (folder / FINE_TUNED_FILE).is_file()
    except OSError:
        return False


def check_folder(folder: Path) -> None:
    """See that the files of a checkpoint are there and may be what they are called.

    Raises
    ------
    tahoe.errors.ModelError
        With what is missing, and the folder that was probably meant; or with what stands in the place of a file.
    """
    try:
        missing = [name for name in FILES if not (folder / name).is_file()]
        if missing:
            message = f"{folder} has no {' and no '.join(missing)}{_describe_contents(folder, missing)}"
            raise ModelError(message)
        for name in FILES:
            with (folder / name).open("rb") as file:
                description = stand_in(file.read(HEAD), str(folder / name))
            if description:
                raise ModelError(description)
    except OSError as error:
        message = f"the checkpoint in {folder} cannot be read: {error.strerror or first_line(error)}"
        raise ModelError(message) from error


def _describe_contents(folder: Path, missing: list[str]) -> str:
    """What is there instead of the missing files."""
    below = list(checkpoints_below(folder))
    if below:
        return f"; pass the folder below it that has: {', '.join(map(repr, map(str, below[:4])))}"
    names = sorted(path.name for path in folder.iterdir())
    others = [name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt", ".index.json", ".incomplete"))]
    parts = [name for name in names if name.endswith(".safetensors")]
    if WEIGHTS_FILE in missing and (others or parts):
        return f"; it has {', '.join(map(repr, (others + parts)[:3]))}, and only one whole {WEIGHTS_FILE} is read"
    renamed = [name for name in names if name.replace(".yaml", ".yml") in missing]
    if renamed:
        return f"; call {renamed[0]!r} {renamed[0].replace('.yaml', '.yml')!r}"
    return f"; a checkpoint folder holds {', '.join(FILES)}"


def checkpoints_below(folder: Path) -> Iterator[Path]:
    """Folders below one that hold weights, the nearest first; a whole disk is not searched."""
    level, seen = [folder], 0
    for _ in range(MAX_DEPTH):
        level = [each for place in level for each in _folders(place)][: MAX_FOLDERS - seen]
        seen += len(level)
        yield from (each for each in level if (each / WEIGHTS_FILE).is_file())


def _folders(place: Path) -> list[Path]:
    try:
        return sorted(each for each in place.iterdir() if each.is_dir() and not each.name.startswith("."))
    except OSError:
        return []
