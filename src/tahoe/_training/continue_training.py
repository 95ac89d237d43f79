from __future__ import annotations

import logging
import math
import shutil
from contextlib import ExitStack, suppress
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from anndata import AnnData
from safetensors import SafetensorError

from tahoe._cells.objects import check_path
from tahoe._cells.opening import open_source
from tahoe._run.inputs import Inputs, read_inputs
from tahoe._run.parameters import document_parameters
from tahoe._store.lock import folder_of, lock_output
from tahoe._training.cells import Order, Source, TrainingCells, held_out_rows
from tahoe._training.checks import check_arguments, run_of
from tahoe._training.log import METRICS_FILE, TENSORBOARD_FOLDER, TrainingLog
from tahoe.errors import GeneError, InputError, warn
from tahoe.model import TahoeModel, load_model
from tahoe.model.causes import first_line, why_not_written
from tahoe.model.loading import choose_dtype
from tahoe.model.training.loop import run
from tahoe.model.training.passes import made, share_of
from tahoe.model.training.plan import TrainingPlan
from tahoe.model.training.processes import Processes, gathered, started
from tahoe.model.training.state import StateFile
from tahoe.settings import settings

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from torch import nn

    from tahoe.model import Tokens

log = logging.getLogger(__name__)

STATE_FILE, MODEL_FOLDER = "state.pt", "model"
# Cells that are held out at the most: more cost time and tell no more.
MOST_HELD_OUT = 2048
# Tokens at once where the plan does not say: of a CPU, and at the most. Bytes that a token of a layer takes, by width.
TOKENS_ON_CPU, MOST_TOKENS, BYTES_PER_TOKEN = 1 << 12, 1 << 16, 64


