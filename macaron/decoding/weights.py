"""Weights as a processor multiplies with them fastest, and in fewer bits: of a copy of a model's modules.

fp32   the numbers that are there, with matrices that lie as products of few rows want them
bf16   matrices in bfloat16; sums, normalisations and what is between the products stay float32, and so do logits:
       a product comes out of torch with 8 bits, 1/32 beside logits of 8 to 16, which chooses another word in 200
int8   whole numbers of 8 bits, one scale for each row of a matrix, W ≈ s_w Q_w, and for each particle at the time of
       the product, x ≈ s_x q_x, so that no sentence depends on its neighbours; embeddings and projection included
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from macaron.quantization import quantized

PRECISIONS = ("fp32", "bf16", "int8", "auto")


def _has(*names: str) -> bool:
    return any(bool(getattr(torch.cpu, f"_is_{name}_supported", lambda: False)()) for name in names)


def _onednn() -> bool:
    return bool(torch.backends.mkldnn.is_available()) and hasattr(torch.ops.onednn, "qlinear_prepack")


def choose_precision(name: str, device: torch.device | str = "cpu") -> str:
    """What `name` means on a device: fp32, bf16 or int8; of auto, the fastest that it computes natively.

    Raises:
        ValueError: an unknown name, or a precision that the device lacks, or has in emulation alone.
    """
    kind = torch.device(device).type
    if name not in PRECISIONS:
        raise ValueError(f"precision {name!r} is unknown; choose one of {', '.join(PRECISIONS)}")
    lacks = {
        "int8": "" if kind == "cpu" and _onednn() and _has("vnni", "avx512_vnni", "amx_tile") else _INT8,
        "bf16": "" if (kind == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False))
        or (kind == "cpu" and _has("avx512_bf16", "amx_tile")) else _BF16,
    }  # fmt: skip
    if name == "auto":
        return next((one for one in ("int8", "bf16") if not lacks[one]), "fp32")
    if reason := lacks.get(name, ""):
        there = [one for one in ("fp32", *lacks) if not lacks.get(one)]
        raise ValueError(f"precision {name}: {reason}, which {kind} here has not; choose {' or '.join(there)}, or auto")
    return name


_INT8 = "needs a CPU with products of 8-bit numbers (AVX-512 VNNI, AVX-VNNI or AMX) and torch's oneDNN"
_BF16 = "needs arithmetic in bfloat16 (AVX-512 BF16 or AMX on a CPU; Ampere or later of NVIDIA's)"


def packed(module: nn.Module, precision: str) -> nn.Module:
    """A copy of `module`, for inference, whose linear maps and embeddings have that precision; all else is shared.

    Args:
        module: in float32. What its hooks do to a matrix is not in the copy.
        precision: "fp32" | "bf16" | "int8".

    Raises:
        ValueError: parameters of another type.
    """
    types = {p.dtype for p in module.parameters() if p.is_floating_point()} - {torch.float32}
    if types:
        found = ", ".join(str(t).removeprefix("torch.") for t in types)
        raise ValueError(f"precision {precision}: is made of float32, and these parameters are {found}; leave it out")
    made: dict[int, nn.Module] = {}

    def walk(module: nn.Module, name: str = "") -> nn.Module:
        if id(module) not in made:
            made[id(module)] = _packed(module, precision, name) or _shallow(module, walk)
        return made[id(module)]

    with torch.no_grad():
        return walk(module)


def _shallow(module: nn.Module, walk) -> nn.Module:  # type: ignore[no-untyped-def]
    twin = copy.copy(module)
    twin._modules = {name: None if child is None else walk(child, name) for name, child in module._modules.items()}
    for bound in ("integrate", "velocity"):  # of a compiled layer: they know the layer itself
        vars(twin).pop(bound, None)
    return twin


def _packed(module: nn.Module, precision: str, name: str) -> nn.Module | None:
    if type(module) is nn.Embedding and precision == "int8" and module.max_norm is None:
        return Int8Embedding(module)
    if not isinstance(module, nn.Linear) or type(module) is not nn.Linear or module.weight.dtype != torch.float32:
        return None
    if precision == "bf16" and name != _LOGITS:
        return Bf16Linear(module)
    if precision == "int8":
        return Int8Linear(module)
    if module.weight.device.type != "cpu":
        return None
    if precision == "bf16" and _half(module.weight):
        return HalfLinear(module)
    return PackedLinear(module) if module.out_features >= _MANY and _onednn() else TransposedLinear(module)


def _half(weight: Tensor) -> bool:
    """Whether fbgemm is there to multiply with, and float16 has numbers of that size."""
    engine = torch.backends.quantized.engine in ("x86", "fbgemm")
    return engine and float(weight.abs().max()) <= torch.finfo(torch.float16).max


_MANY = 4096  # words of a projection, from which on a copy in oneDNN's own order pays
_LOGITS = "output_projection"  # fairseq's name for the module whose results are logits


class PackedLinear(nn.Module):
    """x Wᵀ + b in float32, W in oneDNN's order."""

    def __init__(self, linear: nn.Linear, rows: int = 16) -> None:
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), rows)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return y


