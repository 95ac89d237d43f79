"""A loaded checkpoint, and what it computes of tokens."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from tahoe.errors import InputError, ModelError
from tahoe.model.checkpoint.weights import hash_weights, write_checkpoint
from tahoe.model.cpu.threads import parallel_for
from tahoe.model.cuda.transfers import to_device
from tahoe.model.files import WEIGHTS_FILE, file_sha256
from tahoe.model.hub import download as hub
from tahoe.model.hub.upload import push
from tahoe.model.network.attention import Spans, choose_attention
from tahoe.model.network.network import Batch, inference
from tahoe.model.tokens.tokenizer import Tokens, tokenize

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence

    from scipy import sparse

    from tahoe.model.config import ModelConfig
    from tahoe.model.network.network import Network, Observer
    from tahoe.model.tokens.vocabulary import Vocabulary
    from tahoe.model.training.fine_tuned import FineTuned
    from tahoe.model.training.supervised import TrainingReport


@dataclass(eq=False)
class TahoeModel:
    """A Tahoe-x1 network with its vocabulary, on a device.

    Made by `load_model`, not by hand; every function of `tahoe.tl` takes one as ``model=``, so that it is loaded once.
    """

    name: str
    """The registered name, or the name of the folder."""
    network: Network
    """The network, a `torch.nn.Module`."""
    vocabulary: Vocabulary
    """Genes and their token ids."""
    device: torch.device
    """Where the network is."""
    attention: str
    """Name of the attention function in use."""
    folder: Path | None = None
    """Where the files lie; `None` for a model that was never written."""
    revision: str | None = None
    """The commit on the Hub, for a registered name."""
    drugs: dict[str, int] = field(default_factory=dict)
    """Drugs that the checkpoint knows by name, and their ids."""
    weights_sha256: str = ""
    """Hash of the weights file that was loaded or saved, or of adapters and their base; empty for a model that was
    never written."""
    fine_tuned: FineTuned | None = None
    """What `tahoe.fine_tune` has taught it: a head, and adapters, which are merged into the weights."""

    @property
    def config(self) -> ModelConfig:
        """What the checkpoint's YAML files say."""
        return self.network.config

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the linear layers."""
        return self.network.precision

    @property
    def is_registered(self) -> bool:
        """Whether its name is enough to load it anywhere, as for a release on the Hub or the demo model."""
        return self.revision is not None or self.folder == hub.demo_folder()

    @property
    def n_parameters(self) -> int:
        """How many weights the network has."""
        return self.network.n_parameters

    @property
    def training_report(self) -> TrainingReport | None:
        """Scores of every epoch of `tahoe.fine_tune`, and the baselines beside the result."""
        return None if self.fine_tuned is None else self.fine_tuned.report

    def fingerprint(self) -> str:
        """Hash of all that makes it this model and no other: weights, vocabulary, configuration.

        That of a model that was never written takes a pass over its weights.
        """
        weights = self.weights_sha256 or hash_weights(self.network)
        return sha256(f"{weights} {self.vocabulary.sha256} {self.config}".encode()).hexdigest()

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

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the four files of the released layout into a folder.

        Weights are written in the precision in which they are held, so load with ``dtype="float32"`` what is to be
        written whole. A checkpoint that is there already is replaced; one that was cut short does not load.

        A model with a head that `tahoe.fine_tune` made has one more file. If its own weights were not trained
        (``method="head"`` or ``"lora"``), this file of a few megabytes is the only one: it names the model that it
        belongs to, which `tahoe.load_model` loads first.

        From then on this is the model of that folder: `folder` and `weights_sha256` say so, and workers load it there.

        Raises
        ------
        tahoe.errors.ModelError
            If the folder cannot be written, as on a full disk, or adapters would come beside the weights of a model.
        """
        place = Path(folder)
        self._write(place)
        self.folder, self.revision = place, None
        if self.fine_tuned is None or self.fine_tuned.has_weights:
            self.weights_sha256 = file_sha256(place / WEIGHTS_FILE)

    def _write(self, place: Path, *, public: bool = False) -> None:
        tuned = self.fine_tuned
        if tuned is None or tuned.has_weights:
            write_checkpoint(place, self.network, self.vocabulary, self.drugs)
            if tuned is not None:
                tuned = replace(tuned, network_sha256=file_sha256(place / WEIGHTS_FILE))
        elif (place / WEIGHTS_FILE).exists():
            message = f"{place} holds the weights of a model; save what was taught to one in a folder of its own"
            raise ModelError(message)
        if tuned is not None:
            tuned.write(place, public=public)

    def copy(self, name: str) -> TahoeModel:
        """A second model with the same weights, in float32, to be trained or changed; this one stays as it is.

        A model that is trained in place would still bear the name and the hash of what it was. The head of a fine-tuned
        one does not go along: it fits the weights that it was trained with.

        Parameters
        ----------
        name
            What provenance and model card call it.

        Examples
        --------
        >>> import tahoe
        >>> model = tahoe.load_model("demo")
        >>> mine = model.copy("mine")
        >>> mine.name, mine.folder, mine.n_parameters == model.n_parameters
        ('mine', None, True)
        """
        self.network.check_weights()
        with torch.inference_mode(False):
            network = deepcopy(self.network).set_precision(torch.float32)
        attention = choose_attention(None, self.device, torch.float32, self.config.d_model)
        return TahoeModel(name, network, self.vocabulary, self.device, attention, drugs=dict(self.drugs))

    def push_to_hub(self, repository: str, *, folder: str = "", private: bool | None = None, about: str = "") -> str:
        """Upload the model to the Hugging Face Hub in the released layout, with a model card, in one commit.

        Parameters
        ----------
        repository
            ``"owner/name"``; made if it does not exist. You need to be logged in (``hf auth login``, or ``HF_TOKEN``).
        folder
            Folder in the repository; the authors' own loader looks in ``"<size>-model"``.
        private
            Whether a new repository is private; `None` is what the owner chose as default.
        about
            What the model is and what it was trained on, in Markdown, for the card.

        Returns
        -------
        The commit.

        Raises
        ------
        tahoe.errors.ModelError
            If the Hub cannot be reached or does not let you in.
        """
        return push(
            *(self.name, self.network, self.vocabulary, repository),
            write=lambda place: self._write(place, public=True),
            fine_tuned=self.fine_tuned,
            folder=folder,
            private=private,
            about=about,
        )

    def __repr__(self) -> str:
        config = self.config
        return (
            f"TahoeModel({self.name!r}: {config.n_layers} layers × {config.d_model}, {config.n_heads} heads,"
            f" {self.n_parameters:,} parameters, {len(self.vocabulary.genes):,} genes;"
            f" {str(self.dtype).removeprefix('torch.')} on {self.device}, {self.attention} attention)"
        )
