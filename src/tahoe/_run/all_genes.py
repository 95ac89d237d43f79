"""Embeddings of genes that see each other and no cell."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from tahoe.model.network.attention import ATTENTION, Spans

if TYPE_CHECKING:
    from tahoe.model import TahoeModel

# As many tokens see each other in the authors' script.
CHUNK = 30_000


def embed_all_genes(model: TahoeModel, tokens: np.ndarray) -> np.ndarray:
    """Outputs of the network at these tokens, among all tokens of the vocabulary with their values hidden.

    The tokens go through the network in the order of the vocabulary's file, 30,000 at a time, without a token for a
    cell. All of a chunk see each other, also in models that were trained with hidden values out of sight. Special
    tokens are among them. All this as in the authors' script; the files of the released models are not in the order of
    the ids, and this order decides which genes share a chunk.

    Parameters
    ----------
    model
        A loaded model.
    tokens
        Token ids, -1 for a column without one.

    Returns
    -------
    float32, tokens × d_model; NaN for -1.
    """
    network, attend = model.network, ATTENTION["sdpa" if model.attention == "eager" else model.attention]
    ids = np.array(list(model.vocabulary.ids.values()), dtype=np.int64)
    place_of = np.full(ids.max() + 1, -1)
    place_of[ids] = np.arange(len(ids))
    places = np.where(tokens >= 0, place_of[tokens], -1)
    embeddings = np.full((len(tokens), model.config.d_model), np.nan, dtype=np.float32)
    for start in range(0, len(ids), CHUNK):
        wanted = np.flatnonzero((places >= start) & (places < start + CHUNK))
        if not len(wanted):
            continue
        some = torch.from_numpy(ids[start : start + CHUNK]).to(model.device)
        cells = Spans.of([0, len(some)], model.device)
        with torch.inference_mode(), torch.autocast(model.device.type, enabled=False):
            x_TD = network.gene_inputs(some) + network.flag.weight[1].float()
            for layer in network.layers:
                x_TD = layer(x_TD, cells, attend)
            embeddings[wanted] = network.norm(x_TD)[torch.from_numpy(places[wanted] - start)].float().cpu().numpy()
    return embeddings
