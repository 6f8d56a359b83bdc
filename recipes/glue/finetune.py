"""One run: a task, a setting, a seed. Built on transformers' Trainer, for any encoder that Auto classes load."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import shutil
import time
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.utils import logging as host_logging

from macaron.bert.horizon import horizon_loss
from macaron.hf.adversarial import AdversarialTrainer

from ..common import multistep
from ..common.errors import RecipeError
from ..common.workspace import write_json
from .attacked import AttackedPrediction, attacked_scores, check_attack, logits_of
from .batches import IGNORED, Batches, Collator, Examples, Loader
from .card import card
from .data import TaskData, TaskSplit, first_line, limited, load
from .metrics import score
from .model import load_model
from .origin import BEGUN, made_from
from .settings import FineTuning, FineTuningOptions, Setting
from .tasks import BINARY, CLASSES, SCORE_MIDDLE, SCORE_SCALE, TASKS, Task, evaluated_with

COSTS = (0.0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3)  # of a step, at which a learned horizon is looked at
MANY_UNKNOWN = 0.05  # share of the training text's pieces, above which the result says so


class GlueTrainer(AttackedPrediction, Trainer):
    """Trainer with our batches, and with weight decay on every parameter as in fairseq's Adam, but for the k."""

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
        return [name for name, _ in model.named_parameters() if not multistep.is_k(name)]

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        return 0  # counting parameters in every step is a tenth of a tiny model's step


class AdversarialGlueTrainer(AdversarialTrainer, GlueTrainer):
    """The same under an adversary."""


