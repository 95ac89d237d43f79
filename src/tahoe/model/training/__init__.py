"""Train a network: the objective that Tahoe-x1 itself was trained with, and what may be added to it; or on labels."""

from tahoe.model.fine_tuning.fine_tuned import Base, FineTuned
from tahoe.model.fine_tuning.heads import Head, Target
from tahoe.model.fine_tuning.supervised import FineTuningPlan, TrainingReport
from tahoe.model.training.initialise import new_network
from tahoe.model.training.loop import Sampler, make_optimizer, train
from tahoe.model.training.objective import Losses, evaluate, mask_tokens, masked_batch, masked_losses
from tahoe.model.training.plan import TrainingPlan

__all__ = [
    "Base",
    "FineTuned",
    "FineTuningPlan",
    "Head",
    "Losses",
    "Sampler",
    "Target",
    "TrainingPlan",
    "TrainingReport",
    "evaluate",
    "make_optimizer",
    "mask_tokens",
    "masked_batch",
    "masked_losses",
    "new_network",
    "train",
]
