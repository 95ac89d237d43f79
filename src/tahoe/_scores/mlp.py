"""The classifier of the authors of Tahoe-x1 for gene sets: a small network, chosen from 24 by its log-loss.

What the script ``benchmark_mlp.py`` of tahoe-x1 1.0.0 does, written anew: Adam at 1e-3 in batches of 256, the rate cut
to a tenth after 7 epochs without a better loss on the validation genes, and the end after 15. The weights are those of
the last epoch: the script means to keep the best, but holds a reference to the weights, which training goes on to
change.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

BATCH_SIZE, RATE, MOST_EPOCHS = 256, 1e-3, 10_000
PATIENCE_OF_RATE, PATIENCE = 7, 15


class Configuration(NamedTuple):
    """Shape of one network."""

    hidden: int
    n_hidden: int
    dropout: float


CONFIGURATIONS = tuple(
    itertools.starmap(Configuration, itertools.product((64, 512, 1024, 2048), (1, 2), (0.0, 0.1, 0.5)))
)


class Split(NamedTuple):
    """Row numbers of the genes of each part: 70, 5, 5 and 20 of a hundred."""

    train: np.ndarray
    validation: np.ndarray
    choice: np.ndarray
    test: np.ndarray


def split_genes(n_genes: int, seed: int) -> Split:
    """Part the genes as the script does, with numpy's old generator."""
    bounds = (np.cumsum((0.7, 0.05, 0.05)) * n_genes).astype(int)
    order = np.random.RandomState(seed).permutation(n_genes)
    return Split(*np.split(order, bounds))


def predict_best(
    vectors: np.ndarray, members: np.ndarray, split: Split, seed: int, device: str | torch.device
) -> tuple[np.ndarray, Configuration]:
    """Probability of each set for the test genes, by the network with the lowest log-loss on the choice genes."""
    x = torch.as_tensor(np.ascontiguousarray(vectors, dtype=np.float32), device=device)
    y = torch.as_tensor(np.ascontiguousarray(members, dtype=np.float32), device=device)
    best, best_loss, chosen = np.empty(0), np.inf, CONFIGURATIONS[0]
    for configuration in CONFIGURATIONS:
        network = train(configuration, x, y, split, seed)
        with torch.inference_mode():
            loss = float(nn.functional.binary_cross_entropy_with_logits(network(x[split.choice]), y[split.choice]))
            if loss < best_loss:
                best, best_loss, chosen = network(x[split.test]).sigmoid().cpu().numpy(), loss, configuration
    return best, chosen


def train(configuration: Configuration, x: torch.Tensor, y: torch.Tensor, split: Split, seed: int) -> nn.Module:
    """Train one network until its loss on the validation genes has not fallen for 15 epochs."""
    devices = [x.device] if x.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.enable_grad():
        torch.manual_seed(seed)
        network = _network(x.shape[1], y.shape[1], configuration).to(x.device)
        optimizer = torch.optim.Adam(network.parameters(), lr=RATE)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=PATIENCE_OF_RATE)
        loss_of = nn.functional.binary_cross_entropy_with_logits
        lowest, waited = np.inf, 0
        for _ in range(MOST_EPOCHS):
            network.train()
            order = split.train[torch.randperm(len(split.train), device="cpu").numpy()]
            for start in range(0, len(order), BATCH_SIZE):
                rows = order[start : start + BATCH_SIZE]
                optimizer.zero_grad()
                loss_of(network(x[rows]), y[rows]).backward()
                optimizer.step()
            network.eval()
            with torch.no_grad():
                loss = float(loss_of(network(x[split.validation]), y[split.validation]))
            scheduler.step(loss)
            lowest, waited = (loss, 0) if loss < lowest else (lowest, waited + 1)
            if waited >= PATIENCE:
                break
    return network


def _network(width: int, n_sets: int, configuration: Configuration) -> nn.Module:
    """The logits of all sets."""
    hidden, n_hidden, dropout = configuration
    with torch.device("cpu"):
        layers: list[nn.Module] = [nn.Linear(width, hidden, dtype=torch.float32), nn.LeakyReLU()]
        for _ in range(n_hidden - 1):
            layers += [nn.Dropout(dropout), nn.Linear(hidden, hidden, dtype=torch.float32), nn.LeakyReLU()]
        layers += [nn.Dropout(dropout), nn.Linear(hidden, n_sets, dtype=torch.float32)]
    return nn.Sequential(*layers)
