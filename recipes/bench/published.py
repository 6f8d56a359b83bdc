"""The same published weights under transformers' model and under ours: inference, a fine-tuning step, int8.

On sentences of GLUE, with the tokenizer of the folder. A piece of work is a set of sentences in batches of three kinds:
at random; grouped by length, as a careful user does; and grouped and cut to the shortest, which leaves no padding.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from macaron.bert import from_transformers

from ..common.errors import RecipeError
from ..glue.batches import POOL, Collator, Examples
from ..glue.data import TaskSplit
from ..glue.data import load as load_task
from ..glue.finetune import TaskLoss, length_limit, measure, quiet_hosts
from ..glue.model import load_model
from ..glue.runner import model_identity
from ..glue.settings import Setting
from ..glue.tasks import CLASSES, TASKS, Task
from .measure import Contender, Plan, Timing, count_parameters, interleaved, profiled
from .record import Record

CASES = ("forward", "finetune", "int8")
PARTS = 4  # of the lengths in a pool; a piece of work has one batch of each
SAME = 1e-5  # largest difference of outputs, relative to the largest output
SAME_GRADIENT = 1e-4  # of that of the word vectors, in the Euclidean norm: rounding on its way through all layers
SAME_INT8 = 1.5  # times the error of int8 in transformers' model, in root mean square

Batch = dict[str, Tensor]
Step = Callable[[Batch], object]


@dataclass(frozen=True)
class PublishedSettings:
    weights: str
    digest: str
    batch_size: int = 32
    max_length: int = 128
    task: str = ""


@dataclass(frozen=True)
class Goal:
    """At least `least` times as fast as transformers, as row `contender` of the case has it."""

    case: str
    order: str
    contender: str
    least: float


GOALS = (
    *(
        Goal(case, order, "macaron", least)
        for case, random in (("finetune", 2.0), ("forward", 1.8), ("int8", 1.8))
        for order, least in (("random", random), ("grouped", 1.1), ("unpadded", 1.0))
    ),
)


class Work(NamedTuple):
    """The same sentences in batches of three kinds."""

    random: list[Batch]
    grouped: list[Batch]
    unpadded: list[Batch]
    tokens: int  # of the first two

    def padding(self, order: str) -> float:
        """Share of the places."""
        masks = [batch["attention_mask"] for batch in getattr(self, order)]
        return 1 - sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)


class Both(NamedTuple):
    task: Task
    tokenizer: Any
    theirs: nn.Module
    ours: nn.Module


def identity(weights: str) -> tuple[str, str]:
    """Name, without where it lies, and digest of the weights ("" of a name on the hub)."""
    try:
        found = model_identity(weights)
    except RecipeError as error:
        raise _of_weights(error) from error
    return (Path(weights).resolve().name if "model_digest" in found else weights), found.get("model_digest", "")


def _of_weights(error: RecipeError) -> RecipeError:
    return RecipeError(str(error).replace("--model", "--weights", 1))


def tasks_there(names: list[str] | None, data_dir: Path) -> list[Task]:
    """Those named, or all that have a training set there and train for themselves.

    Raises:
        RecipeError: a name that GLUE has not, or a task without a training set.
    """
    unknown = [name for name in names or [] if name not in TASKS]
    if unknown:
        raise RecipeError(f"--task: {', '.join(unknown)} unknown; choose from {', '.join(TASKS)}")
    found = [task for task in TASKS.values() if task.name == task.trained_as and (not names or task.name in names)]
    there = [task for task in found if load_task(task.name, data_dir).train is not None]
    absent = [task.title for task in found if task not in there]
    if not there or (names and absent):
        raise RecipeError(
            f"--data-dir {data_dir}: no training set of {', '.join(absent) or 'any task'} there; it must hold "
            f"CoLA/train.tsv, RTE/train.tsv …"
        )
    return there


def load_both(weights: str, task: Task, seed: int, device: torch.device) -> Both:
    """transformers' model of the folder with a fresh head for `task`, and its conversion.

    Raises:
        RecipeError: a folder that does not load, or has no counterpart here.
    """
    try:
        tokenizer, theirs, _ = load_model(weights, task, seed)
        theirs.set_attn_implementation("sdpa")
        ours = from_transformers(theirs)
    except RecipeError as error:
        raise _of_weights(error) from error
    except ValueError as error:
        raise RecipeError(f"--weights {weights}: {error}") from error
    return Both(task, tokenizer, theirs.to(device), ours.to(device))


def works(both: Both, split: TaskSplit, settings: PublishedSettings, plan: Plan, seed: int) -> Iterator[Work]:
    """Of every pool of `POOL` batches, sorted by length, one batch of each of `PARTS` parts; and their sentences in
    random batches."""
    setting = Setting(1, settings.batch_size, 1.0, max_length=settings.max_length)
    limit = length_limit(setting, both.tokenizer, both.ours)
    lengths = np.asarray(measure(both.tokenizer, split, limit)[0])
    if len(split) < settings.batch_size:
        raise RecipeError(
            f"--batch-size {settings.batch_size}: {both.task.title} has {len(split)} sentences only; take fewer"
        )
    dtype = torch.long if both.task.head == CLASSES else torch.float32
    examples, size = Examples(split), settings.batch_size
    generator = np.random.default_rng(seed)

    def batch(rows: np.ndarray, most: int = limit) -> Batch:
        made = Collator(both.tokenizer, most, dtype)([examples[int(row)] for row in rows])
        return {name: value.to(plan.device) for name, value in made.items()}

    while True:
        pool = generator.permutation(len(split))[: POOL * size]
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        sorted_batches = [pool[start : start + size] for start in range(0, len(pool) - size + 1, size)]
        parts = np.array_split(np.arange(len(sorted_batches)), min(PARTS, len(sorted_batches)))
        grouped = [sorted_batches[generator.choice(part)] for part in parts]
        mixed = generator.permutation(np.concatenate(grouped)).reshape(-1, size)
        yield Work(
            [batch(rows) for rows in mixed],
            [batch(rows) for rows in grouped],
            [batch(rows, int(lengths[rows].min())) for rows in grouped],
            int(lengths[mixed].sum()),
        )


# Whether they are the same.


def check_same(both: Both, work: Work) -> str:
    """Compare logits on all batches, and loss and gradient on one of each kind, without dropout; what was found.

    Raises:
        RecipeError: they differ by more than rounding does.
    """
    both.theirs.eval()
    both.ours.eval()
    worst = 0.0
    with torch.no_grad():
        for batch in (*work.random, *work.grouped, *work.unpadded):
            theirs, ours = (model(**inputs(batch)).logits for model in (both.theirs, both.ours))
            worst = max(worst, float((theirs - ours).abs().max() / theirs.abs().max()))
    check(both, "outputs", worst, SAME)
    of_gradient = 0.0
    for batches in (work.random, work.grouped, work.unpadded):
        theirs, ours = (gradient(model, both.task, batches[0]) for model in (both.theirs, both.ours))
        of_gradient = max(of_gradient, float((theirs - ours).norm() / theirs.norm()))
    check(both, "gradients", of_gradient, SAME_GRADIENT)
    return f"outputs differ by {worst:.1e}, gradients by {of_gradient:.1e}"


def check(both: Both, what: str, found: float, most: float) -> None:
    if not found <= most:  # NaN, too
        raise RecipeError(
            f"{both.task.title}: {what} of the two models differ by {found:.1e}, and {most:.0e} is the most that "
            f"rounding explains; such times say nothing"
        )


def gradient(model: nn.Module, task: Task, batch: Batch) -> Tensor:
    model.zero_grad()
    TaskLoss(task)(model(**inputs(batch)), batch["labels"]).backward()
    found: Tensor = model.get_input_embeddings().weight.grad
    model.zero_grad()
    return found


def check_int8(both: Both, models: list[nn.Module], work: Work) -> str:
    """8-bit numbers of the same weights: states of the encoder are as near to float32 in ours as in theirs. What was
    found, in root mean square.

    Raises:
        RecipeError: they are not.
    """
    errors = np.zeros(3)
    with torch.no_grad():
        for batch in work.grouped:
            real = batch["attention_mask"].bool()
            exact, theirs, ours = (
                model.base_model(**inputs(batch)).last_hidden_state[real] for model in (both.theirs, *models)
            )
            errors += [float((a - b).square().mean()) for a, b in ((theirs, exact), (ours, exact), (ours, theirs))]
    theirs, ours, between = np.sqrt(errors / len(work.grouped))
    if not ours <= SAME_INT8 * theirs:
        raise RecipeError(
            f"{both.task.title}: int8 moves the states of our model by {ours:.1e} and those of theirs by {theirs:.1e}, "
            f"and more than {SAME_INT8} times that is not the same; such times say nothing"
        )

    return f"int8 moves the encoder's states by {theirs:.1e} in theirs, {ours:.1e} in ours, {between:.1e} apart"


def inputs(batch: Batch) -> Batch:
    return {name: value for name, value in batch.items() if name != "labels"}


# Measuring.


def run(
    record: Record,
    plan: Plan,
    settings: PublishedSettings,
    weights: str,
    tasks: list[Task],
    data_dir: Path,
    cases: list[str],
    precision: str,
    seed: int,
    profile: bool = False,
) -> None:
    """Every case on every task; rows of each, and of all together; the goals beside them."""
    if "int8" in cases and plan.device.type != "cpu":
        raise RecipeError(f"int8: torch's dynamic quantization is for CPUs, not {plan.device}; name other --cases")
    quiet_hosts()
    found: dict[tuple[str, str], list[Timing]] = defaultdict(list)
    for task in tasks:
        torch.manual_seed(seed)
        both = load_both(weights, task, seed, plan.device)
        split = load_task(task.name, data_dir).train
        assert split is not None
        stream = works(both, split, settings, plan, seed)
        first = next(stream)
        shares = ", ".join(f"{order} {first.padding(order):.0%}" for order in ("random", "grouped", "unpadded"))
        print(f"{task.title}: {check_same(both, first)}; padding of the first {len(first.random)} batches: {shares}")
        record.describe(dataclasses.asdict(dataclasses.replace(settings, task=task.name)))
        for case in sorted(cases, key=("forward", "int8", "finetune").index):  # the last changes the weights
            for order, timing in measured(both, case, first, stream, plan, precision).items():
                add(record, both, case, order, task.name, timing)
                found[case, order].append(timing)
            if profile:
                show_profile(both, case, first, plan, precision)
    if len(tasks) > 1:
        record.describe(dataclasses.asdict(dataclasses.replace(settings, task=" ".join(task.name for task in tasks))))
        for (case, order), timings in found.items():
            add(record, both, case, order, f"of {len(tasks)} tasks", joined(timings))
    print("\nGoals, beside transformers with sdpa:", *(f"  {line}" for line in goals(found)), sep="\n")


def measured(
    both: Both, case: str, first: Work, stream: Iterator[Work], plan: Plan, precision: str
) -> dict[str, Timing]:
    """{order: timing}. Random and grouped batches are of one run; those without padding come one by one."""
    theirs, ours = steps(both, case, first, plan, precision)

    def each(step: Step, order: str) -> Callable[[Work], object]:
        return lambda work: [step(batch) for batch in getattr(work, order)]

    for step in (theirs, ours):
        step(first.unpadded[0])  # the state of an optimiser is made, caches are warm
    plan = dataclasses.replace(plan, warmup=0)
    contenders = [
        Contender("transformers", each(theirs, "random")),
        Contender("macaron", each(ours, "random")),
        Contender("transformers-grouped", each(theirs, "grouped")),
        Contender("macaron-grouped", each(ours, "grouped")),
    ]
    timing = interleaved(contenders, stream, plan, lambda work: work.tokens, f"{case} {both.task.title}")
    of, amounts = timing.seconds, timing.work
    grouped = {
        "transformers": of["transformers-grouped"],
        "macaron": of["macaron-grouped"],
        "macaron-random": of["macaron"],
    }
    alone = [Contender("transformers", theirs), Contender("macaron", ours)]
    batches = (batch for work in stream for batch in work.unpadded)
    plan = dataclasses.replace(plan, repeats=len(first.unpadded) * plan.repeats)
    unpadded = interleaved(alone, batches, plan, lambda batch: batch["input_ids"].numel(), f"{case}, no padding")
    return {"random": timing, "grouped": Timing(grouped, amounts), "unpadded": unpadded}


def steps(both: Both, case: str, first: Work, plan: Plan, precision: str) -> list[Step]:
    models: list[nn.Module] = [both.theirs, both.ours]
    if case == "int8":
        models = [quantized(model.eval()) for model in models]
        print(f"{both.task.title}: {check_int8(both, models, first)}")
    return [step(model, case, both.task, plan, precision) for model in models]


def quantized(model: nn.Module) -> nn.Module:
    """A copy whose matrices have 8 bits, and whose activations get them as they come: torch's dynamic quantization."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*deprecated")  # in favour of torchao, which is no part of torch
        made: nn.Module = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    return made


