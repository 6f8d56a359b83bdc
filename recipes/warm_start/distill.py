"""Distillation: the student's states after each norm are drawn to the teacher's, on text without labels.

    loss = |s_L − t_L|² / |t_L|² + w · mean over the others of |s_i − t_i|² / |t_i|² + a · mean of |p_j − q_j|² / |q_j|²

t_i are the teacher's states behind the norm of each attention and of each FFN, s_i the student's behind the norm of the
attention and the one ahead of it, where the whole FFN has been taken; q_j and p_j are the queries, keys and values of
their attentions, which say what attention does wherever its kernel keeps the weights to itself. No dropout, and nothing
outside of the layers is trained: tables, pooler and heads are the teacher's.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from macaron.particles.dropout import Dropout
from macaron.particles.flows import SelfAttention

from ..bert_pretrain import training
from ..bert_pretrain.settings import PretrainSettings
from ..common.divergence import check_finite
from ..common.workspace import read_json
from .fit import distance
from .settings import DistillSettings, WarmStartSettings
from .teacher import Teacher, encoder_of
from .text import Batch, Collator

DROPOUT = ("hidden_dropout_prob", "attention_probs_dropout_prob", "activation_dropout")
TIMED = 3  # updates that --minutes are reckoned from, after a first one


class Seen:
    """What some modules of an encoder give: `with seen as tensors:` lists it, of the passes within.

    Args:
        which: the tensor of what a module returns.
    """

    def __init__(self, modules: Sequence[Any], which: Callable[[Any], Tensor] = lambda result: result):
        self.modules, self.which = modules, which

    def __enter__(self) -> list[Tensor]:
        tensors: list[Tensor] = []
        self.handles = [
            module.register_forward_hook(lambda _, __, result: tensors.append(self.which(result)))
            for module in self.modules
        ]
        return tensors

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()


def states(norms: Sequence[Any]) -> Seen:
    return Seen(norms, lambda result: result[1])


def of_teacher(encoder: Any) -> Seen:
    return states([norm for layer in encoder.layers for norm in layer.norms])


def of_student(encoder: Any) -> Seen:
    """Beside each of the teacher's the student's: u behind the attention, h ahead of the next one."""
    norms = [norm for layer in encoder.layers for norm in layer.norms[:2]]
    return states([*norms[1:], encoder.layers[-1].norms[2]])


def of_attention(encoder: Any) -> Seen:
    """Queries, keys and values, one tensor a layer."""
    return Seen([module.qkv_proj for module in encoder.modules() if isinstance(module, SelfAttention)])


def relative(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """|s_i − t_i|² / |t_i|², one for each pair, over the tokens that there are."""
    pairs = zip((s.float() for s in student), (t.float() for t in teacher), strict=True)
    return torch.stack([(s - t).square().sum() / t.square().sum().clamp_min(1e-12) for s, t in pairs])


def loss_of(parts: Tensor, inner_weight: float) -> Tensor:
    """That of the states, the last of which count apart."""
    inner = parts[:-1].mean() if inner_weight and len(parts) > 1 else parts.new_zeros(())
    return parts[-1] + inner_weight * inner


def apart(student: Any, teacher: Any, batch: Batch, settings: DistillSettings) -> Tensor:
    """The loss of a batch, see above, of which the student has gradients."""
    with of_student(student) as s, of_teacher(teacher) as t, of_attention(student) as p, of_attention(teacher) as q:
        with torch.no_grad():
            teacher(**batch)
        student(**batch)
    loss = loss_of(relative(s, t), settings.inner_weight)
    return loss + settings.attention_weight * relative(p, q).mean() if settings.attention_weight else loss


class Distillation(training.Pretraining):
    """The Trainer of `recipes.bert_pretrain`, exact at every update, with a teacher in the place of labels.

    Args:
        teacher: its encoder.
        settings: of the loss.
        sentences: batches that the distance is measured on.
    """

    def __init__(self, *args: Any, teacher: Any, settings: DistillSettings, sentences: Sequence[Batch], **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = False  # the loss is a mean, which accumulation has to divide
        self.teacher = teacher.to(self.args.device)
        self.student = encoder_of(self.model)
        self.sentences = [{name: t.to(self.args.device) for name, t in batch.items()} for batch in sentences]
        self.settings = settings

    def compute_loss(self, model: Any, inputs: Batch, return_outputs: bool = False, **_: Any) -> Any:
        loss = apart(self.student, self.teacher, inputs, self.settings)
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
        settings=settings.distill,
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
            apart(model, trainer.teacher, batch, trainer.settings).backward()
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
