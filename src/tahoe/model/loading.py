"""The one door to weights: from a name or a folder to a model on a device."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tahoe.errors import DeviceError, ModelError
from tahoe.model.attaching import attach
from tahoe.model.checkpoint.weights import read_checkpoint
from tahoe.model.cpu.linear import has_bfloat16, has_int8
from tahoe.model.files import FINE_TUNED_FILE, WEIGHTS_FILE, weights_sha256
from tahoe.model.fine_tuning.fine_tuned import read_fine_tuned
from tahoe.model.hub import download as hub
from tahoe.model.model import TahoeModel
from tahoe.model.network.attention import choose_attention
from tahoe.settings import settings

if TYPE_CHECKING:
    import os

    from tahoe.model.fine_tuning.fine_tuned import FineTuned

log = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "int8": torch.int8}


def load_model(
    model: str | os.PathLike[str] | TahoeModel,
    *,
    revision: str | None = None,
    base: str | os.PathLike[str] | TahoeModel | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    attention: str | None = None,
) -> TahoeModel:
    """Load a Tahoe-x1 checkpoint: the one door to weights.

    Parameters
    ----------
    model
        A registered name (``"70m"``, ``"1b"``, ``"3b"``: downloaded once and cached; ``"demo"``: ships with the
        package, not for science), a folder in the released layout or one that a model of `tahoe.fine_tune` was saved
        to, or a loaded model, which comes back as it is.
    revision
        Another commit or branch of the Hub repository than the pinned one.
    base
        The model that adapters or a head belong to, where it lies elsewhere than when they were trained. A loaded one
        is not changed: several fine-tuned models can share it, and all weights that they have in common. Another
        model than that is refused by its hash.
    device
        ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``. `None` picks CUDA, then MPS, then the CPU.
    dtype
        Precision of the linear layers: ``"float32"``, ``"bfloat16"``, ``"float16"`` or ``"int8"``. Residual stream,
        norms and softmax stay float32. `None` is the checkpoint's own precision where the device computes it by
        itself, else float32: the released ones were trained in bfloat16, which Ampere GPUs and newer ones have, and
        CPUs with AVX512-BF16 or AMX. The log and the provenance say which it was.

        ``"int8"`` rounds the weights of the linear layers, and what goes into them, to 8 bits, on CPUs with
        AVX512-VNNI, AVX-VNNI or AMX. It is faster, most of all with the large models, and less exact: compare some of
        your cells first.
    attention
        ``"varlen"`` (CUDA, 16-bit: all cells in one kernel), ``"triton"`` (the same on Hopper GPUs, faster),
        ``"blocked"`` (x86 CPUs: blocks that fit the cache), ``"sdpa"`` (anywhere, one cell at a time), ``"eager"``
        (the formula written out), ``"flash"`` (the flash-attn package, if installed). `None` takes
        ``tahoe.settings.attention``, and if that is not set, picks by device, as ``"auto"`` does.

    Returns
    -------
    The model, in evaluation mode.

    Raises
    ------
    tahoe.errors.ModelError
        If the name is unknown, or the files are missing, damaged or ask for what is not implemented; or if adapters or
        a head belong to another model.
    tahoe.errors.DeviceError
        If this machine lacks the requested device, precision or attention.

    Examples
    --------
    >>> import tahoe
    >>> tahoe.load_model("demo", device="cpu").config.n_layers > 0
    True
    """
    if isinstance(model, TahoeModel):
        _refuse_revision(revision, "a loaded model")
        _refuse_base(base, f"the model {model.name!r}, which is loaded,")
        return _check_settings(model, device, dtype, attention)
    where = choose_device(device or settings.device)
    name, folder, commit, sha256 = _locate(model, revision)
    tuned = read_fine_tuned(folder)
    if tuned is None or tuned.has_weights:
        _refuse_base(base, f"{name!r}, which has weights of its own,")
        loaded = _read_whole(name, folder, commit, sha256, tuned)
    else:
        below = _base_of(tuned, folder, base)
        loaded = attach(below, tuned, name, folder)
        if below is base:
            return _check_settings(loaded, device, dtype, attention)
    precision = choose_dtype(dtype or settings.dtype, where, loaded.config.precision)
    loaded.attention = choose_attention(attention or settings.attention, where, precision, loaded.config.d_model)
    loaded.device = where
    with torch.inference_mode(False):
        loaded.network.set_precision(precision).to(where)
        if loaded.fine_tuned is not None:
            loaded.fine_tuned.head.to(where)
    log.info("loaded %r", loaded)
    return loaded


def _read_whole(name: str, folder: Path, commit: str | None, sha256: str, tuned: FineTuned | None = None) -> TahoeModel:
    """The model in a folder that has its weights, in float32 on the CPU."""
    device = torch.device("cpu")
    # ordinary tensors, which can be trained, whatever mode or default device the caller is in
    with torch.inference_mode(False), device:
        network, vocabulary, drugs = read_checkpoint(folder)
    # now, since the file may be replaced later
    sha256 = sha256 or weights_sha256(folder)
    if tuned is not None and tuned.network_sha256 != sha256:
        message = (
            f"{FINE_TUNED_FILE} in {folder} belongs to weights with sha256 {tuned.network_sha256[:12]}…, and"
            f" {WEIGHTS_FILE} there has {sha256[:12]}…: they are those of two models, or saving was cut short"
        )
        raise ModelError(message)
    return TahoeModel(name, network, vocabulary, device, "sdpa", folder, commit, drugs, sha256, tuned)


def _base_of(tuned: FineTuned, folder: Path, base: str | os.PathLike[str] | TahoeModel | None) -> TahoeModel:
    """The model that adapters or a head belong to: as it is if it is loaded, else in float32 on the CPU."""
    if isinstance(base, TahoeModel):
        return base
    of = tuned.base
    place, revision = (of.folder or of.name, of.revision) if base is None else (base, None)
    try:
        return load_model(place, revision=revision, device="cpu", dtype="float32", attention="sdpa")
    except ModelError as error:
        message = (
            f"{folder} has what was taught to the model {of.name!r} (weights with sha256 {of.weights_sha256[:12]}…),"
            f" which cannot be loaded from {str(place)!r} ({error}); pass its folder, or the loaded model, as base="
        )
        raise ModelError(message) from error


def choose_device(device: str | torch.device | None) -> torch.device:
    """The requested device, if it is there; `None` picks CUDA, then MPS, then the CPU."""
    if device is None or str(device).startswith("cuda"):
        _refuse_forked_cuda()
    if device is None:
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        return torch.device(name)
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError) as error:
        message = f"device={device!r} is not a device; use 'cpu', 'cuda', 'cuda:0' or 'mps'"
        raise DeviceError(message) from error
    if chosen.type == "cuda":
        present = torch.cuda.device_count()
        if (chosen.index or 0) >= present:
            message = f"device={str(device)!r}, but torch sees {present or 'no'} CUDA device(s); use device='cpu'"
            raise DeviceError(message)
    elif chosen.type == "mps" and not torch.backends.mps.is_available():
        message = "device='mps', but torch sees no Apple GPU; use device='cpu'"
        raise DeviceError(message)
    elif chosen.type not in ("cpu", "mps"):
        message = f"device={str(device)!r} is not supported; use 'cpu', 'cuda' or 'mps'"
        raise DeviceError(message)
    return chosen


def _refuse_forked_cuda() -> None:
    """Refuse CUDA in a process that was forked from one that uses it, where torch sees no device or fails later."""
    if getattr(torch.cuda, "_is_in_bad_fork", bool)():
        message = (
            "this process was forked from one that uses CUDA, which cannot go on here; start processes with"
            " multiprocessing.get_context('spawn'), or pass device='cpu'"
        )
        raise DeviceError(message)


def choose_dtype(dtype: str | torch.dtype | None, device: torch.device, precision: str) -> torch.dtype:
    """The requested precision, if the device has it; `None` is the checkpoint's own where it is computed."""
    if dtype is None:
        return torch.bfloat16 if "bf16" in precision and _computes_bfloat16(device) else torch.float32
    chosen = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if chosen is None or chosen not in DTYPES.values():
        message = f"dtype={dtype!r} is not supported; use one of {', '.join(DTYPES)}"
        raise DeviceError(message)
    if chosen == torch.int8 and not (device.type == "cpu" and has_int8()):
        message = (
            f"dtype='int8' needs an x86 CPU with AVX512-VNNI, AVX-VNNI or AMX, and numba without NUMBA_DISABLE_JIT, and"
            f" this is {device.type!r}; use dtype=None"
        )
        raise DeviceError(message)
    return chosen