class TransposedLinear(nn.Module):
    """x Wᵀ + b in float32, Wᵀ row by row: up to 1.7 times as fast for a few rows of x, and no slower for many."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.register_buffer("weight", linear.weight.detach().t().contiguous())
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.size(-1))
        y = rows @ self.weight if self.bias is None else torch.addmm(self.bias, rows, self.weight)  # type: ignore[arg-type]
        return y.view(*x.shape[:-1], -1)


class Bf16Linear(nn.Module):
    """x Wᵀ + b with both factors in bfloat16; the result is float32."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.register_buffer("weight", linear.weight.detach().to(torch.bfloat16))
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x.to(torch.bfloat16), self.weight).to(x.dtype)  # type: ignore[arg-type]
        return y if self.bias is None else y.add_(self.bias)


class HalfLinear(nn.Module):
    """x Wᵀ + b with W in float16; x, sums and the result are float32. By fbgemm, on a CPU."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = torch.ops.quantized.linear_prepack_fp16(linear.weight.detach(), linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = torch.ops.quantized.linear_dynamic_fp16(x, self.weight)
        return y


class Int8Linear(nn.Module):
    """x Wᵀ + b ≈ s_x (q_x Q_wᵀ) s_w + b, with 8-bit factors and 32-bit sums."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        numbers, scale = quantized(linear.weight.detach())
        self.shape = numbers.shape
        self.weight = torch.ops.onednn.qlinear_prepack(numbers, None)
        self.register_buffer("scale", scale)
        self.register_buffer("zeros", torch.zeros(len(scale), dtype=torch.int8))
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.size(-1))
        scale = rows.abs().amax(-1, keepdim=True).clamp_min_(1e-30).div_(127)  # (N, 1)
        numbers = (rows / scale).add_(128.5).to(torch.uint8)  # rounds, since all is positive; 128 is 0
        y: Tensor = torch.ops.onednn.qlinear_pointwise(
            numbers, 1.0, 128, self.weight, self.scale, self.zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
        y = y.mul_(scale) if self.bias is None else torch.addcmul(self.bias, y, scale)
        return y.view(*x.shape[:-1], -1)


class Int8Embedding(nn.Module):
    """Rows of 8-bit numbers, each with its scale."""

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        numbers, scale = quantized(embedding.weight.detach())
        self.register_buffer("weight", numbers)
        self.register_buffer("scale", scale)
        self.padding_idx, self.embedding_dim = embedding.padding_idx, embedding.embedding_dim

    def forward(self, tokens: Tensor) -> Tensor:
        return F.embedding(tokens, self.weight).float() * F.embedding(tokens, self.scale[:, None])  # type: ignore[index,arg-type]
