"""Trainer, made exact: examples, masks and order are functions of the update, whatever was killed or split up."""

from __future__ import annotations

import dataclasses
import math
import os
import shutil
import sys
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_utils import EvalPrediction

from ..common import multistep
from ..common.divergence import ANEW, check_finite
from ..common.errors import RecipeError
from ..common.workspace import not_finite, read_json
from .masking import IGNORED
from .settings import PretrainSettings, TrainingSettings

COMPLETE = "complete"  # in a checkpoint folder: everything of it is on the disk


@dataclass(frozen=True)
class Devices:
    """What a run may change without changing its result, but for rounding."""

    device_batch: int = 32
    workers: int = 0
    save_every: int = 0  # 0: at every validation
    compile: bool = False
    report_to: str = "none"


class Passes(Dataset[dict[str, Any]]):
    """Position in the training → example: one random order of all examples after another, `length` positions.

    Trainer walks it in sequence, so the position alone says which example comes, in which pass, with which mask.
    """

    def __init__(self, examples: datasets.Dataset, length: int, seed: int | None):
        self.examples = examples.with_format("numpy")
        self.length = length
        self.seed = seed  # None: in the order of the file
        self.orders: dict[int, Any] = {}  # of the current pass and the next

    def __len__(self) -> int:
        return self.length

    def order(self, number: int) -> Any:
        if self.seed is None:
            return range(len(self.examples))
        if number not in self.orders:
            self.orders = {k: v for k, v in self.orders.items() if k == number - 1}
            self.orders[number] = np.random.default_rng((self.seed, number)).permutation(len(self.examples))
        return self.orders[number]

    def __getitems__(self, positions: Sequence[int]) -> list[dict[str, Any]]:
        places = [divmod(position, len(self.examples)) for position in positions]
        indices = [int(self.order(number)[rest]) for number, rest in places]
        rows = self.examples[indices]
        return [
            {
                "input_ids": rows["input_ids"][i],
                "second": int(rows["second"][i]),
                "is_next": int(rows["is_next"][i]),
                "pass": number,
                "example": index,
            }
            for i, ((number, _), index) in enumerate(zip(places, indices, strict=True))
        ]

    def __getitem__(self, position: int) -> dict[str, Any]:
        return self.__getitems__([position])[0]


def spread(examples: datasets.Dataset, most: int) -> datasets.Dataset:
    """At most so many examples, evenly over the file."""
    return examples.select(np.linspace(0, len(examples) - 1, min(most, len(examples))).astype(int))