def _computes_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 matrices by itself, rather than by way of float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and has_bfloat16()


def _locate(model: str | os.PathLike[str], revision: str | None) -> tuple[str, Path, str | None, str]:
    """Name, folder and commit of a model, and the hash of its weights if the download computed it."""
    try:
        folder = Path(model)
    except TypeError as error:
        message = f"model= must be a name, a folder or a loaded model, not {type(model).__name__}"
        raise ModelError(message) from error
    if isinstance(model, str) and model == hub.DEMO:
        _refuse_revision(revision, "the demo model, which ships with the package")
        return model, hub.demo_folder(), None, ""
    if isinstance(model, str) and model in hub.RELEASES:
        found = hub.download(model, revision=revision, cache_dir=settings.cache_dir)
        return model, found.folder, found.commit, found.weights_sha256
    try:
        if not folder.is_dir():
            hub.check_name(str(model))
    except OSError as error:
        message = f"model={str(model)!r} cannot be read: {error.strerror}"
        raise ModelError(message) from error
    _refuse_revision(revision, f"the folder {str(model)!r}")
    return folder.resolve().name, folder, None, ""


def _equal(requested: object, present: object) -> bool:
    """Whether two settings are the same: a device without a number is the first of its kind."""
    if isinstance(requested, torch.device) and isinstance(present, torch.device):
        return (requested.type, requested.index or 0) == (present.type, present.index or 0)
    return requested == present


def _refuse_revision(revision: str | None, what: str) -> None:
    if revision is not None:
        message = f"revision={revision!r} goes with a model of the Hub, and model= is {what}"
        raise ModelError(message)


def _refuse_base(base: object, what: str) -> None:
    if base is not None:
        message = f"base= goes with adapters or a head, and {what} needs none"
        raise ModelError(message)


def _check_settings(
    model: TahoeModel,
    device: str | torch.device | None,
    dtype: str | torch.dtype | None,
    attention: str | None,
) -> TahoeModel:
    """Refuse settings that differ from those of a loaded model, which others may hold: it is not changed."""
    wanted = {
        "device": (None if device is None else choose_device(device), model.device),
        "dtype": (None if dtype is None else choose_dtype(dtype, model.device, ""), model.dtype),
        "attention": (None if attention in (None, "auto") else attention, model.attention),
    }
    for argument, (requested, present) in wanted.items():
        if requested is not None and not _equal(requested, present):
            message = (
                f"{argument}={str(requested)!r}, but the model was loaded with {argument} {str(present)!r};"
                " load it again"
            )
            raise DeviceError(message)
    return model
