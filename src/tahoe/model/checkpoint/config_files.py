"""A checkpoint's two YAML files: to a configuration, and back."""

from __future__ import annotations

import reprlib
from typing import TYPE_CHECKING, Any, NoReturn

import yaml

from tahoe.errors import ModelError
from tahoe.model.causes import first_line
from tahoe.model.config import ACTIVATIONS, N_BINS, DrugEncoderConfig, ModelConfig
from tahoe.model.files import COLLATOR_FILE, MODEL_FILE

if TYPE_CHECKING:
    from pathlib import Path

# Far larger than any file, or number, of this family: a file that is something else must not take all memory.
LARGEST_FILE, LARGEST_NUMBER = 1 << 18, 1 << 24


class Section:
    """A mapping of a YAML file: values are read by kind, and errors name file, key, value and what is allowed."""

    def __init__(self, content: Any, place: str) -> None:
        if not isinstance(content, dict):
            message = f"{place} is {reprlib.repr(content)}; it must be keys and values"
            raise ModelError(message)
        self.content, self.place = content, place

    def section(self, key: str) -> Section:
        """Read a mapping inside this one; empty where there is none."""
        content = self.content.get(key)
        return Section({} if content is None else content, f"{self.place}: {key}")

    def integer(self, key: str, default: int | None = None, *, most: int = LARGEST_NUMBER) -> int:
        """Read a whole number; without a default it must be there, and at least 1."""
        value, least = self._get(key, default), 1 if default is None else 0
        if type(value) is not int or not least <= value <= most:
            self._refuse(key, f"it must be a whole number between {least} and {most:,}")
        return value

    def number(self, key: str, default: float, *, least: float, most: float) -> float:
        """Read a number within limits; of several, among which training chose, their mean."""
        value = self._get(key, default)
        values = value if isinstance(value, list) and value else [value]
        try:
            # PyYAML reads 1e-05 (no point) as text
            numbers = [float(each) for each in values]
        except (TypeError, ValueError, OverflowError):
            numbers = [float("nan")]
        if bool in map(type, values) or not all(least <= number <= most for number in numbers):
            self._refuse(key, f"it must be a number between {least:g} and {most:g}")
        return sum(numbers) / len(numbers)

    def flag(self, key: str, default: bool) -> bool:
        """Read true or false."""
        value = self._get(key, default)
        if not isinstance(value, bool):
            self._refuse(key, "it must be true or false")
        return value

    def text(self, key: str, default: str) -> str:
        """Read a word or a number as text."""
        value = self._get(key, default)
        if not isinstance(value, str | int | float):
            self._refuse(key, "it must be a word")
        return str(value)

    def choice(self, key: str, choices: tuple[str, ...], default: str) -> str:
        """Read one of some words."""
        value = self._get(key, default)
        if value not in choices:
            self._refuse(key, f"it must be one of {', '.join(choices)}")
        return value

    def require(self, key: str, *allowed: Any) -> None:
        """Refuse any value but those that are implemented; a missing key passes."""
        value = self.content.get(key)
        if value is not None and (value.lower() if isinstance(value, str) else value) not in allowed:
            self._refuse(key, f"this package computes only {', '.join(map(repr, allowed))}")

    def _get(self, key: str, default: Any) -> Any:
        value = self.content.get(key)
        if value is None and default is None:
            message = f"{self.place}: {key} is missing"
            raise ModelError(message)
        return default if value is None else value

    def _refuse(self, key: str, allowed: str) -> NoReturn:
        message = f"{self.place}: {key} is {reprlib.repr(self.content[key])}; {allowed}"
        raise ModelError(message)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a file of keys and values, with a loader that makes plain values only."""
    size = path.stat().st_size
    if size > LARGEST_FILE:
        message = f"{path.name} in {path.parent} has {size:,} bytes; a configuration has at most {LARGEST_FILE:,}"
        raise ModelError(message)
    try:
        return Section(yaml.safe_load(path.read_bytes()), f"{path.name} in {path.parent}").content
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        message = f"{path.name} in {path.parent} is not readable YAML: {first_line(error)}"
        raise ModelError(message) from error


def read_config(folder: Path) -> ModelConfig:
    """Read ``model_config.yml`` and ``collator_config.yml``."""
    return config_of(read_yaml(folder / MODEL_FILE), read_yaml(folder / COLLATOR_FILE))


def config_of(model: dict[str, Any], collator: dict[str, Any]) -> ModelConfig:
    """Build from the two files' contents; refuse, by name, what would be computed differently here.

    Raises
    ------
    tahoe.errors.ModelError
        If a key is missing, has a value of the wrong kind, or asks for something that is not implemented.
    """
    net, cells = Section(model, MODEL_FILE), Section(collator, COLLATOR_FILE)
    attention = net.section("attn_config")
    norm = net.section("norm_config")
    gene = net.section("gene_encoder")
    value = net.section("expression_encoder")
    decoder = net.section("expression_decoder")
    mvc = net.section("mvc")
    drug = net.section("chemical_encoder")
    uses_drug = cells.flag("use_chem_token", False)
    config = ModelConfig(
        d_model=net.integer("d_model", most=1 << 16),
        n_layers=net.integer("n_layers"),
        n_heads=net.integer("n_heads"),
        vocab_size=net.integer("vocab_size"),
        expansion_ratio=net.integer("expansion_ratio", most=1 << 8),
        activation=net.choice("transformer_activation", ACTIVATIONS, "gelu"),
        pre_norm=net.choice("norm_scheme", ("pre", "post"), "pre") == "pre",
        gated=net.flag("use_glu", False),
        norm_eps=norm.number("eps", 1e-5, least=1e-12, most=1),
        gene_norm=gene.flag("use_norm", False),
        value_norm=value.flag("use_norm", False),
        value_activation=value.choice("activation", ACTIVATIONS, "relu"),
        max_value=value.number("max_value", 512.0, least=0, most=1e9),
        decoder_layers=decoder.integer("n_layers", 2),
        decoder_activation=decoder.choice("activation", ACTIVATIONS, "leaky_relu"),
        mvc_decoder=bool(mvc.content),
        mvc_activation=mvc.choice("query_activation", ACTIVATIONS, "sigmoid"),
        mvc_scaled=mvc.flag("scaled_dot_product", False),
        drug_encoder=_drug_encoder(drug) if uses_drug else None,
        hide_masked=attention.flag("use_attn_mask", True),
        precision=net.text("precision", "fp32"),
        binning=cells.flag("do_binning", True),
        log_transform=cells.flag("log_transform", False),
        target_sum=cells.number("target_sum", 10_000.0, least=1e-9, most=1e12),
        max_length=cells.integer("max_length", 2048),
        # with bins these two have rows in a table, from the lower of them on
        pad_value=cells.number("pad_value", -2.0, least=-1000, most=N_BINS - 1),
        mask_value=cells.number("mask_value", -1.0, least=-1000, most=N_BINS - 1),
        mask_probability=cells.number("mlm_probability", 0.5, least=0, most=1),
        scaled_targets=net.flag("standard_scale_outputs", False),
    )
    _refuse_what_is_not_implemented(config, net, cells)
    return config


def contents_of(config: ModelConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """Contents of ``model_config.yml`` and ``collator_config.yml``, as the released files have them."""
    model: dict[str, Any] = {
        "name": "tahoe_x1",
        "d_model": config.d_model,
        "n_layers": config.n_layers,
        "init_device": "cpu",
        "expansion_ratio": config.expansion_ratio,
        "standard_scale_outputs": config.scaled_targets,
        "transformer_activation": config.activation,
        "n_heads": config.n_heads,
        "norm_scheme": "pre" if config.pre_norm else "post",
        "use_generative_training": True,
        "use_cell_conditioned_generation": False,
        "use_glu": config.gated,
        "cell_emb_style": "cls",
        "attn_config": {
            # What tahoe-x1 turns into unmasked flash attention, as no attention of its own takes the mask.
            "attn_impl": "triton" if config.hide_masked else "flash",
            "attn_type": "grouped_query_attention",
            "use_attn_mask": config.hide_masked,
            "kv_nheads": config.n_heads,
            "attn_pdrop": 0.0,
        },
        "norm_config": {"norm_type": "layernorm", "eps": config.norm_eps},
        "expression_encoder": {
            "input_emb_style": "continuous",
            "dropout": 0.0,
            "max_value": config.max_value,
            "activation": config.value_activation,
            "use_norm": config.value_norm,
        },
        "gene_encoder": {"use_norm": config.gene_norm},
        "mvc": {
            "arch_style": "inner product",
            "query_activation": config.mvc_activation,
            "scaled_dot_product": config.mvc_scaled,
        }
        if config.mvc_decoder
        else None,
        "expression_decoder": {
            "n_outputs": 1,
            "n_layers": config.decoder_layers,
            "activation": config.decoder_activation,
        },
        "vocab_size": config.vocab_size,
        "precision": config.precision,
    }
    collator: dict[str, Any] = {
        "do_padding": True,
        "pad_value": config.pad_value,
        "do_mlm": True,
        "do_binning": config.binning,
        "log_transform": config.log_transform,
        "target_sum": config.target_sum,
        "mlm_probability": config.mask_probability,
        "mask_value": config.mask_value,
        "max_length": config.max_length,
        "sampling": True,
        "num_bins": N_BINS,
        "right_binning": False,
        "use_junk_tokens": False,
        "pad_token_id": 0,
        "keep_first_n_tokens": 1,
    }
    if config.drug_encoder:
        model["chemical_encoder"] = {
            "activation": config.drug_encoder.activation,
            "padding_idx": 0,
            "freeze": False,
            "num_drugs": config.drug_encoder.n_drugs,
            "fp_dim": config.drug_encoder.fingerprint_size,
        }
        collator |= {
            "use_chem_token": True,
            "keep_first_n_tokens": 2,
            # tahoe-x1 deletes this key when it drops the drug encoder, and so needs it to be there.
            "drug_to_id_path": {
                "remote": "s3://tahoe-hackathon-data/MFM/drug_to_id_pad.json",
                "local": "drug_to_id_pad.json",
            },
        }
    return model, collator


def _refuse_what_is_not_implemented(config: ModelConfig, net: Section, cells: Section) -> None:
    """Refuse, by name, values that ask for another computation than the one that is written here."""
    attention, drug = net.section("attn_config"), net.section("chemical_encoder")
    net.require("cell_emb_style", "cls")
    net.section("norm_config").require("norm_type", "layernorm", "low_precision_layernorm")
    attention.require("attn_type", "grouped_query_attention", "multihead_attention")
    attention.require("kv_n_heads", config.n_heads)
    net.section("gene_encoder").require("embeddings", {})
    net.section("expression_encoder").require("input_emb_style", "continuous")
    net.section("expression_decoder").require("n_outputs", 1)
    net.section("mvc").require("arch_style", "inner product")
    cells.require("right_binning", False)
    cells.require("num_bins", N_BINS)
    if config.binning and (config.pad_value % 1 or config.mask_value % 1):
        message = f"{COLLATOR_FILE}: with do_binning, pad_value and mask_value must be whole numbers"
        raise ModelError(message)
    if config.binning and config.log_transform:
        message = f"{COLLATOR_FILE}: do_binning and log_transform are both true; only one of them can be"
        raise ModelError(message)
    if config.d_model % config.n_heads:
        message = f"{MODEL_FILE}: d_model {config.d_model} is not a multiple of n_heads {config.n_heads}"
        raise ModelError(message)
    uses_drug = cells.flag("use_chem_token", False)
    if uses_drug != bool(drug.content):
        message = (
            f"{COLLATOR_FILE} has use_chem_token {uses_drug}, but {MODEL_FILE} has"
            f" {'a' if drug.content else 'no'} chemical_encoder; the two must agree"
        )
        raise ModelError(message)


def _drug_encoder(section: Section) -> DrugEncoderConfig:
    # The released file leaves the sizes to a file of fingerprints; the checkpoint reader takes them from the weights.
    return DrugEncoderConfig(
        n_drugs=section.integer("num_drugs", 0),
        fingerprint_size=section.integer("fp_dim", 0),
        activation=section.choice("activation", ACTIVATIONS, "leaky_relu"),
    )