@document_parameters
def continue_training(
    sources: str | os.PathLike[str] | AnnData | Sequence[str | os.PathLike[str] | AnnData],
    model: str | os.PathLike[str] | TahoeModel,
    plan: str | TrainingPlan,
    output: str | os.PathLike[str],
    *,
    shares: Sequence[float] | None = None,
    validation: float = 0.01,
    resume: bool = False,
    sharded: bool = False,
    gene_key: str | None = None,
    organism: str | None = None,
    duplicates: str | None = None,
    layer: str | None = None,
    use_raw: bool = False,
    mask_var: str | None = None,
    drug_key: str | None = None,
    drugs: str | os.PathLike[str] | Mapping[str, int] | None = None,
    min_coverage: float = 0.5,
    device: str | torch.device | None = None,
) -> TahoeModel:
    """Go on training a model with its own objective, on cells of files that may be larger than memory.

    The values of a share of each cell's genes are hidden, and both decoders learn to predict them, as in the training
    of the released models. Which cells and genes a step takes is a function of ``plan.seed`` and the step, so a run
    that was interrupted, or killed, goes on with ``resume=True`` as if nothing had happened, bit for bit on a CPU.

    Until the end everything is in a folder beside `output` whose name ends in ``.partial``: the state of the run, and
    ``metrics.jsonl`` with a line for each step and for each look at the cells that were held out. Several processes,
    each with its GPU, train one model if `torchrun` starts them; see the guide on continued training.

    Parameters
    ----------
    sources
        An h5ad file, a zarr store, a 10x ``.h5`` file, the URL of one, an AnnData, or a list of these. Cells by rows.
    model
        What to begin with, which stays as it is; see `tahoe.load_model`. It is read in float32.
    plan
        ``"continuation"`` or ``"stage_1"``, the recipes of the authors, or a `tahoe.model.training.TrainingPlan`, such
        as ``TrainingPlan.named("continuation", steps=20_000, cells_per_step=256)``.
    output
        Folder of the new checkpoint, which must not exist yet.
    shares
        Share of the cells of a step that comes from each source, in their order; they add up to 1. `None` goes by
        numbers of cells. A source whose cells have all been seen begins again, in another order.
    validation
        Share of the cells of each source that is held out, at most 2,048 cells in all; 0 holds none out.
    resume
        Go on with a run that did not end, which must have had the same sources, model and plan.
    sharded
        Divide weights, gradients and moments among the processes (FSDP2), for models that do not fit on one device.
    organism
        ``"human"`` or ``"mouse"``, as for `tahoe.pp.map_genes`, for all sources.
    duplicates
        ``"best"`` or ``"sum"``, as for `tahoe.pp.map_genes`.
    mask_var
        Name of a boolean column of ``var`` that says which genes to use; `None` takes all.

    Returns
    -------
    The trained model. Its checkpoint is in `output`, with ``metrics.jsonl``.

    Raises
    ------
    tahoe.errors.InputError
        If an argument or a source cannot be used, if `output` exists or lies in a source, if another run is writing it,
        or if the disk is full: then the last state stays.
    tahoe.errors.GeneError
        If a source has no gene, or too few, that the model knows.
    tahoe.errors.ModelError
        If the model is in int8, if the state is that of another run, or if training diverges.
    tahoe.errors.DeviceError
        As `tahoe.load_model`.

    Examples
    --------
    >>> import tahoe, tempfile
    >>> from tahoe.model.training import TrainingPlan
    >>> adata = tahoe.datasets.pbmc68k()[:200].copy()
    >>> plan = TrainingPlan.named("continuation", steps=2, cells_per_step=8, max_length=64, bfloat16=False)
    >>> mine = tahoe.continue_training(adata, "demo", plan, tempfile.mkdtemp() + "/mine", validation=0)
    >>> mine.name
    'mine'
    """
    given = [sources] if isinstance(sources, str | AnnData) or hasattr(sources, "__fspath__") else list(sources)
    check_path("output", output)
    plan = TrainingPlan.named(plan) if isinstance(plan, str) else plan
    target = Path(output).absolute()
    check_arguments(given, shares, validation, plan, target, resume)
    what: dict[str, Any] = {"gene_key": gene_key, "organism": organism, "duplicates": duplicates}
    what |= {"layer": layer, "use_raw": use_raw, "mask_var": mask_var, "min_coverage": min_coverage}
    what |= {"drug_key": drug_key, "drugs": drugs}
    loaded = load_model(model, device=device, **({} if isinstance(model, TahoeModel) else {"dtype": "float32"}))
    loaded.network.check_weights()
    if loaded.dtype != torch.float32:
        warn(f"the model was loaded in {loaded.dtype}: training begins with rounded weights; pass its name instead")
    plan, fingerprint = _fit_to(plan, loaded), loaded.fingerprint()
    with started(loaded.device, sharded) as processes, ExitStack() as stack:
        folder = stack.enter_context(lock_output(target)) if processes.is_first else folder_of(target)
        processes.wait()
        opened = [each if isinstance(each, AnnData) else stack.enter_context(open_source(each)) for each in given]
        inputs = [_inputs(each, loaded, number, what) for number, each in enumerate(opened)]
        # a model of the caller stays as it is; what was loaded here is nobody else's
        own: dict[str, Any] = {"name": target.name, "folder": None, "revision": None, "weights_sha256": ""}
        mine = loaded.copy(target.name) if isinstance(model, TahoeModel) else replace(loaded, **own)
        cells = _mixed(mine, inputs, shares, validation, plan, processes)
        stack.callback(cells.close)
        state = StateFile(folder / STATE_FILE, run_of(given, inputs, cells, fingerprint, plan), processes)
        if state.path.is_file() and not resume:
            message = f"{str(folder)!r} is an unfinished run; pass resume=True (--resume), or delete that folder"
            raise InputError(message)
        _train(mine, cells, plan, state, processes, folder)
        mine = replace(mine, network=gathered(mine.network)) if processes.sharded else mine
        if processes.is_first:
            _finish(mine, folder, target)
        processes.wait()
    mine.folder = target
    return mine


def _fit_to(plan: TrainingPlan, model: TahoeModel) -> TrainingPlan:
    """The plan with what depends on the device."""
    if plan.bfloat16 and choose_dtype(None, model.device, "amp_bf16") != torch.bfloat16:
        warn(f"the plan computes in bfloat16, which {model.device} does not do by itself; float32 is used instead")
        plan = replace(plan, bfloat16=False)
    if plan.tokens_per_pass is None:
        most = TOKENS_ON_CPU
        if model.device.type == "cuda":
            config = model.config
            left = torch.cuda.mem_get_info(model.device)[0] * 0.8 - 12 * model.n_parameters  # gradients and moments
            layers = 1 if plan.activation_checkpointing else config.n_layers
            most = int(max(4096, min(MOST_TOKENS, left / (BYTES_PER_TOKEN * config.d_model * layers))))
        plan = replace(plan, tokens_per_pass=most)
    return plan


