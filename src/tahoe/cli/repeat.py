"""What `tahoe embed --like` does: read what an earlier run recorded, and pass it on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tahoe._cells.matrix import Slot
from tahoe._cells.opening import open_source
from tahoe._run.provenance import records_in
from tahoe.errors import InputError, ModelError

if TYPE_CHECKING:
    from tahoe.model import TahoeModel

OF_MAPPING = ("gene_key", "organism", "duplicates")
# What the provenance of a run must have, to repeat it, and of which kind each entry is.
ALWAYS = ("model", "model_sha256", "input")
TEXTS = ("model_folder", "model_revision", "source", "mask_var", "drug_key", *OF_MAPPING)
KINDS: tuple[tuple[tuple[str, ...], Any, str], ...] = (
    ((*ALWAYS, *TEXTS, "device", "dtype", "attention"), str, "text"),
    (("max_length", "seed", "token_budget"), int, "a whole number"),
    (("min_coverage",), (int, float), "a number"),
    (("normalize",), bool, "true or false"),
)


def repeat(
    like: str, source: str | None, options: dict[str, Any], given: set[str]
) -> tuple[str | None, dict[str, Any]]:
    """Source and options of the run that wrote a file; those that are given now win."""
    with open_source(like) as opened:
        records = records_in(opened.uns)
    key = options["key_added"] if "key_added" in given else next(iter(records), "")
    if key not in records:
        message = f"--like {like}: there is no embedding with provenance under uns[{key!r}]; it has {list(records)}"
        raise InputError(message)
    record = records[key]
    _check_record(record, like)
    names = ("mask_var", "drug_key", "max_length", "min_coverage", "normalize", "seed", "token_budget", *OF_MAPPING)
    before = {name: record[name] for name in (*names, "device", "dtype", "attention") if name in record}
    slot = Slot.from_text(record["input"])
    before |= {"key_added": key, "use_raw": slot.kind == "raw"} | (
        {"layer": slot.name} if slot.kind == "layers" else {}
    )
    options = {name: value if name in given else before.get(name, value) for name, value in options.items()}
    if str(options["mask_var"]).startswith("sha256:"):
        message = f"--like {like}: mask_var was an array, which the file does not have; pass --mask-var"
        raise InputError(message)
    if "model" not in given:
        where = {name: options.pop(name) for name in ("device", "dtype", "attention")}
        options["model"] = _same_model(record, where, like)
    return source or record.get("source"), options


def _check_record(record: dict[str, Any], like: str) -> None:
    """Refuse provenance that is not of the kinds that this package writes: a file may say anything."""
    for names, kind, description in KINDS:
        for name in names:
            value = record.get(name)
            value = value.item() if isinstance(value, np.generic) else value
            if name in ALWAYS and value is None:
                message = f"--like {like}: the provenance has no {name}, so the run cannot be repeated"
                raise InputError(message)
            if value is not None and (not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)):
                message = f"--like {like}: the provenance has {name} {str(value)[:40]!r}, which is not {description}"
                raise InputError(message)


def _same_model(record: dict[str, Any], where: dict[str, Any], like: str) -> TahoeModel:
    """Load the model of an earlier run, and see that it is still the same."""
    from tahoe.model import load_model

    name = record.get("model_folder", record["model"])
    model = load_model(name, revision=record.get("model_revision"), **where)
    if model.weights_sha256 != record["model_sha256"]:
        message = (
            f"--like {like}: the weights of {name!r} are not those of that run (sha256 {model.weights_sha256[:12]}…"
            f" instead of {record['model_sha256'][:12]}…); pass --model to insist"
        )
        raise ModelError(message)
    return model
