"""Each fused operation, forward and backward, beside the same in plain PyTorch, eager and compiled.

The bandwidth is that of the bytes which an operation cannot do without: what it is given, read once, and what it
returns, written once, in both directions; as a share of the bandwidth of a copy that takes its turn with them.
"""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from macaron.dynamics import STRANG
from macaron.ops import attention, bias_act, linear_cross_entropy, packed_attention, step_norm
from recipes.bench.lengths import glue_lengths
from recipes.bench.loss import PADDING, SMOOTHING, fairseq_loss
from recipes.bench.measure import Contender, Plan, chosen_backend, interleaved
from recipes.bench.record import Record
from recipes.common.errors import RecipeError

CONTENDERS = ("eager", "compile", "macaron", "triton", "liger")
STEP, DROPOUT, HEAD_DIM, LENGTH = STRANG.substeps[0].share, 0.1, 64, 32


@dataclass(frozen=True)
class Settings:
    tokens: int = 16384
    dim: int = 1024
    vocabulary: int = 32768


@dataclass
class Case:
    """One operation: what it works on, in plain PyTorch, ours, and the tensors that it must move, in entries."""

    inputs: list[Tensor]
    eager: Callable[..., Any]
    macaron: Callable[..., Any]
    entries: int = 0  # 0: bound by arithmetic
    others: dict[str, Callable[..., Any]] = field(default_factory=dict)
    real: Tensor | None = None  # where the plain one's output counts, if not everywhere
    liger: Callable[..., Any] | None = None


def step_norm_case(settings: Settings, device: torch.device) -> Case:
    N, C = settings.tokens, settings.dim
    x, v = (torch.randn(N, C, device=device) for _ in range(2))
    weight, bias, v_bias = torch.ones(C, device=device), torch.zeros(C, device=device), torch.zeros(C, device=device)

    def eager(x: Tensor, v: Tensor, weight: Tensor, bias: Tensor, v_bias: Tensor) -> tuple[Tensor, Tensor]:
        y = x + STEP * F.dropout(v + v_bias, DROPOUT)
        return y, F.layer_norm(y, (C,), weight, bias)

    def ours(x: Tensor, v: Tensor, weight: Tensor, bias: Tensor, v_bias: Tensor) -> tuple[Tensor, Tensor]:
        return step_norm(x, v, weight, bias, step=STEP, v_bias=v_bias, dropout=DROPOUT)

    def liger(x: Tensor, v: Tensor, weight: Tensor, bias: Tensor, v_bias: Tensor) -> tuple[Tensor, Tensor]:
        y = x + STEP * F.dropout(v + v_bias, DROPOUT)
        return y, liger_functions().liger_layer_norm(y, weight, bias, 1e-5)

    # x, v → y, z; dy, dz, y → dx, dv
    return Case([x, v, weight, bias, v_bias], eager, ours, 9 * N * C, liger=liger)


def bias_act_case(settings: Settings, device: torch.device) -> Case:
    u = torch.randn(settings.tokens, settings.dim, device=device)
    bias = torch.zeros(settings.dim, device=device)

    def eager(u: Tensor, bias: Tensor) -> Tensor:
        return F.dropout(F.gelu(u + bias), DROPOUT)

    def ours(u: Tensor, bias: Tensor) -> Tensor:
        return bias_act(u, bias, activation="gelu", dropout=DROPOUT)

    return Case([u, bias], eager, ours, 5 * u.numel())  # u → out; dout, u → du


def linear_cross_entropy_case(settings: Settings, device: torch.device) -> Case:
    N, C, V = settings.tokens, settings.dim, settings.vocabulary
    x, weight = torch.randn(N, C, device=device), torch.randn(V, C, device=device) * C**-0.5
    target = torch.randint(PADDING + 1, V, (N,), device=device)

    def eager(x: Tensor, weight: Tensor) -> Tensor:
        return fairseq_loss(x, weight, target)

    def ours(x: Tensor, weight: Tensor) -> Tensor:
        return linear_cross_entropy(x, weight, target, label_smoothing=SMOOTHING, ignore_index=PADDING)[0]

    def liger(x: Tensor, weight: Tensor) -> Tensor:
        loss: Tensor = liger_functions().liger_fused_linear_cross_entropy(
            x, weight, target, ignore_index=PADDING, label_smoothing=SMOOTHING * V / (V - 1), reduction="sum"
        )
        return loss

    return Case([x, weight], eager, ours, liger=liger)