def step(model: nn.Module, case: str, task: Task, plan: Plan, precision: str) -> Step:
    bf16 = precision == "bf16" and case != "int8"

    def autocast() -> torch.autocast:
        return torch.autocast(plan.device.type, torch.bfloat16, enabled=bf16)

    if case != "finetune":
        model.eval()

        @torch.no_grad()
        def forward(batch: Batch) -> None:
            with autocast():
                model(**inputs(batch))

        return forward

    model.train()
    loss = TaskLoss(task)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, weight_decay=0.01, fused=True)

    def update(batch: Batch) -> None:
        with autocast():
            outputs = model(**inputs(batch))
        loss(outputs, batch["labels"]).backward()
        optimizer.step()
        optimizer.zero_grad()

    return update


def add(record: Record, both: Both, case: str, order: str, name: str, timing: Timing) -> None:
    rows = timing.rows()
    for row in rows:
        row["parameters"] = count_parameters(both.ours if row["contender"].startswith("macaron") else both.theirs)
        if case == "int8":
            row["precision"] = "int8"
    record.add(f"{case} {name}" + ("" if order == "random" else f", {order}"), rows)


def joined(timings: list[Timing]) -> Timing:
    seconds = {name: [value for timing in timings for value in timing.seconds[name]] for name in timings[0].seconds}
    return Timing(seconds, [value for timing in timings for value in timing.work])


