"""Weights of a new network."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from tahoe.model.config import N_BINS
from tahoe.model.network.network import Network

if TYPE_CHECKING:
    from tahoe.model.config import ModelConfig


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
