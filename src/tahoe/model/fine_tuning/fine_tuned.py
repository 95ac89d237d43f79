"""What was taught to a model: a head and perhaps adapters, as one small file that names the model it belongs to."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from tahoe.errors import ModelError
from tahoe.model.causes import first_line, why_not_written
from tahoe.model.files import FINE_TUNED_FILE, was_taught
from tahoe.model.fine_tuning.heads import Head, Target
from tahoe.model.fine_tuning.supervised import TrainingReport

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

FORMAT = "1"


@dataclass(frozen=True)
class Base:
    """The model that was taught."""

    name: str
    """A registered name, or that of the folder."""
    revision: str | None
    folder: str | None
    """Where it lies; `None` for a registered name, which is enough."""
    weights_sha256: str
    """Hash of its weights; another model is refused."""
    vocabulary_sha256: str


@dataclass(frozen=True, eq=False)
class FineTuned:
    """What `tahoe.fine_tune` has taught to a model."""

    method: str
    """``"head"``, ``"lora"`` or ``"full"``."""
    base: Base
    """The model that it started from."""
    head: Head
    """Tells the targets from an embedding."""
    adapters: dict[str, Tensor] = field(default_factory=dict)
    """With ``"lora"``: the factors, by layer."""
    alpha: float = 16.0
    """Scale of the adapters, to be divided by their rank."""
    options: dict[str, Any] = field(default_factory=dict)
    """How cells became tokens, and what else is needed to repeat it."""
    report: TrainingReport = field(default_factory=TrainingReport)
    """What happened in training."""
    network_sha256: str = ""
    """With ``"full"``, once it was saved: hash of the weights that the head belongs to."""

    @property
    def has_weights(self) -> bool:
        """Whether it has weights of its own, rather than being another model with something attached."""
        return self.method == "full"

    @property
    def targets(self) -> tuple[Target, ...]:
        """What it tells."""
        return self.head.targets

    def sha256(self) -> str:
        """Hash of what was taught, and to whom."""
        digest = hashlib.sha256(f"{self.base.weights_sha256} {self.alpha}".encode())
        for name, tensor in sorted(self._tensors().items()):
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            digest.update(tensor.numpy().tobytes())
        return digest.hexdigest()

    def check_base(self, weights_sha256: str, vocabulary_sha256: str, name: str) -> None:
        """Refuse another model than the one that was taught.

        Raises
        ------
        tahoe.errors.ModelError
            If weights or vocabulary are others.
        """
        if weights_sha256 != self.base.weights_sha256:
            have = f"{weights_sha256[:12]}…" if weights_sha256 else "none, since they were never saved"
            message = (
                f"the weights of {name!r} have sha256 {have}, and this was trained on {self.base.name!r} with"
                f" {self.base.weights_sha256[:12]}…: another model; pass that one as base="
            )
            raise ModelError(message)
        if vocabulary_sha256 != self.base.vocabulary_sha256:
            message = (
                f"the vocabulary of {name!r} is not that of {self.base.name!r}, on which this was trained: genes would"
                " be other tokens; pass the model with its own vocab.json as base="
            )
            raise ModelError(message)

    def write(self, folder: Path, *, public: bool = False) -> None:
        """Write the file, whole or not at all; a `public` one does not tell where the base lies on this machine.

        Raises
        ------
        tahoe.errors.ModelError
            If it cannot be written.
        """
        base = replace(self.base, folder=None) if public else self.base
        about = {
            "method": self.method,
            "base": asdict(base),
            "network_sha256": self.network_sha256,
            "targets": [asdict(target) for target in self.targets],
            "alpha": self.alpha,
            "options": self.options,
            "report": asdict(self.report),
        }
        metadata = {"format": "pt", "tahoe_fine_tuned": FORMAT, "base_sha256": base.weights_sha256}
        unfinished = folder / f"{FINE_TUNED_FILE}.unfinished"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            unfinished.write_bytes(save(self._tensors(), metadata | {"about": json.dumps(about)}))
            unfinished.replace(folder / FINE_TUNED_FILE)
        except OSError as error:
            unfinished.unlink(missing_ok=True)
            message = f"{folder / FINE_TUNED_FILE} cannot be written: {why_not_written(error)}; save it elsewhere"
            raise ModelError(message) from error

    def _tensors(self) -> dict[str, Tensor]:
        head = {f"head.{name}": tensor.detach().cpu().contiguous() for name, tensor in self.head.state_dict().items()}
        return head | {f"adapter.{name}": tensor.contiguous() for name, tensor in self.adapters.items()}


def read_fine_tuned(folder: Path) -> FineTuned | None:
    """What was taught to the model in a folder; `None` if there is nothing.

    Raises
    ------
    tahoe.errors.ModelError
        If the file is damaged, or of a later version.
    """
    path = folder / FINE_TUNED_FILE
    if not was_taught(folder):
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
        if metadata.get("tahoe_fine_tuned") != FORMAT:
            message = f"{path} has version {metadata.get('tahoe_fine_tuned')!r}, and this tahoe reads {FORMAT!r}"
            raise ModelError(message)
        about = json.loads(metadata["about"])
        targets = [Target(**{**each, "labels": tuple(each["labels"])}) for each in about["targets"]]
        state = {name.removeprefix("head."): each for name, each in tensors.items() if name.startswith("head.")}
        with torch.inference_mode(False):
            head = Head(targets, state["linear.weight"].shape[1])
            head.load_state_dict(state)
        return FineTuned(
            about["method"],
            Base(**about["base"]),
            head.requires_grad_(False),
            {name.removeprefix("adapter."): each for name, each in tensors.items() if name.startswith("adapter.")},
            float(about["alpha"]),
            about["options"],
            TrainingReport(**about["report"]),
            about["network_sha256"],
        )
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, ModelError):
            raise
        message = f"{path} is not a whole file of a fine-tuned model ({first_line(error)}); save or download it again"
        raise ModelError(message) from error
