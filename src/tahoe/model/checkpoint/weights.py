"""A checkpoint in the released layout: one folder, four files, and the names that its weights have there."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from tahoe.errors import ModelError
from tahoe.model.causes import first_line, why_not_written
from tahoe.model.checkpoint.config_files import contents_of, read_config
from tahoe.model.files import (
    COLLATOR_FILE,
    DRUGS_FILE,
    FINE_TUNED_FILE,
    MODEL_FILE,
    VOCABULARY_FILE,
    WEIGHTS_FILE,
    check_folder,
)
from tahoe.model.network.network import Network
from tahoe.model.tokens.vocabulary import DRUG, Vocabulary, read_ids

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

    from tahoe.model.config import ModelConfig

# Name in the released files → name in Network; {i} counts layers. All of them end in .weight and most in .bias too.
KEYS = {
    "gene_encoder.embedding": "genes",
    "gene_encoder.enc_norm": "gene_norm",
    "flag_encoder": "flag",
    "expression_encoder.linear1": "value.hidden",
    "expression_encoder.linear2": "value.out",
    "expression_encoder.norm": "value.norm",
    "chem_encoder.embedding": "drug.fingerprints",
    "chem_encoder.fc": "drug.hidden",
    "chem_encoder.proj": "drug.out",
    "chem_encoder.norm": "drug.norm",
    "transformer_encoder.layers.{i}.norm1": "layers.{i}.attention_norm",
    "transformer_encoder.layers.{i}.self_attn.Wqkv": "layers.{i}.qkv",
    "transformer_encoder.layers.{i}.self_attn.out_proj": "layers.{i}.attention_out",
    "transformer_encoder.layers.{i}.norm2": "layers.{i}.feed_forward_norm",
    "transformer_encoder.layers.{i}.up_proj": "layers.{i}.up",
    "transformer_encoder.layers.{i}.gate_proj": "layers.{i}.gate",
    "transformer_encoder.layers.{i}.down_proj": "layers.{i}.down",
    "transformer_encoder.norm": "norm",
    "expression_decoder.linear_layers.{i}": "expression.hidden.{i}",
    "expression_decoder.out_proj": "expression.out",
    "mvc_decoder.gene2query": "mvc.query",
    "mvc_decoder.W": "mvc.weight",
}
RELEASED = {ours: released for released, ours in KEYS.items()}
PREFIX = "model."


def read_checkpoint(folder: Path, *, weights: bool = True) -> tuple[Network, Vocabulary, dict[str, int]]:
    """Read a folder in the released layout.

    Without `weights` only the header of their file is read: the network then has shapes and no values.

    Returns
    -------
    The network (evaluation mode, float32, on the CPU), its vocabulary, and the ids of the drugs by name, which are
    empty unless the folder has a ``drug_to_id_pad.json``.

    Raises
    ------
    tahoe.errors.ModelError
        If a file is missing, unreadable or truncated, if a weight is missing, unexpected or of another shape, or if the
        configuration asks for something that is not implemented.
    """
    check_folder(folder)
    vocabulary = Vocabulary.read(folder / VOCABULARY_FILE)
    config = read_config(folder)
    state = _read_weights(folder / WEIGHTS_FILE, _aligned_weight if weights else _shape)
    config = _with_drug_table(config, state)
    _check_vocabulary(vocabulary, config, folder)
    _check_depth(config, state, folder)
    with torch.device("meta"):
        network = Network(config)
    _check_keys(network, state, folder)
    network.load_state_dict(state, assign=True)
    drugs = read_drugs(folder / DRUGS_FILE) if config.drug_encoder else {}
    return network.set_precision(torch.float32).eval().requires_grad_(False), vocabulary, drugs


def write_checkpoint(
    folder: Path,
    network: Network,
    vocabulary: Vocabulary,
    drugs: dict[str, int] | None = None,
) -> None:
    """Write a folder in the released layout, for this package and for ``tahoe-x1``; each weight in its precision.

    The weights are written beside those that may be there, and take their place last: a folder that was left half-way
    has the old checkpoint, or no weights, and then does not load.
    """
    network.check_weights()
    folder.mkdir(parents=True, exist_ok=True)
    weights, unfinished = folder / WEIGHTS_FILE, folder / f"{WEIGHTS_FILE}.unfinished"
    model, collator = contents_of(network.config)
    state = {
        PREFIX + released_name(key): tensor.detach().cpu().contiguous() for key, tensor in network.state_dict().items()
    }
    try:
        save_file(state, unfinished, metadata={"format": "pt"})
        weights.unlink(missing_ok=True)
        for stale in (DRUGS_FILE, FINE_TUNED_FILE):
            (folder / stale).unlink(missing_ok=True)
        if drugs:
            (folder / DRUGS_FILE).write_text(json.dumps(drugs, indent=1))
        (folder / MODEL_FILE).write_text(yaml.safe_dump(model, sort_keys=False))
        (folder / COLLATOR_FILE).write_text(yaml.safe_dump(collator, sort_keys=False))
        vocabulary.write(folder / VOCABULARY_FILE)
        # safetensors leaves it readable by its owner alone
        unfinished.chmod((folder / MODEL_FILE).stat().st_mode)
        unfinished.replace(weights)
    except (OSError, SafetensorError) as error:
        unfinished.unlink(missing_ok=True)
        why = why_not_written(error) if isinstance(error, OSError) else first_line(error)
        message = f"the model cannot be written into {folder}: {why}; save it elsewhere"
        raise ModelError(message) from error


def hash_weights(network: Network) -> str:
    """Hash of the weights in memory, where there is no file of them."""
    network.check_weights()
    digest = hashlib.sha256()
    for name, weight in network.state_dict().items():
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight.detach().cpu().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def released_name(key: str) -> str:
    """Name in the released files of one of our weights."""
    return _translate(key, RELEASED)


def our_name(key: str) -> str:
    """Name in `Network` of a weight of the released files, which may go without the prefix."""
    bare = key.removeprefix(PREFIX)
    ours = _translate(bare, KEYS)
    # An unknown name keeps the prefix, which none of ours has, and so is reported as unexpected.
    return PREFIX + bare if ours == bare else ours


def _translate(key: str, names: dict[str, str]) -> str:
    """Translate a key; one that no table knows comes back as it is, to be named in the error."""
    module, _, kind = key.rpartition(".")
    number = re.search(r"(?<=\.)\d+(?=\.|$)", module)
    pattern = module if number is None else f"{module[: number.start()]}{{i}}{module[number.end() :]}"
    if pattern not in names:
        return key
    return f"{names[pattern]}.{kind}".replace("{i}", number.group() if number else "")


def _read_weights(path: Path, read: Callable[[Any, str], Tensor]) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            names = {key: our_name(key) for key in file.keys()}  # noqa: SIM118  not a dict
            if len(set(names.values())) < len(names):
                twice = next(key for key in names if key.startswith(PREFIX) and key.removeprefix(PREFIX) in names)
                message = f"{path.name} in {path.parent} has {twice} twice, with and without the prefix {PREFIX!r}"
                raise ModelError(message)
            return {ours: read(file, key) for key, ours in names.items()}
    except (SafetensorError, ValueError, OSError) as error:
        message = (
            f"{path.name} in {path.parent} is not a whole safetensors file ({path.stat().st_size:,} bytes):"
            f" {error}; download it again"
        )
        raise ModelError(message) from error


def _shape(file: Any, key: str) -> Tensor:
    """A weight without its values, as the header of the file has it."""
    weight = file.get_slice(key)
    dtype = torch.float32 if weight.get_dtype().startswith(("F", "BF")) else torch.int64
    return torch.empty(weight.get_shape(), dtype=dtype, device="meta")


def _aligned_weight(file: Any, key: str) -> Tensor:
    """A weight as torch would have allocated it: elsewhere than that, the same weights may round otherwise.

    A file puts its weights at any multiple of their size, after a header of any length.
    """
    tensor = file.get_tensor(key)
    return tensor if tensor.data_ptr() % 64 == 0 else tensor.clone()


def _with_drug_table(config: ModelConfig, state: dict[str, Tensor]) -> ModelConfig:
    """Fill in how many drugs there are, which the released configuration leaves to the file of fingerprints."""
    table = state.get("drug.fingerprints.weight")
    if config.drug_encoder is None or table is None or table.ndim != 2:
        return config
    n_drugs, size = table.shape
    stated = config.drug_encoder
    if stated.n_drugs not in (0, n_drugs) or stated.fingerprint_size not in (0, size):
        return config
    return replace(config, drug_encoder=replace(stated, n_drugs=n_drugs, fingerprint_size=size))


def _check_vocabulary(vocabulary: Vocabulary, config: ModelConfig, folder: Path) -> None:
    largest = max(vocabulary.ids.values())
    if largest >= config.vocab_size:
        message = (
            f"{VOCABULARY_FILE} in {folder} has ids up to {largest}, but {MODEL_FILE} says vocab_size"
            f" {config.vocab_size}; the two files belong to different checkpoints"
        )
        raise ModelError(message)
    if config.drug_encoder and DRUG not in vocabulary:
        message = f"{VOCABULARY_FILE} in {folder} has no {DRUG}, but {MODEL_FILE} has a chemical_encoder"
        raise ModelError(message)


def _check_depth(config: ModelConfig, state: dict[str, Tensor], folder: Path) -> None:
    """Refuse more layers than there can be weights for, before they are made."""
    if config.n_layers + config.decoder_layers > len(state):
        message = (
            f"{MODEL_FILE} in {folder} says {config.n_layers} layers and {config.decoder_layers} of the decoder, but"
            f" {WEIGHTS_FILE} has only {len(state)} weights; the two files belong to different checkpoints"
        )
        raise ModelError(message)


def _check_keys(network: Network, state: dict[str, Tensor], folder: Path) -> None:
    wanted = network.state_dict()
    problems = [
        *(f"{PREFIX}{released_name(key)} is missing" for key in wanted.keys() - state.keys()),
        *(
            f"{key if key.startswith(PREFIX) else PREFIX + released_name(key)} is unexpected"
            for key in state.keys() - wanted.keys()
        ),
        *(
            f"{PREFIX}{released_name(key)} has shape {tuple(state[key].shape)} instead of {tuple(wanted[key].shape)}"
            for key in wanted.keys() & state.keys()
            if state[key].shape != wanted[key].shape
        ),
        *(
            f"{PREFIX}{released_name(key)} has dtype {state[key].dtype}"
            for key in wanted.keys() & state.keys()
            if not state[key].dtype.is_floating_point
        ),
    ]
    if problems:
        more = f", and {len(problems) - 5} more" if len(problems) > 5 else ""
        message = f"the weights in {folder} do not fit its {MODEL_FILE}: {', '.join(sorted(problems)[:5])}{more}"
        raise ModelError(message)


def read_drugs(path: Path) -> dict[str, int]:
    """Read the ids of the drugs by name, where the folder has them."""
    return read_ids(path, "drugs") if path.is_file() else {}
