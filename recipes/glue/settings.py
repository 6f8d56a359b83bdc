"""How a model is fine-tuned: one frozen record per run, and the presets that make them."""

from __future__ import annotations

import dataclasses
import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..common.errors import RecipeError
from .tasks import Task

SCHEDULES = ("linear", "cosine")
ADVERSARY = tuple(f"adversary_{name}" for name in ("step_size", "norm", "radius", "init", "start"))
ATTACK = tuple(f"attack_{name}" for name in ("step_size", "norm", "radius", "init"))


@dataclass(frozen=True)
class Setting:
    """Everything but task, model and seed that a result depends on.

    Adam (.9, .999, 1e-6) with decoupled weight decay on every parameter, no clipping, the last checkpoint: as the
    code of the Macaron paper has it.
    """

    epochs: int
    batch_size: int  # examples per update, over all processes and accumulated micro-batches
    lr: float
    weight_decay: float = 0.0
    schedule: str = "linear"  # down to 0
    warmup: float = 0.1  # share of the updates
    max_length: int = 512  # tokens of both sentences; the model's own limit where that is lower
    max_train_examples: int = 0  # 0: all; else a random subset, the same for every model and seed
    dropout: bool = True  # at the rates of the model's configuration; False: none
    adversary: str | None = None  # METHOD-K or METHOD-K-n of macaron.adversary, e.g. yopo-3-3; None: none
    adversary_step_size: float = 0.1  # in units of the embedding table
    adversary_norm: str = "l2"
    adversary_radius: float | None = None
    adversary_init: float = 0.0
    adversary_start: int = 0  # updates before it begins
    attack: str | None = None  # pgd-K, under which the dev sets are scored, too; None: not
    attack_step_size: float = 0.1
    attack_norm: str = "l2"
    attack_radius: float | None = None
    attack_init: float = 0.0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "max_length"):
            if getattr(self, name) < 1:
                raise RecipeError(f"{name} is {getattr(self, name)} but must be at least 1; choose a positive number")
        finite = math.isfinite(self.lr) and math.isfinite(self.weight_decay)
        if not finite or self.lr <= 0 or self.weight_decay < 0 or self.max_train_examples < 0:
            raise RecipeError(
                f"lr is {self.lr}, weight_decay {self.weight_decay}, max_train_examples {self.max_train_examples}; "
                f"lr must be positive, the others zero or more, all of them finite"
            )
        if self.schedule not in SCHEDULES:
            raise RecipeError(f"schedule is {self.schedule!r}; choose from {', '.join(SCHEDULES)}")
        if not 0 <= self.warmup < 1:
            raise RecipeError(f"warmup is {self.warmup} but is a share of the updates: at least 0, below 1")
        for kind, names in (("adversary", ADVERSARY), ("attack", ATTACK)):
            changed = [name for name in names if getattr(self, name) != type(self).__dataclass_fields__[name].default]
            if getattr(self, kind) is None and changed:
                raise RecipeError(f"{', '.join(changed)} without an {kind} change nothing; give --{kind}, or leave out")
        if self.adversary_start < 0:
            raise RecipeError(f"adversary_start is {self.adversary_start} but counts updates: 0 or more")
        self.trained_under()
        self.scored_under()

    def trained_under(self) -> Any:
        """The adversary of training, a `macaron.adversary.Attack`, or None.

        Raises:
            RecipeError: one that makes no sense.
        """
        made = self._made("adversary")
        if made is not None and made.method in ("natural", "freeat"):
            reason = "is none" if made.method == "natural" else "trains on a batch in several updates"
            raise RecipeError(
                f"--adversary {self.adversary} {reason}; leave it out, or take e.g. freelb-hf-3, yopo-3-3"
            )
        return made

    def scored_under(self) -> Any:
        """The attack of the dev scores, a `macaron.adversary.Attack`, or None.

        Raises:
            RecipeError: one that makes no sense, or a way to train.
        """
        made = self._made("attack")
        if made is not None and made.method != "pgd":
            raise RecipeError(
                f"--attack {self.attack} is a way to train; scores are taken under pgd-K, K ascents of the loss"
            )
        return made

    def _made(self, kind: str) -> Any:
        name = getattr(self, kind)
        if name is None:
            return None
        from macaron.adversary import Attack  # brings torch in

        sizes = {what: getattr(self, f"{kind}_{what}") for what in ("step_size", "norm", "radius", "init")}
        try:
            return Attack.of(name, **sizes)
        except ValueError as error:
            raise RecipeError(f"--{kind} {name}: {error}") from error

    def record(self) -> dict[str, Any]:
        """For result.json; without adversary and attack, and with dropout, as before there was a choice."""
        absent = tuple(kind for kind in ("adversary", "attack") if getattr(self, kind) is None)
        absent += ("dropout",) if self.dropout else ()
        return {name: value for name, value in dataclasses.asdict(self).items() if not name.startswith(absent)}

    @property
    def name(self) -> str:
        """Of the run's folder, where all are scored under one attack; result.json has the setting in full."""
        name = f"e{self.epochs}-b{self.batch_size}-lr{self.lr:g}-wd{self.weight_decay:g}"
        name += "" if self.dropout else "-nodropout"
        if self.adversary is None:
            return name
        ball = "" if self.adversary_radius is None else f"-r{self.adversary_radius:g}"
        start = f"-from{self.adversary_start}" if self.adversary_start else ""
        sizes = f"{self.adversary_norm}-a{self.adversary_step_size:g}{ball}-i{self.adversary_init:g}{start}"
        return f"{name}-{self.adversary}-{sizes}"


