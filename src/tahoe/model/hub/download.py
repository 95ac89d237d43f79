"""The released checkpoints on the Hugging Face Hub, at pinned revisions."""

from __future__ import annotations

import difflib
import errno
import logging
import re
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tahoe.errors import ModelError
from tahoe.model.files import DRUGS_FILE, FILES, VOCABULARY_FILE, WEIGHTS_FILE, file_sha256, weights_sha256
from tahoe.settings import settings

if TYPE_CHECKING:
    from collections.abc import Mapping

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Release:
    """Where a released checkpoint lies."""

    repository: str
    folder: str
    revision: str
    """The commit that the name stands for."""
    about: str
    sha256: Mapping[str, str] = field(default_factory=dict)
    """Digests of files at that commit, or how these begin, as far as they are known."""

    @property
    def patterns(self) -> list[str]:
        """Paths of the files that are downloaded; nothing else is, whatever else lies there."""
        return [f"{self.folder}/{name}" for name in (*FILES, DRUGS_FILE)]


@dataclass(frozen=True)
class CachedCheckpoint:
    """A registered checkpoint in the local cache."""

    folder: Path
    commit: str
    weights_sha256: str


REPOSITORY = "tahoebio/Tahoe-x1"
REVISION = "d218a580b9c2500ae9dfc8367a398545e6f017a8"
_VOCABULARY = "b5aff3f24211cc87867b83e5d2718e89d13941f7e3687838848d05466b997a84"
_VOCABULARY_WITH_DRUG = "67afad54426a6871e3499bb61ad1a4dc65b87821ed6d2960ec8ed26d8947d9bc"
RELEASES = {
    name: Release(REPOSITORY, f"{name}-model", REVISION, about, known)
    for name, about, known in (
        ("70m", "71 million parameters, 512 wide, 12 layers; 284 MB", {VOCABULARY_FILE: _VOCABULARY}),
        ("1b", "1.35 billion parameters, 2048 wide, 24 layers; 5.4 GB", {VOCABULARY_FILE: _VOCABULARY}),
        (
            "3b",
            "2.72 billion parameters, 2560 wide, 32 layers; 10.9 GB",
            {VOCABULARY_FILE: _VOCABULARY_WITH_DRUG, WEIGHTS_FILE: "424911f1"},
        ),
    )
}
# A small network that ships with the package, for trying things out.
DEMO = "demo"


def demo_folder() -> Path:
    """Where the demo model lies."""
    return Path(str(files("tahoe") / "data" / "demo-model"))


def check_name(name: str) -> None:
    """Refuse a name that is neither registered nor a folder.

    Raises
    ------
    tahoe.errors.ModelError
        With the nearest registered name.
    """
    known = [*RELEASES, DEMO]
    if name in known:
        return
    near = difflib.get_close_matches(
        name.lower().removeprefix("tahoe-x1-").removeprefix("tahoe-"), known, n=1, cutoff=0.3
    )
    hint = f"did you mean {near[0]!r}? " if near else ""
    of_hub = [known for known, release in RELEASES.items() if release.repository.lower() == name.lower().strip("/")]
    if of_hub:
        hint = f"that repository has the models {', '.join(map(repr, of_hub))}. "
    elif Path(name).is_file():
        hint = f"it is a file: pass its folder, {str(Path(name).parent)!r}. "
    elif any(separator in name for separator in "/\\~"):
        hint = "there is no such folder here. "
    message = (
        f"model={name!r} is neither a registered name nor a folder; {hint}"
        f"Registered are {', '.join(map(repr, known))}; a folder must hold {', '.join(FILES)}"
    )
    raise ModelError(message)


def download(name: str, *, revision: str | None = None, cache_dir: Path | None = None) -> CachedCheckpoint:
    """Find a registered checkpoint in the local cache; download it if it is not there.

    `huggingface_hub` does the work: ``HF_HOME``, ``HF_HUB_OFFLINE``, ``HF_TOKEN`` and ``HF_ENDPOINT`` are honoured. A
    commit that is in the cache is used without a request.

    Raises
    ------
    tahoe.errors.ModelError
        If the files are not cached and cannot be downloaded, or one is not the released file.
    """
    release = RELEASES[name]
    is_pinned = revision in (None, release.revision)
    revision = revision or release.revision
    root = _cached(release, revision, cache_dir)
    if root is None:
        try:
            root = _snapshot(release, revision, cache_dir, tqdm_class=None if settings.progress else _silent_bar())
        except Exception as error:
            raise ModelError(_download_error(name, release, revision, reason(error, cache_dir))) from error
    folder = root / release.folder
    missing = [file for file in FILES if not (folder / file).is_file()]
    if missing:
        raise ModelError(
            _download_error(name, release, revision, f"{release.folder} has no {' and no '.join(missing)} there")
        )
    return CachedCheckpoint(folder, root.name, _check_digests(folder, release.sha256 if is_pinned else {}))


