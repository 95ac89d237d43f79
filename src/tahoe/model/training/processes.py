"""Several processes train one network: each takes a part of the cells of every step. torch's own DDP and FSDP2."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tahoe.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tahoe.model.network.network import Network


@dataclass(frozen=True)
class Processes:
    """How many processes train together, and which of them this is."""

    rank: int = 0
    size: int = 1
    sharded: bool = False
    """Whether weights, gradients and moments are divided among the processes (FSDP2), or each has all of them (DDP)."""

    @property
    def is_first(self) -> bool:
        """Whether this process writes what is to be written once."""
        return self.rank == 0

    def wrap(self, objective: nn.Module, network: Network) -> nn.Module:
        """The objective, whose gradients are means over the processes."""
        if self.size == 1:
            return objective
        if not self.sharded:
            # without a drug in any cell the encoder of drugs has no gradient
            unused = network.drug is not None
            return nn.parallel.DistributedDataParallel(objective, find_unused_parameters=unused)
        from torch.distributed.fsdp import fully_shard

        for layer in network.layers:
            fully_shard(layer)
        fully_shard(objective)  # in place
        return objective

    def sending(self, wrapped: nn.Module, is_last: bool) -> AbstractContextManager[Any]:
        """Exchange gradients behind the last pass of a step, and not before."""
        if self.size == 1:
            return nullcontext()
        if self.sharded:
            wrapped.set_requires_gradient_sync(is_last)  # type: ignore[operator]
            return nullcontext()
        return nullcontext() if is_last else wrapped.no_sync()  # type: ignore[operator]

    def total(self, values_N: Tensor) -> Tensor:
        """Sum over the processes of each value."""
        if self.size > 1:
            dist.all_reduce(values_N)
        return values_N

    def most(self, number: int, device: torch.device) -> int:
        """The largest of a number that each process has."""
        if self.size == 1:
            return number
        found = torch.tensor(number, dtype=torch.int64, device=device)
        dist.all_reduce(found, op=dist.ReduceOp.MAX)
        return int(found)

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.size > 1:
            dist.barrier()


ALONE = Processes()


@contextmanager
def started(device: torch.device, sharded: bool) -> Iterator[Processes]:
    """The processes that `torchrun` has started, connected; just this one without it.

    Raises
    ------
    tahoe.errors.InputError
        If weights are to be divided among processes, and there is only one.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        if sharded:
            message = "sharded=True divides weights among processes, and there is only one; start them with torchrun"
            raise InputError(message)
        yield ALONE
        return
    ours = not dist.is_initialized()
    if ours:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Processes(dist.get_rank(), dist.get_world_size(), sharded)
    finally:
        if ours:
            dist.destroy_process_group()


def whole(tensor: Any) -> Any:
    """A weight as a whole, where this process has a part of it; all processes must ask."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def gathered(network: Network) -> Network:
    """A network whose weights are divided among the processes, as a whole in each of them."""
    from tahoe.model.network.network import Network

    state = {name: whole(weight) for name, weight in network.state_dict().items()}
    with torch.device("meta"):
        found = Network(network.config)
    found.load_state_dict(state, assign=True)
    return found.eval().requires_grad_(False)


def part_like(tensor: Any, present: Any) -> Any:
    """The part of a whole tensor that belongs to this process, laid out as `present` is."""
    if not hasattr(present, "full_tensor"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(present.device), present.device_mesh, present.placements)