def arguments(settings: PretrainSettings, machine: Devices, folder: Path) -> TrainingArguments:
    """Trainer's arguments; under torchrun or accelerate this joins the process group."""
    t = settings.training
    args = TrainingArguments(
        output_dir=str(folder),
        max_steps=t.updates,
        learning_rate=t.lr,
        warmup_steps=t.warmup_updates,
        lr_scheduler_type=t.schedule,
        adam_beta1=t.beta1,
        adam_beta2=t.beta2,
        adam_epsilon=t.adam_eps,
        weight_decay=t.weight_decay,
        max_grad_norm=t.clip_norm,
        bf16=t.precision == "bf16",
        seed=t.seed,
        train_sampling_strategy="sequential",
        per_device_train_batch_size=1,
        per_device_eval_batch_size=machine.device_batch,
        eval_strategy="steps",
        eval_steps=t.eval_every,
        save_steps=machine.save_every or t.eval_every,
        save_total_limit=2,
        logging_steps=max(1, min(50, t.eval_every // 5)),
        logging_nan_inf_filter=False,
        report_to=machine.report_to,
        dataloader_num_workers=machine.workers,
        remove_unused_columns=False,  # the collator needs them
        label_names=["labels"] + ["next_sentence_label"] * (settings.data.objective == "mlm+nsp"),
        torch_compile=machine.compile,
        use_cpu=not torch.cuda.is_available(),
        # Named without a launcher, it would be taken for a process group that is there.
        ddp_backend="gloo" if "LOCAL_RANK" in os.environ and not torch.cuda.is_available() else None,
        ddp_timeout=24 * 3600,  # the others wait while the first process prepares the data
    )
    devices = args.world_size * max(1, args.n_gpu)
    if t.batch_size % devices:
        raise RecipeError(
            f"batch_size is {t.batch_size} but must be a multiple of the {devices} devices; change --batch-size"
        )
    share = t.batch_size // devices
    args.per_device_train_batch_size = max(n for n in range(1, min(share, machine.device_batch) + 1) if share % n == 0)
    args.gradient_accumulation_steps = share // args.per_device_train_batch_size
    return args


class Marker(TrainerCallback):
    """Marks a checkpoint once all processes have written their part, so that a killed one is never resumed from."""

    def on_save(self, args: TrainingArguments, state: Any, control: Any, **_: Any) -> None:
        if args.world_size > 1:
            torch.distributed.barrier()
        if state.is_world_process_zero:
            (Path(args.output_dir) / f"checkpoint-{state.global_step}" / COMPLETE).touch()


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint; half-written ones are removed."""
    found = [path for path in folder.glob("checkpoint-*") if path.is_dir() and step_of(path).isdecimal()]
    found.sort(key=lambda path: int(step_of(path)))
    for path in found:
        if not (path / COMPLETE).exists():
            print(f"train     {path.name} was cut short while it was written; it is removed", file=sys.stderr)
            shutil.rmtree(path)
    return next((path for path in reversed(found) if path.exists()), None)


def step_of(checkpoint: Path) -> str:
    return checkpoint.name.removeprefix("checkpoint-")


def check_checkpoint(folder: Path, model: Any, tokenizer: Any) -> None:
    """Trainer goes on from whatever loads: from random weights where tensors are missing, or from another model's.

    Raises:
        RecipeError: a file is missing or damaged, or the checkpoint is of another model or another vocabulary.
    """
    remedy = f"Put it back, or delete {folder} to go on from the checkpoint before, or use --restart"
    for name in ("config.json", "model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json"):
        if not (folder / name).is_file():
            raise RecipeError(f"{folder}: {name} is missing. {remedy}")
    if wrong := damage(folder) or difference(folder, model, tokenizer):
        raise RecipeError(f"{folder}: {wrong}. {remedy}")


def damage(folder: Path) -> str:
    """What is wrong with the files, or ""."""
    for name in ("optimizer.pt", "scheduler.pt"):
        try:
            with zipfile.ZipFile(folder / name) as file:
                bad = file.testzip()
        except (OSError, zipfile.BadZipFile) as error:
            bad = str(error)
        if bad:
            return f"{name} is damaged ({bad})"
    step = read_json(folder / "trainer_state.json")["global_step"]
    return "" if str(step) == step_of(folder) else f"trainer_state.json is that of update {step}"


def difference(folder: Path, model: Any, tokenizer: Any) -> str:
    """What the checkpoint in the folder has otherwise than the model and the tokenizer at hand, or ""."""
    record = read_json(folder / "config.json")
    try:
        made = type(model.config).from_dict(dict(record)).to_dict()
    except Exception as error:  # of many kinds, as its values may be anything
        return f"config.json is not a configuration of {type(model).__name__} ({' '.join(str(error).split())})"
    now = model.config.to_dict()
    differing = [
        f"{name} = {made[name]!r} there, {now[name]!r} now"
        for name in sorted(made.keys() & now.keys() - set(NEUTRAL))
        if made[name] != now[name]
    ]
    if record.get("architectures") != [type(model).__name__]:
        differing.append(f"{record.get('architectures')} there, {type(model).__name__} now")
    if differing:
        return f"it is of another model ({'; '.join(differing)})"
    if (folder / "tokenizer.json").is_file():  # processing_class, which Trainer saves
        there = type(tokenizer).from_pretrained(folder).get_vocab()
        moved = [piece for piece, number in tokenizer.get_vocab().items() if there.get(piece) != number]
        if moved or len(there) != len(tokenizer):
            return f"it is of another vocabulary ({len(moved)} pieces have another number, such as {moved[:3]})"
    return wrong_tensors(folder / "model.safetensors", model)


NEUTRAL = ("transformers_version", "dtype", "_name_or_path", "architectures")


def wrong_tensors(path: Path, model: Any) -> str:
    """Tensors that are missing, too many, of another shape, or no numbers; or ""."""
    expected = model.state_dict()
    try:
        stored = load_file(path)
    except (OSError, SafetensorError) as error:
        return f"{path.name} is damaged ({error})"
    check_finite(stored, path)
    held = {expected[name].data_ptr() for name in stored.keys() & expected.keys()}  # tied ones are stored once
    problems = {
        "lacks": [name for name, tensor in expected.items() if name not in stored and tensor.data_ptr() not in held],
        "has tensors that the model does not have:": sorted(stored.keys() - expected.keys()),
        "has another shape of": [
            name for name, tensor in stored.items() if name in expected and tensor.shape != expected[name].shape
        ],
    }
    return "; ".join(f"{path.name} {what} {', '.join(names)}" for what, names in problems.items() if names)


class Pretraining(Trainer):
    """Trainer with exact validation, throughput in the log, and the original's weight decay on request.

    Args:
        training: its settings.
        tokens_per_example: mean over the training examples, special tokens included.
        validation_collator: makes the batches of `eval_dataset`.
    """

    def __init__(
        self, *args: Any, training: TrainingSettings, tokens_per_example: float, validation_collator: Any, **kwargs: Any
    ):
        self.training = training
        self.validation_collator = validation_collator
        self.tokens_per_example = tokens_per_example
        self.since, self.counted = time.perf_counter(), -1
        super().__init__(
            *args,
            preprocess_logits_for_metrics=example_sums,
            compute_metrics=validation_metrics,
            callbacks=[Marker()],
            **kwargs,
        )

    def get_decay_parameter_names(self, model: torch.nn.Module) -> list[str]:
        if self.training.decay_all:
            return [name for name, _ in model.named_parameters() if not multistep.is_k(name)]
        return super().get_decay_parameter_names(model)

    def get_eval_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        collator, self.data_collator = self.data_collator, self.validation_collator
        try:
            return super().get_eval_dataloader(*args, **kwargs)
        finally:
            self.data_collator = collator

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        if self.counted < 0:  # the clock starts with the first batch, not with the skipping of those done before
            self.since, self.counted = time.perf_counter(), self.state.global_step
        return super().training_step(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if wrong := next(not_finite(logs), None):
            raise RecipeError(
                f"{self.args.output_dir}: the training diverged, {wrong[0]} is {wrong[1]} at update "
                f"{self.state.global_step}. {ANEW}"
            )
        if "loss" in logs and self.state.global_step > self.counted >= 0:
            now = time.perf_counter()
            tokens = (self.state.global_step - self.counted) * self.training.batch_size * self.tokens_per_example
            logs["tokens_per_second"] = round(tokens / (now - self.since))
            self.since, self.counted = now, self.state.global_step
        if "loss" in logs:
            logs |= multistep.extremes(dict(self.model.named_parameters()))
        super().log(logs, start_time)

    def save_model(self, *args: Any, **kwargs: Any) -> None:
        """Checkpoints too: one that diverged would take the place of one that is good."""
        check_finite(self.model.state_dict(), self.args.output_dir)
        super().save_model(*args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        started = time.perf_counter()
        metrics = super().evaluate(*args, **kwargs)
        self.since += time.perf_counter() - started
        return metrics


@torch.no_grad()
def example_sums(logits: Any, labels: Any) -> Tensor:
    """(B, 5) of each example: loss summed over masked tokens, those right, their number; next-sentence loss, right.

    Small, where the logits of a validation set would not fit in memory.
    """
    mlm_logits, *rest = logits if isinstance(logits, (tuple, list)) else (logits,)
    mlm_labels, *next_labels = labels if isinstance(labels, (tuple, list)) else (labels,)
    chosen = mlm_labels != IGNORED
    picked = (mlm_logits if mlm_logits.dim() == 2 else mlm_logits[chosen]).float()  # 2: labelled positions alone
    wanted = mlm_labels[chosen]
    row = chosen.nonzero()[:, 0]
    sums = mlm_logits.new_zeros((len(mlm_labels), 5), dtype=torch.float32)
    values = (
        torch.nn.functional.cross_entropy(picked, wanted, reduction="none"),
        (picked.argmax(-1) == wanted).float(),
        torch.ones(len(row), device=picked.device),
    )
    for column, value in enumerate(values):
        sums[:, column].index_add_(0, row, value)
    if next_labels:
        score, label = rest[0].float().flatten(), next_labels[0].float().flatten()
        sums[:, 3] = torch.nn.functional.binary_cross_entropy_with_logits(score, label, reduction="none")
        sums[:, 4] = ((score >= 0) == (label > 0.5)).float()
    return sums


def validation_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """Means over all masked tokens, in natural logarithm, and over all pairs."""
    sums = np.asarray(prediction.predictions, np.float64)
    loss, correct, masked, next_loss, next_correct = sums.sum(0)
    metrics = {
        "mlm_loss": loss / masked,
        "mlm_perplexity": math.exp(min(loss / masked, 100)),
        "mlm_accuracy": correct / masked,
    }
    if isinstance(prediction.label_ids, tuple) and len(prediction.label_ids) > 1:
        metrics |= {"nsp_loss": next_loss / len(sums), "nsp_accuracy": next_correct / len(sums)}
    return metrics


def model_config(settings: PretrainSettings, tokenizer: Any = None) -> Any:
    """The configuration of the model; without a tokenizer what is known before there is one.

    Raises:
        RecipeError: settings of which no model can be built.
    """
    from macaron.bert import MacaronBertConfig

    names = ("pad_token_id", "cls_token_id", "sep_token_id", "mask_token_id")
    ids = {} if tokenizer is None else {name: getattr(tokenizer, name) for name in names}
    try:
        return MacaronBertConfig(
            vocab_size=settings.data.vocab_size if tokenizer is None else len(tokenizer),
            max_position_embeddings=settings.data.max_length,
            sparse_prediction=True,
            **ids,
            **dataclasses.asdict(settings.model),
        )
    except (ValueError, StrictDataclassError) as error:
        raise RecipeError(f"the model cannot be built: {error}") from error


def build_model(settings: PretrainSettings, tokenizer: Any) -> Any:
    """A fresh Macaron BERT, its weights drawn from the seed."""
    from macaron.bert import MacaronBertForMaskedLM, MacaronBertForPreTraining

    set_seed(settings.training.seed)
    kind = MacaronBertForPreTraining if settings.data.objective == "mlm+nsp" else MacaronBertForMaskedLM
    config = model_config(settings, tokenizer)
    try:
        return kind(config)
    except ValueError as error:
        raise RecipeError(f"the model cannot be built: {error}") from error
