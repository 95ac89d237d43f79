"""What is known of each step of a training run: a file of JSON lines, and TensorBoard's files where it is installed."""

from __future__ import annotations

import importlib.util
import json
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from tahoe.errors import InputError
from tahoe.model.causes import why_not_written

if TYPE_CHECKING:
    from pathlib import Path

    from tahoe.model.training.loop import Step

METRICS_FILE, TENSORBOARD_FOLDER = "metrics.jsonl", "tensorboard"


class TrainingLog:
    """Metrics by the number of steps that are done."""

    def __init__(self, folder: Path, done: int) -> None:
        self.path = folder / METRICS_FILE
        self.last = time.perf_counter()
        _forget_later_steps(self.path, done)
        self.board: Any = None
        if importlib.util.find_spec("tensorboard") is not None:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(folder / TENSORBOARD_FOLDER), purge_step=done or None)

    def step(self, step: Step) -> None:
        """Write what happened in a step."""
        now = time.perf_counter()
        mvc = step.losses.mvc
        self.write(
            step.number + 1,
            "training",
            loss=step.losses.total.item(),
            expression_mse=step.losses.expression.item(),
            **({} if mvc is None else {"mvc_mse": mvc.item()}),
            learning_rate=step.learning_rate,
            gradient_norm=step.gradient_norm,
            n_cells=step.n_cells,
            n_tokens=step.n_tokens,
            tokens_per_second=step.n_tokens / max(now - self.last, 1e-9),
        )
        self.last = now

    def write(self, done: int, kind: str, **values: float) -> None:
        """Write a line; a full disk is an error."""
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": done, "kind": kind, **values}) + "\n")
        except OSError as error:
            message = f"{self.path} cannot be written: {why_not_written(error)}; when it is mended, pass resume=True"
            raise InputError(message) from error
        if self.board is not None:
            for name, value in values.items():
                self.board.add_scalar(f"{kind}/{name}", value, done)

    def close(self) -> None:
        """Write what is still to be written."""
        if self.board is not None:
            self.board.close()


def _forget_later_steps(path: Path, done: int) -> None:
    """Drop the lines of steps that are done again, and one that was cut short."""
    if not path.is_file():
        return
    if not done:
        path.unlink()
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with suppress(ValueError):
            if json.loads(line)["step"] <= done:
                kept.append(line)
    path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
