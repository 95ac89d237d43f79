"""Train the demo model that ships with the package: a small Tahoe-x1 network on some 26,000 human cells.

    python scripts/demo_cells.py CELLS.h5ad [MORE.h5ad ...] --output cells.npz     # once; needs AnnData
    python scripts/train_demo.py cells.npz --minutes 4 --output run                # torch and numpy; best on a GPU
    python scripts/write_demo_model.py cells.npz run --output src/tahoe/data/demo-model

A run may be cut short: `run` holds the state of the last save, and the same command goes on from it. With
``--search-minutes`` the settings in ``--settings`` (a JSON list) are first tried for equal parts of that time, with
the sets named by ``--unseen`` held out as a whole, and the best goes on. They are judged by held-out cells alone.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, TextIO

import torch
from demo_batches import PackedCells, Sampling, quality, scores, start_from, wrong_bins
from demo_losses import Contrast, two_view_losses
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tahoe.model import ModelConfig, Network
from tahoe.model.training import TrainingPlan, make_optimizer, new_network

# Of all files of the model together, weights in float16: what the package may grow by.
LARGEST_MODEL = 5.9e6
BYTES_PER_GENE_NAME = 27
# The parts of a state, each a file: together they would be larger than what some machines give back.
PARTS = ("weights", "average", "exp_avg", "exp_avg_sq")
LOGGED = ("loss", "expression", "mvc", "contrast", "centred")
SECONDS_PER_LOG, SECONDS_PER_SAVE = 5.0, 30.0


@dataclass(frozen=True)
class Settings(Sampling, Contrast):
    """What a run may be tried with, beside `Sampling` and `Contrast`."""

    weight: float = 60.0
    width: int = 128
    layers: int = 4
    heads: int = 4
    genes: int = 14_000
    learning_rate: float = 2e-3
    averaged: float = 0.998
    """Share of the averaged weights that stays at each step."""
    seed: int = 0
    start: str = ""
    """Folder of a model whose weights are trained on, instead of new ones."""

    def network(self, cells: PackedCells) -> Network:
        """Draw the network, and put in the gene vectors that it starts from."""
        config = ModelConfig(
            d_model=self.width,
            n_layers=self.layers,
            n_heads=self.heads,
            vocab_size=len(cells.vocabulary),
            gene_norm=True,
            value_norm=True,
            decoder_layers=1,
            mvc_scaled=True,
        )
        network = new_network(config, self.seed)
        size = 2 * network.n_parameters + BYTES_PER_GENE_NAME * config.vocab_size
        if size > LARGEST_MODEL:
            message = f"{self} would be a model of {size / 1e6:.1f} MB; at most {LARGEST_MODEL / 1e6} MB are shipped"
            raise ValueError(message)
        with torch.no_grad():
            network.genes.weight.copy_(cells.initial_gene_vectors(self.width))
        return network.to(cells.counts.device)


class Run:
    """A network in training, the average of its late weights, and what is needed to go on.

    How far it has come is told by the clock, since what a machine can do in a given time is not known before.
    """

    def __init__(
        self, settings: Settings, cells: PackedCells, options: argparse.Namespace, *, new: bool = True
    ) -> None:
        self.settings, self.cells, self.bfloat16 = settings, cells, options.device.type == "cuda"
        self.network = settings.network(cells)
        if settings.start and new:
            start_from(self.network, cells, Path(settings.start))
        self.average = copy.deepcopy(self.network).requires_grad_(False).eval()
        self.network.train().requires_grad_(True)
        # a plan of ten thousand parts, whatever the number of steps
        self.plan = TrainingPlan(10_000, settings.learning_rate, warm_up=0.04)
        self.optimizer = make_optimizer(self.network, self.plan)
        self.step, self.seconds, self.best = 0, 0.0, float("-inf")

    def take_step(self, done: float) -> torch.Tensor:
        """One step; gives what is `LOGGED`, all still on the device."""
        views, lots = self.cells.draw(self.settings, self.settings.seed, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = self.plan.learning_rate * self.plan.rate(int(done * self.plan.steps))
        with torch.autocast(views.ids_RN.device.type, torch.bfloat16) if self.bfloat16 else nullcontext():
            total, losses, apart = two_view_losses(self.network, views, lots, self.settings)
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.plan.clip, foreach=True)
        self.optimizer.step()
        self.step += 1
        stays = min(self.settings.averaged, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.network.parameters()), 1 - stays)
        return torch.stack([total, losses.expression, losses.mvc, *apart]).detach()

    def score(self, log: TextIO, name: str, options: argparse.Namespace) -> float:
        """Score the averaged weights on held-out cells."""
        result = scores(self.average, self.cells, most_cells=options.scored_cells, length=options.scored_tokens)
        reached = quality(result)
        write(log, {"run": name, "step": self.step, "quality": reached, "settings": asdict(self.settings), **result})
        return reached

    def keep_best(self, reached: float, folder: Path) -> None:
        """Keep the averaged weights that were best on held-out cells, in case a run goes on for too long."""
        if reached > self.best:
            self.best = reached
            save_file(self._part("average"), folder / "best.partial", metadata=self._about)
            (folder / "best.partial").replace(folder / "best.safetensors")

    @property
    def _about(self) -> dict[str, str]:
        numbers = {"step": self.step, "seconds": self.seconds, "best": self.best}
        return {key: str(value) for key, value in numbers.items()} | {"settings": json.dumps(asdict(self.settings))}

    def save(self, folder: Path) -> None:
        """Write the state beside the last one, and put it in its place."""
        partial = [folder / f"{part}.partial" for part in PARTS]
        for part, path in zip(PARTS, partial, strict=True):
            save_file(self._part(part), path, metadata=self._about)
        for path in partial:
            path.replace(path.with_suffix(".safetensors"))

    def resume(self, folder: Path) -> None:
        """Go on from a state that `save` has written."""
        for part in PARTS:
            path = folder / f"{part}.safetensors"
            with safe_open(path, framework="pt") as file:
                about = file.metadata()
            if part == PARTS[0]:
                self.step, self.seconds, self.best = int(about["step"]), float(about["seconds"]), float(about["best"])
            elif int(about["step"]) != self.step:
                message = f"{path} is of step {about['step']}, and the weights beside it of {self.step}"
                raise ValueError(message)
            for name, tensor in load_file(path, device=str(self.cells.counts.device)).items():
                self._put(part, name, tensor)

    def _part(self, part: str) -> dict[str, torch.Tensor]:
        network = self.average if part == "average" else self.network
        weights = dict(network.named_parameters())
        if part in ("weights", "average"):
            return {name: weight.detach().contiguous() for name, weight in weights.items()}
        state = self.optimizer.state
        return {name: state[weight][part] for name, weight in weights.items() if part in state[weight]}

    def _put(self, part: str, name: str, tensor: torch.Tensor) -> None:
        network = self.average if part == "average" else self.network
        weight = network.get_parameter(name)
        if part in ("weights", "average"):
            weight.data.copy_(tensor)
            return
        step = torch.tensor(float(self.step), device=tensor.device)
        self.optimizer.state[weight] = self.optimizer.state.get(weight, {}) | {"step": step, part: tensor}


def train(run: Run, minutes: float, log: TextIO, name: str, options: argparse.Namespace, *, keep: bool) -> None:
    """Train until the run has had its minutes, those before a cut included; log, save and score on the way."""
    last_log = last_save = last_score = time.monotonic()
    began = last_log - run.seconds
    first_step, sums, n_summed = run.step, 0.0, 0
    while run.seconds < 60 * minutes and (options.steps is None or run.step < options.steps):
        sums = sums + run.take_step(run.seconds / (60 * minutes))
        n_summed += 1
        now = time.monotonic()
        run.seconds = now - began
        if now - last_log > SECONDS_PER_LOG or run.step == first_step + 1:
            line = dict(
                zip(("loss", "expression", "mvc", "contrast", "centred"), (sums / n_summed).tolist(), strict=True)
            )
            if not line["loss"] < 1e6:
                message = f"{name}: the loss is {line['loss']} at step {run.step}; try a lower learning rate"
                raise FloatingPointError(message)
            rate = n_summed / (time.monotonic() - last_log)
            write(log, {"run": name, "step": run.step, "seconds": run.seconds, "steps_per_s": rate, **line})
            last_log, sums, n_summed = time.monotonic(), 0.0, 0
        if keep and now - last_score > 60 * options.score_minutes:
            run.keep_best(run.score(log, name, options), options.output)
            last_score = time.monotonic()
        if keep and now - last_save > SECONDS_PER_SAVE:
            run.save(options.output)
            last_save = now
    if keep:
        run.save(options.output)


def write(log: TextIO, line: dict[str, object]) -> None:
    """Add a line to the log and show it."""
    rounded = {key: round(value, 3) if isinstance(value, float) else value for key, value in line.items()}
    log.write(json.dumps(rounded) + "\n")
    log.flush()
    print(json.dumps({key: value for key, value in rounded.items() if "/" not in key}), flush=True)


@cache
def load_cells(path: Path, n_genes: int, device: torch.device, unseen: tuple[str, ...] = ()) -> PackedCells:
    """Load the cells once for all settings that share a vocabulary."""
    return PackedCells(path, n_genes, device, unseen)


def search(candidates: list[Settings], options: argparse.Namespace, log: TextIO) -> Settings:
    """Try settings for equal parts of the time."""
    best, best_quality = candidates[0], float("-inf")
    for number, settings in enumerate(candidates):
        cells = load_cells(options.cells, settings.genes, options.device, tuple(options.unseen))
        run = Run(settings, cells, options)
        if not number:
            # what a device does once and slowly, it shall not do in the time of the first
            Run(settings, cells, options).take_step(0)
        try:
            train(run, options.search_minutes / len(candidates), log, f"search {number}", options, keep=False)
            reached = run.score(log, f"search {number}", options)
        except (FloatingPointError, torch.cuda.OutOfMemoryError) as error:
            write(log, {"run": f"search {number}", "error": str(error)})
            continue
        if reached > best_quality:
            best, best_quality = settings, reached
    return best


def read_settings(path: Path | None) -> list[Settings]:
    """Read a JSON list of settings, or one of them; what one does not name keeps its default."""
    given = json.loads(path.read_text()) if path else {}
    known = {field.name for field in fields(Settings)}
    for one in given if isinstance(given, list) else [given]:
        if set(one) - known:
            message = f"{path} has {sorted(set(one) - known)}; settings are {sorted(known)}"
            raise ValueError(message)
    return [settings_of(one) for one in (given if isinstance(given, list) else [given])]


def settings_of(given: dict[str, Any]) -> Settings:
    """Settings from JSON, which has no tuples."""
    return Settings(**{key: tuple(value) if isinstance(value, list) else value for key, value in given.items()})


def settings_of_state(folder: Path) -> Settings | None:
    """Settings of the run that was saved in a folder, if there is one."""
    if not (folder / "weights.safetensors").is_file():
        return None
    with safe_open(folder / "weights.safetensors", framework="pt") as file:
        return settings_of(json.loads(file.metadata()["settings"]))


def main() -> None:
    """Search if asked to, then train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cells", type=Path)
    parser.add_argument("--output", type=Path, default=Path("demo-training"), help="where state and log are kept")
    parser.add_argument("--minutes", type=float, default=4.0, help="of training, those before a cut included")
    parser.add_argument("--steps", type=int, help="stop at this step, even if there is time left")
    parser.add_argument("--settings", type=Path, help="JSON: settings of the run, or a list of them to search")
    parser.add_argument("--search-minutes", type=float, default=0.0)
    parser.add_argument("--unseen", nargs="*", default=[], metavar="SET", help="held out as a whole in the search")
    parser.add_argument("--score-minutes", type=float, default=1.0, help="between two scores on held-out cells")
    parser.add_argument("--scored-cells", type=int, default=400, help="held-out cells of each set that are scored")
    parser.add_argument("--scored-tokens", type=int, default=1024)
    parser.add_argument("--device", type=torch.device, default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    torch.set_float32_matmul_precision("high")
    torch.backends.cuda.enable_cudnn_sdp(False)  # new, and the masks of padded batches are not what it is made for
    options.output.mkdir(parents=True, exist_ok=True)
    with (options.output / "log.jsonl").open("a") as log:
        settings = settings_of_state(options.output)
        resumed = settings is not None
        if settings is None:
            candidates = read_settings(options.settings)
            settings = search(candidates, options, log) if options.search_minutes else candidates[0]
        cells = load_cells(options.cells, settings.genes, options.device)
        run = Run(settings, cells, options, new=not resumed)
        if resumed:
            run.resume(options.output)
        device = torch.cuda.get_device_name() if run.bfloat16 else "CPU"
        about = {"settings": asdict(settings), "parameters": run.network.n_parameters, "device": device}
        write(log, {"run": "train", "step": run.step, "wrong_bins": wrong_bins(cells, run.network.config)} | about)
        train(run, options.minutes, log, "train", options, keep=True)
        run.keep_best(run.score(log, "train", options), options.output)


if __name__ == "__main__":
    main()
