"""Labelled cells, and a model that is to tell their labels: train the head, and then the network with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from tahoe.model.fine_tuning.labels import Truth
from tahoe.model.fine_tuning.lora import adapt, adapters_of
from tahoe.model.fine_tuning.supervised import (
    HEAD_PLAN,
    HEAD_RATE,
    RATES,
    Fit,
    fit,
    train_embedding_weights,
    weight_groups,
)
from tahoe.model.network.attention import choose_attention
from tahoe.model.training import FineTuningPlan, Head, TrainingReport
from tahoe.settings import settings

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from tahoe._fine_tune.cells import Cells
    from tahoe._fine_tune.targets import Wanted
    from tahoe.model import Network, TahoeModel


@dataclass
class Task:
    """What is trained on what."""

    model: TahoeModel
    cells: Cells
    wanted: list[Wanted]
    train_rows: np.ndarray
    held: np.ndarray
    class_weight: Any
    plan: FineTuningPlan
    seed: int
    report: TrainingReport

    @torch.inference_mode(False)
    @torch.enable_grad()
    def train(self, method: str) -> tuple[dict[str, Any], Head, dict[str, Tensor], Network]:
        """Train the head, and then the network with it.

        Returns
        -------
        What is told of the held-out cells, by method and target; the head; the adapters; the network.
        """
        model = self.model
        head = Head([each.target for each in self.wanted], model.config.d_model)
        head.standardise(self.cells.embeddings[self.train_rows])
        head = head.to(model.device)
        # in memory that torch lays out: how its sums are rounded depends on where rows begin
        embeddings = torch.from_numpy(self.cells.embeddings).clone().to(model.device)
        truth = Truth(head, {each.target.name: each.values for each in self.wanted}, self.train_rows, self.class_weight)

        def of_embeddings(rows: np.ndarray) -> Tensor:
            return head(embeddings[torch.from_numpy(rows).to(model.device)])

        groups = weight_groups(head, HEAD_RATE, HEAD_PLAN.weight_decay)
        outputs = self._fit(Fit(of_embeddings, groups, HEAD_PLAN, lambda rows: [rows], "head"), truth)
        alone = head.answers(outputs)
        if method == "head":
            return {"head": alone}, head.requires_grad_(False), {}, model.network
        network, kernel, autocast = self._trainable(method)

        def of_network(rows: np.ndarray) -> Tensor:
            with autocast:
                return head(network.embed_cells(model.batch(self.cells.some(rows)), kernel))

        rate = self.plan.learning_rate or RATES[method]
        groups = [
            *weight_groups(network, rate, self.plan.weight_decay),
            *weight_groups(head, rate, self.plan.weight_decay),
        ]
        outputs = self._fit(Fit(of_network, groups, self.plan, self.cells.parts, "network"), truth)
        told = {method: head.answers(outputs), "head alone": alone}
        network.requires_grad_(False).eval()
        return told, head.requires_grad_(False), adapters_of(network), network

    def _fit(self, what: Fit, truth: Truth) -> Tensor:
        with torch.autocast(self.model.device.type, enabled=False):  # that of the caller
            return fit(what, truth, self.train_rows, self.held, self.report, seed=self.seed, progress=settings.progress)

    def _trainable(self, method: str) -> tuple[Network, str, torch.autocast]:
        """A network of which only what is to be trained needs gradients, its attention, and its precision."""
        model = self.model
        if method == "lora":
            network = adapt(model.network, self.plan.rank, self.plan.alpha, self.seed)
            return network, model.attention, torch.autocast(model.device.type, enabled=False)
        network = train_embedding_weights(model.copy(model.name).network)
        in_16_bits = model.dtype == torch.bfloat16
        kernel = choose_attention(None, model.device, model.dtype, model.config.d_model)
        return network, kernel, torch.autocast(model.device.type, torch.bfloat16, enabled=in_16_bits)