# The settings and seeds chosen by the paper's search; WNLI, which the paper leaves out, takes RTE's.
CHOSEN = {
    "cola": (Setting(5, 32, 3e-5), 400),
    "sst2": (Setting(3, 24, 5e-5), 200),
    "mrpc": (Setting(4, 16, 5e-5), 500),
    "stsb": (Setting(5, 16, 5e-5), 500),
    "qqp": (Setting(5, 16, 5e-5), 200),
    "mnli": (Setting(3, 24, 5e-5), 300),
    "mnli-mm": (Setting(3, 16, 5e-5), 300),
    "qnli": (Setting(4, 16, 3e-5, weight_decay=0.01), 400),
    "rte": (Setting(4, 16, 5e-5), 200),
    "wnli": (Setting(4, 16, 5e-5), 200),
}
SEARCH_SEEDS = (100, 200, 300, 400, 500, 600)
SEARCH_SEEDS_OF_THE_LARGEST = SEARCH_SEEDS[:3]  # MNLI, QNLI, QQP
SIMPLE = Setting(5, 16, 4e-5, schedule="cosine", max_length=128)
# For a model of about 4 layers and width 128 … 192 on a CPU: such a model wants a larger learning rate.
TINY_CPU = Setting(3, 32, 5e-4, max_length=128, max_train_examples=10000)
LARGE_ON_A_CPU = 8000  # examples of the large tasks, under `paper-cpu`

PRESETS = {
    "paper": "the settings and seeds that the Macaron paper chose for each task",
    "paper-cpu": "the paper's settings at length 128, with 8,000 examples of SST-2, QQP, MNLI, QNLI; seeds 1, 2, 3",
    "search": "the paper's whole grid: epochs, batch, learning rate, weight decay, seeds",
    "simple": "one setting for all tasks: lr 4e-5, batch 16, 5 epochs, cosine, length 128",
    "tiny-cpu": "one setting for tiny models on a CPU: lr 5e-4, batch 32, 3 epochs, length 128, 10,000 examples",
}


def plan(preset: str, task: Task, seeds: list[int] | None = None, **overrides: Any) -> list[tuple[Setting, int]]:
    """The runs of a task, (setting, seed), without repeats.

    Args:
        seeds: in place of the preset's own.
        overrides: fields of Setting; None keeps the preset's value.
    """
    task_name = "mnli" if task.name == "ax" else task.name
    if preset == "paper":
        setting, seed = CHOSEN[task_name]
        settings, own = [setting], (seed,)
    elif preset == "paper-cpu":
        setting = dataclasses.replace(CHOSEN[task_name][0], max_length=128)
        settings = [dataclasses.replace(setting, max_train_examples=LARGE_ON_A_CPU if task.large else 0)]
        own = (1, 2, 3)
    elif preset == "search":
        batches = (16, 24 if task.large else 32)
        grid = itertools.product((3, 4, 5), batches, (3e-5, 5e-5), (0.0, 0.01))
        settings = [Setting(*values) for values in grid]
        own = SEARCH_SEEDS_OF_THE_LARGEST if task.trained_as in ("mnli", "qnli", "qqp") else SEARCH_SEEDS
    else:
        settings, own = [{"simple": SIMPLE, "tiny-cpu": TINY_CPU}[preset]], (1,)
    given = {name: value for name, value in overrides.items() if value is not None}
    settings = list(dict.fromkeys(dataclasses.replace(setting, **given) for setting in settings))
    return [(setting, seed) for setting in settings for seed in dict.fromkeys(seeds or own)]


@dataclass(frozen=True)
class FineTuningOptions:
    """What a run does not depend on, but for rounding."""

    data_dir: Path | None = None
    dataset: str = "nyu-mll/glue"
    accumulate: int = 1
    eval_batch_size: int = 64
    save_steps: int = 500
    logging_steps: int | None = None  # updates whose mean loss is one entry; None: a fiftieth of them
    precision: str = "auto"  # bf16 on a GPU that has it
    cpu: bool = False
    workers: int = 0  # processes that tokenise
    save_model: bool = False
    quiet: bool = False


@dataclass(frozen=True)
class FineTuning:
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
        return {"task": self.task, "seed": self.seed, "setting": self.setting.record()}
