"""Positions of particles: their numbers, and the sinusoidal table."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def sinusoids(first: int, count: int, dim: int) -> Tensor:
    """(count, dim), of the positions p = first … first + count − 1, as in fairseq; one zero is appended to odd `dim`.

    [sin(p f_0) … sin(p f_{h−1}), cos(p f_0) … cos(p f_{h−1})],  f_i = 10000^(−i / (h − 1)),  h = dim // 2
    """
    half = dim // 2
    frequencies = torch.exp(torch.arange(half, dtype=torch.float) * -(math.log(10000) / (half - 1)))  # (h,)
    phases = torch.arange(first, first + count, dtype=torch.float).unsqueeze(1) * frequencies  # (count, h)
    return F.pad(torch.cat([phases.sin(), phases.cos()], dim=1), (0, dim % 2))


def count_positions(length: int, real: Tensor | None, row: Tensor | None, device: torch.device) -> Tensor:
    """(B, T) numbers of the real particles from 0 in each sentence, or (1, T) where all are real.

    Args:
        real: (B, T), True at real particles; None where all are.
        row: (B, T), the number of the sentence that a particle belongs to; None where each row is one sentence.
    """
    places = torch.arange(length, device=device).unsqueeze(0)
    if row is not None:
        begins = F.pad(row.diff(dim=-1), (1, 0)) != 0
        return places - torch.where(begins, places, 0).cummax(-1).values
    return places if real is None else (real.long().cumsum(-1) - 1).clamp(min=0)
