"""Train a head, and a network below it, on labels, until cells that are held back are told no better."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from tahoe.model.fine_tuning.labels import Truth
    from tahoe.model.network.network import Network

log = logging.getLogger(__name__)

# Highest learning rates; for the head alone, that of `HEAD_PLAN`.
RATES, HEAD_RATE = {"lora": 3e-4, "full": 3e-5}, 3e-3


@dataclass(frozen=True)
class FineTuningPlan:
    """How long and how fast to train, for ``method="lora"`` and ``"full"``; the head before it has constants."""

    epochs: int = 10
    """At most so many passes over the cells."""
    patience: int = 3
    """Stop after so many epochs in which the loss of the held-out cells did not fall."""
    batch_size: int = 32
    """Cells of a step."""
    learning_rate: float | None = None
    """The highest; `None` is 3e-4 for adapters and 3e-5 for all weights."""
    warm_up: float = 0.1
    """Share of the steps over which the learning rate rises from zero; then it falls along a cosine, to zero."""
    weight_decay: float = 0.01
    """On matrices; biases, norms and the embeddings of genes are left alone."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    rank: int = 8
    """Rank of the adapters."""
    alpha: float = 16.0
    """Their scale, divided by the rank."""

    def rate(self, step: int, n_steps: int) -> float:
        """Learning rate of a step, as a share of the highest."""
        warm = max(1, round(self.warm_up * n_steps))
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, n_steps - warm)))


# The head alone is cheap, so it may take its time.
HEAD_PLAN = FineTuningPlan(epochs=200, patience=10, batch_size=64, weight_decay=0.05)


@dataclass
class TrainingReport:
    """What happened in training, as plain tables: `pandas.DataFrame(report.epochs)`."""

    epochs: list[dict[str, Any]] = field(default_factory=list)
    """For each epoch and target: ``stage`` (``"head"``, then ``"network"``), ``epoch`` (0 is the state before),
    ``train_loss``, ``validation_loss``, and the scores of the held-out cells."""
    comparison: list[dict[str, Any]] = field(default_factory=list)
    """For each target: the result, and what it has to beat, on the same held-out cells."""
    best_epoch: int = 0
    """Whose state was kept; 0 if training the network did not improve on the head alone."""
    stopped: str = ""
    """Why training ended."""
    n_train: int = 0
    """Cells that were trained on."""
    n_validation: int = 0
    """Cells that were held back."""
    held_out_groups: list[str] = field(default_factory=list)
    """Groups that were held back as a whole."""


@dataclass
class Fit:
    """Something to train, and how: a head alone, or a network with it."""

    outputs: Callable[[np.ndarray], Tensor]
    """Outputs of the head for some cells, with gradients."""
    weights: list[dict[str, Any]]
    """What is trained, as groups for AdamW with their learning rates."""
    plan: FineTuningPlan
    parts: Callable[[np.ndarray], Iterable[np.ndarray]]
    """Cuts cells into what goes through at once, in their order."""
    stage: str


