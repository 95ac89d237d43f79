"""How long, how fast and how carefully to train; and the two recipes of the authors."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

from tahoe.errors import InputError

SCHEDULES = ("cosine", "constant")


@dataclass(frozen=True)
class TrainingPlan:
    """How long and how fast to train."""

    steps: int
    learning_rate: float = 5e-4
    warm_up: float = 0.05
    """Share of the steps over which the learning rate rises from zero; then it goes on as `schedule` says."""
    final_rate: float = 0.02
    """Learning rate of the last step, as a share of the highest, where it falls."""
    weight_decay: float = 0.01
    """On matrices; biases, norms and embedding tables are left alone."""
    betas: tuple[float, float] = (0.9, 0.98)
    clip: float = 1.0
    """Largest norm of the gradient."""
    bfloat16: bool = False
    """Compute the linear layers in bfloat16, with float32 weights."""
    seed: int = 0
    save_every: int = 500
    """Steps between two saved states, if a place for them is given."""
    schedule: str = "cosine"
    """``"cosine"``: the rate falls along a cosine; ``"constant"``: it stays."""
    mask_share: float | None = None
    """Share of the genes of each cell whose value is hidden; `None` is what the checkpoint was trained with."""
    tokens_per_pass: int | None = None
    """Most tokens that go through the network at once. The gradients of a step's passes are added up, so that its
    result does not depend on this beyond rounding. `None` takes all cells of a step at once."""
    activation_checkpointing: bool = False
    """Compute each layer again on the way back, instead of keeping what it computed: less memory, a third more work."""
    cells_per_step: int = 512
    """Cells of a step, over all processes; of `tahoe.continue_training` alone."""
    max_length: int = 2048
    """Maximum number of tokens per cell; of `tahoe.continue_training` alone."""
    validate_every: int = 500
    """Steps between two looks at the cells that were held out; of `tahoe.continue_training` alone."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant.

        Raises
        ------
        tahoe.errors.InputError
            If a field has a value that no training can have.
        """
        positive = ("steps", "learning_rate", "clip", "save_every", "cells_per_step", "validate_every")
        wrong = [name for name in positive if not getattr(self, name) > 0]
        wrong += [name for name in ("warm_up", "final_rate") if not 0 <= getattr(self, name) <= 1]
        wrong += ["mask_share"] * (self.mask_share is not None and not 0 < self.mask_share <= 1)
        wrong += ["tokens_per_pass"] * (self.tokens_per_pass is not None and not self.tokens_per_pass >= 1)
        wrong += ["betas"] * (len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas))
        wrong += ["max_length"] * (self.max_length < 3) + ["weight_decay"] * (not self.weight_decay >= 0)
        wrong += ["schedule"] * (self.schedule not in SCHEDULES)
        if wrong:
            message = f"the plan has {wrong[0]}={getattr(self, wrong[0])!r}, with which nothing can be trained"
            raise InputError(message)

    def rate(self, step: int) -> float:
        """Learning rate of a step, as a share of the highest."""
        warm = max(1, round(self.warm_up * self.steps)) if self.warm_up or self.schedule == "cosine" else 0
        if step < warm:
            return (step + 1) / warm
        if self.schedule == "constant":
            return 1.0
        progress = (step - warm) / max(1, self.steps - warm)
        return self.final_rate + (1 - self.final_rate) * 0.5 * (1 + math.cos(math.pi * progress))

    @classmethod
    def named(cls, name: str, **changes: Any) -> TrainingPlan:
        """One of the authors' recipes, with some of its fields changed.

        Parameters
        ----------
        name
            ``"stage_1"``, with which the released models began: 3e-4, falling along a cosine after a warm-up of 5 % of
            the steps, 1,024 tokens a cell. ``"continuation"``, with which they went on: 3e-5 throughout, betas of 0.9
            and 0.95, weight decay of 3e-6, 2,048 tokens. Both clip gradients at 1, hide half of the genes, and compute
            in bfloat16. What the authors do not say (cells a step) is ours.
        changes
            Fields and their values; ``steps`` is 1,000 if it is not among them.

        Raises
        ------
        tahoe.errors.InputError
            If there is no such recipe, or no such field.
        """
        if name not in PLANS:
            message = f"plan={name!r} is unknown; there are {', '.join(map(repr, PLANS))}, or pass a TrainingPlan"
            raise InputError(message)
        unknown = sorted(changes.keys() - {field.name for field in fields(cls)})
        if unknown:
            message = f"a plan has no {unknown[0]!r}; it has {', '.join(field.name for field in fields(cls))}"
            raise InputError(message)
        return cls(**{"steps": 1000, **PLANS[name], **changes})


PLANS: dict[str, dict[str, Any]] = {
    "stage_1": {
        **{"learning_rate": 3e-4, "warm_up": 0.05, "schedule": "cosine", "max_length": 1024},
        **{"betas": (0.9, 0.95), "clip": 1.0, "mask_share": 0.5, "bfloat16": True},
    },
    "continuation": {
        **{"learning_rate": 3e-5, "warm_up": 0.0, "schedule": "constant", "max_length": 2048},
        **{"betas": (0.9, 0.95), "weight_decay": 3e-6, "clip": 1.0, "mask_share": 0.5, "bfloat16": True},
    },
}