class TaskLoss:
    """Sum of the examples' losses / examples in the whole update, over all micro-batches and processes.

    Computed here and not by the model, whose head may divide by the size of its own micro-batch: stock BERT's does,
    and Trainer, which sees `**kwargs` in its forward, believes otherwise (transformers#47688).

    Of a Macaron BERT with a learned horizon it is `macaron.bert.horizon.horizon_loss`, of model and policy.

    Args:
        cost: the model's `horizon_cost`.
    """

    def __init__(self, task: Task, cost: float = 0.0):
        self.head = task.head
        self.cost = cost

    def __call__(self, outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        counted = labels != IGNORED
        if isinstance(outputs, dict) and "depth_logits" in outputs:
            depths = torch.stack([self.each(logits.float(), labels) * counted for logits in outputs["depth_logits"]])
            items = num_items_in_batch
            return horizon_loss(depths, outputs["depth_q"], self.cost, weights=counted, num_items_in_batch=items)
        logits = logits_of(outputs)  # (B, num_labels)
        total = counted.sum() if num_items_in_batch is None else num_items_in_batch
        return (self.each(logits, labels) * counted).sum() / total

    def each(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(B,) the loss of each example, whatever it is where none counts."""
        if self.head == CLASSES:
            return F.cross_entropy(logits, labels, reduction="none", ignore_index=IGNORED)
        if self.head == BINARY:
            return F.binary_cross_entropy_with_logits(logits[:, 0], labels.clamp(min=0), reduction="none")
        return (logits[:, 0] - (labels - SCORE_MIDDLE) / SCORE_SCALE).square()


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


class Diverged(TrainerCallback):
    """Ends a run whose loss is no number any more: nothing brings the weights back."""

    def __init__(self, run: FineTuning):
        self.run = run

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        for name in ("loss", "grad_norm"):
            value = float((logs or {}).get(name, 0.0))
            if not math.isfinite(value):
                raise diverged(self.run, f"{name} is {value} at update {state.global_step}")


def diverged(run: FineTuning, what: str) -> RecipeError:
    return RecipeError(
        f"{what}: the training diverged (lr {run.setting.lr:g}, batch size {run.setting.batch_size}); "
        f"try a smaller --lr in another --out"
    )


def check_finite(run: FineTuning, model: torch.nn.Module) -> None:
    broken = [name for name, value in model.named_parameters() if not value.isfinite().all()]
    if broken:
        raise diverged(
            run, f"{len(broken)} tensors of the model are not finite after training, {broken[0]} is the first"
        )


def length_limit(setting: Setting, tokenizer: Any, model: Any) -> int:
    """The setting's, but no more than the model has positions for."""
    positions = getattr(model.config, "max_position_embeddings", None) or setting.max_length
    return min(setting.max_length, tokenizer.model_max_length, positions)


def training_arguments(run: FineTuning, options: FineTuningOptions, updates: int) -> TrainingArguments:
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
        logging_steps=options.logging_steps or max(1, updates // 50),
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=options.save_steps,
        save_total_limit=1,
        disable_tqdm=True,
        report_to="none",
    )


def run_one(run: FineTuning, options: FineTuningOptions) -> dict[str, Any]:
    """Train, predict, score; writes result.json and predictions.npz into the run's folder, and returns the former.

    Goes on from the last whole checkpoint of an interrupted attempt.

    Raises:
        RecipeError: no data, a model that is not whole, or a training that diverged.
    """
    quiet_hosts()
    run.folder.mkdir(parents=True, exist_ok=True)
    task = TASKS[run.task]
    data = load(run.task, options.data_dir, options.dataset)
    if data.train is None or data.dev is None:
        raise RecipeError(f"{task.title}: cannot be trained here; {'; '.join(data.notes)}")
    split = limited(data.train, run.setting.max_train_examples)
    started, cpu_started = time.time(), time.process_time()
    tokenizer, model, notes = load_model(run.model, task, run.seed, dropout=run.setting.dropout)
    limit = length_limit(run.setting, tokenizer, model)
    collator = Collator(tokenizer, limit, torch.long if task.head == CLASSES else torch.float32)
    lengths, truncated, unknown = measure(tokenizer, split, limit)
    if truncated:
        notes.append(f"{task.title}: {truncated} of {len(split)} training examples cut to {limit} tokens")
    if unknown > MANY_UNKNOWN:
        notes.append(
            f"{task.title}: {unknown:.0%} of the training text's pieces are {tokenizer.unk_token}, unknown to the "
            f"tokenizer; is it the model's own, and for this language?"
        )
    arguments = training_arguments(run, options, run.setting.epochs * -(-len(split) // run.setting.batch_size))
    world, rank = max(1, arguments.world_size), arguments.process_index
    batches = Batches(
        lengths, run.setting.batch_size, run.seed,
        swap=task.symmetric, world=world, rank=rank, accumulate=options.accumulate,
    )  # fmt: skip
    loss = TaskLoss(task, getattr(model.config, "horizon_cost", 0.0))
    under_attack = run.setting.scored_under()
    if under_attack is not None:
        check_attack(model, collator([Examples(data.dev)[0]]), loss, under_attack)
    attack = run.setting.trained_under()
    under = {} if attack is None else {"attack": attack, "adversary_start_update": run.setting.adversary_start}
    trainer = (AdversarialGlueTrainer if under else GlueTrainer)(
        model, arguments, **under,
        batches=batches, train_dataset=Examples(split), data_collator=collator,
        compute_loss_func=loss, processing_class=tokenizer,
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)  # its lines are in result.json
    if rank == 0:
        write_json(run.folder / BEGUN, made_from(run, options))
        for note in notes:
            tqdm.write(f"{run.stage}: {note}")
        if not options.quiet:
            trainer.add_callback(Bar(f"{task.title} seed {run.seed}"))
    trainer.add_callback(Diverged(run))
    trainer.train(resume_from_checkpoint=last_whole_checkpoint(run.folder / "checkpoints"))
    check_finite(run, model)
    train_seconds, train_cpu_seconds = time.time() - started, time.process_time() - cpu_started

    started = time.time()
    arrays, scores, remarks = evaluate(trainer, collator, run.task, options)
    attacked = {}
    if under_attack is not None:
        with trainer.under(under_attack):
            moved, attacked = attacked_scores(lambda split: predict(trainer, collator, split)[0], run.task, options)
        arrays |= moved
    for name, values in arrays.items():
        if not np.isfinite(values).all():
            raise diverged(run, f"{name} holds numbers that are not finite")
    notes += [note for note in remarks if note not in notes]
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    result = {
        **run.record(),
        "scores": scores,
        **({"attacked": attacked} if under_attack is not None else {}),
        "notes": notes,
        "examples": len(split),
        **made_from(run, options),
        "max_length": limit,
        "updates": trainer.state.global_step,
        "parameters": sum(p.numel() for p in model.parameters()),
        "processes": world,
        "accumulate": options.accumulate,
        "precision": "bf16" if arguments.bf16 else "fp32",
        "device": torch.cuda.get_device_name() if arguments.device.type == "cuda" else str(arguments.device),
        "train_seconds": round(train_seconds, 1),
        "train_cpu_seconds": round(train_cpu_seconds, 1),
        "eval_seconds": round(time.time() - started, 1),
        "loss": [(entry["step"], entry["loss"]) for entry in log],
        "gradient_norm": [(entry["step"], entry["grad_norm"]) for entry in log],
        **two_step(model),
        **depths(trainer, collator, run.task, options),
    }
    if rank == 0:
        if options.save_model:
            trainer.save_model(str(run.folder / "model"))
            (run.folder / "model" / "README.md").write_text(card(task, result), encoding="utf-8")
        save_predictions(run.folder / "predictions.npz", arrays)
        write_json(run.folder / "result.json", result)
    return result


def two_step(model: Any) -> dict[str, Any]:
    """The k of an encoder under the rule multistep, as fine-tuning has left them; nothing of any other."""
    if getattr(model.config, "depth_rule", "euler") != "multistep":
        return {}
    return {"multistep": multistep.weights(dict(model.named_parameters()), model.config.model_type)}


def depths(trainer: GlueTrainer, collator: Collator, trained: str, options: FineTuningOptions) -> dict[str, Any]:
    """Of an encoder with a learned horizon, {task: [{cost, steps, scores}]} on the dev sets at several prices of a
    step, its own among them: steps is the mean of how many a sentence takes. And {task: [{steps, scores}]} where all
    sentences take as many, to compare with. Nothing of any other."""
    config = trainer.model.config
    if getattr(config, "horizon", "none") != "learned":
        return {}
    most, own = config.num_hidden_layers, config.horizon_cost
    learned: dict[str, Any] = {}
    alike: dict[str, Any] = {}
    try:
        for task in evaluated_with(trained):
            dev = load(task.name, options.data_dir, options.dataset).dev
            if dev is None or dev.labels is None or not len(dev):
                continue
            learned[task.name], alike[task.name] = [], []
            for cost in sorted({own, *COSTS}):
                config.horizon_cost = cost
                logits, steps = predict(trainer, collator, dev)
                line = {"cost": cost, "steps": float(steps.mean()), "scores": score(task, logits, dev.labels)[0]}
                learned[task.name].append(line)
            config.horizon = "fixed"
            for number in range(1, most + 1):
                config.num_hidden_layers = number
                logits, _ = predict(trainer, collator, dev)
                alike[task.name].append({"steps": number, "scores": score(task, logits, dev.labels)[0]})
            config.horizon, config.num_hidden_layers = "learned", most
    finally:
        config.horizon, config.num_hidden_layers, config.horizon_cost = "learned", most, own
    return {"horizon": {"steps": most, "cost": own, "tasks": learned, "alike": alike}}


def evaluate(
    trainer: GlueTrainer, collator: Collator, trained: str, options: FineTuningOptions
) -> tuple[dict[str, np.ndarray], dict[str, dict[str, float]], list[str]]:
    """Outputs for the dev and test sets of all tasks that the model answers, and dev scores."""
    arrays: dict[str, np.ndarray] = {}
    scores: dict[str, dict[str, float]] = {}
    notes: list[str] = []
    for task in evaluated_with(trained):
        data: TaskData = load(task.name, options.data_dir, options.dataset)
        notes += data.notes
        for name in ("dev", "test"):
            split = getattr(data, name)
            if split is not None and len(split):
                arrays[f"{task.name}.{name}.logits"] = predict(trainer, collator, split)[0]
        if data.dev is not None and data.dev.labels is not None and len(data.dev):
            arrays[f"{task.name}.dev.labels"] = data.dev.labels
            scores[task.name], remarks = score(task, arrays[f"{task.name}.dev.logits"], data.dev.labels)
            notes += remarks
    return arrays, scores, notes


def predict(trainer: GlueTrainer, collator: Collator, split: TaskSplit) -> tuple[np.ndarray, np.ndarray]:
    """Logits (N, num_labels) in the order of `split`; batches hold sentences of like length. And of an encoder with a
    learned horizon how many steps each example took, (N,); zeros of any other."""
    lengths, *_ = measure(collator.tokenizer, split, collator.max_length)
    order = np.argsort(-np.asarray(lengths), kind="stable")
    seen = split if trainer.attacked_by else dataclasses.replace(split, labels=None)  # an attack needs the labels
    outputs = trainer.predict(Examples(seen.subset(order.tolist()))).predictions
    steps = np.zeros(len(split), dtype=np.int64)
    if getattr(trainer.model.config, "horizon", "none") == "learned":
        steps[order] = outputs[1]
    outputs = outputs[0] if isinstance(outputs, tuple) else outputs
    logits = np.empty((len(split), outputs.shape[-1]), dtype=np.float32)
    logits[order] = outputs
    return logits, steps


def measure(tokenizer: Any, split: TaskSplit, limit: int) -> tuple[list[int], int, float]:
    """Tokens per example after truncation, how many were truncated, and the share of pieces that are unknown."""
    full = tokenizer(split.first, split.second, return_attention_mask=False, return_token_type_ids=False, verbose=False)
    lengths = [len(ids) for ids in full["input_ids"]]
    pieces = sum(lengths) - len(lengths) * tokenizer.num_special_tokens_to_add(pair=split.second is not None)
    unknown = sum(ids.count(tokenizer.unk_token_id) for ids in full["input_ids"])
    return [min(length, limit) for length in lengths], sum(n > limit for n in lengths), unknown / max(1, pieces)


def last_whole_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that a kill did not cut short; Trainer writes trainer_state.json after all else."""
    numbers = {path: path.name.rpartition("-")[2] for path in folder.glob("checkpoint-*")}
    found = sorted((p for p, n in numbers.items() if n.isdecimal()), key=lambda p: int(numbers[p]), reverse=True)
    for path in found:
        try:
            state = json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(state, dict) and isinstance(state.get("global_step"), int):
            return str(path)
    return None


def drop_checkpoints(run: FineTuning) -> None:
    shutil.rmtree(run.folder / "checkpoints", ignore_errors=True)


def save_predictions(path: Path, arrays: dict[str, np.ndarray]) -> None:
    partial = path.with_name(path.name + ".part")
    with partial.open("wb") as file:
        np.savez_compressed(file, **arrays)
    os.replace(partial, path)


def load_predictions(path: Path) -> dict[str, np.ndarray]:
    """
    Raises:
        RecipeError: it is not there, or not a whole file of arrays.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise RecipeError(
            f"{path}: cannot be read ({first_line(error)}); delete the run's stamp and folder, and give its command "
            f"again"
        ) from error


def quiet_hosts() -> None:
    """Fresh heads are no surprise here, and the bars are ours."""
    host_logging.set_verbosity_error()
    host_logging.disable_progress_bar()
    for library in ("accelerate", "datasets"):
        logging.getLogger(library).setLevel(logging.ERROR)