@torch.inference_mode(False)
@torch.enable_grad()
def fit(
    what: Fit,
    truth: Truth,
    train: np.ndarray,
    validation: np.ndarray,
    report: TrainingReport,
    *,
    seed: int,
    progress: bool = True,
) -> Tensor:
    """Train with AdamW on shuffled batches, and keep the state whose loss on the held-out cells was the lowest.

    Training ends early if that has not fallen for ``plan.patience`` epochs, or at once if a loss or a gradient is no
    number; then too the best state is kept. That before the first epoch takes part.

    Returns
    -------
    The outputs for the held-out cells, in the state that was kept.
    """
    plan, generator = what.plan, np.random.default_rng(seed)
    trained = [weight for group in what.weights for weight in group["params"]]
    optimizer = torch.optim.AdamW(what.weights, betas=(0.9, 0.98))
    highest = [group["lr"] for group in optimizer.param_groups]
    n_steps = plan.epochs * math.ceil(len(train) / plan.batch_size)
    best, outputs = _copies(trained), _without_gradient(what, validation)
    lowest = _note(report, what, truth, validation, outputs, epoch=0, train_loss=float("nan"))
    report.best_epoch, report.stopped, waited, step = 0, f"all {plan.epochs} epochs were run", 0, 0
    bar = tqdm(total=n_steps, unit="step", desc=what.stage, disable=not progress)
    with bar:
        for epoch in range(1, plan.epochs + 1):
            losses = []
            for rows in _batches(train, plan.batch_size, generator):
                for group, rate in zip(optimizer.param_groups, highest, strict=True):
                    group["lr"] = rate * plan.rate(step, n_steps)
                step += 1
                optimizer.zero_grad(set_to_none=True)
                loss = _backward(what, truth, rows)
                norm = nn.utils.clip_grad_norm_(trained, plan.clip)
                if not (math.isfinite(loss) and torch.isfinite(norm)):
                    wrong = f"the loss was {loss}" if not math.isfinite(loss) else "the gradient was not finite"
                    report.stopped = f"diverged at step {step} (epoch {epoch}): {wrong}"
                    return _restored(trained, best, what, validation)
                optimizer.step()
                losses.append(loss)
                bar.update()
            outputs = _without_gradient(what, validation)
            loss = _note(report, what, truth, validation, outputs, epoch=epoch, train_loss=float(np.mean(losses)))
            bar.set_postfix(validation_loss=f"{loss:.4f}", refresh=False)
            if not math.isfinite(loss):
                report.stopped = f"diverged by step {step} (epoch {epoch}): the loss of the held-out cells was {loss}"
                break
            if loss < lowest:
                lowest, waited, best, report.best_epoch = loss, 0, _copies(trained), epoch
            else:
                waited += 1
            if waited >= plan.patience:
                report.stopped = f"no better for {waited} epochs, after epoch {epoch}"
                break
    return _restored(trained, best, what, validation)


def _batches(rows: np.ndarray, size: int, generator: np.random.Generator) -> Iterator[np.ndarray]:
    """All cells in a new order, a batch at a time."""
    order = generator.permutation(rows)
    for start in range(0, len(order), size):
        yield order[start : start + size]


def _backward(what: Fit, truth: Truth, rows: np.ndarray) -> float:
    """Add up the gradients of a batch; its loss."""
    total = 0.0
    for part in what.parts(rows):
        loss = truth.loss(what.outputs(part), part, rows)
        total += loss.item()
        if not math.isfinite(total):
            break
        if loss.requires_grad:
            loss.backward()
    return total


@torch.no_grad()
def _without_gradient(what: Fit, rows: np.ndarray) -> Tensor:
    """Outputs of cells, in their order."""
    return torch.cat([what.outputs(part) for part in what.parts(rows)])


def _note(
    report: TrainingReport,
    what: Fit,
    truth: Truth,
    validation: np.ndarray,
    outputs: Tensor,
    *,
    epoch: int,
    train_loss: float,
) -> float:
    """Write an epoch down; the loss of the held-out cells."""
    loss = truth.loss(outputs, validation, validation).item()
    for target, scores in truth.scores(outputs, validation).items():
        losses = {"train_loss": train_loss, "validation_loss": loss}
        report.epochs.append({"stage": what.stage, "epoch": epoch, "target": target, **losses, **scores})
    log.info("%s, epoch %d: loss %.4f, of held-out cells %.4f", what.stage, epoch, train_loss, loss)
    return loss


def _copies(weights: list[nn.Parameter]) -> list[Tensor]:
    return [weight.detach().clone() for weight in weights]


@torch.no_grad()
def _restored(weights: list[nn.Parameter], state: list[Tensor], what: Fit, validation: np.ndarray) -> Tensor:
    for weight, kept in zip(weights, state, strict=True):
        weight.copy_(kept)
        weight.grad = None
    return _without_gradient(what, validation)


def weight_groups(network: nn.Module, rate: float, decay: float) -> list[dict[str, Any]]:
    """Weights that need gradients, in groups for AdamW: matrices decay, all else is left alone."""
    tables = {id(module.weight) for module in network.modules() if isinstance(module, nn.Embedding)}
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    decayed = [weight for weight in weights if weight.ndim > 1 and id(weight) not in tables]
    rest = [weight for weight in weights if weight.ndim <= 1 or id(weight) in tables]
    groups = [{"params": decayed, "weight_decay": decay}, {"params": rest, "weight_decay": 0.0}]
    return [{**group, "lr": rate} for group in groups if group["params"]]


def train_embedding_weights(network: Network) -> Network:
    """Let all weights have gradients that an embedding depends on: no decoder, no flag of hidden values, no drug."""
    network.requires_grad_(False)
    for part in (network.genes, network.gene_norm, network.value, network.layers, network.norm):
        part.requires_grad_(True)
    return network
