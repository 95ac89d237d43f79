"""The vocabulary of a checkpoint: which gene has which row of the embedding table."""

from __future__ import annotations

import hashlib
import json
import reprlib
from collections import Counter
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from tahoe.errors import ModelError
from tahoe.model.files import VOCABULARY_FILE
from tahoe.model.formats import HEAD, stand_in

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

# The released vocabularies have 1.7 MB and 62,721 ids: a broken file must not ask for all memory.
LARGEST_FILE, LARGEST_ID = 1 << 26, 1 << 24
PAD, CELL, DRUG = "<pad>", "<cls>", "<drug>"


class Vocabulary:
    """Token strings and their ids.

    Parameters
    ----------
    ids
        Id of each token; ids must be different and not negative. Ids say which gene is which. The order of the mapping
        only says which genes are together where not all of them fit at once.
    """

    def __init__(self, ids: Mapping[str, int]) -> None:
        self.ids = dict(ids)
        _check(self.ids)

    @classmethod
    def read(cls, path: Path) -> Vocabulary:
        """Read a ``vocab.json``."""
        return cls(read_ids(path, "tokens"))

    def __getstate__(self) -> dict[str, Any]:
        """The ids alone: another thread may be about to cache `genes` or `sha256` here."""
        return {"ids": self.ids}

    def write(self, path: Path) -> None:
        """Write a ``vocab.json``, in the order that these tokens came in."""
        path.write_text(json.dumps(self.ids, indent=1))

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


def read_ids(path: Path, what: str) -> dict[str, int]:
    """Read a JSON file of names and whole numbers.

    Raises
    ------
    tahoe.errors.ModelError
        If it is anything else, too large to be one, or has a name twice.
    """
    size = path.stat().st_size
    if size > LARGEST_FILE:
        message = f"{path.name} in {path.parent} has {size:,} bytes; a file of {what} has at most {LARGEST_FILE:,}"
        raise ModelError(message)
    try:
        content = path.read_bytes()
        if description := stand_in(content[:HEAD], str(path)):
            raise ModelError(description)
        ids = json.loads(content.decode("utf-8"), object_pairs_hook=_each_once)
    except OSError as error:
        message = f"{path.name} in {path.parent} cannot be read: {error.strerror}"
        raise ModelError(message) from error
    except ModelError:
        raise
    except (ValueError, RecursionError) as error:
        message = f"{path.name} in {path.parent} is not readable JSON: {error}"
        raise ModelError(message) from error
    if not isinstance(ids, dict):
        message = f"{path.name} in {path.parent} must map {what} to ids, not hold a {type(ids).__name__}"
        raise ModelError(message)
    _check_ids(ids, path.name)
    return ids


def _check_ids(ids: dict[str, int], file: str) -> None:
    for name, id_ in ids.items():
        if not name:
            message = f"{file} has an id without a name: {id_}"
            raise ModelError(message)
        if isinstance(id_, bool) or not isinstance(id_, int) or not 0 <= id_ < LARGEST_ID:
            message = f"{file}: the id of {name!r} is {reprlib.repr(id_)}; ids must be whole numbers from 0"
            raise ModelError(message)


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a mapping; the json module would keep the last of two equal names."""
    content = dict(pairs)
    if len(content) < len(pairs):
        twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        message = f"{twice!r} is there twice"
        raise ValueError(message)
    return content


def _check(ids: dict[str, int]) -> None:
    _check_ids(ids, VOCABULARY_FILE)
    if len(set(ids.values())) != len(ids):
        seen: dict[int, str] = {}
        token, id_ = next((t, i) for t, i in ids.items() if seen.setdefault(i, t) != t)
        message = f"{VOCABULARY_FILE}: {token!r} and {seen[id_]!r} have the same id {id_}"
        raise ModelError(message)
    missing = [token for token in (PAD, CELL) if token not in ids]
    if missing:
        message = f"{VOCABULARY_FILE}: the token {missing[0]} is missing; is this a Tahoe-x1 vocabulary?"
        raise ModelError(message)
