"""References on the Hugging Face Hub, as data sets with a card."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from tahoe._reference.folder import CARD, MANIFEST
from tahoe.errors import InputError
from tahoe.model.hub.download import reason
from tahoe.settings import settings


def push(folder: Path, manifest: dict[str, Any], repository: str, card: str, *, private: bool | None) -> str:
    """Upload a reference and its card in one commit, all of it or nothing; gives the commit."""
    from huggingface_hub import CommitOperationAdd, HfApi

    operations = [CommitOperationAdd(path, folder / path) for path in (MANIFEST, *manifest["files"])]
    operations.append(CommitOperationAdd(CARD, card.encode()))
    try:
        api = HfApi(library_name="tahoe", library_version=version("tahoe-anndata"))
        api.create_repo(repository, repo_type="dataset", private=private, exist_ok=True)
        message = f"Upload {folder.name}"
        return api.create_commit(repository, operations, commit_message=message, repo_type="dataset").oid
    except Exception as error:
        message = f"the reference {folder.name!r} could not be uploaded to {repository!r}: {reason(error)}"
        raise InputError(message) from error


def download(repository: str, revision: str | None) -> Path:
    """Folder of a reference in the local cache, downloaded if it is not there."""
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            repository, repo_type="dataset", revision=revision, cache_dir=settings.cache_dir, library_name="tahoe"
        )
    except Exception as error:
        message = (
            f"reference={repository!r} is no folder here, and could not be downloaded from the Hub: {reason(error)}."
            " Without a connection, pass a folder that tahoe.build_reference wrote"
        )
        raise InputError(message) from error
    return Path(folder)


def reference_card(manifest: dict[str, Any], n_labels: dict[str, int], repository: str, about: str) -> str:
    """What the page of the repository says; `n_labels` has how many labels each column has."""
    head = {"library_name": "tahoe", "tags": ["biology", "single-cell", "transcriptomics", "tahoe-x1"]}
    embedding, held_back = manifest["embedding"], manifest["groups"]
    columns = "\n".join(f"- `{key}`: {n:,} labels" for key, n in n_labels.items())
    return f"""---
{yaml.safe_dump(head, sort_keys=False).strip()}
---

# {repository.rpartition("/")[2]}

{about.strip() or "Embedded cells with labels, for the Python package `tahoe`."}

{manifest["n_cells"]:,} cells × {manifest["width"]}, with the columns

{columns or "- none"}

Embedded with the Tahoe-x1 model `{embedding.get("model")}` (sha256 `{embedding.get("model_sha256")}`),
`max_length={embedding.get("max_length")}`. Held-back cells were asked among
{f"the cells with another `{held_back}`" if held_back else "all other cells"}.

```python
import tahoe

tahoe.tl.transfer_labels(adata, "{repository}", obs_key={next(iter(n_labels), "…")!r})
```
"""
