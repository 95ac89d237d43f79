"""The vocabulary of a checkpoint: which gene has which row of the embedding table."""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from tahoe.errors import ModelError
from tahoe.model.layout import VOCABULARY_FILE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

PAD, CELL, DRUG = "<pad>", "<cls>", "<drug>"


class Vocabulary:
    """Token strings and their ids.

    Parameters
    ----------
    ids
        Id of each token. The order of the mapping means nothing; ids must be different and not negative.
    """

    def __init__(self, ids: Mapping[str, int]) -> None:
        self.ids = dict(ids)
        _check(self.ids)

    @classmethod
    def read(cls, path: Path) -> Vocabulary:
        """Read a ``vocab.json``."""
        try:
            ids = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            message = f"{path.name} in {path.parent} is not readable JSON: {error}"
            raise ModelError(message) from error
        if not isinstance(ids, dict):
            message = f"{path.name} in {path.parent} must map tokens to ids, not hold a {type(ids).__name__}"
            raise ModelError(message)
        return cls(ids)

    def write(self, path: Path) -> None:
        """Write a ``vocab.json``, in the order of the ids."""
        path.write_text(json.dumps(dict(sorted(self.ids.items(), key=lambda item: item[1])), indent=1))

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, token: object) -> bool:
        return token in self.ids

    @cached_property
    def genes(self) -> np.ndarray:
        """Ensembl ids of all genes, in the order of their token ids."""
        genes = [token for token in self.ids if not token.startswith("<")]
        return np.array(sorted(genes, key=self.ids.__getitem__), dtype=object)

    @cached_property
    def sha256(self) -> str:
        """Hash of tokens and ids; the order in the file does not enter."""
        lines = "".join(f"{token}\t{id_}\n" for token, id_ in sorted(self.ids.items()))
        return hashlib.sha256(lines.encode()).hexdigest()

    @property
    def cell(self) -> int:
        """Id of the token whose output is the cell's embedding."""
        return self.ids[CELL]

    @property
    def drug(self) -> int | None:
        """Id of the drug token, if the checkpoint has one."""
        return self.ids.get(DRUG)

    def tokens_of(self, genes: Sequence[str] | np.ndarray) -> np.ndarray:
        """Token id of each gene (int64), -1 for what is not a gene of this vocabulary."""
        ids = self.ids
        return np.array([-1 if gene[:1] in ("", "<") else ids.get(gene, -1) for gene in genes], dtype=np.int64)


def _check(ids: dict[str, int]) -> None:
    wrong = [token for token, id_ in ids.items() if isinstance(id_, bool) or not isinstance(id_, int) or id_ < 0]
    if wrong:
        message = f"{VOCABULARY_FILE}: the id of {wrong[0]!r} is {ids[wrong[0]]!r}; ids must be whole numbers from 0"
        raise ModelError(message)
    if len(set(ids.values())) != len(ids):
        seen: dict[int, str] = {}
        token, id_ = next((t, i) for t, i in ids.items() if seen.setdefault(i, t) != t)
        message = f"{VOCABULARY_FILE}: {token!r} and {seen[id_]!r} have the same id {id_}"
        raise ModelError(message)
    missing = [token for token in (PAD, CELL) if token not in ids]
    if missing:
        message = f"{VOCABULARY_FILE}: the token {missing[0]} is missing; is this a Tahoe-x1 vocabulary?"
        raise ModelError(message)
