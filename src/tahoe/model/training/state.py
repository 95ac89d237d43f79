"""The state of a training run in a file: whole or not there, and refused if it is that of another run."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from tahoe.errors import InputError, ModelError
from tahoe.model.causes import first_line, why_not_written
from tahoe.model.training.processes import ALONE, Processes, part_like, whole

if TYPE_CHECKING:
    from pathlib import Path

    from tahoe.model.network.network import Network


@dataclass
class StateFile:
    """Where weights and moments are saved after a step, and what run they belong to."""

    path: Path
    run: dict[str, Any] = field(default_factory=dict)
    """What decides the course of the run, as plain values; empty takes any state that fits the network."""
    processes: Processes = ALONE
    saved: int | None = None
    """After how many steps the file was written."""

    def save(self, step: int, network: Network, optimizer: torch.optim.Optimizer) -> None:
        """Write the state after `step` steps, under another name first: what has this name is whole.

        Raises
        ------
        tahoe.errors.InputError
            If it cannot be written; an earlier state stays.
        """
        moments = optimizer.state_dict()["state"]
        state = {
            "step": step,
            "network": {name: whole(weight) for name, weight in network.state_dict().items()},
            "optimizer": {n: {name: whole(value) for name, value in each.items()} for n, each in moments.items()},
            "run": json.dumps(self.run, sort_keys=True),
        }
        if self.processes.is_first:
            self._write(state)
        self.processes.wait()
        self.saved = step

    def steps(self) -> int:
        """After how many steps the file was written; 0 if that cannot be read, which `resume` will tell."""
        try:
            return int(torch.load(self.path, map_location="cpu", weights_only=True, mmap=True)["step"])
        except Exception:  # noqa: BLE001 - told later
            return 0

    def _write(self, state: dict[str, Any]) -> None:
        partial = self.path.with_suffix(".partial")
        try:
            torch.save(state, partial)
            partial.replace(self.path)
        except (OSError, RuntimeError) as error:  # torch's writer raises a RuntimeError where a disk is full
            with suppress(OSError):
                partial.unlink()
            why = why_not_written(error) if isinstance(error, OSError) else first_line(error)
            kept = f"that of step {self.saved} stays, and can be resumed" if self.saved else "there is no earlier one"
            message = f"the state after step {state['step']} cannot be written to {self.path}: {why}; {kept}"
            raise InputError(message) from error

    def resume(self, network: Network, optimizer: torch.optim.Optimizer) -> int:
        """Take weights and moments, if the file is there; rates and weight decay are those of the plan. The next step.

        Raises
        ------
        tahoe.errors.ModelError
            If it is no such file, or that of another network or run.
        """
        if not self.path.is_file():
            return 0
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
            step, weights, moments = state["step"], state["network"], state["optimizer"]
            before = json.loads(state.get("run", "{}"))
        except Exception as error:
            message = f"{self.path} is not the state of a training run ({first_line(error)}); remove it to start anew"
            raise ModelError(message) from error
        self._check_run(before)
        present = network.state_dict()
        for name, weight in present.items():
            if name not in weights or weights[name].shape != weight.shape:
                message = (
                    f"{self.path} is the state of another network: it has no {name} of shape {tuple(weight.shape)}"
                )
                raise ModelError(message)
        network.load_state_dict({name: part_like(weights[name], weight) for name, weight in present.items()})
        described = optimizer.state_dict()["param_groups"]
        like = [weight for group in optimizer.param_groups for weight in group["params"]]
        moments = {
            n: {name: part_like(value, like[n]) if value.ndim else value for name, value in each.items()}
            for n, each in moments.items()
        }
        optimizer.load_state_dict({"state": moments, "param_groups": described})
        self.saved = step
        return step

    def _check_run(self, before: dict[str, Any]) -> None:
        now = json.loads(json.dumps(self.run))
        differing = sorted(key for key in now.keys() & before.keys() if now[key] != before[key])
        differing += sorted(now.keys() ^ before.keys()) if now and before else []
        if differing:
            changes = ", ".join(f"{key} ({before.get(key)} then, {now.get(key)} now)" for key in differing)
            message = (
                f"{self.path} is the state of another run, which differs in {changes}. Make it the same, or remove that"
                " file to start anew"
            )
            raise ModelError(message)
