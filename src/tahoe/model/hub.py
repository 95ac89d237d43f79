"""The released checkpoints on the Hugging Face Hub, at pinned revisions."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

from tahoe.errors import ModelError
from tahoe.model.layout import FILES


@dataclass(frozen=True)
class Release:
    """Where a released checkpoint lies."""

    repository: str
    folder: str
    revision: str
    about: str


REPOSITORY = "tahoebio/Tahoe-x1"
REVISION = "d218a580b9c2500ae9dfc8367a398545e6f017a8"
RELEASES = {
    "70m": Release(REPOSITORY, "70m-model", REVISION, "71 million parameters, 512 wide, 12 layers; 284 MB"),
    "1b": Release(REPOSITORY, "1b-model", REVISION, "1.35 billion parameters, 2048 wide, 24 layers; 5.4 GB"),
    "3b": Release(REPOSITORY, "3b-model", REVISION, "2.72 billion parameters, 2560 wide, 32 layers; 10.9 GB"),
}
# A small network that ships with the package, for trying things out.
DEMO = "demo"


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
    message = (
        f"model={name!r} is neither a registered name nor a folder; {hint}"
        f"Registered are {', '.join(map(repr, known))}; a folder must hold {', '.join(FILES)}"
    )
    raise ModelError(message)


def download(name: str, *, revision: str | None = None, cache_dir: Path | None = None) -> Path:
    """Folder of a registered checkpoint in the local cache, downloaded if it is not there.

    `huggingface_hub` does the work: ``HF_HOME``, ``HF_HUB_OFFLINE``, ``HF_TOKEN`` and ``HF_ENDPOINT`` are honoured.

    Raises
    ------
    tahoe.errors.ModelError
        If the files are neither cached nor can be had.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    release = RELEASES[name]
    revision = revision or release.revision
    try:
        root = snapshot_download(
            release.repository,
            revision=revision,
            allow_patterns=[f"{release.folder}/*"],
            cache_dir=cache_dir,
        )
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        message = (
            f"model={name!r} could not be had from the Hub ({release.repository} at {revision[:12]}): {reason}."
            f" Without a connection, fetch the folder {release.folder} elsewhere"
            f" (`hf download {release.repository} --include '{release.folder}/*' --revision {revision}`) and pass its"
            f" path as model=. model={DEMO!r} needs no download, and is not for science"
        )
        raise ModelError(message) from error
    return Path(root) / release.folder
