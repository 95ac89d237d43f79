"""What a model computes of cells: tokens, embeddings, predictions, attention."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from tahoe.errors import InputError
from tahoe.model.cpu.threads import parallel_for
from tahoe.model.cuda.transfers import to_device
from tahoe.model.network.attention import Spans
from tahoe.model.network.network import Batch, inference
from tahoe.model.tokens.tokenizer import Tokens, tokenize

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from scipy import sparse

    from tahoe.model.config import ModelConfig
    from tahoe.model.network.network import Network, Observer
    from tahoe.model.tokens.vocabulary import Vocabulary


class Computing:
    """The part of `TahoeModel` that computes."""

    network: Network
    vocabulary: Vocabulary
    device: torch.device
    attention: str

    @property
    def config(self) -> ModelConfig:
        """What the checkpoint's YAML files say."""
        return self.network.config

    def tokenize(
        self,
        block: sparse.csr_array,
        column_tokens: np.ndarray,
        *,
        max_length: int | None = 2048,
        seed: int = 0,
        drugs: np.ndarray | None = None,
    ) -> Tokens:
        """Tokenise rows of a matrix.

        Parameters
        ----------
        block
            The rows: a CSR matrix or array of counts, or of what `tahoe.tl.embed` would take for them.
        column_tokens
            Token id of each column, as `Vocabulary.tokens_of` gives it; -1 for a column to be ignored. Columns with the
            same one are added up.
        max_length
            Maximum number of tokens per cell; `None` is no limit, other than in `tahoe.tl.embed`.
        seed
            Random seed for the choice of genes in cells with more.
        drugs
            Drug of each row, for checkpoints with a drug encoder; `None` omits the drug token.

        Raises
        ------
        tahoe.errors.InputError
            If these are no CSR rows with as many columns as `column_tokens`, or a value is negative or not a number.

        Examples
        --------
        >>> import tahoe
        >>> adata = tahoe.datasets.pbmc68k()
        >>> tahoe.pp.map_genes(adata)
        >>> model = tahoe.load_model("demo", device="cpu")
        >>> tokens = model.tokenize(adata.X[:5], model.vocabulary.tokens_of(adata.var["tahoe_gene"]))
        >>> model.embed_cells(tokens).shape
        torch.Size([5, 128])
        """
        if getattr(block, "format", "") != "csr":
            message = (
                f"the rows must be a CSR matrix, not {getattr(block, 'format', type(block).__name__)}; call tocsr()"
            )
            raise InputError(message)
        return tokenize(
            block.indptr,
            block.indices,
            block.data,
            column_tokens,
            config=self.config,
            vocabulary=self.vocabulary,
            max_length=max_length,
            seed=seed,
            drugs=drugs,
        )

    def batch(self, tokens: Tokens, masked: np.ndarray | None = None) -> Batch:
        """Put tokens on the model's device, and say which of them hide their value."""
        return Batch(
            to_device(tokens.ids, self.device),
            to_device(tokens.values, self.device),
            Spans.of(tokens.bounds.tolist(), self.device),
            None if masked is None else to_device(masked, self.device),
            None if tokens.drugs is None else to_device(tokens.drugs, self.device),
        )

    def embed_cells(self, tokens: Tokens) -> torch.Tensor:
        """Embeddings of the cells, (cells, d_model) float32, not normalised."""
        rows = np.arange(len(tokens) + 1)
        return self._compute(lambda batch: self.network.embed_cells(batch, self.attention), tokens, rows)

    def embed_tokens(self, tokens: Tokens) -> torch.Tensor:
        """Outputs of all tokens, (tokens, d_model) float32: CLS, then the genes, of each cell in turn."""
        return self._compute(lambda batch: self.network(batch, self.attention), tokens, tokens.bounds)

    def predict(self, tokens: Tokens, decoder: str = "expression", masked: np.ndarray | None = None) -> torch.Tensor:
        """Value of each token as a decoder (``"expression"`` or ``"mvc"``) predicts it, (tokens,) float32.

        On the scale of the tokens' values: bins, unless the checkpoint has none. The values of `masked` tokens are
        hidden from the network.
        """
        network = self.network

        def decoded(batch: Batch) -> torch.Tensor:
            outputs = network(batch, self.attention)
            values = network.decode(outputs) if decoder == "expression" else network.decode_mvc(outputs, batch)
            return self.config.bins_of(values)[:, None]

        return self._compute(decoded, tokens, tokens.bounds, width=1, masked=masked)[:, 0]

    def _compute(
        self,
        compute: Callable[[Batch], torch.Tensor],
        tokens: Tokens,
        rows: np.ndarray,
        *,
        width: int | None = None,
        masked: np.ndarray | None = None,
    ) -> torch.Tensor:
        """What `compute` gives for a batch of cells, where cell ``i`` has rows ``rows[i]:rows[i + 1]``.

        On a CPU each core takes one cell at a time. Nothing is gained there by packing, and matrix products of another
        height may round otherwise, so a neighbour could change the last bit of a cell.
        """
        if self.device.type != "cpu":
            with inference(self.device):
                return compute(self.batch(tokens, masked))
        shape = (int(rows[-1]), width or self.config.d_model)
        result = torch.empty(shape, dtype=torch.float32, device="cpu")

        def work(cell: int) -> None:
            hidden = None if masked is None else masked[tokens.bounds[cell] : tokens.bounds[cell + 1]]
            batch = self.batch(tokens.cells(cell, cell + 1), hidden)
            result[rows[cell] : rows[cell + 1]] = compute(batch)

        # the longest first, so that all cores end at about the same time
        parallel_for(work, np.argsort(-tokens.lengths, kind="stable").tolist())
        return result

    def observe(self, tokens: Tokens, layers: Sequence[int], observer: Observer) -> None:
        """Show the attention weights of some layers to ``observer(layer, cell, weights)``, one cell at a time."""
        with inference(self.device):
            for cell in range(len(tokens)):
                batch = self.batch(tokens.cells(cell, cell + 1))
                self.network.observe(batch, observer, layers, self.attention, first_cell=cell)

    def gene_inputs(self, tokens: np.ndarray) -> torch.Tensor:
        """Input embeddings of genes, (tokens, d_model) float32."""
        with inference(self.device):
            return self.network.gene_inputs(torch.from_numpy(tokens).to(self.device))
