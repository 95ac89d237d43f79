"""A loaded checkpoint: what it is, and where its files lie; what it computes is in `computing`."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tahoe.errors import ModelError
from tahoe.model.checkpoint.weights import hash_weights, write_checkpoint
from tahoe.model.computing import Computing
from tahoe.model.files import WEIGHTS_FILE, file_sha256
from tahoe.model.hub import download as hub
from tahoe.model.hub.upload import push
from tahoe.model.network.attention import choose_attention

if TYPE_CHECKING:
    import os

    from tahoe.model.fine_tuning.fine_tuned import FineTuned
    from tahoe.model.fine_tuning.supervised import TrainingReport
    from tahoe.model.network.network import Network
    from tahoe.model.tokens.vocabulary import Vocabulary


@dataclass(eq=False)
class TahoeModel(Computing):
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
