"""Each operation as the layers call it, beside the same in plain PyTorch, eager and compiled.

A layer of `macaron_base` calls them in a padded fairseq batch, forward and backward at the dropout rates of the WMT14
recipe, and in step-wise decoding of such a batch, forward only; packed attention is Macaron BERT's. The same functions,
keywords, layouts and masks: tests/recipes/bench compares them with what the models call.

The bandwidth is that of the bytes which an operation cannot do without: what it is given, read once, and what it
returns, written once, in both directions; as a share of the bandwidth of a copy that takes its turn with them.
"""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from macaron.dynamics import STRANG
from macaron.ops import act_dropout, attention, euler_step, linear_cross_entropy, packed_attention, step_norm
from macaron.ops.attention import written_out

from ..common.errors import RecipeError
from .lengths import glue_lengths
from .loss import PADDING, SMOOTHING, fairseq_loss
from .measure import Contender, Plan, chosen_backend, interleaved
from .record import Record

CONTENDERS = ("eager", "compile", "macaron", "triton", "liger")
STEP, DROPOUT, HEAD_DIM, EPS = STRANG.substeps[0].share, 0.1, 64, 1e-5
LENGTH = 32  # tokens of the longest sentence: about WMT14's
LENGTHS = (128, 256, 512, 1024)  # on both sides of where torch's kernel for a CPU gets faster than its parts


