"""A Macaron BERT in each format that `macaron export` writes: sentences a second, and how far from float32."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer

from macaron import onnx
from macaron.bert.deploy import FORMATS, Plain, Pooling, export, load_int8
from macaron.bert.hub import load

from ..common.errors import RecipeError
from .measure import Contender, Plan, count_parameters, interleaved
from .record import Record, aligned

Step = Callable[[dict[str, Tensor]], dict[str, Tensor]]


@dataclass(frozen=True)
class DeploySettings:
    weights: str
    batch_size: int = 16


def run(record: Record, plan: Plan, settings: DeploySettings, text: Path, formats: list[str], seed: int) -> None:
    works = batches(settings, text, seed)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        steps = {"torch": ByTorch(Path(settings.weights))}
        for name in formats:
            export(settings.weights, Path(folder, name), name)
            steps[name] = reader(steps["torch"], Path(folder, name), name)
        example = next(works)
        shown = [row(name, step(example), steps["torch"](example)) for name, step in steps.items()]
        parameters = count_parameters(steps["torch"].model)
        contenders = [Contender(name, step, parameters) for name, step in steps.items()]
        timing = interleaved(contenders, works, plan, amount=lambda work: int(work["attention_mask"].sum()))
        rows = timing.rows()
        record.add(Path(settings.weights).name, rows)
        for one, measured in zip(shown, rows, strict=True):
            one["sentences_per_s"] = round(1000 * settings.batch_size / measured["median_ms"], 1)
        print(aligned(shown))


class ByTorch:
    """The model itself, on batches without padding where it can."""

    def __init__(self, folder: Path) -> None:
        self.model = load(folder).float().eval()
        tokenizer = AutoTokenizer.from_pretrained(folder)
        segments = ["token_type_ids"] * ("token_type_ids" in tokenizer.model_input_names)
        self.plain = Plain(self.model, Pooling.of(folder, tokenizer), ["input_ids", "attention_mask", *segments])

    def __call__(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        given = {name: batch[name] for name in self.plain.inputs}
        return dict(zip(self.plain.outputs, self.plain(**given), strict=True))


def reader(whole: ByTorch, folder: Path, form: str) -> Step:
    plain = whole.plain
    if form.startswith("onnx"):
        session = onnx.Session(folder / "model.onnx", torch.get_num_threads())
        return lambda batch: session(**batch)
    if form == "torch-export":
        program = torch.export.load(folder / "model.pt2").module()
        return lambda batch: dict(zip(plain.outputs, program(**{n: batch[n] for n in plain.inputs}), strict=True))
    model = load_int8(folder)
    return lambda batch: dict(zip(plain.outputs, plain.read(model(**batch), batch["attention_mask"]), strict=True))


def row(name: str, found: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, Any]:
    """How far the first output, a sentence's vector or its logits, is from float32's."""
    first = next(iter(wanted))
    ours, theirs = wanted[first], found[first]
    relative = float((ours - theirs).norm() / ours.norm())
    return {"format": name, "output": first, "difference": f"{relative:.1e}", "cosine": cosine(ours, theirs)}


def cosine(a: Tensor, b: Tensor) -> float:
    return round(float(torch.cosine_similarity(a.flatten(1), b.flatten(1)).mean()), 5)


def batches(settings: DeploySettings, text: Path, seed: int) -> Iterator[dict[str, Tensor]]:
    """The sentences in random order, again and again, padded to the longest of each batch."""
    try:
        lines = [line for line in text.read_text(encoding="utf-8").split("\n") if line.strip()]
    except (OSError, ValueError) as error:
        raise RecipeError(f"--text {text}: cannot be read ({error}); give a file of sentences, one a line") from error
    if len(lines) < settings.batch_size:
        raise RecipeError(f"--text {text}: has {len(lines)} sentences, --batch-size is {settings.batch_size}")
    tokenizer = AutoTokenizer.from_pretrained(settings.weights)
    Pooling.of(Path(settings.weights), tokenizer)  # its greatest length
    generator = torch.Generator().manual_seed(seed)
    for _ in itertools.count():
        order = torch.randperm(len(lines), generator=generator).tolist()
        for first in range(0, len(lines) - settings.batch_size + 1, settings.batch_size):
            chosen = [lines[i] for i in order[first : first + settings.batch_size]]
            yield dict(tokenizer(chosen, padding=True, truncation=True, return_tensors="pt"))


__all__ = ["FORMATS", "DeploySettings", "run"]
