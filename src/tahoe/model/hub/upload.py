"""Put a model on the Hugging Face Hub, with a card."""

from __future__ import annotations

import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from tahoe.errors import ModelError
from tahoe.model.files import FINE_TUNED_FILE, WEIGHTS_FILE, file_sha256
from tahoe.model.hub.download import RELEASES, reason

if TYPE_CHECKING:
    from collections.abc import Callable

    from tahoe.model.fine_tuning.fine_tuned import Base, FineTuned
    from tahoe.model.network.network import Network
    from tahoe.model.tokens.vocabulary import Vocabulary

CARD_FILE = "README.md"


def push(
    name: str,
    network: Network,
    vocabulary: Vocabulary,
    repository: str,
    *,
    write: Callable[[Path], None],
    fine_tuned: FineTuned | None,
    folder: str,
    private: bool | None,
    about: str,
) -> str:
    """Upload a model and its card in one commit, all of it or nothing; return the commit."""
    from huggingface_hub import CommitOperationAdd, HfApi

    with tempfile.TemporaryDirectory() as place:
        written = Path(place)
        write(written)
        operations = [
            CommitOperationAdd(f"{folder}/{path.name}" if folder else path.name, path)
            for path in sorted(written.iterdir())
        ]
        file = WEIGHTS_FILE if (written / WEIGHTS_FILE).is_file() else FINE_TUNED_FILE
        hashed = f"- `{file}` has sha256 `{file_sha256(written / file)}`"
        lines = [hashed, *([] if fine_tuned is None else what_was_taught(fine_tuned))]
        card = model_card(
            name,
            network,
            vocabulary,
            repository,
            folder,
            lines,
            about,
            base=None if fine_tuned is None else fine_tuned.base,
        )
        operations.append(CommitOperationAdd(CARD_FILE, card.encode()))
        try:
            api = HfApi(library_name="tahoe", library_version=version("tahoe-anndata"))
            api.create_repo(repository, private=private, exist_ok=True)
            commit = api.create_commit(repository, operations, commit_message=f"Upload {name}")
        except Exception as error:
            message = f"{name!r} could not be uploaded to {repository!r} on the Hub: {reason(error)}"
            raise ModelError(message) from error
    return commit.oid


def what_was_taught(fine_tuned: FineTuned) -> list[str]:
    """Lines of the card on a head: its base, what it tells, and how well cells that were held back were told."""
    base, report = fine_tuned.base, fine_tuned.report
    lines = [f"- trained with `method={fine_tuned.method!r}` on `{base.name}`, whose weights have sha256"
             f" `{base.weights_sha256}`; `tahoe.tl.predict` tells:"]  # fmt: skip
    for target in fine_tuned.targets:
        listed = ", ".join(target.labels[:20]) + (", …" if len(target.labels) > 20 else "")
        lines.append(f"  - `{target.name}` ({target.kind}: {listed})")
    for row in report.comparison:
        scores = ", ".join(f"{name} {value:.3f}" for name, value in row.items() if isinstance(value, float))
        lines.append(f"- {row['target']}, {report.n_validation} held-out cells, {row['method']}: {scores}")
    return lines


def model_card(
    name: str,
    network: Network,
    vocabulary: Vocabulary,
    repository: str,
    folder: str,
    lines: list[str],
    about: str,
    *,
    base: Base | None = None,
) -> str:
    """What the page of the repository says: shape, hashes, and how to load it."""
    config = network.config
    head = {"library_name": "tahoe", "tags": ["biology", "single-cell", "transcriptomics", "tahoe-x1"]}
    based_on = name if base is None else base.name
    if based_on in RELEASES:
        head["base_model"] = RELEASES[based_on].repository
    call = "tahoe.tl.embed" if base is None else "tahoe.tl.predict"
    more = "\n".join(lines)
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
{more}
- the vocabulary has sha256 `{vocabulary.sha256}` (of its tokens and ids, in sorted order)

The files have the layout of the released Tahoe-x1 checkpoints. Only safetensors, JSON and YAML are needed to load them:

```python
import tahoe
from huggingface_hub import snapshot_download

{call}(adata, model={where})
```
"""