def _check_digests(folder: Path, known: Mapping[str, str]) -> str:
    """Compare files with what is known of them; return the sha256 of the weights."""
    of_weights = weights_sha256(folder)
    for name, wanted in known.items():
        sha256 = of_weights if name == WEIGHTS_FILE else file_sha256(folder / name)
        if not sha256.startswith(wanted):
            message = (
                f"{folder / name} is not the released file: its sha256 is {sha256}, not {wanted}. It was damaged on its"
                " way or on the disk, or somebody changed it; delete"
                f" {(folder / name).resolve()} and call again, which downloads it anew"
            )
            raise ModelError(message)
    return of_weights


def verify(name: str, checkpoint: CachedCheckpoint, *, cache_dir: Path | None = None) -> None:
    """Compare a checkpoint in the cache, file by file, with the checksums that the Hub has of it.

    Raises
    ------
    tahoe.errors.ModelError
        If the Hub cannot be asked, or a file differs.
    """
    from huggingface_hub import HfApi

    release = RELEASES[name]
    try:
        result = HfApi().verify_repo_checksums(release.repository, revision=checkpoint.commit, cache_dir=cache_dir)
    except Exception as error:
        message = f"the checksums of model={name!r} cannot be fetched from the Hub: {reason(error, cache_dir)}"
        raise ModelError(message) from error
    for each in result.mismatches:
        path = checkpoint.folder.parent / each["path"]
        message = (
            f"{path} is not the file on the Hub: its {each['algorithm']} is {each['actual']}, not {each['expected']};"
            f" delete {path.resolve()} and run `tahoe download {name} --verify` again, which downloads it anew"
        )
        raise ModelError(message)
    log.info("%d files agree with the checksums of the Hub", result.checked_count)


def cached(name: str, *, cache_dir: Path | None = None) -> Path | None:
    """Folder of a registered checkpoint, if it is in the local cache; nothing is asked of the Hub."""
    release = RELEASES[name]
    root = _cached(release, release.revision, cache_dir)
    return root and root / release.folder


def _cached(release: Release, revision: str, cache_dir: Path | None) -> Path | None:
    """Folder of a commit in the cache, if all files are there; a branch may have moved on."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    if not re.fullmatch("[0-9a-f]{40}", revision):
        return None
    try:
        root = _snapshot(release, revision, cache_dir, local_files_only=True)
    except LocalEntryNotFoundError:
        return None
    return root if all((root / release.folder / file).is_file() for file in FILES) else None


def _snapshot(release: Release, revision: str, cache_dir: Path | None, **options: Any) -> Path:
    """Folder of a revision, downloaded where files are missing."""
    from huggingface_hub import snapshot_download

    options |= {"revision": revision, "allow_patterns": release.patterns, "cache_dir": cache_dir}
    return Path(snapshot_download(release.repository, **options))


def reason(error: Exception, cache_dir: Path | None = None) -> str:
    """Why something failed between here and the Hub, and what would help."""
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    first_line = str(error).strip().partition("\n")[0].rstrip(". ") or type(error).__name__
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if isinstance(error, RevisionNotFoundError):
        return "there is no such revision; omit revision= for the pinned one"
    if isinstance(error, RepositoryNotFoundError) or status in (401, 403):
        return (
            "the Hub does not let you in; log in with `hf auth login` or set HF_TOKEN, and if the repository is gated"
            f" accept its terms on its page first ({first_line})"
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = cache_dir or "the Hugging Face cache (HF_HOME)"
        return f"no space is left on the disk of {where}; free some, or set tahoe.settings.cache_dir to another"
    return first_line


def _download_error(name: str, release: Release, revision: str, why: str) -> str:
    """Say that a model could not be downloaded, and what to do."""
    commit = f"{revision[:12]}…" if len(revision) == 40 else revision
    return (
        f"model={name!r} could not be downloaded from the Hub ({release.repository} at {commit}): {why}."
        f" Without a connection, fetch the folder {release.folder} elsewhere"
        f" (`hf download {release.repository} --include '{release.folder}/*' --revision {revision}`) and pass its"
        f" path as model=. model={DEMO!r} needs no download, and is not for science"
    )


def _silent_bar() -> Any:
    from tqdm import tqdm

    class Silent(tqdm):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **{**options, "disable": True})

    return Silent