def _inputs(source: Any, model: TahoeModel, number: int, what: dict[str, Any]) -> Inputs:
    inputs = read_inputs(source, model, **what)
    if not (inputs.column_tokens >= 0).any():
        message = f"sources[{number}] has no gene that the model {model.name!r} knows; see tahoe.pp.map_genes"
        raise GeneError(message)
    return inputs


def _mixed(
    model: TahoeModel,
    inputs: list[Inputs],
    shares: Sequence[float] | None,
    validation: float,
    plan: TrainingPlan,
    processes: Processes,
) -> TrainingCells:
    """The sources with what is held out of each, and in their shares."""
    n_cells = [each.matrix.n_cells for each in inputs]
    held_out = min(validation, MOST_HELD_OUT / sum(n_cells))
    orders = []
    for number, n in enumerate(n_cells):
        rows = held_out_rows(n, math.ceil(held_out * n), (plan.seed, number))
        if len(rows) >= n:
            message = f"sources[{number}] has {n} cells, all of which would be held out; pass a smaller validation="
            raise InputError(message)
        orders.append(Order(n, rows, (plan.seed, number)))
    total = sum(order.n_cells for order in orders)
    given = (
        [Fraction(o.n_cells, total) for o in orders]
        if shares is None
        else [Fraction(share).limit_denominator(1_000_000) for share in shares]
    )
    sources = [Source(*each) for each in zip(inputs, orders, given, strict=True)]
    if plan.cells_per_step < processes.size + len(inputs):
        message = f"the plan has cells_per_step={plan.cells_per_step}, too few for {processes.size} processes"
        raise InputError(message)
    return TrainingCells(
        *(model, sources, plan.cells_per_step, plan.max_length, share_of(plan, model.config), plan.seed),
        rank=processes.rank,
        n_ranks=processes.size,
    )


def _train(
    model: TahoeModel,
    cells: TrainingCells,
    plan: TrainingPlan,
    state: StateFile,
    processes: Processes,
    folder: Path,
) -> None:
    done = state.steps() if state.path.is_file() else 0
    told = TrainingLog(folder, done) if processes.is_first else None
    held_out = cells.validation()

    def validate(step: int, objective: nn.Module) -> None:
        found = judge(model, objective, held_out, plan)
        if told is not None:
            told.write(step, "validation", **found)
            log.info("step %d: %s", step, ", ".join(f"{name} {value:.2f}" for name, value in found.items()))

    try:
        run(
            model.network,
            lambda first: cells.lots(first, plan.steps),
            plan,
            processes=processes,
            state=state,
            report=None if told is None else told.step,
            validate=validate if held_out else None,
            progress=settings.progress,
        )
    finally:
        if told is not None:
            told.close()


@torch.no_grad()
def judge(
    model: TahoeModel, objective: nn.Module, held_out: list[tuple[Tokens, np.ndarray]], plan: TrainingPlan
) -> dict[str, float]:
    """Mean squared errors of both decoders on cells that were held out, and that of the best constant."""
    sums, targets = torch.zeros(2, dtype=torch.float64, device="cpu"), []
    for tokens, masked in held_out:
        part = made(tokens, masked, plan, model.config, model.device)
        with torch.autocast(model.device.type, torch.bfloat16, enabled=plan.bfloat16):
            sums += objective(part.batch, part.targets, part.who).cpu().double()
        targets.append(part.targets.cpu().numpy())
    truth = np.concatenate(targets)
    names = ("expression_mse", "mvc_mse") if model.network.mvc is not None else ("expression_mse",)
    errors = {name: float(total) / len(truth) for name, total in zip(names, sums, strict=False)}
    return errors | {"constant_mse": float(truth.var())}


def _finish(model: TahoeModel, folder: Path, target: Path) -> None:
    """Let the checkpoint appear, and then forget the state."""
    written = folder / MODEL_FOLDER
    try:
        model.save(written)
        for name in (METRICS_FILE, TENSORBOARD_FOLDER):
            if (folder / name).exists():
                (folder / name).replace(written / name)
        written.rename(target)
        (folder / STATE_FILE).unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            (written / METRICS_FILE).replace(folder / METRICS_FILE)
        shutil.rmtree(written, ignore_errors=True)
        why = why_not_written(error) if isinstance(error, OSError) else first_line(error)
        message = f"the checkpoint cannot be written: {why}. The state of the run stays; go on with resume=True"
        raise InputError(message) from error
