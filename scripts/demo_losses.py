"""The masked objective on dense batches, and an option beside it: two views of a cell should have one embedding.

The second term (InfoNCE, van den Oord et al. 2018) is off unless it is asked for. The released models were trained
without it, so that their continued training goes on with the objective they know.
Shapes are written as suffixes: T tokens of the batch, R views, N tokens of one view, L lots, B cells of one lot,
D model width, H heads, K head size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from tahoe.errors import ModelError
from tahoe.model.training.objective import Losses

if TYPE_CHECKING:
    from demo_views import Views

    from tahoe.model.network.attention import Spans
    from tahoe.model.network.network import Network


@dataclass(frozen=True)
class Contrast:
    """How much two views of a cell are drawn together, and apart from the other cells of their lot."""

    weight: float = 0.0
    """Beside errors on the scale of bins, which are about 200; 0 omits the term."""
    temperature: float = 0.1


def dense(
    q_THK: Tensor, k_THK: Tensor, v_THK: Tensor, queries: Spans, keys: Spans, masked_T: Tensor | None = None
) -> Tensor:
    """Attention of cells that all have the same number of tokens, in one call."""
    n_cells = len(queries.bounds) - 1
    q, k, v = (t.unflatten(0, (n_cells, -1)).transpose(1, 2) for t in (q_THK, k_THK, v_THK))
    mask = None
    if masked_T is not None:
        masked_RN = masked_T.unflatten(0, (n_cells, -1))
        own_NN = torch.eye(masked_RN.shape[1], dtype=torch.bool, device=masked_T.device)
        mask = (~masked_RN[:, None, :] | own_NN)[:, None]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(0, 1)


def outputs(network: Network, views: Views) -> Tensor:
    """Outputs of all tokens, (R, N, D) float32.

    Raises
    ------
    tahoe.errors.ModelError
        If masked tokens see each other in this network: padding could not be hidden from them.
    """
    if not network.config.hide_masked:
        message = "dense batches need a network in which masked tokens are hidden (use_attn_mask: true)"
        raise ModelError(message)
    batch = views.batch
    x_TD = network.inputs(batch)
    for layer in network.layers:
        x_TD = layer(x_TD, batch.cells, dense, batch.masked_T)
    return network.norm(x_TD).unflatten(0, views.ids_RN.shape)


def masked_losses(network: Network, views: Views, output_RND: Tensor) -> Losses:
    """Errors of both decoders at the genes whose value is hidden."""
    queried = slice(-views.n_queried, None)
    queried_RN = views.is_gene_RN[:, queried].float()
    n_queried = queried_RN.sum().clamp(min=1)

    def error(predicted_T: Tensor) -> Tensor:
        return (((predicted_T.view_as(queried_RN) - views.values_RN[:, queried]) * queried_RN) ** 2).sum() / n_queried

    expression = error(network.decode(output_RND[:, queried].flatten(0, 1)))
    if network.mvc is None:
        return Losses(expression, None)
    genes_TD = network.gene_inputs(views.ids_RN[:, queried].flatten())
    return Losses(expression, error(network.mvc(output_RND[:, 0], genes_TD, views.n_queried)))


def contrastive_loss(one_LBD: Tensor, other_LBD: Tensor, cells_LB: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of finding a cell's other view among those of its lot, by cosine; both ways, averaged.

    A cell that a lot has twice, as `cells_LB` tells, is not set apart from itself.
    """
    one_LBD, other_LBD = (F.normalize(t.float(), dim=-1) for t in (one_LBD, other_LBD))
    with torch.autocast(one_LBD.device.type, enabled=False):
        scores_LBB = one_LBD @ other_LBD.transpose(1, 2) / temperature
    own_BB = torch.eye(cells_LB.shape[1], dtype=torch.bool, device=cells_LB.device)
    scores_LBB = scores_LBB.masked_fill((cells_LB[:, :, None] == cells_LB[:, None, :]) & ~own_BB, -torch.inf)
    own_LB = scores_LBB.diagonal(dim1=1, dim2=2)
    return (0.5 * (scores_LBB.logsumexp(1) + scores_LBB.logsumexp(2)) - own_LB).mean()


def centred(embeddings_LBD: Tensor) -> Tensor:
    """What sets each cell apart from the mean of its lot.

    In a new network all cells look alike, so that their cosines have hardly a gradient; these have one from the start.
    """
    return embeddings_LBD - embeddings_LBD.mean(1, keepdim=True)


def two_view_losses(
    network: Network, views: Views, cells_LB: Tensor, contrast: Contrast
) -> tuple[Tensor, Losses, Tensor]:
    """Loss of a batch that has one view of each cell of all lots, and then another of each.

    Returns
    -------
    What is minimised, the errors of the decoders, and the contrastive term: of the embeddings as they are, and around
    the mean of their lot (zero if it has no weight).
    """
    output_RND = outputs(network, views)
    losses = masked_losses(network, views, output_RND)
    if not contrast.weight:
        return losses.total, losses, losses.total.new_zeros(2)
    one_LBD, other_LBD = output_RND[:, 0].unflatten(0, (2, *cells_LB.shape)).unbind()
    as_they_are = contrastive_loss(one_LBD, other_LBD, cells_LB, contrast.temperature)
    around_the_mean = contrastive_loss(centred(one_LBD), centred(other_LBD), cells_LB, contrast.temperature)
    apart = torch.stack([as_they_are, around_the_mean])
    return losses.total + contrast.weight * apart.mean(), losses, apart
