"""What `tahoe info` prints."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tahoe.errors import InputError
from tahoe.model.files import (
    MODEL_FILE,
    WEIGHTS_FILE,
    checkpoints_below,
    file_sha256,
    sha256_by_name,
    was_taught,
)
from tahoe.model.hub import download as hub
from tahoe.settings import settings

# Bytes of weights that `info` hashes at the most: some seconds.
HASHED = 1 << 30
PACKAGES = ("tahoe-anndata", "anndata", "scanpy", "torch", "numpy", "scipy", "huggingface-hub", "zarr")


def describe(subject: str | None) -> str:
    """Describe the installation, a model, or the results in a file."""
    if subject is None:
        return _installation()
    if was_taught(Path(subject)):
        return _taught(Path(subject))
    is_model = subject in (*hub.RELEASES, hub.DEMO) or _is_checkpoint(Path(subject))
    return _model(subject) if is_model else _file(subject)


def _is_checkpoint(folder: Path) -> bool:
    """Whether a folder is one of a model, or has some below it, which is told then."""
    if any((folder / mark).is_file() for mark in ("zarr.json", ".zgroup")):
        return False
    return (folder / MODEL_FILE).is_file() or next(checkpoints_below(folder), None) is not None


def _installation() -> str:
    import torch

    from tahoe.model.loading import choose_device

    lines = {"python": platform.python_version(), "platform": platform.platform()}
    lines |= {name: version(name) for name in PACKAGES}
    lines |= {"cores": str(os.cpu_count()), "device": str(choose_device(settings.device))}
    lines |= {f"cuda:{i}": torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
    lines |= {f"model {name}": _state(name) for name in hub.RELEASES}
    lines |= {"model demo": "built in; not for science"}
    return _aligned(lines)


def _state(name: str) -> str:
    """Whether a registered model is in the cache."""
    release = hub.RELEASES[name]
    folder = hub.cached(name, cache_dir=settings.cache_dir)
    return f"{release.about}; {f'cached in {folder}' if folder else f'not cached (tahoe download {name})'}"


def _model(name: str) -> str:
    """What a model is: from its configuration and the header of its weights, which are not loaded.

    A registered one that is not cached is not downloaded for that.
    """
    from tahoe.model.checkpoint.weights import read_checkpoint
    from tahoe.model.loading import choose_device, choose_dtype

    folder = hub.demo_folder() if name == hub.DEMO else Path(name)
    revision = "none"
    if name in hub.RELEASES:
        release, found = hub.RELEASES[name], hub.cached(name, cache_dir=settings.cache_dir)
        if found is None:
            return _aligned({name: release.about, "from": f"{release.repository} {release.revision}", "cached": "no"})
        folder, revision = found, release.revision
    network, vocabulary, _ = read_checkpoint(folder, weights=False)
    config, device = network.config, choose_device(settings.device)
    dtype = choose_dtype(settings.dtype, device, config.precision)
    lines: dict[str, Any] = {
        "model": name if name in (*hub.RELEASES, hub.DEMO) else folder.resolve().name,
        "folder": folder,
        "revision": revision,
        "sha256": _sha256(folder / WEIGHTS_FILE),
        "vocabulary sha256": vocabulary.sha256,
        "parameters": f"{network.n_parameters:,}",
        "layers × width": f"{config.n_layers} × {config.d_model}, {config.n_heads} heads",
        "genes": f"{len(vocabulary.genes):,}",
        "drugs": f"{config.drug_encoder.n_drugs:,}" if config.drug_encoder else "no drug encoder",
        "precision it was trained in": config.precision,
        "here it would run": f"on {device} in {str(dtype).removeprefix('torch.')}",
    }
    return _aligned(lines)


def _taught(folder: Path) -> str:
    """What was taught to a model, by `tahoe.fine_tune`; the model itself is not loaded."""
    from tahoe.model.fine_tuning.fine_tuned import read_fine_tuned

    tuned = read_fine_tuned(folder)
    assert tuned is not None
    lines: dict[str, Any] = {
        "taught to": tuned.base.name,
        "its weights": f"sha256 {tuned.base.weights_sha256}",
        "its folder": tuned.base.folder or "not needed: the name is enough",
        "method": tuned.method,
    }
    for target in tuned.targets:
        lines[f"tells {target.kind}"] = f"{_plain(target.name)}: {_plain(target.labels)}"
    lines |= {"trained on": f"{tuned.report.n_train:,} cells", "held back": f"{tuned.report.n_validation:,} cells"}
    for row in tuned.report.comparison:
        scores = ", ".join(f"{name} {value:.3f}" for name, value in row.items() if isinstance(value, float))
        lines[f"{_plain(row['target'])}, {_plain(row['method'])}"] = scores
    return _aligned(lines)


def _sha256(weights: Path) -> str:
    """Hash of the weights, unless it would take a pass over a large file."""
    size = weights.stat().st_size
    by_name = sha256_by_name(weights)
    if by_name is not None or size < HASHED:
        return by_name or file_sha256(weights)
    return f"of {size:,} bytes, not computed here: sha256sum {weights}"


def _file(path: str) -> str:
    from tahoe._cells.opening import open_source
    from tahoe._run.provenance import records_in

    with open_source(path) as opened:
        records = records_in(opened.uns)
    if not records:
        message = (
            f"{path!r} has no result of tahoe: nothing in uns says where it comes from; anndata.concat leaves uns out,"
            " unless uns_merge= says otherwise"
        )
        raise InputError(message)
    parts = []
    for key, record in records.items():
        lines = {name: _plain(value) for name, value in sorted(record.items())}
        parts.append(f"uns[{key!r}]\n{_aligned(lines)}\n")
    embeddings = [key for key, record in records.items() if "normalize" in record]
    option = "" if len(embeddings) == 1 else f" --key-added {embeddings[0]}" if embeddings else ""
    again = f"\nTo repeat it: tahoe embed --like {path}{option} -o again.zarr" if embeddings else ""
    return "\n".join(parts) + again


def _plain(value: Any) -> str:
    """A value on one line; what a file says must not steer the terminal."""
    text = str(value) if not hasattr(value, "__len__") or isinstance(value, str) else ", ".join(map(str, value))
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


def _aligned(lines: dict[str, Any]) -> str:
    width = max(map(len, lines))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines.items())
