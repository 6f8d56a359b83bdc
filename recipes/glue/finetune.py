"""One run: a task, a setting, a seed. Built on transformers' Trainer, for any encoder that Auto classes load."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.utils import logging as host_logging

import macaron.bert  # noqa: F401  (registers MacaronBert with the Auto classes)
from recipes.common.errors import RecipeError
from recipes.common.workspace import write_json
from recipes.glue.batches import IGNORED, Batches, Collator, Examples, Loader
from recipes.glue.data import Data, Split, load
from recipes.glue.metrics import score
from recipes.glue.settings import Setting
from recipes.glue.tasks import BINARY, CLASSES, SCORE, SCORE_MIDDLE, SCORE_SCALE, TASKS, Task, evaluated_with

SUBSET_SEED = 0  # of --max-train-examples: every model and seed trains on the same ones


@dataclass(frozen=True)
class Options:
    """What a run does not depend on, but for rounding."""

    data_dir: Path | None = None
    dataset: str = "nyu-mll/glue"
    accumulate: int = 1
    eval_batch_size: int = 64
    save_steps: int = 500
    precision: str = "auto"  # bf16 on a GPU that has it
    cpu: bool = False
    workers: int = 0  # processes that tokenise
    save_model: bool = False
    quiet: bool = False


@dataclass(frozen=True)
class Run:
    """A task to train on, how, and where its result goes."""

    model: str
    task: str  # one that trains: not mnli-mm, not ax
    setting: Setting
    seed: int
    folder: Path

    @property
    def stage(self) -> str:
        return f"{self.task}-{self.setting.name}-s{self.seed}"

    def record(self) -> dict[str, Any]:
        return {"task": self.task, "seed": self.seed, "setting": dataclasses.asdict(self.setting)}


class GlueTrainer(Trainer):
    """Trainer with our batches, and with weight decay on every parameter as in fairseq's Adam."""

    def __init__(self, *args: Any, batches: Batches, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.batches = batches

    def get_train_dataloader(self) -> Loader:
        return Loader(
            self.train_dataset,
            batch_sampler=self.batches,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory and torch.cuda.is_available(),
        )

    def get_decay_parameter_names(self, model: torch.nn.Module) -> list[str]:
        return [name for name, _ in model.named_parameters()]

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        return 0  # counting parameters in every step is a tenth of a tiny model's step


class TaskLoss:
    """Sum of the examples' losses / examples in the whole update, over all micro-batches and processes.

    Computed here and not by the model, whose head may divide by the size of its own micro-batch: stock BERT's does,
    and Trainer, which sees `**kwargs` in its forward, believes otherwise (transformers#47688).
    """

    def __init__(self, task: Task):
        self.head = task.head

    def __call__(self, outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        logits = (outputs["logits"] if isinstance(outputs, dict) else outputs[0]).float()  # (B, num_labels)
        counted = labels != IGNORED
        if self.head == CLASSES:
            losses = F.cross_entropy(logits, labels, reduction="none", ignore_index=IGNORED)
        elif self.head == BINARY:
            losses = F.binary_cross_entropy_with_logits(logits[:, 0], labels.clamp(min=0), reduction="none")
        else:
            losses = (logits[:, 0] - (labels - SCORE_MIDDLE) / SCORE_SCALE).square()
        total = counted.sum() if num_items_in_batch is None else num_items_in_batch
        return (losses * counted).sum() / total


class Bar(TrainerCallback):
    """One bar over the updates, with the mean loss since the last report."""

    def __init__(self, description: str):
        self.description = description

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar = tqdm(desc=self.description, total=state.max_steps, initial=state.global_step, unit="update")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self.bar.set_postfix(loss=f"{float(logs['loss']):.3f}", refresh=False)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.close()


def load_model(source: str, task: Task) -> tuple[Any, Any]:
    """(tokenizer, model with a fresh head for `task`)."""
    problem = {CLASSES: "single_label_classification", BINARY: "multi_label_classification", SCORE: "regression"}
    names = {"id2label": dict(enumerate(task.labels)), "label2id": {name: i for i, name in enumerate(task.labels)}}
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        model = AutoModelForSequenceClassification.from_pretrained(
            source,
            num_labels=task.num_labels,
            problem_type=problem[task.head],
            dtype=torch.float32,
            **(names if task.head == CLASSES else {}),
        )
    except (OSError, ValueError, KeyError) as error:
        raise RecipeError(
            f"--model {source}: AutoTokenizer and AutoModelForSequenceClassification cannot load it: "
            f"{str(error).strip().splitlines()[0]}. Give a folder with config.json, weights and tokenizer of an encoder"
        ) from error
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        raise RecipeError(
            f"--model {source}: the tokenizer has {len(tokenizer)} entries but the model "
            f"{model.get_input_embeddings().num_embeddings} embeddings; the two do not belong together"
        )
    return tokenizer, model


def length_limit(setting: Setting, tokenizer: Any, model: Any) -> int:
    """The setting's, but no more than the model has positions for."""
    positions = getattr(model.config, "max_position_embeddings", None) or setting.max_length
    return min(setting.max_length, tokenizer.model_max_length, positions)


def training_arguments(run: Run, options: Options, updates: int) -> TrainingArguments:
    s = run.setting
    cpu = options.cpu or not torch.cuda.is_available()
    bf16 = options.precision == "bf16" or (options.precision == "auto" and not cpu and torch.cuda.is_bf16_supported())
    return TrainingArguments(
        output_dir=str(run.folder / "checkpoints"),
        num_train_epochs=s.epochs,
        per_device_train_batch_size=s.batch_size,  # unused: our batches come ready
        per_device_eval_batch_size=options.eval_batch_size,
        gradient_accumulation_steps=options.accumulate,
        learning_rate=s.lr,
        weight_decay=s.weight_decay,
        adam_beta1=0.9,
        adam_beta2=0.999,
        adam_epsilon=1e-6,
        max_grad_norm=0.0,
        lr_scheduler_type=s.schedule,
        warmup_steps=s.warmup,  # below 1: a share
        seed=run.seed,
        bf16=bf16,
        use_cpu=cpu,
        ddp_backend="gloo" if cpu and int(os.environ.get("WORLD_SIZE", "1")) > 1 else None,
        dataloader_num_workers=options.workers,
        remove_unused_columns=False,
        logging_steps=max(1, updates // 50),
        save_strategy="steps",
        save_steps=options.save_steps,
        save_total_limit=1,
        disable_tqdm=True,
        report_to="none",
    )


def run_one(run: Run, options: Options) -> dict[str, Any]:
    """Train, predict, score; writes result.json and predictions.npz into the run's folder, and returns the former.

    Goes on from the last whole checkpoint of an interrupted attempt.
    """
    quiet_hosts()
    task = TASKS[run.task]
    data = load(run.task, options.data_dir, options.dataset)
    if data.train is None or data.dev is None:
        raise RecipeError(f"{task.title}: cannot be trained here; {'; '.join(data.notes)}")
    split = limited(data.train, run.setting.max_train_examples)
    started = time.time()
    set_seed(run.seed)  # of the head's first weights
    tokenizer, model = load_model(run.model, task)
    limit = length_limit(run.setting, tokenizer, model)
    collator = Collator(tokenizer, limit, torch.long if task.head == CLASSES else torch.float32)
    lengths, truncated = measure(tokenizer, split, limit)
    arguments = training_arguments(run, options, run.setting.epochs * -(-len(split) // run.setting.batch_size))
    world, rank = max(1, arguments.world_size), arguments.process_index
    batches = Batches(
        lengths, run.setting.batch_size, run.seed,
        swap=task.symmetric, world=world, rank=rank, accumulate=options.accumulate,
    )  # fmt: skip
    trainer = GlueTrainer(
        model, arguments,
        batches=batches, train_dataset=Examples(split), data_collator=collator,
        compute_loss_func=TaskLoss(task), processing_class=tokenizer,
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)  # its lines are in result.json
    if rank == 0 and not options.quiet:
        trainer.add_callback(Bar(f"{task.title} seed {run.seed}"))
    trainer.train(resume_from_checkpoint=last_whole_checkpoint(run.folder / "checkpoints"))
    train_seconds = time.time() - started

    started = time.time()
    arrays, scores, notes = evaluate(trainer, collator, run.task, options)
    if truncated:
        notes.append(f"{task.title}: {truncated} of {len(split)} training examples cut to {limit} tokens")
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    result = {
        **run.record(),
        "scores": scores,
        "notes": notes,
        "examples": len(split),
        "data": split.digest(),
        "max_length": limit,
        "updates": trainer.state.global_step,
        "parameters": sum(p.numel() for p in model.parameters()),
        "processes": world,
        "accumulate": options.accumulate,
        "precision": "bf16" if arguments.bf16 else "fp32",
        "device": torch.cuda.get_device_name() if arguments.device.type == "cuda" else str(arguments.device),
        "train_seconds": round(train_seconds, 1),
        "eval_seconds": round(time.time() - started, 1),
        "loss": [(entry["step"], entry["loss"]) for entry in log],
        "gradient_norm": [(entry["step"], entry["grad_norm"]) for entry in log],
    }
    if rank == 0:
        if options.save_model:
            trainer.save_model(str(run.folder / "model"))
        save_predictions(run.folder / "predictions.npz", arrays)
        write_json(run.folder / "result.json", result)
    return result


def evaluate(
    trainer: GlueTrainer, collator: Collator, trained: str, options: Options
) -> tuple[dict[str, np.ndarray], dict[str, dict[str, float]], list[str]]:
    """Outputs for the dev and test sets of all tasks that the model answers, and dev scores."""
    arrays: dict[str, np.ndarray] = {}
    scores: dict[str, dict[str, float]] = {}
    notes: list[str] = []
    for task in evaluated_with(trained):
        data: Data = load(task.name, options.data_dir, options.dataset)
        for name in ("dev", "test"):
            split = getattr(data, name)
            if split is not None and len(split):
                arrays[f"{task.name}.{name}.logits"] = predict(trainer, collator, split)
        if data.dev is not None and data.dev.labels is not None and len(data.dev):
            arrays[f"{task.name}.dev.labels"] = data.dev.labels
            scores[task.name], remarks = score(task, arrays[f"{task.name}.dev.logits"], data.dev.labels)
            notes += remarks
    return arrays, scores, notes


def predict(trainer: GlueTrainer, collator: Collator, split: Split) -> np.ndarray:
    """Logits (N, num_labels) in the order of `split`; batches hold sentences of like length."""
    lengths, _ = measure(collator.tokenizer, split, collator.max_length)
    order = np.argsort(-np.asarray(lengths), kind="stable")
    unlabelled = dataclasses.replace(split, labels=None).subset(order.tolist())
    outputs = trainer.predict(Examples(unlabelled)).predictions
    outputs = outputs[0] if isinstance(outputs, tuple) else outputs
    logits = np.empty((len(split), outputs.shape[-1]), dtype=np.float32)
    logits[order] = outputs
    return logits


def measure(tokenizer: Any, split: Split, limit: int) -> tuple[list[int], int]:
    """Tokens per example after truncation, and how many were truncated."""
    full = tokenizer(split.first, split.second, return_attention_mask=False, return_token_type_ids=False, verbose=False)
    lengths = [len(ids) for ids in full["input_ids"]]
    return [min(length, limit) for length in lengths], sum(length > limit for length in lengths)


def limited(split: Split, count: int) -> Split:
    if not count or count >= len(split):
        return split
    return split.subset(np.random.default_rng(SUBSET_SEED).permutation(len(split))[:count].tolist())


def last_whole_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that a kill did not cut short; Trainer writes trainer_state.json after all else."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)
    for path in found:
        try:
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        return str(path)
    return None


def drop_checkpoints(run: Run) -> None:
    shutil.rmtree(run.folder / "checkpoints", ignore_errors=True)


def save_predictions(path: Path, arrays: dict[str, np.ndarray]) -> None:
    partial = path.with_name(path.name + ".part")
    with partial.open("wb") as file:
        np.savez_compressed(file, **arrays)
    os.replace(partial, path)


def load_predictions(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


def quiet_hosts() -> None:
    """Fresh heads are no surprise here, and the bars are ours."""
    host_logging.set_verbosity_error()
    host_logging.disable_progress_bar()
    for library in ("accelerate", "datasets"):
        logging.getLogger(library).setLevel(logging.ERROR)
