"""Compare `tahoe.tl.embed_genes` with the gene vectors of ``tahoe-x1``: «GE», «TE» and «EA», on random networks.

``scripts/msigdb/get_msigdb_embs.py`` of tahoe-x1 1.0.0 is written out here around the authors' own modules: GE is what
their gene encoder gives for the ids of a chunk; TE what their layers make of these with the flag of a hidden value
added, a chunk of the vocabulary's file at a time; EA comes from their `get_batch_embeddings`. Two things differ from
the script, on both sides alike: float32 instead of bfloat16, and chunks of 2,000, since plain torch needs all scores of
a chunk at once. Cells go to theirs one at a time, without a drug token.

In the environment of `compare_with_tahoe_x1.py`, which says how to make it::

    python scripts/compare_gene_vectors_with_tahoe_x1.py --seed 1 [--cells 12]

It exits with 1 if any vector differs by more than 1e-5, or another gene has none.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import anndata
import numpy as np
import torch
from compare_with_tahoe_x1 import DRUGS, SHAPES, Cells, Theirs, random_network, read_heart
from omegaconf import open_dict
from tahoe_x1.tasks import emb_extractor

import tahoe
from tahoe._run import all_genes
from tahoe.model import TahoeModel, Vocabulary, load_model
from tahoe.model.checkpoint.weights import write_checkpoint

CHUNK, LIMIT = 2_000, 1e-5
CONTEXTS = {"GE": False, "TE": "all", "EA": True}


@torch.no_grad()
def their_vectors(theirs: Theirs, cells: Cells) -> dict[str, np.ndarray]:
    """Vectors of all tokens, in the order of the vocabulary's file."""
    network = theirs.model.model
    ids = torch.tensor([list(theirs.vocabulary.get_stoi().values())])
    found: dict[str, list[torch.Tensor]] = {"GE": [], "TE": []}
    for chunk in ids.split(CHUNK, dim=1):
        genes = network.gene_encoder(chunk)
        flags = network.flag_encoder(torch.tensor(1)).expand(*chunk.shape, -1)
        found["GE"].append(genes[0])
        found["TE"].append(network.transformer_encoder(genes + flags)[0])
    vectors = {name: torch.cat(chunks).numpy() for name, chunks in found.items()}
    return vectors | {"EA": _their_means(theirs, cells)}


def _their_means(theirs: Theirs, cells: Cells) -> np.ndarray:
    known = cells.column_tokens >= 0
    with open_dict(theirs.config):
        theirs.config.keep_first_n_tokens = 1
    loader = emb_extractor.loader_from_adata
    emb_extractor.loader_from_adata = lambda **options: loader(**options | {"num_workers": 0, "prefetch_factor": None})
    return emb_extractor.get_batch_embeddings(
        anndata.AnnData(cells.counts[:, known]),
        theirs.model.model,
        theirs.vocabulary,
        {"d_model": theirs.model.model.d_model, "precision": "fp32"},
        theirs.config,
        gene_ids=cells.column_tokens[known],
        batch_size=1,
        return_gene_embeddings=True,
    )[1]


def our_vectors(model: TahoeModel, cells: Cells, genes: np.ndarray) -> dict[str, np.ndarray]:
    """Vectors of the columns, NaN for those that the vocabulary lacks."""
    adata = anndata.AnnData(cells.counts)
    adata.var_names = genes
    for name, context in CONTEXTS.items():
        tahoe.tl.embed_genes(adata, model, context=context, max_length=10**6, min_coverage=0, key_added=name)
    return {name: adata.varm[name] for name in CONTEXTS}


def compare(shape: str, cells: Cells, genes: np.ndarray, seed: int) -> dict[str, float]:
    """Largest difference of each kind of vectors; infinite if one side has a vector that the other lacks."""
    config = replace(SHAPES[shape], vocab_size=len(cells.vocabulary))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "written-model"
        write_checkpoint(path, random_network(config, seed), cells.vocabulary, DRUGS)
        model, theirs = load_model(path, device="cpu"), Theirs(path, with_drugs=False)
        order = list(theirs.vocabulary.get_stoi().values())
        place_of = np.empty(len(order), dtype=np.int64)
        place_of[order] = np.arange(len(order))
        known = cells.column_tokens >= 0
        ours, found = our_vectors(model, cells, genes), their_vectors(theirs, cells)
    differences = {}
    for name, vectors in found.items():
        wanted = vectors[place_of[cells.column_tokens[known]]]
        same_gaps = np.array_equal(np.isnan(wanted), np.isnan(ours[name][known]))
        differences[name] = float(np.nanmax(np.abs(wanted - ours[name][known]))) if same_gaps else np.inf
    return differences


def main() -> None:
    """Compare all shapes, and print a table."""
    parser = argparse.ArgumentParser(description="Compare gene vectors with those of tahoe-x1.")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--cells", type=int, default=12)
    options = parser.parse_args()
    Theirs.adapt()
    tahoe.settings.progress = False
    all_genes.CHUNK = CHUNK
    rng, wrong = np.random.default_rng(options.seed), False
    counts, genes = read_heart()
    print(f"seed {options.seed}\n{'network':24}{'tokens':>8}" + "".join(f"{name:>10}" for name in CONTEXTS))
    for shape in SHAPES:
        cells = Cells.draw(counts, genes, options.cells, rng)
        # As in the released files, whose order is not that of the ids.
        shuffled = rng.permutation(list(cells.vocabulary.ids))
        ids = {str(name): cells.vocabulary.ids[name] for name in shuffled}
        cells = replace(cells, vocabulary=Vocabulary(ids))
        found = compare(shape, cells, genes, int(rng.integers(2**31)))
        bad = max(found.values()) > LIMIT
        print(f"{shape:24}{len(ids):8,}" + "".join(f"{value:10.1e}" for value in found.values()), "WRONG" * bad)
        wrong |= bad
    sys.exit(wrong)


if __name__ == "__main__":
    main()
