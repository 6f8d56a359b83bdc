"""Dropout of the references, and inside a kernel, where the mask is computed from seed and position, never stored."""

import torch
import torch.nn.functional as F
from torch import Tensor

from macaron.ops._triton import jit, tl


def dropout_reference(x: Tensor, dropout: float) -> Tensor:
    """`F.dropout` in training, on a CPU by 16 random bits for each entry, as in the kernels, in a third of the time.

    So the probability is there taken to the nearest multiple of 2⁻¹⁶.
    """
    if dropout == 0.0:
        return x
    if not torch.jit.is_scripting() and x.device.type == "cpu":
        if torch.compiler.is_compiling():  # an operator, since the numbers that inductor draws itself take longer
            return x * _dropout_mask(x.detach(), draw_seed(x), dropout)
        return x * _mask(x, dropout)
    return F.dropout(x, dropout, training=True)


def _mask(x: Tensor, dropout: float, generator: torch.Generator | None = None) -> Tensor:
    """Of the shape and dtype of `x`: 0 with probability `dropout`, else 1 / (1 − dropout)."""
    words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None, generator=generator)
    bits = words.view(torch.int16)
    dropped = min(round(dropout * 2**16), 2**16 - 1)
    mask = torch.empty(x.shape, dtype=x.dtype)
    return torch.ge(bits[: x.numel()].view(x.shape), dropped - 2**15, out=mask).mul_(1 / (1 - dropout))


@torch.library.custom_op("macaron::dropout_mask", mutates_args=(), device_types="cpu")
def _dropout_mask(x: Tensor, seed: Tensor, dropout: float) -> Tensor:
    """`_mask` from a seed () int64 alone, so that computing it again gives the same, and no two masks are one."""
    return _mask(x, dropout, torch.Generator().manual_seed(int(seed)))


@_dropout_mask.register_fake
def _(x: Tensor, seed: Tensor, dropout: float) -> Tensor:
    return x.new_empty(x.shape)


def draw_seed(x: Tensor) -> Tensor:
    """() int64 on the device of `x`, from that device's default generator.

    So `torch.manual_seed` reproduces a mask, activation checkpointing replays it, and a CUDA graph draws a new one
    at every replay.
    """
    return torch.randint(0, 2**63 - 1, (), dtype=torch.int64, device=x.device)


@jit
def keep(seed_ptr, row, octet, dropout, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """(ROWS, BLOCK) bool, False with probability `dropout`, for columns 8 · octet … 8 · octet + 7 of the rows.

    Philox4x32 with the seed as key and (c // 8, row, 0, 0) as counter yields four words; their halves, low before
    high, decide on eight neighbouring columns c. No block size enters. Eight, because a thread loads eight entries
    of half precision at a time: mask and data then lie in the same threads. 7 rounds are the fewest that pass
    BigCrush (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", table 2).

    Args:
        seed_ptr: () int64.
        row: (ROWS, 1) int32.
        octet: (1, BLOCK / 8) int32.
        dropout: taken to the nearest multiple of 2⁻¹⁶.
    """
    zero = tl.zeros((ROWS, BLOCK // 8), dtype=tl.int32)
    a, b, c, d = tl.philox(tl.load(seed_ptr), octet + zero, row + zero, zero, zero, 7)
    words = tl.join(tl.join(a, c), tl.join(b, d))  # a b c d
    halves = tl.join(words & 0xFFFF, words >> 16).reshape(ROWS, BLOCK)
    return halves >= tl.full((1, 1), dropout * 65536.0 + 0.5, tl.float32).to(tl.uint32)
