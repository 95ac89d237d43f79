"""Compare this package with ``tahoe-x1``, the authors' own implementation, on random networks and real cells.

For each of several shapes, a network with random weights, norms included, is written to a folder, which both sides load
and use: the authors' loader, collator and network there, ours here. Both compute in float32 on the CPU: theirs one cell
at a time, because their attention in plain torch sees padding, ours all cells packed together. What `TahoeModel.save`
makes of the same network is loaded there too.

``tahoe-x1`` pins versions that this package does not want, so give it an environment of its own. Install torch and
torchvision for the CPU, then, with ``pip install --no-deps``, ``tahoe-x1==1.0.0``, ``mosaicml==0.32.1``,
``llm-foundry==0.22.0``, ``mosaicml-streaming`` and ``mosaicml-cli``; then ``pip install -e .``, and last whatever
``import tahoe_x1.data`` still misses: ``transformers<4.52``, ``datasets<3.7``, ``torchmetrics<1.7.5``, ``mlflow<3``,
``huggingface-hub<1``, ``setuptools<81``, ``torch-optimizer``, ``omegaconf``, ``einops`` and so on. flash-attn is not
needed: ``flash_attn_stand_in.py`` takes its place. Then::

    python scripts/compare_with_tahoe_x1.py --seed 1 [--cells 12] [cells.h5ad ...]

It exits with 1 if a token or a saved weight differs, an embedding by more than 1e-5, or a prediction by more than 5e-5.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Their loader moves to a GPU if it sees one.
warnings.simplefilter("ignore")

import flash_attn_stand_in  # noqa: E402

flash_attn_stand_in.install()

import anndata  # noqa: E402
import llmfoundry.models.layers.attention as their_attention  # noqa: E402
import numpy as np  # noqa: E402
import tahoe_x1.data.collator as their_collator  # noqa: E402
import tahoe_x1.model.model as their_model  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from scipy import sparse  # noqa: E402
from tahoe_x1.data import CountDataset  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from tahoe.model import TahoeModel, load_model  # noqa: E402
from tahoe.model.checkpoint.weights import write_checkpoint  # noqa: E402
from tahoe.model.config import DrugEncoderConfig, ModelConfig  # noqa: E402
from tahoe.model.files import DRUGS_FILE, WEIGHTS_FILE  # noqa: E402
from tahoe.model.tokens.tokenizer import tokenize  # noqa: E402
from tahoe.model.tokens.vocabulary import Vocabulary  # noqa: E402
from tahoe.model.training import new_network  # noqa: E402

if TYPE_CHECKING:
    from tahoe.model.network.network import Batch

HEART = Path(__file__).parents[1] / "tests" / "data" / "heart.npz"
# fmt: off
LIKE_70M = ModelConfig(
    d_model=64, n_layers=2, n_heads=4, vocab_size=1, activation="relu", gene_norm=True, value_norm=True,
    decoder_layers=1, decoder_activation="relu", mvc_scaled=True,
)
LIKE_3B = replace(
    LIKE_70M, d_model=128, n_layers=3, n_heads=2, activation="gelu", value_activation="gelu",
    decoder_activation="gelu", hide_masked=False,
)
SHAPES = {
    "relu": LIKE_70M,
    "relu, 4 layers": replace(LIKE_70M, d_model=96, n_layers=4, n_heads=6, value_activation="gelu"),
    "gelu": LIKE_3B,
    "gelu, drugs": replace(LIKE_3B, drug_encoder=DrugEncoderConfig(40, 64, "gelu")),
    "relu, bare": replace(LIKE_70M, gene_norm=False, value_norm=False, decoder_layers=2, mvc_scaled=False),
    "silu, post, gated": replace(LIKE_3B, activation="silu", pre_norm=False, gated=True, norm_eps=1e-3),
}
# fmt: on
DRUGS = {"<pad>": 0} | {f"drug {number}": number for number in range(1, 40)}
LIMITS = {
    "bins": 0, "cell_emb": 1e-5, "gene_emb": 1e-5, "expr_preds": 5e-5, "mvc_output": 5e-5,
    "masked expr": 5e-5, "masked mvc": 5e-5, "saved": 0,
}  # fmt: skip


@dataclass(frozen=True)
class Cells:
    """Some cells, a vocabulary, the token of each gene (-1 for those that it lacks), and the drug of each cell."""

    counts: sparse.csr_matrix
    vocabulary: Vocabulary
    column_tokens: np.ndarray
    drugs: np.ndarray

    @classmethod
    def draw(cls, counts: sparse.csr_matrix, genes: np.ndarray, n_cells: int, rng: np.random.Generator) -> Cells:
        """Draw some of the rows, and a vocabulary: most of the genes and some other tokens, in random order."""
        rows = rng.choice(counts.shape[0], min(n_cells, counts.shape[0]), replace=False)
        known = genes[rng.random(len(genes)) < 0.9]
        names = rng.permutation([*known, "<eoc>", "<drug>", *(f"<junk{number}>" for number in range(7))])
        vocabulary = Vocabulary({str(name): id_ for id_, name in enumerate(["<pad>", "<cls>", *names])})
        return cls(counts[rows], vocabulary, vocabulary.tokens_of(genes), rng.integers(0, len(DRUGS), len(rows)))


@torch.no_grad()
def random_network(config: ModelConfig, seed: int) -> nn.Module:
    """Draw a network in which no norm is the identity and no bias is zero, so that a lost or swapped one shows."""
    network, generator = new_network(config, seed), torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.LayerNorm):
            module.weight.normal_(1, 0.3, generator=generator)
        if isinstance(module, nn.LayerNorm | nn.Linear) and module.bias is not None:
            module.bias.add_(0.3 * torch.randn(module.bias.shape, generator=generator))
    if not config.mvc_scaled:
        network.mvc.weight.weight.mul_(config.d_model**-0.5)  # so that its predictions have the scale of bins here too
    return network.eval()


class Theirs:
    """The authors' implementation, loaded from a folder by its own loader. `adapt` says what had to be changed."""

    def __init__(self, folder: Path, with_drugs: bool) -> None:
        repository, size = str(folder.parent), folder.name.removesuffix("-model")
        loaded = their_model.ComposerTX.from_hf(repository, size, use_chem_inf=with_drugs)
        self.model, self.vocabulary, _, self.config = loaded
        drug_file = {"remote": None, "local": str(folder / DRUGS_FILE)} if with_drugs else None
        keys = ("pad_token_id", "pad_value", "do_binning", "num_bins", "right_binning")
        # Without a drug token, their own default of 2 would leave the first gene of each cell unbinned.
        self.n_special = 1 + with_drugs
        self.collate = their_collator.DataCollator(
            self.vocabulary, drug_file, with_drugs, do_mlm=False, max_length=10**6, keep_first_n_tokens=self.n_special,
            **{key: self.config[key] for key in keys},
        )  # fmt: skip

    @staticmethod
    def adapt() -> None:
        """Load from a folder, not the Hub; take the file of drugs that lies there; allow tensors on the CPU."""
        their_model.hf_hub_download = lambda repo_id, filename: str(Path(repo_id) / filename)
        their_collator.download_file_from_s3_url = lambda **_: None
        their_attention.check_valid_inputs = lambda *_, **__: None
        # Their mask has one dimension too many for any attention; without that of the batch, it fits a lone cell.
        make_mask = their_model.TXEncoder._make_mask
        their_model.TXEncoder._make_mask = lambda self, mask, device: make_mask(self, mask, device)[0]

    def tokens(self, cells: Cells) -> list[dict[str, Tensor]]:
        """Tokenise each cell, alone; then put its genes in our order, which is free to choose."""
        known, names = cells.column_tokens >= 0, list(DRUGS)
        special = {"cls_token_id": self.vocabulary["<cls>"], "pad_value": self.config.pad_value}
        dataset = CountDataset(cells.counts[:, known], cells.column_tokens[known], **special)
        return [self._collated(dataset[row] | {"drug": names[drug]}) for row, drug in enumerate(cells.drugs)]

    def _collated(self, cell: dict[str, Tensor]) -> dict[str, Tensor]:
        # A longer companion, thrown away: with a drug token, the longest cell of a batch loses one gene.
        longer = cell | {name: torch.cat([cell[name], cell[name][-1:]]) for name in ("genes", "expressions")}
        batch = self.collate([cell, longer])
        n_tokens = int((batch["gene"][0] != self.config.pad_token_id).sum())
        genes = batch["gene"][0, self.n_special : n_tokens].argsort() + self.n_special
        order = torch.cat([torch.arange(self.n_special), genes])
        return {name: tensor[:1] if name == "drug_ids" else tensor[:1, order] for name, tensor in batch.items()}

    def outputs(self, cells: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Run the network on each cell, alone, and lay the results end to end."""
        found = [self.model(cell, skip_decoders=False) for cell in cells]
        return {name: torch.cat([f[name] if name == "cell_emb" else f[name][0] for f in found]) for name in found[0]}

    def use_plain_attention(self, hide_masked: bool) -> None:
        """From here on attend in plain torch, with the mask of masked tokens if the network was trained with it."""
        self.model.model.transformer_encoder.use_attn_mask = hide_masked
        for layer in self.model.model.transformer_encoder.layers:
            layer.self_attn.attn_impl = "torch"
            layer.self_attn.attn_fn = their_attention.scaled_multihead_dot_product_attention


def our_outputs(model: TahoeModel, batch: Batch) -> dict[str, Tensor]:
    """Compute what they compute, under their names."""
    output = model.network(batch)
    predictions = {"expr_preds": model.network.decode(output), "mvc_output": model.network.decode_mvc(output, batch)}
    return {"cell_emb": model.network.embed_cells(batch), "gene_emb": output, **predictions}


def largest_differences(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> dict[str, float]:
    """Find the largest deviation of each output."""
    return {name: (tensor - theirs[name]).abs().max().item() for name, tensor in ours.items()}


@torch.inference_mode()
def compare(config: ModelConfig, cells: Cells, folder: Path, seed: int, with_drugs: bool) -> dict[str, float]:
    """Write one network, compute it here and there, and count or measure what differs, by `LIMITS`."""
    config = replace(config, vocab_size=len(cells.vocabulary))
    write_checkpoint(folder / "written-model", random_network(config, seed), cells.vocabulary, DRUGS)
    ours, theirs = load_model(folder / "written-model", device="cpu"), Theirs(folder / "written-model", with_drugs)
    csr = cells.counts.indptr, cells.counts.indices, cells.counts.data
    tokens = tokenize(
        *csr, cells.column_tokens, config=config, vocabulary=cells.vocabulary, drugs=cells.drugs if with_drugs else None
    )
    batch = ours.batch(tokens)
    their_cells = theirs.tokens(cells)
    found = {"cells": len(tokens), "tokens": len(tokens.ids)}
    if not torch.equal(batch.ids_T, torch.cat([cell["gene"][0] for cell in their_cells])):
        return found | dict.fromkeys(LIMITS, np.inf)
    found["bins"] = int((batch.values_T != torch.cat([cell["expr"][0] for cell in their_cells])).sum())
    found |= largest_differences(our_outputs(ours, batch), theirs.outputs(their_cells))

    masked = torch.rand(len(tokens.ids), generator=torch.Generator().manual_seed(seed)) < 0.5
    masked[[start + place for start in batch.cells.bounds[:-1] for place in range(theirs.n_special)]] = False
    for cell, part in zip(their_cells, masked.split(batch.cells.lengths), strict=True):
        cell["gen_mask"] = part[None]
    theirs.use_plain_attention(config.hide_masked)
    differences = largest_differences(our_outputs(ours, replace(batch, masked_T=masked)), theirs.outputs(their_cells))
    found |= {"masked expr": differences["expr_preds"], "masked mvc": differences["mvc_output"]}

    ours.save(folder / "saved-model")
    written = load_file(folder / "written-model" / WEIGHTS_FILE)
    # With the drug encoder in, their loader is strict: no weight may be missing or unexpected.
    state = Theirs(folder / "saved-model", with_drugs=config.drug_encoder is not None).model.state_dict()
    found["saved"] = sum(not torch.equal(written[name], state[name]) for name in written.keys() | state.keys())
    return found


def read_heart() -> tuple[sparse.csr_matrix, np.ndarray]:
    """Read the cells of the tests."""
    with np.load(HEART) as file:
        csr = file["data"].astype(np.float32), file["indices"].astype(np.int32), file["indptr"]
        return sparse.csr_matrix(csr, shape=(len(file["indptr"]) - 1, len(file["genes"]))), file["genes"]


def read_h5ad(path: Path) -> tuple[sparse.csr_matrix, np.ndarray]:
    """Read the counts in ``X``, without cells and genes that have none."""
    adata = anndata.read_h5ad(path)
    counts = sparse.csr_matrix(adata.X, dtype=np.float32)
    genes, rows = np.asarray(counts.sum(0)).ravel() > 0, np.asarray(counts.sum(1)).ravel() > 0
    return counts[rows][:, genes], adata.var_names[genes].to_numpy(dtype=str)


def main() -> None:
    """Compare all shapes on all sets of cells, and print a table."""
    parser = argparse.ArgumentParser(description="Compare this package with tahoe-x1.")
    parser.add_argument("files", nargs="*", type=Path, metavar="cells.h5ad", help="more cells, with counts in X")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--cells", type=int, default=12, help="cells of each set")
    arguments = parser.parse_args()
    Theirs.adapt()
    rng, failed = np.random.default_rng(arguments.seed), False
    print(f"seed {arguments.seed}\n{'network':24}{'cells':>6}{'tokens':>8}" + "".join(f"{name:>12}" for name in LIMITS))
    for name, (counts, genes) in [("heart", read_heart()), *((path.stem, read_h5ad(path)) for path in arguments.files)]:
        print(f"{name}:")
        for shape, config in SHAPES.items():
            cells = Cells.draw(counts, genes, arguments.cells, rng)
            for with_drugs in (True, False) if config.drug_encoder else (False,):
                label = f"{shape}, no token" if config.drug_encoder and not with_drugs else shape
                with tempfile.TemporaryDirectory() as folder:
                    found = compare(config, cells, Path(folder), int(rng.integers(2**31)), with_drugs)
                wrong = not all(found[name] <= limit for name, limit in LIMITS.items())
                measured = "".join(
                    f"{found[name]:12.1e}" if limit else f"{found[name]:12}" for name, limit in LIMITS.items()
                )
                print(f"  {label:22}{found['cells']:6}{found['tokens']:8,}{measured}", "WRONG" * wrong, flush=True)
                failed |= wrong
    sys.exit(failed)


if __name__ == "__main__":
    main()
