"""Put a model on the Hugging Face Hub, with a card."""

from __future__ import annotations

import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from tahoe.errors import ModelError
from tahoe.model.checkpoint.weights import write_checkpoint
from tahoe.model.files import WEIGHTS_FILE, file_sha256
from tahoe.model.hub.download import RELEASES, reason

if TYPE_CHECKING:
    from tahoe.model.network.network import Network
    from tahoe.model.tokens.vocabulary import Vocabulary

CARD_FILE = "README.md"


def push(
    name: str,
    network: Network,
    vocabulary: Vocabulary,
    drugs: dict[str, int],
    repository: str,
    *,
    folder: str,
    private: bool | None,
    about: str,
) -> str:
    """Upload a model and its card in one commit, all of it or nothing; return the commit."""
    from huggingface_hub import CommitOperationAdd, HfApi

    with tempfile.TemporaryDirectory() as place:
        written = Path(place)
        write_checkpoint(written, network, vocabulary, drugs)
        operations = [
            CommitOperationAdd(f"{folder}/{path.name}" if folder else path.name, path)
            for path in sorted(written.iterdir())
        ]
        card = model_card(name, network, vocabulary, repository, folder, file_sha256(written / WEIGHTS_FILE), about)
        operations.append(CommitOperationAdd(CARD_FILE, card.encode()))
        try:
            api = HfApi(library_name="tahoe", library_version=version("tahoe-anndata"))
            api.create_repo(repository, private=private, exist_ok=True)
            commit = api.create_commit(repository, operations, commit_message=f"Upload {name}")
        except Exception as error:
            message = f"{name!r} could not be uploaded to {repository!r} on the Hub: {reason(error)}"
            raise ModelError(message) from error
    return commit.oid


def model_card(
    name: str, network: Network, vocabulary: Vocabulary, repository: str, folder: str, sha256: str, about: str
) -> str:
    """What the page of the repository says: shape, hashes, and how to load it."""
    config = network.config
    head = {"library_name": "tahoe", "tags": ["biology", "single-cell", "transcriptomics", "tahoe-x1"]}
    if name in RELEASES:
        head["base_model"] = RELEASES[name].repository
    where = f'snapshot_download("{repository}")' + (f' + "/{folder}"' if folder else "")
    dtype = str(network.precision).removeprefix("torch.")
    drugs = f", {config.drug_encoder.n_drugs} drugs" if config.drug_encoder else ""
    return f"""---
{yaml.safe_dump(head, sort_keys=False).strip()}
---

# {repository.rpartition("/")[2]}

{about.strip() or "A Tahoe-x1 network, saved with the Python package `tahoe`."}

- {config.n_layers} layers × {config.d_model}, {config.n_heads} heads: {network.n_parameters:,} parameters in {dtype}
- {len(vocabulary.genes):,} genes{drugs}
- `{WEIGHTS_FILE}` has sha256 `{sha256}`
- the vocabulary has sha256 `{vocabulary.sha256}` (of its tokens and ids, in sorted order)

The files have the layout of the released Tahoe-x1 checkpoints. Only safetensors, JSON and YAML are needed to load them:

```python
import tahoe
from huggingface_hub import snapshot_download

tahoe.tl.embed(adata, model={where})
```
"""
