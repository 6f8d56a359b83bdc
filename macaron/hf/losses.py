"""Losses as sums over what has a label, and their means."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED = -100  # label of what takes no part in a loss


def mean_loss(total: Tensor, count: Tensor | int, num_items_in_batch: Tensor | int | None) -> Tensor:
    """`total` over the number of items it was summed over: those of the whole update where the Trainer tells them.

    Over no items it is 0, as `total` is.
    """
    items = count if num_items_in_batch is None else num_items_in_batch
    if torch.is_tensor(items):
        items = items.to(total.device)
    return total / (items + (items == 0))


def summed_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Of (N, V) logits and (N,) labels, in float32; −100 takes no part."""
    return F.cross_entropy(logits.float(), labels, ignore_index=IGNORED, reduction="sum")


def mean_cross_entropy(logits: Tensor, labels: Tensor, num_items_in_batch: Tensor | int | None) -> Tensor:
    """Of (…, V) logits and as many labels, over those that are not −100; see `mean_loss`."""
    labels = labels.to(logits.device).flatten()
    total = summed_cross_entropy(logits.flatten(0, -2), labels)
    return mean_loss(total, labels.ne(IGNORED).sum(), num_items_in_batch)


def element_losses(loss: Callable[..., Tensor], logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """`loss` of each element, 0 where the label is −100, and the number of the others."""
    ignored = labels == IGNORED
    losses = loss(logits.float(), labels.masked_fill(ignored, 0).float(), reduction="none")
    return losses.masked_fill(ignored, 0.0), (~ignored).sum()


def position_loss(logits: Tensor, positions: Tensor) -> Tensor:
    """Summed cross-entropy of (B, T) logits; positions outside take no part."""
    positions = positions.to(logits.device).view(-1)
    outside = (positions < 0) | (positions >= logits.size(1))
    positions = positions.masked_fill(outside, IGNORED)
    return summed_cross_entropy(logits, positions)
