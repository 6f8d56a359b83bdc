"""What a learned horizon saves: a fine-tuned Macaron BERT at several prices of a step, beside itself with all steps."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer

from macaron.bert import MacaronBertForSequenceClassification

from ..common.errors import RecipeError
from ..glue.data import load
from ..glue.model import check_files
from ..glue.tasks import TASKS
from .measure import Contender, Plan, count_parameters, interleaved
from .record import Record

CASES = {"padded": False, "packed": True}
Batch = dict[str, Tensor]


def load_model(folder: Path) -> tuple[MacaronBertForSequenceClassification, Any]:
    """(model, tokenizer) of a folder that `recipes.glue --save-model` left.

    Raises:
        RecipeError: no such folder, or a model of another kind.
    """
    if not (folder / "config.json").is_file():
        raise RecipeError(f"--model {folder}: no config.json there; give the model of a run of recipes.glue")
    check_files(str(folder))
    try:
        model = MacaronBertForSequenceClassification.from_pretrained(folder).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # transformers, tokenizers and safetensors raise kinds of their own
        raise RecipeError(f"--model {folder}: cannot be loaded: {' '.join(str(error).split())[:300]}") from error
    if model.config.horizon != "learned":
        raise RecipeError(
            f"--model {folder}: has horizon={model.config.horizon!r}, and no policy that stops a sentence; fine-tune "
            f"one with horizon='learned'"
        )
    return model, tokenizer


def sentences(task: str, data_dir: Path) -> list[tuple[str, ...]]:
    """Of a task's dev set; pairs where it has them."""
    dev = load(task, data_dir).dev
    if dev is None or not len(dev):
        raise RecipeError(f"--data-dir {data_dir}: has no dev set of {TASKS[task].title}; give the folder of GLUE")
    return list(zip(*(part for part in (dev.first, dev.second) if part is not None), strict=True))


def batches(texts: list[tuple[str, ...]], tokenizer: Any, longest: int, size: int, seed: int) -> list[Batch]:
    """All of them once, in random order, each batch padded to its longest."""
    order = np.random.default_rng(seed).permutation(len(texts))
    found = []
    for begin in range(0, len(order), size):
        columns = zip(*(texts[i] for i in order[begin : begin + size]), strict=True)
        made = tokenizer(*map(list, columns), padding=True, truncation=True, max_length=longest, return_tensors="pt")
        found.append(dict(made))
    return found


def chosen(model: Any, cost: float | None, packed: bool) -> Callable[[Batch], Any]:
    """The model at a price of a step; None: all steps, without asking the policy."""

    @torch.no_grad()
    def step(batch: Batch) -> Any:
        config = model.config
        config.padding_free = packed
        config.horizon, config.horizon_cost = ("fixed", 0.0) if cost is None else ("learned", cost)
        try:
            return model(**batch)
        finally:
            config.horizon = "learned"

    return step


def computed(model: Any, step: Callable[[Batch], Any], works: list[Batch]) -> tuple[float, float]:
    """(mean of the steps that sentences took, particles that the layer was called on), padding among them."""
    seen: list[int] = []
    steps: list[int] = []
    layer = model.macaron_bert.layers[0]
    handle = layer.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[:-1].numel()))
    try:
        for work in works:
            out = step(work)
            taken = getattr(out, "horizon_steps", None)
            steps += [model.config.num_hidden_layers] * len(work["input_ids"]) if taken is None else taken.tolist()
    finally:
        handle.remove()
    return sum(steps) / len(steps), float(sum(seen))


def run(
    record: Record, plan: Plan, model: Any, tokenizer: Any, texts: list[tuple[str, ...]], costs: list[float],
    settings: dict[str, Any],
) -> None:  # fmt: skip
    """Two cases, padded and packed; a piece of work is all sentences."""
    config, parameters = model.config, count_parameters(model)
    works = batches(texts, tokenizer, config.max_position_embeddings, settings["batch_size"], record.common["seed"])
    works = [{name: tensor.to(plan.device) for name, tensor in work.items()} for work in works]
    model.to(plan.device)
    tokens = float(sum(int(work["attention_mask"].sum()) for work in works))
    for case, packed in CASES.items():
        contenders, particles = [], []
        for cost in (None, *costs):
            step = chosen(model, cost, packed)
            mean, seen = computed(model, step, works)
            name = f"all {config.num_hidden_layers} steps" if cost is None else f"price {cost:g}: {mean:.2f} steps"
            contenders.append(Contender(name, all_of(step), parameters))
            particles.append(seen)
        shares = {it.name: round(seen / particles[0], 4) for it, seen in zip(contenders, particles, strict=True)}
        timing = interleaved(contenders, itertools.repeat(works), plan, lambda _: tokens, case)
        record.describe({**settings, "sentences": len(texts), "computed": shares})
        record.add(f"horizon {case}", [{**row, "parameters": parameters} for row in timing.rows()])
        print("particle-steps computed, of all: " + ", ".join(f"{name}: {share}" for name, share in shares.items()))


def all_of(step: Callable[[Batch], Any]) -> Callable[[list[Batch]], None]:
    def steps(works: list[Batch]) -> None:
        for work in works:
            step(work)

    return steps
