"""What a model is taught to tell of a cell: classes or quantities, from its embedding, by one linear layer.

Shapes are written as suffixes: C cells, D model width, O outputs of all targets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np


@dataclass(frozen=True)
class Target:
    """One thing to be told of each cell."""

    name: str
    """The column of ``obs``, or the key of ``obsm``."""
    kind: Literal["classes", "quantities"]
    labels: tuple[str, ...]
    """The classes; or the quantities, of which a column of ``obs`` has one."""
    slot: Literal["obs", "obsm"] = "obs"


class Head(nn.Module):
    """The outputs of all targets, from embeddings that it standardises.

    A class has a logit, and a quantity its value, standardised.
    """

    embedding_mean_D: Tensor
    embedding_scale_D: Tensor
    mean_O: Tensor
    scale_O: Tensor

    def __init__(self, targets: Sequence[Target], width: int) -> None:
        super().__init__()
        self.targets = tuple(targets)
        n_outputs = sum(len(target.labels) for target in targets)
        # without a draw from torch's own generator, which is the caller's
        self.linear = nn.utils.skip_init(nn.Linear, width, n_outputs, device="cpu", dtype=torch.float32)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        for name, size, value in (
            ("embedding_mean_D", width, 0.0),
            ("embedding_scale_D", width, 1.0),
            ("mean_O", n_outputs, 0.0),
            ("scale_O", n_outputs, 1.0),
        ):
            self.register_buffer(name, torch.full((size,), value, dtype=torch.float32, device="cpu"))

    def standardise(self, embeddings: np.ndarray) -> None:
        """Take mean and spread of each coordinate from the embeddings of the cells that are trained on."""
        spread = embeddings.std(axis=0)
        self.embedding_mean_D.copy_(torch.from_numpy(embeddings.mean(axis=0)))
        self.embedding_scale_D.copy_(torch.from_numpy(1 / spread.clip(min=1e-6)))

    def forward(self, embeddings_CD: Tensor) -> Tensor:
        """Outputs of all targets, (C, O) float32."""
        return self.linear((embeddings_CD.float() - self.embedding_mean_D) * self.embedding_scale_D)

    def pieces(self) -> Iterator[tuple[Target, slice]]:
        """Which outputs are those of each target."""
        start = 0
        for target in self.targets:
            yield target, slice(start, start + len(target.labels))
            start += len(target.labels)

    def answers(self, outputs_CO: Tensor) -> dict[str, np.ndarray]:
        """Probabilities of the classes, or values of the quantities, of each target: (cells, labels) float32."""
        told = {}
        for target, piece in self.pieces():
            part = outputs_CO[:, piece]
            if target.kind == "classes":
                told[target.name] = part.softmax(-1).cpu().numpy()
            else:
                told[target.name] = (part * self.scale_O[piece] + self.mean_O[piece]).cpu().numpy()
        return told
