"""What a warm start is: text, the two widths, the fit of the start, the distillation."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

from ..bert_pretrain.settings import ExampleSettings, TrainingSettings, at_least, flag, one_of, option
from ..common.errors import RecipeError

STARTS = ("best", "order", "weights", "activity", "inputs", "outputs", "attention")


@dataclass(frozen=True)
class StartSettings:
    """Where the neurons stand, and what is fitted to the teacher's states before the first update."""

    first_width: int | None = option(None, "neurons of the FFN before attention (default: half of the teacher's)")
    second_width: int | None = option(
        None, "neurons of the FFN behind attention (default: the other half; with all of them the start is exact)"
    )
    start: str = option("best", "best: the nearest of all; or one of them by name", STARTS)
    fit_tokens: int = option(32_768, "word pieces of the training text that the start is fitted to")
    ridge: float = option(1e-3, "ridge of the fits, in units of the mean square of a feature")
    sentences: int = option(300, "held-out sentences that the distance is measured on")

    def check(self) -> None:
        for name in ("first_width", "second_width"):
            if getattr(self, name) is not None:
                at_least(self, 1, name)
        at_least(self, 256, "fit_tokens")
        at_least(self, 10, "sentences")
        one_of(self, STARTS, "start")
        if not self.ridge > 0:
            raise RecipeError(f"ridge is {self.ridge} but must be positive; change --ridge")


@dataclass(frozen=True)
class DistillSettings:
    """The teacher's states as targets, on text."""

    seed: int = option(1, "of the order of the examples")
    updates: int | None = option(None, "updates (default: 1000, or as many as --minutes allow)")
    minutes: float | None = option(None, "budget of the training; some updates are timed first, and then it is fixed")
    batch_size: int = option(32, "examples in an update")
    lr: float = option(5e-4, "peak learning rate; a high one leaves a fitted start first, and ends nearer")
    warmup_fraction: float = option(0.05, "share of the updates that are linear warm-up")
    weight_decay: float = option(0.0, "decoupled weight decay")
    clip_norm: float = option(1.0, "largest norm of the gradient; 0: no clipping")
    inner_weight: float = option(1.0, "weight of the states within, beside the last ones")
    attention_weight: float = option(1.0, "weight of the queries, keys and values")
    eval_every: int = option(200, "updates between measurements on the held-out sentences")
    precision: str = option("fp32", "arithmetic", ("fp32", "bf16"))

    def check(self) -> None:
        at_least(self, 1, "batch_size", "eval_every")
        at_least(self, 0, "weight_decay", "clip_norm", "inner_weight", "attention_weight", "seed")
        one_of(self, ("fp32", "bf16"), "precision")
        if self.updates is not None and self.minutes is not None:
            raise RecipeError(f"--updates {self.updates} and --minutes {self.minutes:g}: both are a budget; give one")
        if self.updates is not None:
            at_least(self, 2, "updates")
        if self.minutes is not None and not 0 < self.minutes <= 60 * 24 * 365:
            raise RecipeError(f"minutes is {self.minutes} but must be positive; change --minutes")
        if not 0 <= self.warmup_fraction < 1:
            raise RecipeError(
                f"warmup_fraction is {self.warmup_fraction} but must lie in [0, 1); change --warmup-fraction"
            )
        if not self.lr > 0:
            raise RecipeError(f"lr is {self.lr} but must be positive; change --lr")

    def training(self, updates: int) -> TrainingSettings:
        """As the training of `recipes.bert_pretrain` takes it."""
        return TrainingSettings(
            seed=self.seed, updates=updates, batch_size=self.batch_size, lr=self.lr,
            warmup_updates=min(updates - 1, round(self.warmup_fraction * updates)), weight_decay=self.weight_decay,
            clip_norm=self.clip_norm, precision=self.precision, eval_every=min(self.eval_every, updates),
        )  # fmt: skip


@dataclass(frozen=True)
class TextSettings:
    """From text files to examples, as in `recipes.bert_pretrain`, with the teacher's tokenizer."""

    max_length: int = option(128, "tokens of an example, special ones included")
    short_fraction: float = option(0.7, "share of the examples that are of a random shorter length")
    blank_lines: int = option(2, "so many blank lines in a row end a document; fewer end a paragraph")
    min_characters: int = option(20, "shorter documents are dropped")
    valid_fraction: float = option(0.01, "share of the documents that is held out, chosen by their content")
    data_seed: int = option(1, "of the held-out documents and the examples")

    def examples(self, objective: str, vocab_size: int) -> ExampleSettings:
        return ExampleSettings(objective=objective, vocab_size=vocab_size, **dataclasses.asdict(self))


@dataclass(frozen=True)
class WarmStartSettings:
    text: TextSettings = field(default_factory=TextSettings)
    start: StartSettings = field(default_factory=StartSettings)
    distill: DistillSettings = field(default_factory=DistillSettings)

    def check(self) -> WarmStartSettings:
        for part in (self.text, self.start, self.distill):
            for name, value in dataclasses.asdict(part).items():
                if isinstance(value, float) and not math.isfinite(value):
                    raise RecipeError(f"{name} is {value} but must be a number; change --{flag(name)}")
        self.text.examples("mlm", 1).check()
        self.start.check()
        self.distill.check()
        return self


def settings_of(**given: Any) -> WarmStartSettings:
    """The defaults with the given values (None: keep) in place of their own."""
    parts = {
        part.name: dataclasses.replace(
            record := getattr(WarmStartSettings(), part.name),
            **{f.name: given[f.name] for f in dataclasses.fields(record) if given.get(f.name) is not None},
        )
        for part in dataclasses.fields(WarmStartSettings)
    }
    return WarmStartSettings(**parts).check()
