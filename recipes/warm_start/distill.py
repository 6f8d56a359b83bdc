"""Distillation: the student's states after each norm are drawn to the teacher's, on text without labels.

    loss = |s_L − t_L|² / |t_L|² + w · mean over the others of |s_i − t_i|² / |t_i|²

t_i are the teacher's states behind the norm of each attention and of each FFN, s_i the student's behind the norm of the
attention and the one ahead of it, where the whole FFN has been taken. What attention gives is among them, so that its
weights are not compared apart. No dropout, and nothing outside of the layers is trained: tables, pooler and heads are
the teacher's.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from macaron.particles.dropout import Dropout

from ..bert_pretrain import training
from ..bert_pretrain.settings import PretrainSettings
from ..common.divergence import check_finite
from ..common.workspace import read_json
from .fit import distance
from .settings import WarmStartSettings
from .teacher import Teacher, encoder_of
from .text import Batch, Collator

DROPOUT = ("hidden_dropout_prob", "attention_probs_dropout_prob", "activation_dropout")
TIMED = 3  # updates that --minutes are reckoned from, after a first one


class States:
    """The states of an encoder behind some of its norms: `with states as seen:` lists those of the passes within."""

    def __init__(self, norms: Sequence[Any]):
        self.norms = norms

    def __enter__(self) -> list[Tensor]:
        seen: list[Tensor] = []
        self.handles = [norm.register_forward_hook(lambda _, __, result: seen.append(result[1])) for norm in self.norms]
        return seen

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()


def of_teacher(encoder: Any) -> States:
    return States([norm for layer in encoder.layers for norm in layer.norms])


def of_student(encoder: Any) -> States:
    """Beside each of the teacher's the student's: u behind the attention, h ahead of the next one."""
    norms = [norm for layer in encoder.layers for norm in layer.norms[:2]]
    return States([*norms[1:], encoder.layers[-1].norms[2]])


def loss_of(student: Sequence[Tensor], teacher: Sequence[Tensor], inner_weight: float) -> Tensor:
    """See above; a mean over the tokens that there are, each as much as it is long."""
    parts = torch.stack(
        [(s - t).square().sum() / t.square().sum().clamp_min(1e-12) for s, t in zip(student, teacher, strict=True)]
    )
    inner = parts[:-1].mean() if inner_weight and len(parts) > 1 else parts.new_zeros(())
    return parts[-1] + inner_weight * inner


def apart(student: Any, teacher: Any, batch: Batch, inner_weight: float) -> Tensor:
    """The loss of a batch, of which the student has gradients."""
    with of_student(student) as ours, of_teacher(teacher) as theirs:
        with torch.no_grad():
            teacher(**batch)
        student(**batch)
    return loss_of([s.float() for s in ours], [t.float() for t in theirs], inner_weight)


class Distillation(training.Pretraining):
    """The Trainer of `recipes.bert_pretrain`, exact at every update, with a teacher in the place of labels.

    Args:
        teacher: its encoder.
        inner_weight: w.
        sentences: batches that the distance is measured on.
    """

    def __init__(self, *args: Any, teacher: Any, inner_weight: float, sentences: Sequence[Batch], **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = False  # the loss is a mean, which accumulation has to divide
        self.teacher = teacher.to(self.args.device)
        self.student = encoder_of(self.model)
        self.sentences = [{name: t.to(self.args.device) for name, t in batch.items()} for batch in sentences]
        self.inner_weight = inner_weight

    def compute_loss(self, model: Any, inputs: Batch, return_outputs: bool = False, **_: Any) -> Any:
        loss = apart(self.student, self.teacher, inputs, self.inner_weight)
        return (loss, {}) if return_outputs else loss

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        started = time.perf_counter()
        self.student.eval()
        found = {f"eval_{name}": value for name, value in distance(self.student, self.teacher, self.sentences).items()}
        self.log(dict(found))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, found)
        self.since += time.perf_counter() - started
        return found


def trainable(student: Any) -> Any:
    """Itself: its layers learn, nothing else does, and there is no dropout."""
    for name in DROPOUT:
        setattr(student.config, name, 0.0)
    for module in student.modules():
        if isinstance(module, Dropout | torch.nn.Dropout):
            module.p = 0.0
    student.requires_grad_(False)
    encoder_of(student).layers.requires_grad_(True)
    return student


def trainer_of(
    settings: WarmStartSettings, updates: int, teacher: Teacher, student: Any, prepared: Path,
    sentences: Sequence[Batch], machine: training.Devices, folder: Path,
) -> Distillation:  # fmt: skip
    """A trainer on the text in `prepared`, whose checkpoints go into `folder`."""
    from ..bert_pretrain.examples import mapped

    facts = read_json(prepared / "stamps" / "examples.json")
    t = settings.distill.training(updates)
    args = training.arguments(PretrainSettings(training=t), machine, folder)
    args.label_names = []
    return Distillation(
        model=trainable(student),
        args=args,
        training=t,
        tokens_per_example=facts["train"]["tokens_per_example"],
        validation_collator=None,
        processing_class=teacher.tokenizer,
        train_dataset=training.Passes(mapped(prepared / "train.arrow"), t.updates * t.batch_size, seed=t.seed),
        eval_dataset=training.Passes(mapped(prepared / "valid.arrow"), 1, seed=None),  # see `evaluate`
        data_collator=Collator(teacher.tokenizer),
        teacher=teacher.encoder,
        inner_weight=settings.distill.inner_weight,
        sentences=sentences,
    )


def updates_within(minutes: float, trainer: Distillation) -> tuple[int, float]:
    """(updates that fit into so many minutes with their measurements, seconds of one), timed on a copy."""
    model = copy.deepcopy(trainer.student)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.0)
    size, seconds = trainer.training.batch_size, []
    part = trainer.args.per_device_train_batch_size
    for n in range(TIMED + 1):
        started = time.perf_counter()
        for first in range(n * size, (n + 1) * size, part):
            examples = trainer.train_dataset.__getitems__(range(first, first + part))
            batch = {name: t.to(trainer.args.device) for name, t in trainer.data_collator(examples).items()}
            apart(model, trainer.teacher, batch, trainer.inner_weight).backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - started)
    started = time.perf_counter()
    distance(trainer.student, trainer.teacher, trainer.sentences)
    measuring = time.perf_counter() - started
    update = sorted(seconds[1:])[TIMED // 2]
    whole = update + measuring / trainer.args.eval_steps
    return max(2, int(60 * minutes / whole)), update


def distilled(trainer: Distillation) -> Distillation:
    """Trained, or gone on with from the newest complete checkpoint."""
    folder = Path(trainer.args.output_dir)
    last = training.newest_checkpoint(folder)
    if last:
        training.check_checkpoint(last, trainer.model, trainer.processing_class)
        print(f"distil    going on from {last.name}", flush=True)
    trainer.train(resume_from_checkpoint=str(last) if last else None)
    check_finite(trainer.model.state_dict(), folder)
    updates = trainer.training.updates
    if not any("eval_distance" in row and row["step"] == updates for row in trainer.state.log_history):
        trainer.evaluate()
    return trainer