def goals(found: dict[tuple[str, str], list[Timing]]) -> list[str]:
    """Each goal beside the median over all repeats (quartiles); without padding the lower quartile is judged."""
    lines = []
    for goal in GOALS:
        timings = found.get((goal.case, goal.order))
        if not timings:
            continue
        row = next(row for row in joined(timings).rows() if row["contender"] == goal.contender)
        value = row["speedup"]
        judged = row["speedup_q1"] if goal.order == "unpadded" else value  # that is a goal for every batch
        reached = "reached" if judged >= goal.least else "NOT REACHED"
        batches = {"random": "random batches", "grouped": "grouped by length", "unpadded": "no padding"}[goal.order]
        lines.append(
            f"{goal.case}, {batches}: at least {goal.least:.1f} ×: {reached}, {value:.2f} × "
            f"({row['speedup_q1']:.2f}–{row['speedup_q3']:.2f})"
        )
    return lines


def show_profile(both: Both, case: str, work: Work, plan: Plan, precision: str) -> None:
    for name, do in zip(("transformers", "macaron"), steps(both, case, work, plan, precision), strict=True):
        for order in ("random", "unpadded"):
            batch = getattr(work, order)[len(work.random) // 2]
            print(f"\n{name}, {case}, {order}\n{profiled(lambda do=do, batch=batch: do(batch))}")
