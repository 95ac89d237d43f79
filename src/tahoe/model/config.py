"""What a checkpoint's two YAML files say, as one checked, frozen object."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tahoe.errors import ModelError
from tahoe.model.checkpoint.config_files import Section, read_yaml
from tahoe.model.files import COLLATOR_FILE, MODEL_FILE

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

log = logging.getLogger(__name__)

ACTIVATIONS = ("relu", "gelu", "leaky_relu", "sigmoid", "silu", "tanh")
# Bins of a value, zero included. The quantile grades that the released models were trained with belong to this number.
N_BINS = 51


@dataclass(frozen=True)
class DrugEncoderConfig:
    """Shape of the encoder that turns a drug's fingerprint into the drug token."""

    n_drugs: int
    fingerprint_size: int
    activation: str


@dataclass(frozen=True)
class ModelConfig:
    """Everything that decides what a Tahoe-x1 network computes and how cells become tokens."""

    # the network
    d_model: int
    n_layers: int
    n_heads: int
    vocab_size: int
    expansion_ratio: int = 4
    activation: str = "gelu"
    pre_norm: bool = True
    gated: bool = False
    norm_eps: float = 1e-5
    gene_norm: bool = False
    value_norm: bool = False
    value_activation: str = "relu"
    max_value: float = 512.0
    decoder_layers: int = 2
    decoder_activation: str = "leaky_relu"
    mvc_decoder: bool = True
    mvc_activation: str = "sigmoid"
    mvc_scaled: bool = False
    drug_encoder: DrugEncoderConfig | None = None
    hide_masked: bool = True
    """In masked prediction, visible tokens see only visible ones, and a masked token those and itself."""
    precision: str = "fp32"

    # from a cell to tokens
    binning: bool = True
    log_transform: bool = False
    target_sum: float = 10_000.0
    max_length: int = 2048
    pad_value: float = -2.0
    mask_value: float = -1.0
    mask_probability: float = 0.5
    scaled_targets: bool = False

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.d_model // self.n_heads

    @classmethod
    def read(cls, folder: Path) -> ModelConfig:
        """Read ``model_config.yml`` and ``collator_config.yml``."""
        return cls.from_mappings(read_yaml(folder / MODEL_FILE), read_yaml(folder / COLLATOR_FILE))

    @classmethod
    def from_mappings(cls, model: Mapping[str, Any], collator: Mapping[str, Any]) -> ModelConfig:
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
        config = cls(
            d_model=net.integer("d_model", most=1 << 16),
            n_layers=net.integer("n_layers", most=1 << 12),
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
            decoder_layers=decoder.integer("n_layers", 2, most=1 << 12),
            decoder_activation=decoder.choice("activation", ACTIVATIONS, "leaky_relu"),
            mvc_decoder=bool(mvc),
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
            mask_probability=cells.average("mlm_probability", 0.5, least=0, most=1),
            scaled_targets=net.flag("standard_scale_outputs", False),
        )
        _refuse_what_is_not_implemented(config, net, cells)
        return config

    def to_mappings(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Contents of ``model_config.yml`` and ``collator_config.yml``, as the released files have them."""
        model: dict[str, Any] = {
            "name": "tahoe_x1",
            "d_model": self.d_model,
            "n_layers": self.n_layers,
            "init_device": "cpu",
            "expansion_ratio": self.expansion_ratio,
            "standard_scale_outputs": self.scaled_targets,
            "transformer_activation": self.activation,
            "n_heads": self.n_heads,
            "norm_scheme": "pre" if self.pre_norm else "post",
            "use_generative_training": True,
            "use_cell_conditioned_generation": False,
            "use_glu": self.gated,
            "cell_emb_style": "cls",
            "attn_config": {
                # What tahoe-x1 turns into unmasked flash attention, as no attention of its own takes the mask.
                "attn_impl": "triton" if self.hide_masked else "flash",
                "attn_type": "grouped_query_attention",
                "use_attn_mask": self.hide_masked,
                "kv_nheads": self.n_heads,
                "attn_pdrop": 0.0,
            },
            "norm_config": {"norm_type": "layernorm", "eps": self.norm_eps},
            "expression_encoder": {
                "input_emb_style": "continuous",
                "dropout": 0.0,
                "max_value": self.max_value,
                "activation": self.value_activation,
                "use_norm": self.value_norm,
            },
            "gene_encoder": {"use_norm": self.gene_norm},
            "mvc": {
                "arch_style": "inner product",
                "query_activation": self.mvc_activation,
                "scaled_dot_product": self.mvc_scaled,
            }
            if self.mvc_decoder
            else None,
            "expression_decoder": {
                "n_outputs": 1,
                "n_layers": self.decoder_layers,
                "activation": self.decoder_activation,
            },
            "vocab_size": self.vocab_size,
            "precision": self.precision,
        }
        collator: dict[str, Any] = {
            "do_padding": True,
            "pad_value": self.pad_value,
            "do_mlm": True,
            "do_binning": self.binning,
            "log_transform": self.log_transform,
            "target_sum": self.target_sum,
            "mlm_probability": self.mask_probability,
            "mask_value": self.mask_value,
            "max_length": self.max_length,
            "sampling": True,
            "num_bins": N_BINS,
            "right_binning": False,
            "use_junk_tokens": False,
            "pad_token_id": 0,
            "keep_first_n_tokens": 1,
        }
        if self.drug_encoder:
            model["chemical_encoder"] = {
                "activation": self.drug_encoder.activation,
                "padding_idx": 0,
                "freeze": False,
                "num_drugs": self.drug_encoder.n_drugs,
                "fp_dim": self.drug_encoder.fingerprint_size,
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
    """Refuse, by name, values that would make another computation of it than the one that is written here."""
    attention, drug = net.section("attn_config"), net.section("chemical_encoder")
    net.refuse("cell_emb_style", allowed=("cls",))
    net.section("norm_config").refuse("norm_type", allowed=("layernorm", "low_precision_layernorm"))
    attention.refuse("attn_type", allowed=("grouped_query_attention", "multihead_attention"))
    attention.refuse("kv_n_heads", allowed=(config.n_heads,))
    net.section("gene_encoder").refuse("embeddings", allowed=({},))
    net.section("expression_encoder").refuse("input_emb_style", allowed=("continuous",))
    net.section("expression_decoder").refuse("n_outputs", allowed=(1,))
    net.section("mvc").refuse("arch_style", allowed=("inner product",))
    cells.refuse("right_binning", allowed=(False,))
    cells.refuse("num_bins", allowed=(N_BINS,))
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
    if uses_drug != bool(drug):
        message = (
            f"{COLLATOR_FILE} has use_chem_token {uses_drug}, but {MODEL_FILE} has"
            f" {'a' if drug else 'no'} chemical_encoder; the two must agree"
        )
        raise ModelError(message)


def _drug_encoder(section: Section) -> DrugEncoderConfig:
    # The released file leaves the sizes to a file of fingerprints; the checkpoint reader takes them from the weights.
    return DrugEncoderConfig(
        n_drugs=section.integer("num_drugs", 0),
        fingerprint_size=section.integer("fp_dim", 0),
        activation=section.choice("activation", ACTIVATIONS, "leaky_relu"),
    )
