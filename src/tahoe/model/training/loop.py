"""Train a network, and go on where training stopped."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from tqdm.auto import tqdm

from tahoe.errors import ModelError
from tahoe.model.causes import first_line
from tahoe.model.training.objective import Losses, mask_tokens, masked_batch, masked_losses

if TYPE_CHECKING:
    from pathlib import Path

    from tahoe.model.network.network import Network
    from tahoe.model.tokens.tokenizer import Tokens

# Draws the cells of one step from a generator that belongs to this step alone.
Sampler = Callable[[np.random.Generator], "Tokens"]


@dataclass(frozen=True)
class TrainingPlan:
    """How long and how fast to train."""

    steps: int
    learning_rate: float = 5e-4
    warm_up: float = 0.05
    """Share of the steps over which the learning rate rises from zero; then it falls along a cosine."""
    final_rate: float = 0.02
    """Learning rate of the last step, as a share of the highest."""
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

    def rate(self, step: int) -> float:
        """Learning rate of a step, as a share of the highest."""
        warm = max(1, round(self.warm_up * self.steps))
        if step < warm:
            return (step + 1) / warm
        progress = (step - warm) / max(1, self.steps - warm)
        return self.final_rate + (1 - self.final_rate) * 0.5 * (1 + math.cos(math.pi * progress))


@torch.inference_mode(False)
@torch.enable_grad()
def train(
    network: Network,
    sampler: Sampler,
    plan: TrainingPlan,
    *,
    state_file: Path | None = None,
    report: Callable[[int, Losses], None] | None = None,
    progress: bool = True,
) -> Network:
    """Train in place with AdamW.

    Parameters
    ----------
    network
        On the device to train on, in float32.
    sampler
        Function of a `numpy.random.Generator` that draws the cells of a step, as `Tokens`. The generator depends on
        ``plan.seed`` and the step alone, so that a resumed run sees the cells that an undisturbed one would have seen.
        For a model with a drug encoder each cell has a drug token, with drug 0 if it has no drug.
    plan
        Steps, rates and seed.
    state_file
        Where weights and the state of the optimiser are saved (by `torch.save`), and resumed from if the file is there.
    report
        Called after each step, with its number and its losses.
    progress
        Whether a bar is drawn.

    Returns
    -------
    The network, in evaluation mode, without gradients.

    Raises
    ------
    tahoe.errors.ModelError
        If `state_file` is that of another network or cannot be read, or the weights are in int8.
    tahoe.errors.InputError
        If there is nothing to mask in the cells of a step.

    Examples
    --------
    >>> import tahoe
    >>> from tahoe.model.training import TrainingPlan, train
    >>> adata = tahoe.datasets.pbmc68k()
    >>> tahoe.pp.map_genes(adata)
    >>> mine = tahoe.load_model("demo", device="cpu").copy("mine")
    >>> columns = mine.vocabulary.tokens_of(adata.var["tahoe_gene"])
    >>> def draw(generator):
    ...     return mine.tokenize(adata.X[generator.choice(adata.n_obs, 8)], columns, max_length=64)
    >>> network = train(mine.network, draw, TrainingPlan(steps=2), progress=False)
    >>> mine.save("mine")  # doctest: +SKIP
    """
    network.check_weights()
    network.train().requires_grad_(True)
    device = next(network.parameters()).device
    optimizer = make_optimizer(network, plan)
    first = _resume(state_file, network, optimizer) if state_file and state_file.is_file() else 0
    schedule = LambdaLR(optimizer, lambda step: plan.rate(first + step))
    bar = tqdm(range(first, plan.steps), initial=first, total=plan.steps, unit="step", disable=not progress)
    with torch.autocast(device.type, enabled=False):  # that of the caller would hold on the way back, too
        for step in bar:
            generator = np.random.default_rng([plan.seed, step])
            tokens = sampler(generator)
            masked = mask_tokens(tokens, generator, network.config.mask_probability)
            batch, targets = masked_batch(tokens, masked, network.config, device)
            with torch.autocast(device.type, torch.bfloat16, enabled=plan.bfloat16):
                losses = masked_losses(network, batch, targets)
            optimizer.zero_grad(set_to_none=True)
            losses.total.backward()
            nn.utils.clip_grad_norm_(network.parameters(), plan.clip, error_if_nonfinite=True)
            optimizer.step()
            schedule.step()
            bar.set_postfix(loss=f"{losses.total.item():.2f}", refresh=False)
            if report is not None:
                report(step, losses)
            if state_file and ((step + 1) % plan.save_every == 0 or step + 1 == plan.steps):
                _save(state_file, step + 1, network, optimizer)
    return network.eval().requires_grad_(False)


def make_optimizer(network: Network, plan: TrainingPlan) -> torch.optim.AdamW:
    """AdamW, whose weight decay holds for matrices alone."""
    tables = {id(m.weight) for m in network.modules() if isinstance(m, nn.Embedding)}
    weights = list(network.parameters())
    decayed = [w for w in weights if w.ndim > 1 and id(w) not in tables]
    rest = [w for w in weights if w.ndim <= 1 or id(w) in tables]
    groups = [{"params": decayed, "weight_decay": plan.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=plan.learning_rate, betas=plan.betas, fused=True)


def _save(path: Path, step: int, network: Network, optimizer: torch.optim.Optimizer) -> None:
    """Write the state under another name first: what has this name is whole."""
    partial = path.with_suffix(".partial")
    state = {"step": step, "network": network.state_dict(), "optimizer": optimizer.state_dict()["state"]}
    torch.save(state, partial)
    partial.replace(path)


def _resume(path: Path, network: Network, optimizer: torch.optim.Optimizer) -> int:
    """Take weights and moments from a saved state; rates and weight decay are those of the plan. The next step."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        step, weights, moments = state["step"], state["network"], state["optimizer"]
    except Exception as error:
        message = f"{path} is not the state of a training run ({first_line(error)}); remove it to start anew"
        raise ModelError(message) from error
    for name, weight in network.state_dict().items():
        if name not in weights or weights[name].shape != weight.shape:
            message = f"{path} is the state of another network: it has no {name} of shape {tuple(weight.shape)}"
            raise ModelError(message)
    network.load_state_dict(weights)
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    return step