@dataclass(frozen=True)
class OpsSettings:
    tokens: int = 16384
    dim: int = 1024
    vocabulary: int = 32768

    @property
    def heads(self) -> int:
        return max(1, self.dim // HEAD_DIM)

    def batch(self, length: int = LENGTH) -> int:
        return max(1, self.tokens // length)


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
    training: bool = True  # or forward only


def product(settings: OpsSettings, device: torch.device, training: bool, width: int = 1) -> Tensor:
    """(T, B, C) of the newest particle of each sentence, in training of all; `width` times C."""
    shape = (LENGTH if training else 1, settings.batch(), width * settings.dim)
    return torch.randn(shape, device=device)


def positions_and_velocity(settings: OpsSettings, device: torch.device, training: bool) -> list[Tensor]:
    """Twice (T, B, C): fairseq hands a (B, T, C) over that is transposed, and eager sums keep this layout."""
    x, v = (product(settings, device, training) for _ in range(2))
    return [x.transpose(0, 1).contiguous().transpose(0, 1), v]


def at_padding(settings: OpsSettings, device: torch.device, length: int = LENGTH) -> Tensor:
    """(B, T) bool: sentences of half of T to T tokens."""
    lengths = torch.randint(length // 2, length + 1, (settings.batch(length), 1), device=device)
    return torch.arange(length, device=device) >= lengths


def heads(product: Tensor) -> list[Tensor]:
    """(T, B, n, H, D) → n times (B, H, T, D), views."""
    return [part.permute(1, 2, 0, 3) for part in product.unbind(2)]


def step_norm_case(settings: OpsSettings, device: torch.device, training: bool = True) -> Case:
    C, rate = settings.dim, DROPOUT if training else 0.0
    x, v = positions_and_velocity(settings, device, training)
    weight, bias = torch.ones(C, device=device), torch.zeros(C, device=device)

    def moved(x: Tensor, v: Tensor) -> Tensor:
        return x + STEP * F.dropout(v, rate, training)

    def eager(x: Tensor, v: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        y = moved(x, v)
        return y, F.layer_norm(y, (C,), weight, bias, EPS)

    def ours(x: Tensor, v: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        return step_norm(x, v, weight, bias, step=STEP, dropout=rate, eps=EPS)

    def liger(x: Tensor, v: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        y = moved(x, v)
        return y, liger_functions().liger_layer_norm(y, weight, bias, EPS)

    # x, v → y, z; dy, dz, y → dx, dv
    entries = (9 if training else 4) * x.numel()
    return Case([x, v, weight, bias], eager, ours, entries, liger=liger, training=training)


def euler_step_case(settings: OpsSettings, device: torch.device, training: bool = True) -> Case:
    rate = DROPOUT if training else 0.0
    x, v = positions_and_velocity(settings, device, training)

    def eager(x: Tensor, v: Tensor) -> Tensor:
        return x + STEP * F.dropout(v, rate, training)

    def ours(x: Tensor, v: Tensor) -> Tensor:
        return euler_step(x, v, step=STEP, dropout=rate)

    return Case([x, v], eager, ours, (5 if training else 3) * x.numel(), training=training)  # x, v → y; dy → dv


def act_dropout_case(settings: OpsSettings, device: torch.device, training: bool = True) -> Case:
    """An FFN of half a step is twice as wide as the particles."""
    rate = DROPOUT if training else 0.0
    u = product(settings, device, training, width=2)

    def eager(u: Tensor) -> Tensor:
        return F.dropout(F.relu(u), rate, training)

    def ours(u: Tensor) -> Tensor:
        return act_dropout(u, activation="relu", dropout=rate)

    return Case([u], eager, ours, (5 if training else 2) * u.numel(), training=training)  # u → out; dout, u → du


def attention_case(
    settings: OpsSettings, device: torch.device, causal: bool = False, length: int | None = None
) -> Case:
    """Self-attention in training: an encoder's, or a decoder's, which is causal.

    With a length, at that one and without dropout, as the architectures have it by default; there `written_out` is the
    other way that `macaron` may choose on a CPU (macaron/ops/_cpu.py).
    """
    T, rate = (LENGTH, DROPOUT) if length is None else (length, 0.0)
    qkv = torch.randn(T, settings.batch(T), 3, settings.heads, HEAD_DIM, device=device)
    padding = at_padding(settings, device, T)
    seen = ~padding[:, None, None]
    if causal:
        seen = seen & torch.ones(T, T, dtype=torch.bool, device=device).tril()

    def eager(qkv: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(*heads(qkv), attn_mask=seen, dropout_p=rate)

    def ours(qkv: Tensor) -> Tensor:
        q, k, v = heads(qkv)
        return attention(q, k, v, key_padding_mask=padding, is_causal=causal, dropout=rate)[0]

    def by_parts(qkv: Tensor) -> Tensor:
        q, k, v = heads(qkv)
        return written_out(q, k, v, seen, rate, wide=False)[0]

    # q, k, v → out; q, k, v, out, dout → dq, dk, dv
    others: dict[str, Callable[..., Any]] = {} if length is None else {"written_out": by_parts}
    return Case([qkv], eager, ours, 4 * qkv.numel(), others)


def cross_attention_case(settings: OpsSettings, device: torch.device) -> Case:
    B, H = settings.batch(), settings.heads
    q = torch.randn(LENGTH, B, 1, H, HEAD_DIM, device=device)
    kv = torch.randn(LENGTH, B, 2, H, HEAD_DIM, device=device)
    padding = at_padding(settings, device)
    seen = ~padding[:, None, None]

    def eager(q: Tensor, kv: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(*heads(q), *heads(kv), attn_mask=seen, dropout_p=DROPOUT)

    def ours(q: Tensor, kv: Tensor) -> Tensor:
        (q,), (k, v) = heads(q), heads(kv)
        return attention(q, k, v, key_padding_mask=padding, dropout=DROPOUT)[0]

    return Case([q, kv], eager, ours, 12 * q.numel())


def decoding_attention_case(settings: OpsSettings, device: torch.device, cross: bool = False) -> Case:
    """The newest particle of each sentence looks at the keys of its cache, or at those of the memory."""
    B, H = settings.batch(), settings.heads
    newest = torch.randn(1, B, 1 if cross else 3, H, HEAD_DIM, device=device)
    k, v = torch.randn(2, B, H, LENGTH, HEAD_DIM, device=device)
    padding = at_padding(settings, device) if cross else None
    seen = None if padding is None else ~padding[:, None, None]

    def eager(newest: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(heads(newest)[0], k, v, attn_mask=seen)

    def ours(newest: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(heads(newest)[0], k, v, key_padding_mask=padding)[0]

    entries = 2 * (B * H * HEAD_DIM + k.numel())  # q, k, v → out
    return Case([newest, k, v], eager, ours, entries, training=False)


def linear_cross_entropy_case(settings: OpsSettings, device: torch.device) -> Case:
    """The criterion's: of fairseq's batch, padding included."""
    C, V = settings.dim, settings.vocabulary
    padding = at_padding(settings, device).flatten()
    x, weight = torch.randn(padding.numel(), C, device=device), torch.randn(V, C, device=device) * C**-0.5
    target = torch.randint(PADDING + 1, V, padding.shape, device=device).masked_fill(padding, PADDING)

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


def packed_attention_case(settings: OpsSettings, device: torch.device) -> Case:
    """Macaron BERT's, of sentences of GLUE's lengths; in plain PyTorch padded to one batch, which its inputs already
    are, or, as `buckets`, sorted and padded eight at a time."""
    lengths: list[int] = []
    for batch in glue_lengths(32, np.random.default_rng(0)):
        if sum(lengths) >= settings.tokens:
            break
        lengths += batch
    H = settings.heads
    offsets = torch.tensor([0, *lengths], device=device).cumsum(0).int()
    T, real = max(lengths), torch.arange(max(lengths), device=device) < torch.tensor(lengths, device=device)[:, None]
    qkv = torch.randn(int(offsets[-1]), 3, H, HEAD_DIM, device=device)
    padded = qkv.new_zeros(len(lengths), T, 3, H, HEAD_DIM)
    padded[real] = qkv

    def attend(padded: Tensor, real: Tensor) -> Tensor:
        q, k, v = padded.permute(2, 0, 3, 1, 4)  # (B, H, T, D)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=real[:, None, None], dropout_p=DROPOUT).transpose(1, 2)

    def eager(qkv: Tensor, padded: Tensor) -> Tensor:
        return attend(padded, real)

    def ours(qkv: Tensor, padded: Tensor) -> Tensor:
        q, k, v = qkv.unbind(1)
        return packed_attention(q, k, v, offsets, T, dropout=DROPOUT)

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


OPS: dict[str, Callable[[OpsSettings, torch.device], Case]] = {
    "step_norm": step_norm_case,
    "euler_step": euler_step_case,
    "act_dropout": act_dropout_case,
    "attention": attention_case,
    "causal_attention": partial(attention_case, causal=True),
    "cross_attention": cross_attention_case,
    **{f"attention_{length}": partial(attention_case, length=length) for length in LENGTHS},
    "packed_attention": packed_attention_case,
    "linear_cross_entropy": linear_cross_entropy_case,
    "decoding_step_norm": partial(step_norm_case, training=False),
    "decoding_euler_step": partial(euler_step_case, training=False),
    "decoding_act_dropout": partial(act_dropout_case, training=False),
    "decoding_attention": decoding_attention_case,
    "decoding_cross_attention": partial(decoding_attention_case, cross=True),
}


def run(
    record: Record, plan: Plan, settings: OpsSettings, ops: list[str], names: list[str], precision: str, seed: int
) -> None:
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    if "liger" in names:
        liger_functions()
    copy, moved = copying(settings, plan, dtype)
    for op in ops:
        torch.manual_seed(seed)
        case = OPS[op](settings, plan.device)
        inputs = [t.to(dtype).requires_grad_(case.training) for t in case.inputs]
        functions = {"eager": case.eager, **case.others, "macaron": case.macaron}
        if "compile" in names:
            functions["compile"] = torch.compile(case.eager)
        if "triton" in names:
            functions["triton"] = case.macaron
        if case.liger is not None:
            functions["liger"] = case.liger
        chosen = {name: fn for name, fn in functions.items() if name in names or name in case.others}
        contenders = [Contender(name, step(name, fn, inputs, case.training)) for name, fn in chosen.items()]
        timing = interleaved([*contenders, copy], itertools.repeat(None), plan, label=op)
        rows = timing.rows()[: len(contenders)]
        limit = moved / np.array(timing.seconds[copy.name])
        for row in rows:
            if case.entries:
                speed = case.entries * dtype.itemsize / np.array(timing.seconds[row["contender"]])
                row["gb_per_s"] = round(float(np.median(speed)) / 1e9, 2)
                row["share_of_copy"] = round(float(np.median(speed / limit)), 3)
        record.add(op, rows)


def step(name: str, fn: Callable[..., Any], inputs: list[Tensor], training: bool) -> Callable[[object], None]:
    """Forward and backward, or forward only."""
    grads: list[Tensor] = []  # the same in every step

    def run_once(_: object) -> None:
        with chosen_backend("triton" if name == "triton" else "auto"), torch.set_grad_enabled(training):
            out = fn(*inputs)
            if not training:
                return
            outs = out if isinstance(out, tuple) else (out,)
            if not grads:
                grads.extend(torch.randn_like(t) for t in outs)
            torch.autograd.grad(outs, inputs, grads, allow_unused=True)  # not `backward`, which copies them to .grad

    return run_once


def copying(settings: OpsSettings, plan: Plan, dtype: torch.dtype) -> tuple[Contender, int]:
    """A copy of (tokens, dim), and the bytes that it reads and writes: what a bandwidth is compared with."""
    source = torch.randn(settings.tokens, settings.dim, device=plan.device).to(dtype)
    target = torch.empty_like(source)
    return Contender("copy", lambda _: target.copy_(source)), 2 * source.numel() * dtype.itemsize
