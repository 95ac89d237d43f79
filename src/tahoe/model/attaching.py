"""A model, and what was taught to it: adapters and a head."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import TYPE_CHECKING

from tahoe.model.fine_tuning.lora import merge
from tahoe.model.model import TahoeModel

if TYPE_CHECKING:
    from pathlib import Path

    from tahoe.model.fine_tuning.fine_tuned import FineTuned


def attach(base: TahoeModel, tuned: FineTuned, name: str, folder: Path | None = None) -> TahoeModel:
    """A model with what was taught to another, with which it shares all weights that adapters do not change.

    Raises
    ------
    tahoe.errors.ModelError
        If that was another model, or its weights are in int8.
    """
    tuned.check_base(base.weights_sha256, base.vocabulary.sha256, base.name)
    network = merge(base.network, tuned.adapters, tuned.alpha)
    tuned = replace(tuned, head=deepcopy(tuned.head).to(base.device))
    return TahoeModel(
        *(name, network, base.vocabulary, base.device, base.attention),
        folder=folder,
        drugs=base.drugs,
        # without adapters it embeds as its base does
        weights_sha256=tuned.sha256() if tuned.adapters else tuned.base.weights_sha256,
        fine_tuned=tuned,
    )
