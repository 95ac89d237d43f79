"""Train a network, and go on where training stopped."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from tahoe.errors import ModelError
from tahoe.model.training.objective import Losses, Objective, mask_tokens
from tahoe.model.training.passes import Pass, cut, share_of
from tahoe.model.training.processes import ALONE, Processes, whole
from tahoe.model.training.state import StateFile

if TYPE_CHECKING:
    from pathlib import Path

    from tahoe.model.network.network import Network
    from tahoe.model.tokens.tokenizer import Tokens
    from tahoe.model.training.plan import TrainingPlan

# Draws the cells of one step from a generator that belongs to this step alone.
Sampler = Callable[[np.random.Generator], "Tokens"]
# From a step on, the cells of each and which of their tokens are masked.
Lots = Callable[[int], Generator[tuple["Tokens", np.ndarray], None, None]]


@dataclass(frozen=True)
class Step:
    """What happened in a step, over all processes."""

    number: int
    losses: Losses
    learning_rate: float
    gradient_norm: float
    n_cells: int
    n_tokens: int


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
        With it, Ctrl-C ends the step that is under way and saves the state.
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
        If `state_file` is that of another network or cannot be read, if the weights are in int8, or if the loss or its
        gradient is no number any more: the state that was saved last stays.
    tahoe.errors.InputError
        If there is nothing to mask in the cells of a step, or if the state cannot be written.

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

    def lots(first: int) -> Generator[tuple[Tokens, np.ndarray], None, None]:
        for step in range(first, plan.steps):
            generator = np.random.default_rng([plan.seed, step])
            tokens = sampler(generator)
            yield tokens, mask_tokens(tokens, generator, share_of(plan, network.config))

    told = None if report is None else lambda step: report(step.number, step.losses)
    state = None if state_file is None else StateFile(state_file)
    return run(network, lots, plan, state=state, report=told, progress=progress)


@torch.inference_mode(False)
@torch.enable_grad()
def run(
    network: Network,
    lots: Lots,
    plan: TrainingPlan,
    *,
    processes: Processes = ALONE,
    state: StateFile | None = None,
    report: Callable[[Step], None] | None = None,
    validate: Callable[[int, nn.Module], None] | None = None,
    progress: bool = True,
) -> Network:
    """Train as `train` does, alone or with other processes, on cells that come with their masks.

    `validate` is called with the number of steps that are done and the objective: before the first step, every
    ``plan.validate_every`` steps, and after the last.
    """
    network.check_weights()
    network.train().requires_grad_(True)
    device = next(network.parameters()).device
    objective = Objective(network, plan.activation_checkpointing)
    wrapped = processes.wrap(objective, network)
    optimizer = make_optimizer(network, plan)
    first = state.resume(network, optimizer) if state else 0
    bar = tqdm(initial=first, total=plan.steps, unit="step", disable=not (progress and processes.is_first))
    # that of the caller would hold on the way back, too
    outside = torch.autocast(device.type, enabled=False)
    with outside, bar, _interruptible(state is not None) as interrupted, closing(lots(first)) as coming:
        if validate is not None and first == 0:
            validate(0, objective)
        for step, lot in enumerate(coming, first):
            told = _one_step(step, lot, plan, network, wrapped, optimizer, processes, state)
            bar.update()
            bar.set_postfix(loss=f"{told.losses.total.item():.2f}", refresh=False)
            if report is not None:
                report(told)
            done, is_last = step + 1, step + 1 == plan.steps
            if validate is not None and (done % plan.validate_every == 0 or is_last):
                validate(done, objective)
            stops = interrupted.is_set() if processes.size == 1 else bool(processes.most(interrupted.is_set(), device))
            if state and (done % plan.save_every == 0 or is_last or stops):
                state.save(done, network, optimizer)
            if stops and not is_last:
                raise KeyboardInterrupt
    return network.eval().requires_grad_(False)


def _one_step(
    step: int,
    lot: tuple[Tokens, np.ndarray],
    plan: TrainingPlan,
    network: Network,
    wrapped: nn.Module,
    optimizer: torch.optim.Optimizer,
    processes: Processes,
    state: StateFile | None,
) -> Step:
    """Add up the gradients of all passes, and change the weights once."""
    device = next(network.parameters()).device
    tokens, masked = lot
    parts = cut(tokens, masked, plan, network.config, device, processes)
    own = [masked.sum(), len(tokens), len(tokens.ids)]
    n_masked, n_cells, n_tokens = processes.total(torch.tensor(own, dtype=torch.int64, device=device)).tolist()
    optimizer.zero_grad(set_to_none=True)
    errors = torch.zeros(2, dtype=torch.float32, device=device)
    for number, part in enumerate(parts):
        with processes.sending(wrapped, number + 1 == len(parts)):
            errors += _pass(wrapped, part, plan, device, processes.size / n_masked)
    expression, mvc = processes.total(errors) / n_masked
    losses = Losses(expression, mvc if network.mvc is not None else None)
    _refuse_divergence(step, "loss", losses.total.item(), state)
    rate = plan.learning_rate * plan.rate(step)
    for group in optimizer.param_groups:
        group["lr"] = rate
    norm = float(whole(nn.utils.clip_grad_norm_(network.parameters(), plan.clip)))
    _refuse_divergence(step, "norm of the gradient", norm, state)
    optimizer.step()
    return Step(step, losses, rate, norm, n_cells, n_tokens)


def _pass(wrapped: nn.Module, part: Pass, plan: TrainingPlan, device: torch.device, weight: float) -> Tensor:
    """Forward and backward; gives the sums of squared errors."""
    with torch.autocast(device.type, torch.bfloat16, enabled=plan.bfloat16):
        errors = wrapped(part.batch, part.targets, part.who)
    (errors.mean() * (weight * part.counts)).backward()
    return errors.detach() * part.counts


def _refuse_divergence(step: int, what: str, value: float, state: StateFile | None) -> None:
    """Stop before the weights are lost."""
    if math.isfinite(value):
        return
    kept = ""
    if state is not None:
        kept = f"; the state after {state.saved} steps is in {state.path}" if state.saved else "; no state was saved"
    message = f"the {what} of step {step} (counted from 0) is {value}, so training stops{kept}; lower the learning_rate"
    raise ModelError(message)


@contextmanager
def _interruptible(saves: bool) -> Iterator[threading.Event]:
    """Let Ctrl-C wait for the end of a step, where its state is to be saved; a second one does not wait."""
    pressed = threading.Event()
    if not saves or threading.current_thread() is not threading.main_thread():
        yield pressed
        return
    before = signal.getsignal(signal.SIGINT)

    def press(*_: object) -> None:
        pressed.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, press)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)


def make_optimizer(network: Network, plan: TrainingPlan) -> torch.optim.AdamW:
    """AdamW, whose weight decay holds for matrices alone."""
    tables = {id(m.weight) for m in network.modules() if isinstance(m, nn.Embedding)}
    weights = list(network.parameters())
    decayed = [w for w in weights if w.ndim > 1 and id(w) not in tables]
    rest = [w for w in weights if w.ndim <= 1 or id(w) in tables]
    groups = [{"params": decayed, "weight_decay": plan.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=plan.learning_rate, betas=plan.betas, fused=True)