def attention_case(settings: Settings, device: torch.device) -> Case:
    """A padded batch of short sentences, of about the length of WMT14's."""
    B, H = max(1, settings.tokens // LENGTH), max(1, settings.dim // HEAD_DIM)
    q, k, v = (torch.randn(B, H, LENGTH, HEAD_DIM, device=device) for _ in range(3))
    padding = torch.arange(LENGTH, device=device) >= torch.randint(LENGTH // 2, LENGTH + 1, (B, 1), device=device)

    def eager(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=~padding[:, None, None])

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(q, k, v, key_padding_mask=padding)[0]

    return Case([q, k, v], eager, ours, 12 * q.numel())  # q, k, v → out; q, k, v, out, dout → dq, dk, dv


def packed_attention_case(settings: Settings, device: torch.device) -> Case:
    """Sentences of GLUE's lengths; in plain PyTorch padded to one batch, which its inputs already are, or, as
    `buckets`, sorted and padded eight at a time."""
    lengths: list[int] = []
    for batch in glue_lengths(32, np.random.default_rng(0)):
        if sum(lengths) >= settings.tokens:
            break
        lengths += batch
    H = max(1, settings.dim // HEAD_DIM)
    offsets = torch.tensor([0, *lengths], device=device).cumsum(0).int()
    T, real = max(lengths), torch.arange(max(lengths), device=device) < torch.tensor(lengths, device=device)[:, None]
    qkv = torch.randn(int(offsets[-1]), 3, H, HEAD_DIM, device=device)
    padded = qkv.new_zeros(len(lengths), T, 3, H, HEAD_DIM)
    padded[real] = qkv

    def attend(padded: Tensor, real: Tensor) -> Tensor:
        q, k, v = padded.permute(2, 0, 3, 1, 4)  # (B, H, T, D)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=real[:, None, None]).transpose(1, 2)

    def eager(qkv: Tensor, padded: Tensor) -> Tensor:
        return attend(padded, real)

    def ours(qkv: Tensor, padded: Tensor) -> Tensor:
        q, k, v = qkv.unbind(1)
        return packed_attention(q, k, v, offsets, T)

    def buckets(qkv: Tensor, padded: Tensor) -> Tensor:
        order = sorted(range(len(lengths)), key=lengths.__getitem__)
        sentences, outs = qkv.split(lengths), {}
        for part in (order[i : i + 8] for i in range(0, len(order), 8)):
            mask = torch.arange(lengths[part[-1]], device=device) < torch.tensor([[lengths[i]] for i in part]).to(
                device
            )
            out = attend(pad_sequence([sentences[i] for i in part], batch_first=True), mask)
            outs |= {i: out[row, : lengths[i]] for row, i in enumerate(part)}
        return torch.cat([outs[i] for i in range(len(lengths))])

    # q, k, v → out; q, k, v, out, dout → dq, dk, dv
    entries = 12 * qkv.size(0) * H * HEAD_DIM
    return Case([qkv, padded], eager, ours, entries, {"buckets": buckets}, real)


def liger_functions() -> Any:
    """Liger Kernel's functions (arXiv:2410.10989); it has a layer normalisation and a projection with loss."""
    try:
        return importlib.import_module("liger_kernel.transformers.functional")
    except ImportError as error:
        raise RecipeError(f"--contenders liger: {error}; pip install liger-kernel, which needs triton") from error


OPS: dict[str, Callable[[Settings, torch.device], Case]] = {
    "step_norm": step_norm_case,
    "bias_act": bias_act_case,
    "attention": attention_case,
    "packed_attention": packed_attention_case,
    "linear_cross_entropy": linear_cross_entropy_case,
}


def run(
    record: Record, plan: Plan, settings: Settings, ops: list[str], names: list[str], precision: str, seed: int
) -> None:
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    if "liger" in names:
        liger_functions()
    copy, moved = copying(settings, plan, dtype)
    for op in ops:
        torch.manual_seed(seed)
        case = OPS[op](settings, plan.device)
        inputs = [t.to(dtype).requires_grad_() for t in case.inputs]
        functions = {"eager": case.eager, **case.others, "macaron": case.macaron}
        if "compile" in names:
            functions["compile"] = torch.compile(case.eager)
        if "triton" in names:
            functions["triton"] = case.macaron
        if case.liger is not None:
            functions["liger"] = case.liger
        chosen = {name: fn for name, fn in functions.items() if name in names or name in case.others}
        contenders = [Contender(name, forward_and_backward(name, fn, inputs)) for name, fn in chosen.items()]
        timing = interleaved([*contenders, copy], itertools.repeat(None), plan, label=op)
        rows = timing.rows()[: len(contenders)]
        limit = moved / np.array(timing.seconds[copy.name])
        for row in rows:
            if case.entries:
                speed = case.entries * dtype.itemsize / np.array(timing.seconds[row["contender"]])
                row["gb_per_s"] = round(float(np.median(speed)) / 1e9, 2)
                row["share_of_copy"] = round(float(np.median(speed / limit)), 3)
        record.add(op, rows)


def forward_and_backward(name: str, fn: Callable[..., Any], inputs: list[Tensor]) -> Callable[[object], None]:
    grads: list[Tensor] = []  # the same in every step

    def step(_: object) -> None:
        with chosen_backend("triton" if name == "triton" else "auto"):
            out = fn(*inputs)
            outs = out if isinstance(out, tuple) else (out,)
            if not grads:
                grads.extend(torch.randn_like(t) for t in outs)
            torch.autograd.backward(outs, grads)
        for t in inputs:
            t.grad = None

    return step


def copying(settings: Settings, plan: Plan, dtype: torch.dtype) -> tuple[Contender, int]:
    """A copy of (tokens, dim), and the bytes that it reads and writes: what a bandwidth is compared with."""
    source = torch.randn(settings.tokens, settings.dim, device=plan.device).to(dtype)
    target = torch.empty_like(source)
    return Contender("copy", lambda _: target.copy_(source)), 2 * source.numel() * dtype.itemsize
