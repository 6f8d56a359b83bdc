"""Which particles are real, which sentence each belongs to, and a batch without its padding.

Shapes: B sentences, T particles, C channels, N real (not padding) particles of a batch.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.utils.import_utils import is_tracing


class Packing(NamedTuple):
    """The sentences of a batch one after another, without padding: (N, C) instead of (B, T, C)."""

    indices: Tensor  # (N,) where the real particles are in the flattened batch, B · T
    offsets: Tensor  # (B + 1,) int32, where each sentence begins and ends among them
    max_length: int

    @classmethod
    def of(cls, real: Tensor) -> "Packing | None":
        """From a mask (B, T), True at real particles; None where there is no padding."""
        lengths = real.sum(-1)  # (B,)
        total, max_length = torch.stack([lengths.sum(), lengths.max()]).tolist()  # an accelerator waits here, once
        if total == real.numel():
            return None
        offsets = F.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
        return cls(real.flatten().nonzero().squeeze(-1), offsets, max_length)

    @classmethod
    def of_sentences(cls, number: Tensor) -> "Packing":
        """From the number of the sentence, rising from 0, of each particle: (B, T)."""
        lengths = number.flatten().bincount()
        offsets = F.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
        return cls(torch.arange(number.numel(), device=number.device), offsets, int(lengths.max()))

    def pack(self, x: Tensor) -> Tensor:
        """(B, T, …) → (N, …)."""
        return x.flatten(0, 1)[self.indices]

    def unpack(self, x: Tensor, shape: torch.Size) -> Tensor:
        """(N, C) → (B, T, C), zero at padding."""
        return x.new_zeros(shape.numel(), x.size(-1)).index_copy(0, self.indices.to(x.device), x).view(*shape, -1)


def has_values(t: Tensor) -> bool:
    """Whether Python may look at the values: not while a graph is traced, nor on the meta device."""
    return not (is_tracing(t) or t.is_meta)


def sentence_numbers(position_ids: Tensor | None, cu_seq_lens: Tensor | None, shape: torch.Size) -> Tensor | None:
    """(B, T): which sentence each particle belongs to, counted through all rows; None where each row is one sentence.

    A sentence begins where `cu_seq_lens` says so, or else with every row, where positions fall back, and at position
    0. So a gap in the positions divides nothing, and positions that are all 0 are no mark.
    """
    if cu_seq_lens is not None:
        if shape[0] != 1:
            raise ValueError(
                f"cu_seq_lens_q marks the sentences of a batch of one row, but there are {shape[0]}; put them into one "
                f"row, or leave it out"
            )
        if has_values(cu_seq_lens):
            marks = cu_seq_lens.tolist()
            if marks[:1] != [0] or marks[-1] != shape[1] or marks != sorted(marks):
                raise ValueError(
                    f"cu_seq_lens_q={marks} does not divide a row of {shape[1]} tokens into sentences; give where each "
                    f"begins, in order from 0, and at last {shape[1]}"
                )
        places = torch.arange(shape[1], device=cu_seq_lens.device)
        return torch.bucketize(places, cu_seq_lens[1:].long(), right=True).unsqueeze(0)
    if position_ids is None:
        return None
    position_ids = position_ids.expand(shape)
    begins = (position_ids == 0) & position_ids.ne(0).any(-1, keepdim=True)
    begins = F.pad(begins[:, 1:] | (position_ids.diff(dim=-1) < 0), (1, 0))  # (B, T), the beginnings of rows left out
    if has_values(position_ids) and not begins.any():
        return None
    row = torch.arange(shape[0], device=begins.device).unsqueeze(1)
    return row + begins.flatten().cumsum(0).view_as(begins)


def read_mask(mask: Tensor, shape: torch.Size, num_heads: int) -> Tensor:
    """The two forms of `attention_mask`: (B, T) bool, or (B or 1, H or 1, T or 1, T) bool or added to the scores.

    Args:
        mask: as a model's `attention_mask`; also (B, T, T).
        shape: B, T.

    Raises:
        ValueError: another shape, or values that could mean two things.
    """
    if not torch.is_tensor(mask):
        raise ValueError(f"attention_mask is a {type(mask).__name__}; pass a tensor")
    if mask.dim() == 3:
        mask = mask.unsqueeze(1)
    if not has_values(mask):
        return mask.bool() if mask.dim() == 2 or not mask.is_floating_point() else mask
    (B, T), given = shape, tuple(mask.shape)
    fits = given == (B, T)
    if mask.dim() == 4:
        fits = all(n in (1, most) for n, most in zip(given[:3], (B, num_heads, T), strict=True)) and given[3] == T
    if not fits:
        raise ValueError(
            f"attention_mask has the shape {given}; these {B} sentences of {T} tokens take ({B}, {T}), or ({B}, {T}, "
            f"{T}) or ({B}, 1 or {num_heads}, {T}, {T}) for what each particle sees"
        )
    if mask.dtype == torch.bool:
        return mask
    seen = mask.bool()
    binary = bool((mask == seen).all())
    if mask.dim() == 2 or not mask.is_floating_point():
        if not binary:
            raise ValueError(
                f"attention_mask {given} holds other values than 1 (seen) and 0 (not seen); what is added to the "
                f"scores has the shape ({B}, 1, {T}, {T}) and a floating type"
            )
        return seen
    if binary and seen.any() and not seen.all():
        raise ValueError(
            f"attention_mask {given} of type {mask.dtype} is added to the scores, where 0 and 1 hide nothing; make it "
            f"bool if 1 means seen and 0 not"
        )
    return mask


def first_particle(x: Tensor, real: Tensor | None) -> Tensor:
    """(B, T, C) → (B, C), the first particle that is not padding."""
    if real is None or real.dim() != 2:
        return x[:, 0]
    first = real.to(torch.int32).argmax(-1)  # (B,)
    return x[torch.arange(x.size(0), device=x.device), first.to(x.device)]
