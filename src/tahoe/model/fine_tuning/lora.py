"""Low-rank adapters (Hu et al. 2022): W + (α/r)·BA in linear layers whose own weights stay as they are.

They are trained beside the weights, and merged into them for inference, so that every fast path computes what it
always does. Shapes are written as suffixes: M rows, K features in, N features out, R rank.
"""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tahoe.errors import ModelError
from tahoe.model.cpu.linear import Linear

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tahoe.model.network.network import Network

# Linear layers of each transformer layer that get an adapter.
ADAPTED = ("qkv", "attention_out", "up", "down")


class AdaptedLinear(Linear):
    """A linear layer with an adapter beside its weights, and an activation after their sum."""

    def __init__(self, linear: Linear, rank: int, alpha: float, generator: torch.Generator) -> None:
        nn.Module.__init__(self)  # no weights of its own: those of the layer are shared
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        drawn_RK = torch.rand((rank, self.in_features), generator=generator, dtype=torch.float32, device="cpu")
        where = linear.weight.device
        self.a_RK = nn.Parameter(((2 * drawn_RK - 1) * self.in_features**-0.5).to(where))
        self.b_NR = nn.Parameter(torch.zeros((self.out_features, rank), dtype=torch.float32, device=where))
        self.scale = alpha / rank

    def forward(self, x_MK: Tensor, activation: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Apply the layer: (M, N)."""
        y_MN = self.features(x_MK, slice(None))
        return y_MN if activation is None else activation(y_MN)

    def features(self, x_MK: Tensor, some: slice) -> Tensor:
        """Some of the features that come out."""
        a_RK, b_NR = self.a_RK.to(x_MK.dtype), self.b_NR[some].to(x_MK.dtype)
        return F.linear(x_MK, self.weight[some], self.bias[some]) + self.scale * F.linear(F.linear(x_MK, a_RK), b_NR)


def sharing_weights(network: Network) -> Network:
    """A second network of the same modules, whose weights are those of the first, and not copies."""
    tensors = [*network.parameters(), *network.buffers()]
    return deepcopy(network, {id(each): each for each in tensors})


def adapt(network: Network, rank: int, alpha: float, seed: int) -> Network:
    """The same network with adapters that change nothing yet, since B is zero; only they need gradients.

    Raises
    ------
    tahoe.errors.ModelError
        If its weights are in int8.
    """
    network.check_weights()
    generator = torch.Generator("cpu").manual_seed(seed)
    with torch.inference_mode(False):
        adapted = sharing_weights(network)
        for layer in adapted.layers:
            for name in ADAPTED:
                setattr(layer, name, AdaptedLinear(getattr(layer, name), rank, alpha, generator))
    return adapted


def adapters_of(adapted: Network) -> dict[str, Tensor]:
    """The adapters, by the name of their layer: ``layers.0.qkv.a`` (rank, in) and ``layers.0.qkv.b`` (out, rank)."""
    return {
        f"{name}.{letter}": tensor.detach().float().cpu().clone()
        for name, module in adapted.named_modules()
        if isinstance(module, AdaptedLinear)
        for letter, tensor in (("a", module.a_RK), ("b", module.b_NR))
    }


@torch.inference_mode(False)
@torch.no_grad()
def merge(network: Network, adapters: Mapping[str, Tensor], alpha: float) -> Network:
    """A network with the adapters in its weights, which are added up in float32; all other weights are shared.

    The product of the factors is taken in float64 on the CPU: nothing that a process has set for its own products
    rounds it, and it is the same on all devices.

    Raises
    ------
    tahoe.errors.ModelError
        If the weights are in int8, or the adapters are those of another shape.
    """
    network.check_weights()
    merged = sharing_weights(network)
    names = sorted({name.rpartition(".")[0] for name in adapters})
    linears = {name: module for name, module in merged.named_modules() if isinstance(module, Linear)}
    for name in names:
        a_RK, b_NR = adapters.get(f"{name}.a"), adapters.get(f"{name}.b")
        linear = linears.get(name)
        shape = None if a_RK is None or b_NR is None else (len(b_NR), a_RK.shape[1])
        if linear is None or a_RK is None or b_NR is None or linear.weight.shape != shape:
            have = "no such layer" if linear is None else f"{tuple(linear.weight.shape)}"
            message = f"the adapter of {name} is for weights of shape {shape}, and the network has {have}"
            raise ModelError(message)
        change_NK = (alpha / len(a_RK) * (b_NR.cpu().double() @ a_RK.cpu().double())).float()
        weight_NK = linear.weight.float() + change_NK.to(linear.weight.device)
        linear.weight = nn.Parameter(weight_NK.to(linear.weight.dtype), requires_grad=False)
    return merged
