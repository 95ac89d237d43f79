"""A stand-in for the package ``flash_attn``, in plain torch, so that ``tahoe-x1`` runs where there is no CUDA.

`install` must come before the first import of ``tahoe_x1`` or ``llmfoundry``. It provides only what these two import:
the helpers that drop padding and put it back, and attention over packed sequences. It is slow: for comparisons only.
"""

from __future__ import annotations

import importlib.machinery
import itertools
import sys
import types
from typing import Any

import torch
from torch import Tensor


def flash_attn_func(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
    """Attention over a batch of equally long sequences, (batch, tokens, heads, head size)."""
    bounds = torch.arange(len(q) + 1) * q.shape[1]
    packed = (t.flatten(0, 1) for t in (q, k, v))
    return flash_attn_varlen_func(*packed, bounds, bounds, **options).view_as(q)


def flash_attn_varlen_func(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, *lengths: int, **options: Any
) -> Tensor:
    """Attention over sequences that lie end to end, (tokens, heads, head size)."""
    _refuse_unknown(options)
    scale = options.get("softmax_scale") or q.shape[-1] ** -0.5
    spans = zip(itertools.pairwise(cu_seqlens_q.tolist()), itertools.pairwise(cu_seqlens_k.tolist()), strict=True)
    outputs = []
    for queries, keys in spans:
        scores = torch.einsum("qhd,khd->hqk", q[slice(*queries)], k[slice(*keys)]) * scale
        outputs.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), v[slice(*keys)]))
    return torch.cat(outputs)


def unpad_input(hidden: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor, int, Tensor]:
    """Drop padding: the tokens that are there, their places in the flat batch, bounds, the longest length, lengths."""
    lengths = mask.sum(-1, dtype=torch.int32)
    places = mask.flatten().nonzero().flatten()
    bounds = torch.nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
    return hidden.flatten(0, 1)[places], places, bounds, int(lengths.max()), lengths


def pad_input(packed: Tensor, places: Tensor, n_sequences: int, length: int) -> Tensor:
    """Put padding back, as zeros."""
    padded = packed.new_zeros(n_sequences * length, *packed.shape[1:])
    padded[places] = packed
    return padded.unflatten(0, (n_sequences, length))


def index_first_axis(tokens: Tensor, places: Tensor) -> Tensor:
    """Tokens at these places."""
    return tokens[places]


def install() -> None:
    """Make ``import flash_attn`` find the functions of this file."""
    attention = {"flash_attn_func": flash_attn_func, "flash_attn_varlen_func": flash_attn_varlen_func}
    padding = {"unpad_input": unpad_input, "pad_input": pad_input, "index_first_axis": index_first_axis}
    interface = _module("flash_attn.flash_attn_interface", attention)
    helpers = _module("flash_attn.bert_padding", padding)
    # Only imported, never called: Tahoe-x1 has no positions.
    rotary = _module("flash_attn.layers.rotary", {"RotaryEmbedding": object})
    layers = _module("flash_attn.layers", {"rotary": rotary})
    parts = {"flash_attn_interface": interface, "bert_padding": helpers, "layers": layers}
    _module("flash_attn", {"__version__": "2.7.0", **attention, **parts})


def _refuse_unknown(options: dict[str, Any]) -> None:
    """Only what Tahoe-x1 passes is computed here; anything else must not be dropped in silence."""
    known = {"softmax_scale", "max_seqlen_q", "max_seqlen_k", "causal", "dropout_p", "window_size"}
    known |= {"alibi_slopes", "return_attn_probs"}
    neutral = (False, 0, None, (-1, -1))
    silent = {"softmax_scale", "max_seqlen_q", "max_seqlen_k"}
    wrong = [
        name for name, value in options.items() if name not in known or name not in silent and value not in neutral
    ]
    if wrong:
        message = f"the stand-in for flash_attn does not compute {', '.join(wrong)}"
        raise NotImplementedError(message)


def _module(name: str, content: dict[str, Any]) -> types.ModuleType:
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
    module.__path__ = []  # type: ignore[attr-defined]  marks a package, so that its parts can be imported
    vars(module).update(content)
    sys.modules[name] = module
    return module
