"""Train a network: the objective that Tahoe-x1 itself was trained with, and what may be added to it."""

from tahoe.model.training.loop import (
    Losses,
    Sampler,
    TrainingPlan,
    evaluate,
    mask_tokens,
    masked_batch,
    masked_losses,
    new_network,
    train,
)

__all__ = [
    "Losses",
    "Sampler",
    "TrainingPlan",
    "evaluate",
    "mask_tokens",
    "masked_batch",
    "masked_losses",
    "new_network",
    "train",
]
