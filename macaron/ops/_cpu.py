"""What is tuned for a CPU: where torch's own attention is slower there than its parts.

Measured by `python -m recipes.bench ops --precision bf16`, in the rows `attention_128` to `attention_1024`.
"""

import torch
from torch import Tensor


def written_out_is_faster(q: Tensor, k: Tensor, dropout: float, short: int = 512) -> bool:
    """Whether `attention` does by product, softmax and product what torch has a kernel for.

    On a CPU: with dropout torch has none, and does the same in more steps; in half precision its kernel takes several
    times as long in training where there are few keys.

    Args:
        q, k: (B, H, T, D) queries and (B, H, S, D) keys.
        dropout: on the attention weights.
        short: up to how many keys.
    """
    if q.device.type != "cpu":
        return False
    half = q.dtype == torch.bfloat16 or q.dtype == torch.float16
    return dropout > 0.0 or (half and torch.is_grad_enabled() and q.requires_grad and k.size(2) <= short)
