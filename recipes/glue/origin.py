"""What runs were made from, so that those of one folder are not mixed, nor continued, with other data or tokenizers."""

from __future__ import annotations

from typing import Any

from ..common.errors import RecipeError
from ..common.workspace import read_json
from .data import limited, load
from .model import tokenizer_digest
from .settings import FineTuning, FineTuningOptions
from .tasks import evaluated_with

BEGUN = "begun.json"


def made_from(run: FineTuning, options: FineTuningOptions) -> dict[str, Any]:
    """Digests of what a run learns from and is scored on. Runs of one task in one folder must not differ in them."""
    data = load(run.task, options.data_dir, options.dataset)
    assert data.train is not None
    facts: dict[str, Any] = {"data": limited(data.train, run.setting.max_train_examples).digest()}
    for task in evaluated_with(run.task):
        for name, split in load(task.name, options.data_dir, options.dataset).present().items():
            if name != "train":
                facts[f"{task.name}.{name}"] = split.digest()
    tokenizer = tokenizer_digest(run.model)
    return facts if tokenizer is None else {**facts, "tokenizer": tokenizer}


def check_made_from(run: FineTuning, options: FineTuningOptions) -> None:
    """Raise RecipeError where another run of the task, or this one before it was interrupted, was made from others."""
    facts = made_from(run, options)
    for name in (BEGUN, "result.json"):
        for path in sorted(run.folder.parent.glob(f"{run.task}-e*/{name}")):
            if name == BEGUN and not any(path.parent.glob("checkpoints/checkpoint-*")):
                continue  # nothing of it is left, or its result.json says the same
            before = read_json(path)
            there = before if isinstance(before, dict) else {}
            differing = [fact for fact in facts.keys() & there.keys() if there[fact] != facts[fact]]
            if differing:
                what = {"data": "training set", "tokenizer": "tokenizer"}
                raise RecipeError(
                    f"{path.parent}: was made with another {', '.join(what.get(n, n) for n in sorted(differing))} than "
                    f"is here now, and results are not mixed. Put it back, or give another folder with --out, or "
                    f"--restart to set this one aside and begin anew"
                )
