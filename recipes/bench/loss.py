"""Output projection and label-smoothed cross-entropy, forward and backward: fairseq's beside `linear_cross_entropy`."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from fairseq import utils
from fairseq.criterions.label_smoothed_cross_entropy import label_smoothed_nll_loss
from torch import Tensor

from macaron.ops import linear_cross_entropy

from .measure import Contender, Plan, interleaved, peak_mib
from .record import Record

SMOOTHING, PADDING = 0.1, 1


@dataclass(frozen=True)
class LossSettings:
    tokens: int = 1024
    dim: int = 512


def fairseq_loss(x: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """What TransformerDecoder.output_layer and LabelSmoothedCrossEntropyCriterion do."""
    lprobs = utils.log_softmax(F.linear(x, weight), dim=-1)
    return label_smoothed_nll_loss(lprobs, target, SMOOTHING, ignore_index=PADDING, reduce=True)[0]


def macaron_loss(x: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    return linear_cross_entropy(x, weight, target, label_smoothing=SMOOTHING, ignore_index=PADDING)[0]


LOSSES = {"fairseq": fairseq_loss, "macaron": macaron_loss}


def run(record: Record, plan: Plan, settings: LossSettings, vocabularies: list[int], precision: str, seed: int) -> None:
    for size in vocabularies:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(settings.tokens, settings.dim, generator=generator).to(plan.device).requires_grad_()
        weight = torch.randn(size, settings.dim, generator=generator).mul_(settings.dim**-0.5).to(plan.device)
        target = torch.randint(PADDING + 1, size, (settings.tokens,), generator=generator).to(plan.device)
        inputs = (x, weight.requires_grad_(), target)
        contenders = [Contender(name, step(loss, inputs, precision)) for name, loss in LOSSES.items()]
        works = itertools.repeat(settings.tokens)
        rows = interleaved(contenders, works, plan, amount=float, label=f"V={size}").rows()
        for row, contender in zip(rows, contenders, strict=True):
            row["peak_mib"] = peak_mib(lambda contender=contender: contender.step(0), plan.device)
        record.add(f"V={size}", rows)


def step(
    loss: Callable[..., Tensor], inputs: tuple[Tensor, Tensor, Tensor], precision: str
) -> Callable[[object], None]:
    def forward_and_backward(_: object) -> None:
        with torch.autocast(inputs[0].device.type, torch.bfloat16, enabled=precision == "bf16"):
            value = loss(*inputs)
        value.backward()
        for t in inputs[:2]:
            t.grad = None

    return forward_and_backward
