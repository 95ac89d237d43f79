"""The files of a checkpoint folder, and their digests. Needs no torch."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

WEIGHTS_FILE = "model.safetensors"
MODEL_FILE = "model_config.yml"
COLLATOR_FILE = "collator_config.yml"
VOCABULARY_FILE = "vocab.json"
DRUGS_FILE = "drug_to_id_pad.json"
FILES = (WEIGHTS_FILE, MODEL_FILE, COLLATOR_FILE, VOCABULARY_FILE)


def file_sha256(path: Path) -> str:
    """Hash of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
