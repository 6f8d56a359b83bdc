"""Macaron BERT beside transformers' BERT: forward pass, fine-tuning step, masked-language-model step."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification, BertModel

from macaron.bert import (
    MacaronBertConfig,
    MacaronBertForMaskedLM,
    MacaronBertForSequenceClassification,
    MacaronBertModel,
)

from .lengths import VOCABULARY, glue_lengths, measure_glue
from .measure import Contender, Plan, check_equal, count_parameters, interleaved, profiled
from .record import Record

SIZES = {  # hidden size, layers, heads
    "tiny": (128, 2, 2),
    "small": (512, 4, 8),
    "base": (768, 12, 12),
}
CASES = ("forward", "finetune", "mlm")
CONTENDERS: dict[str, dict[str, Any]] = {  # options of the configuration
    "transformers": {},
    "macaron": {},
    "macaron-all-logits": {"sparse_prediction": False},
    "macaron-padded": {"padding_free": False},
    "macaron-lie": {"splitting": "lie"},
    "macaron-lie-padded": {"splitting": "lie", "padding_free": False},
}
HOSTS = {"forward": BertModel, "finetune": BertForSequenceClassification, "mlm": BertForMaskedLM}
OURS = {
    "forward": MacaronBertModel,
    "finetune": MacaronBertForSequenceClassification,
    "mlm": MacaronBertForMaskedLM,
}
FIRST_WORD, MASK_RATE, IGNORED = 1000, 0.15, -100


@dataclass(frozen=True)
class BertSettings:
    size: str = "base"
    batch_size: int = 32
    lengths: str = "glue"  # or a number: full sequences of that length
    data_dir: str | None = None


def run(
    record: Record,
    plan: Plan,
    settings: BertSettings,
    cases: list[str],
    names: list[str],
    precision: str,
    seed: int,
    profile: bool = False,
) -> None:
    for case in cases:
        torch.manual_seed(seed)
        contenders = [contender(name, case, settings.size, plan.device, precision) for name in names]
        check_equal(contenders)
        works = batches(settings, case, plan.device, seed)
        timing = interleaved(contenders, works, plan, amount=lambda work: work["tokens"], label=case)
        rows = timing.rows()
        for row, it in zip(rows, contenders, strict=True):
            row["parameters"] = it.parameters
        record.add(f"{case} {settings.size}", rows)
        if profile:
            work = next(works)
            for it in contenders:
                print(f"\n{it.name}, {work['tokens']} tokens\n{profiled(lambda it=it, work=work: it.step(work))}")


def contender(name: str, case: str, size: str, device: torch.device, precision: str) -> Contender:
    model = build(name, case, size).to(device)
    parameters = count_parameters(model)

    def autocast() -> torch.autocast:
        return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")

    if case == "forward":
        model.eval()

        @torch.no_grad()
        def forward(work: dict[str, Any]) -> None:
            with autocast():
                model(**work["inputs"])

        return Contender(name, forward, parameters)

    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.01, fused=True)

    def step(work: dict[str, Any]) -> None:
        with autocast():
            loss = model(**work["inputs"]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return Contender(name, step, parameters)


def build(name: str, case: str, size: str) -> nn.Module:
    """Random weights, dropout 0.1 everywhere; equal widths, so equal parameters but for a norm in each layer."""
    dim, layers, heads = SIZES[size]
    sizes = {"hidden_size": dim, "num_hidden_layers": layers, "num_attention_heads": heads}
    common = {**sizes, "vocab_size": VOCABULARY["glue"], "attn_implementation": "sdpa"}
    if name == "transformers":
        return HOSTS[case](BertConfig(**common, intermediate_size=4 * dim))
    # words are predicted where they are masked; transformers' BERT predicts all, which has no equivalent switch
    options = {"sparse_prediction": True, "use_pooler": case != "mlm", **CONTENDERS[name]}
    return OURS[case](MacaronBertConfig(**common, **options))


def batches(settings: BertSettings, case: str, device: torch.device, seed: int) -> Iterator[dict[str, Any]]:
    """Random words in sentences of realistic lengths, padded to the longest of the batch."""
    random = np.random.default_rng(seed)
    if settings.lengths == "glue":
        tables = measure_glue(Path(settings.data_dir)) if settings.data_dir else None
        lengths = glue_lengths(settings.batch_size, random, tables)
    else:
        lengths = itertools.repeat([int(settings.lengths)] * settings.batch_size)
    for of_batch in lengths:
        yield batch(torch.tensor(of_batch), case, torch.Generator().manual_seed(int(random.integers(2**31))), device)


def batch(lengths: Tensor, case: str, generator: torch.Generator, device: torch.device) -> dict[str, Any]:
    B, T = len(lengths), int(lengths.max())
    real = torch.arange(T) < lengths[:, None]  # (B, T)
    words = torch.randint(FIRST_WORD, VOCABULARY["glue"], (B, T), generator=generator)
    inputs = {
        "input_ids": words.masked_fill(~real, 0),
        "attention_mask": real.long(),
        "token_type_ids": (torch.arange(T) >= (lengths[:, None] + 1) // 2).long() * real,
    }
    if case == "finetune":
        inputs["labels"] = torch.randint(2, (B,), generator=generator)
    elif case == "mlm":
        chosen = torch.rand(B, T, generator=generator) < MASK_RATE
        inputs["labels"] = words.masked_fill(~(chosen & real), IGNORED)
    return {"inputs": {key: value.to(device) for key, value in inputs.items()}, "tokens": int(lengths.sum())}
