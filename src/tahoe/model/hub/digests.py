"""Whether downloaded files are what they should be: their digests, looked up and remembered."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tahoe.errors import ModelError
from tahoe.model.files import file_sha256

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Known:
    """What is known of a file in advance."""

    size: int
    """In bytes."""
    sha256: str
    """Its digest, or how that begins."""


def check_digests(
    folder: Path, names: Iterable[str], known: Mapping[str, Known], record: Path | None
) -> dict[str, str]:
    """Check files of a download, each against all that can be known of it.

    That is what the package knows, what the Hub calls the file (a link in the cache leads to a blob that is named by
    its content), and what it was when it was first downloaded. A file is hashed at its first use, and again when its
    size or time has changed since.

    Parameters
    ----------
    folder
        Where the files lie.
    names
        Those to check.
    known
        What is known in advance, by name.
    record
        JSON file with digests of earlier downloads, which is brought up to date; `None` remembers nothing.

    Returns
    -------
    The sha256 of each file, by name.

    Raises
    ------
    tahoe.errors.ModelError
        If a file is not what it should be. It is removed, so that the next call downloads it again.
    """
    before = _read_record(record)
    after = {name: _checked(folder / name, known.get(name), before.get(name, {}), record) for name in names}
    if record is not None and after != before:
        _write_record(record, before | after)
    return {name: entry["sha256"] for name, entry in after.items()}


def recorded_sha256(path: Path, record: Path | None) -> str:
    """The sha256 that a file had when it was last checked, "" if it has changed since or never was."""
    stat = path.stat()
    entry = _read_record(record).get(path.name, {})
    unchanged = entry.items() >= {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns}.items()
    return entry["sha256"] if unchanged else ""


def _checked(path: Path, known: Known | None, before: dict[str, Any], record: Path | None) -> dict[str, Any]:
    """Size, time and sha256 of a file that is as it should be."""
    stat = path.stat()
    stamp = {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    if before.items() >= stamp.items():
        sha256, problem = before["sha256"], ""
    else:
        sha256 = file_sha256(path)
        problem = _differs_from_hub(path, sha256)
        if not problem and before.get("sha256", sha256) != sha256:
            problem = f"its sha256 was {before['sha256']} at the first download ({record}), and is {sha256} now"
    if known is not None and not (stat.st_size == known.size and sha256.startswith(known.sha256)):
        problem = (
            f"it has {stat.st_size:,} bytes and sha256 {sha256}, not {known.size:,} bytes and sha256 {known.sha256}…"
        )
    if problem:
        _discard(path)
        message = (
            f"{path} is not the file that it should be: {problem}. It was damaged on its way or on the disk, or"
            " somebody changed it, and has been removed from the cache; call again to download it anew"
        )
        raise ModelError(message)
    return stamp | {"sha256": sha256}


def _differs_from_hub(path: Path, sha256: str) -> str:
    """In which way a file of the cache differs from its name on the Hub, "" if it does not or has none."""
    if not path.is_symlink():
        return ""
    name = path.readlink().name
    if len(name) == 64:
        found = sha256
    elif len(name) == 40:
        # what git calls a file
        content = path.read_bytes()
        found = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    else:
        return ""
    return "" if found == name else f"the Hub calls it {name}, and its digest is {found}"


def _discard(path: Path) -> None:
    """Remove a file of the cache, and what it links to."""
    with contextlib.suppress(OSError):
        while path.is_symlink():
            link, path = path, path.parent / path.readlink()
            link.unlink()
        path.unlink(missing_ok=True)


def _read_record(record: Path | None) -> dict[str, dict[str, Any]]:
    try:
        content = json.loads(record.read_text()) if record else {}
        return {name: entry for name, entry in content.items() if isinstance(entry["sha256"], str)}
    except (OSError, ValueError, TypeError, AttributeError, KeyError):
        # Nothing is lost: the files are hashed again.
        return {}


def _write_record(record: Path, entries: dict[str, dict[str, Any]]) -> None:
    """Write in one step, since several processes may."""
    new = record.with_name(f"{record.name}.{os.getpid()}")
    try:
        new.write_text(json.dumps(entries, indent=1))
        new.replace(record)
    except OSError as error:
        # A cache may be read-only. Then the files are hashed at each load.
        log.info("digests of the downloaded files could not be written to %s: %s", record, error)
