"""Train a network to predict the values of masked genes: the objective that Tahoe-x1 itself was trained with."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm.auto import tqdm

from tahoe.errors import InputError, ModelError, TahoeWarning
from tahoe.model.config import N_BINS
from tahoe.model.network.attention import Spans
from tahoe.model.network.network import Batch, Network

if TYPE_CHECKING:
    from pathlib import Path

    from tahoe.model.config import ModelConfig
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


@dataclass(frozen=True)
class Losses:
    """Mean squared error of the masked values, on the scale of the bins, for each decoder."""

    expression: Tensor
    mvc: Tensor | None

    @property
    def total(self) -> Tensor:
        """What is minimised, the mean over the decoders."""
        return self.expression if self.mvc is None else (self.expression + self.mvc) / 2


def new_network(config: ModelConfig, seed: int = 0, device: str | torch.device = "cpu") -> Network:
    """Draw a network with random weights: normal of width 0.02, smaller where a residual path ends, zero biases.

    A GPU draws other numbers than a CPU, and the large shapes in a hundredth of the time.
    """
    device = torch.device(device)
    generator = torch.Generator(device).manual_seed(seed)
    # in float32, without a draw from torch's own generators, which are the caller's
    drawn_from = [device] if device.type == "cuda" else []
    with torch.inference_mode(False), device, torch.random.fork_rng(devices=drawn_from):
        network = Network(config).set_precision(torch.float32)
    residual_ends = {id(linear) for layer in network.layers for linear in (layer.attention_out, layer.down)}
    for module in network.modules():
        if isinstance(module, nn.Linear):
            scale = (2 * config.n_layers) ** -0.5 if id(module) in residual_ends else 1.0
            nn.init.normal_(module.weight, std=scale * module.in_features**-0.5, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.02 if config.gene_norm else 1.0, generator=generator)
    if network.drug is not None:
        nn.init.zeros_(network.drug.fingerprints.weight[:1])  # drug 0 is none
    _start_on_the_scale_of_bins(network, generator)
    return network


@torch.no_grad()
def _start_on_the_scale_of_bins(network: Network, generator: torch.Generator) -> None:
    """Let values be told apart, and predictions be spread over the bins, from the first step on.

    Without biases the hidden units of the value encoder all bend at zero, its norm then takes away the size of a value,
    and training rests on a plateau until biases have grown; so they start by bending at random bins.
    """
    hidden = network.value.hidden
    hidden.weight.mul_(4 / N_BINS)
    bends = torch.rand(hidden.bias.shape, generator=generator, dtype=torch.float32, device=generator.device)
    hidden.bias.copy_(-hidden.weight[:, 0] * bends * N_BINS)
    spread = 1.0 if network.config.scaled_targets else N_BINS / 4
    network.expression.out.weight.mul_(spread)
    if not network.config.scaled_targets:
        network.expression.out.bias.fill_(N_BINS / 3)
    if network.mvc is not None:
        network.mvc.weight.weight.mul_(spread)


def mask_tokens(tokens: Tokens, generator: np.random.Generator, probability: float) -> np.ndarray:
    """Choose which tokens of each cell to mask: a share of its genes, never its own token or that of its drug."""
    cells, is_gene = tokens.cell_of_token, tokens.is_gene
    # Special tokens are drawn last, so the first ranks of each cell are a random choice of its genes.
    draws = np.where(is_gene, generator.random(len(cells)), 2.0)
    rank = np.empty(len(cells), dtype=np.int64)
    rank[np.lexsort((draws, cells))] = np.arange(len(cells)) - tokens.bounds[cells]
    n_genes = np.bincount(cells[is_gene], minlength=len(tokens))
    return rank < np.floor(n_genes * probability)[cells]


def masked_batch(tokens: Tokens, masked: np.ndarray, config: ModelConfig, device: torch.device) -> tuple[Batch, Tensor]:
    """Make a batch whose masked values are hidden, and the values that are to be predicted."""
    if not masked.any():
        raise InputError(_nothing_to_mask(tokens, config))
    if config.drug_encoder is not None and tokens.drugs is None:
        message = "a model with a drug encoder sees cells without a drug token; pass drugs= to tokenize(), 0 for none"
        warnings.warn(message, TahoeWarning, stacklevel=2)
    values = torch.from_numpy(np.where(masked, np.float32(config.mask_value), tokens.values)).to(device)
    batch = Batch(
        torch.from_numpy(tokens.ids).to(device),
        values,
        Spans.of(tokens.bounds.tolist(), device),
        torch.from_numpy(masked).to(device),
        None if tokens.drugs is None else torch.from_numpy(tokens.drugs).to(device),
    )
    targets = torch.from_numpy(tokens.values[masked]).to(device)
    if config.scaled_targets:
        targets = (targets - 1) / (N_BINS - 2) * 2 - 1
    return batch, targets


def _nothing_to_mask(tokens: Tokens, config: ModelConfig) -> str:
    share = f"a share of {config.mask_probability} of their genes, rounded down, is none"
    return f"there is nothing to mask in these {len(tokens)} cells: {share}; take cells with more genes"


def masked_losses(network: Network, batch: Batch, targets: Tensor, attention: str = "sdpa") -> Losses:
    """Errors of both decoders at the masked tokens."""
    output_TD = network(batch, attention)
    masked_T = batch.masked_T
    expression = F.mse_loss(network.decode(output_TD[masked_T]), targets)
    if network.mvc is None:
        return Losses(expression, None)
    cells = torch.repeat_interleave(batch.cells.device_bounds.diff().long())
    per_cell = torch.bincount(cells[masked_T], minlength=len(batch.starts_C))
    genes_TD = network.gene_inputs(batch.ids_T[masked_T])
    mvc = F.mse_loss(network.mvc(output_TD[batch.starts_C], genes_TD, per_cell), targets)
    return Losses(expression, mvc)


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
        Where weights and optimiser state are saved (safetensors), and resumed from if the file is there.
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
        If `state_file` is that of another network, or the weights are in int8.
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
    optimizer = _optimizer(network, plan)
    first = _resume(network, optimizer, state_file) if state_file and state_file.is_file() else 0
    bar = tqdm(range(first, plan.steps), initial=first, total=plan.steps, unit="step", disable=not progress)
    with torch.autocast(device.type, enabled=False):  # that of the caller would hold on the way back, too
        for step in bar:
            generator = np.random.default_rng([plan.seed, step])
            tokens = sampler(generator)
            masked = mask_tokens(tokens, generator, network.config.mask_probability)
            batch, targets = masked_batch(tokens, masked, network.config, device)
            for group in optimizer.param_groups:
                group["lr"] = plan.learning_rate * plan.rate(step)
            with torch.autocast(device.type, torch.bfloat16, enabled=plan.bfloat16):
                losses = masked_losses(network, batch, targets)
            optimizer.zero_grad(set_to_none=True)
            losses.total.backward()
            nn.utils.clip_grad_norm_(network.parameters(), plan.clip, error_if_nonfinite=True)
            optimizer.step()
            bar.set_postfix(loss=f"{losses.total.item():.2f}", refresh=False)
            if report is not None:
                report(step, losses)
            if state_file and ((step + 1) % plan.save_every == 0 or step + 1 == plan.steps):
                _save(network, optimizer, step + 1, state_file)
    return network.eval().requires_grad_(False)


@torch.inference_mode()
def evaluate(network: Network, tokens: Tokens, *, seed: int = 0, cells_per_batch: int = 32) -> dict[str, float]:
    """Mean squared errors on masked genes of cells that were held out, for both decoders.

    Which genes are masked depends on `seed` and on the cells. The network may be in the middle of its training.

    Returns
    -------
    ``"expression_mse"`` and ``"mvc_mse"``, the errors of the decoders, and ``"constant_mse"``, that of the best
    constant, the mean of the masked values, which knows nothing of gene or cell.

    Raises
    ------
    tahoe.errors.InputError
        If no cell has enough genes to mask one.
    """
    device = next(network.parameters()).device
    generator = np.random.default_rng(seed)
    sums, values = np.zeros(2), []
    for start in range(0, len(tokens), cells_per_batch):
        part = tokens.cells(start, min(start + cells_per_batch, len(tokens)))
        masked = mask_tokens(part, generator, network.config.mask_probability)
        if not masked.any():
            continue  # one or two genes a cell leave nothing to hide
        batch, targets = masked_batch(part, masked, network.config, device)
        with torch.autocast(device.type, enabled=False):
            losses = masked_losses(network, batch, targets)
        mvc = losses.mvc if losses.mvc is not None else losses.expression
        sums += np.array([losses.expression.item(), mvc.item()]) * len(targets)
        values.append(targets.cpu().numpy())
    if not values:
        raise InputError(_nothing_to_mask(tokens, network.config))
    truth = np.concatenate(values)
    return {
        "expression_mse": sums[0] / len(truth),
        "mvc_mse": sums[1] / len(truth),
        "constant_mse": float(truth.var()),
    }


def _optimizer(network: Network, plan: TrainingPlan) -> torch.optim.AdamW:
    tables = {id(m.weight) for m in network.modules() if isinstance(m, nn.Embedding)}
    weights = list(network.parameters())
    decayed = [w for w in weights if w.ndim > 1 and id(w) not in tables]
    rest = [w for w in weights if w.ndim <= 1 or id(w) in tables]
    groups = [{"params": decayed, "weight_decay": plan.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=plan.learning_rate, betas=plan.betas, fused=True)


def _save(network: Network, optimizer: torch.optim.AdamW, step: int, path: Path) -> None:
    tensors: dict[str, Tensor] = {}
    for name, weight in network.named_parameters():
        state = optimizer.state[weight]
        tensors |= {f"weight/{name}": weight.detach()}
        tensors |= {f"{kind}/{name}": state[kind] for kind in ("exp_avg", "exp_avg_sq") if kind in state}
    partial = path.with_suffix(".partial")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial, metadata={"step": str(step)})
    partial.replace(path)


def _resume(network: Network, optimizer: torch.optim.AdamW, path: Path) -> int:
    with safe_open(path, framework="pt") as file:
        step = int(file.metadata()["step"])
        names = set(file.keys())
        for name, weight in network.named_parameters():
            if f"weight/{name}" not in names or tuple(file.get_slice(f"weight/{name}").get_shape()) != weight.shape:
                message = f"{path} is the state of another network: it has no {name} of shape {tuple(weight.shape)}"
                raise ModelError(message)
            weight.data.copy_(file.get_tensor(f"weight/{name}"))
            if f"exp_avg/{name}" in names:
                optimizer.state[weight] = {
                    "step": torch.tensor(float(step), dtype=torch.float32, device=weight.device),
                    **{kind: file.get_tensor(f"{kind}/{name}").to(weight.device) for kind in ("exp_avg", "exp_avg_sq")},
                }
    return step
