"""What a pre-training run is: three frozen records (data, model, training) for each preset.

The data record is apart, so that runs which differ in model, training or seed share one prepared folder.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..common.errors import RecipeError
from ..common.schemes import OPTIONS, Variant, portable

OBJECTIVES = ("mlm", "mlm+nsp")
MASKINGS = ("dynamic", "static")
PRECISIONS = ("fp32", "bf16")
SCHEDULES = ("linear", "cosine")
HORIZONS = ("none", "fixed")
SCHEME = {name: text for name, _, text in OPTIONS}


def option(default: Any, text: str, choices: tuple[str, ...] | None = None) -> Any:
    """A field that the command line offers under its own name."""
    return field(default=default, metadata={"help": text, "choices": choices})


@dataclass(frozen=True)
class ExampleSettings:
    """From text files to examples."""

    objective: str = option("mlm+nsp", "masked tokens, with or without next-sentence pairs", OBJECTIVES)
    max_length: int = option(128, "tokens of an example, special ones included")
    vocab_size: int = option(30522, "word pieces, special ones included")
    lowercase: bool = option(True, "lower case without accents, as BERT uncased")
    blank_lines: int = option(2, "so many blank lines in a row end a document; fewer end a paragraph")
    min_characters: int = option(20, "shorter documents are dropped")
    valid_fraction: float = option(0.01, "share of the documents that is held out, chosen by their content")
    short_fraction: float = option(0.1, "share of sentence pairs of a random shorter length")
    data_seed: int = option(1, "of the held-out documents and the sentence pairs")

    def check(self) -> None:
        at_least(self, 1, "vocab_size", "blank_lines")
        at_least(self, 0, "min_characters")
        between(self, 0, 2**32, "data_seed")
        at_least(self, 8, "max_length")
        between(self, 0, 1, "valid_fraction", "short_fraction")
        one_of(self, OBJECTIVES, "objective")


@dataclass(frozen=True)
class ModelSettings:
    """Fields of MacaronBertConfig under the same names; its own checks apply."""

    splitting: str = option(
        "strang",
        "strang (Macaron), lie (the ordinary Transformer of the same size), or such as 'attention/2 ffn attention/2'",
    )
    solver: str = option("euler", SCHEME["solver"])
    depth_rule: str = option("euler", SCHEME["depth_rule"])
    dt: float = option(1.0, SCHEME["dt"])
    multistep_init: str = option("0", SCHEME["multistep_init"])
    stochastic_depth: float = option(0.0, SCHEME["stochastic_depth"])
    stochastic_depth_schedule: str = option("lm_resnet", SCHEME["stochastic_depth_schedule"])
    stochastic_depth_form: str = option("scaled", SCHEME["stochastic_depth_form"])
    stochastic_depth_unit: str = option("batch", SCHEME["stochastic_depth_unit"])
    horizon: str = option(
        "none",
        "fixed: one layer, whose parameters all --num-hidden-layers steps share; what a policy can be fine-tuned on",
        HORIZONS,
    )
    hidden_size: int = option(768, "width")
    num_hidden_layers: int = option(12, "layers")
    num_attention_heads: int = option(12, "attention heads")
    intermediate_size: int | None = option(None, "width of the FFN after attention (default: equal parameters)")
    first_intermediate_size: int | None = option(None, "width of the FFN before attention (default: as after)")
    hidden_act: str = option("gelu", "activation of the FFN after attention")
    first_hidden_act: str | None = option(None, "activation of the FFN before attention (default: as after)")
    norm_affine: bool = option(True, "norms of the layers have a gain and an offset")
    embedding_norm: bool = option(False, "normalise the embeddings")
    initializer_range: float = option(0.02, "standard deviation of the weights at the start")
    position_embedding_type: str = option("learned", "learned or sinusoidal")
    position_offset: int = option(0, "position of the first token; the original counts from 2")
    scale_embeddings: bool = option(False, "multiply word embeddings by the square root of the width")
    segment_padding_idx: int | None = option(None, "segment row that stays zero; the original: 0")
    mlm_bias: bool = option(True, "the masked-language-model head has a bias")
    hidden_dropout_prob: float = option(0.1, "dropout")
    attention_probs_dropout_prob: float = option(0.1, "dropout of attention weights")
    activation_dropout: float = option(0.0, "dropout inside the FFN")
    classifier_dropout: float | None = option(None, "dropout of classifiers fine-tuned from it (default: as dropout)")

    def check(self) -> None:
        one_of(self, HORIZONS, "horizon")


@dataclass(frozen=True)
class TrainingSettings:
    """From examples to weights."""

    seed: int = option(1, "of weights, order, masks and dropout")
    updates: int = option(1000, "updates")
    batch_size: int = option(256, "examples in an update, over all devices and accumulation steps")
    lr: float = option(3e-4, "peak learning rate")
    warmup_updates: int = option(100, "updates of linear warm-up")
    schedule: str = option("linear", "decay to zero after the warm-up", SCHEDULES)
    beta1: float = option(0.9, "Adam's β₁")
    beta2: float = option(0.999, "Adam's β₂")
    adam_eps: float = option(1e-6, "Adam's ε")
    weight_decay: float = option(0.01, "decoupled weight decay")
    decay_all: bool = option(False, "decay biases and norms too, as the original does")
    clip_norm: float = option(1.0, "largest norm of the gradient; 0: no clipping")
    masking: str = option("dynamic", "new masks in each pass over the data, or the same ones", MASKINGS)
    static_copies: int = option(1, "static: masks an example has, used in turn")
    mask_probability: float = option(0.15, "share of the tokens that are predicted")
    precision: str = option("fp32", "arithmetic", PRECISIONS)
    eval_every: int = option(500, "updates between validations")
    valid_examples: int = option(2000, "at most so many held-out examples are used")

    def check(self) -> None:
        at_least(self, 1, "updates", "batch_size", "static_copies", "eval_every", "valid_examples")
        at_least(self, 0, "warmup_updates", "weight_decay", "clip_norm")
        between(self, 0, 2**32, "seed")
        between(self, 0, 1, "mask_probability", "beta1", "beta2")
        one_of(self, MASKINGS, "masking")
        one_of(self, PRECISIONS, "precision")
        one_of(self, SCHEDULES, "schedule")
        if self.warmup_updates >= self.updates:
            raise RecipeError(
                f"warmup_updates is {self.warmup_updates} but must be less than updates = {self.updates}; "
                f"change --warmup-updates or --updates"
            )


@dataclass(frozen=True)
class PretrainSettings:
    data: ExampleSettings = field(default_factory=ExampleSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)

    def check(self) -> PretrainSettings:
        for record in (self.data, self.model, self.training):
            for name, value in dataclasses.asdict(record).items():
                if isinstance(value, float) and not math.isfinite(value):
                    raise RecipeError(f"{name} is {value} but must be a number; change --{flag(name)}")
        self.data.check()
        self.model.check()
        self.training.check()
        return self


PRESETS = {
    # Minutes on a CPU.
    "tiny": PretrainSettings(
        ExampleSettings(max_length=128, vocab_size=8192),
        ModelSettings(hidden_size=128, num_hidden_layers=4, num_attention_heads=4, hidden_dropout_prob=0.0,
              attention_probs_dropout_prob=0.0, classifier_dropout=0.1),
        TrainingSettings(updates=4000, batch_size=16, lr=2e-3, warmup_updates=400, beta2=0.98, eval_every=500,
                 valid_examples=1000),
    ),
    # The paper's sizes and schedule (arXiv:1906.02762 and its code): 128k tokens in an update, Adam (.9, .999, 1e-6),
    # lr 3e-4, linear to 800k updates. Its warm-up of one update went on from an earlier stage; this one is real.
    "base_original": PretrainSettings(
        ExampleSettings(max_length=512, vocab_size=32768),
        ModelSettings(first_hidden_act="relu", norm_affine=False, position_embedding_type="sinusoidal",
                      position_offset=2, scale_embeddings=True, segment_padding_idx=0, mlm_bias=False),
        TrainingSettings(updates=800_000, batch_size=256, lr=3e-4, warmup_updates=10_000, decay_all=True, clip_norm=0.0,
                 eval_every=5000),
    ),
    # Meant for one day on one GPU of the H100 class; not measured. Packed sequences of equal length, so that no
    # position is padding; short ones and one pass of high rate as in Cramming (arXiv:2212.14034).
    "base": PretrainSettings(
        ExampleSettings(objective="mlm", max_length=128, vocab_size=32768),
        ModelSettings(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, classifier_dropout=0.1),
        TrainingSettings(updates=100_000, batch_size=2048, lr=1e-3, warmup_updates=5000, beta2=0.98, adam_eps=1e-12,
                 clip_norm=0.5, precision="bf16", eval_every=2000),
    ),
}  # fmt: skip


def settings_for(preset: str, **overrides: Any) -> PretrainSettings:
    """The preset with the given values (None: keep) in place of its own."""
    given = {name: value for name, value in overrides.items() if value is not None}
    settings = PRESETS[preset]
    parts = {
        part.name: dataclasses.replace(
            record := getattr(settings, part.name),
            **{f.name: given.pop(f.name) for f in dataclasses.fields(record) if f.name in given},
        )
        for part in dataclasses.fields(settings)
    }
    if given:
        raise RecipeError(f"{', '.join(sorted(given))}: no such setting; --help lists them")
    model, cannot = parts["model"], "the model cannot be built"
    splitting = portable(model.splitting, f"{cannot}: --splitting")
    chosen = Variant.of(splitting, {name: getattr(model, name) for name in SCHEME}, cannot)
    # in one spelling, the default's where it means that
    spelt = {
        name: ModelSettings.__dataclass_fields__[name].default if v is None else v for name, v in chosen.values.items()
    }
    parts["model"] = dataclasses.replace(model, splitting=splitting, **spelt)
    return PretrainSettings(**parts).check()


def recorded(settings: PretrainSettings) -> dict[str, Any]:
    """For a run's settings.json: every value; of scheme and horizon what is no default, as it was before."""
    record = dataclasses.asdict(settings)
    for name in (*SCHEME, "horizon"):
        if record["model"][name] == ModelSettings.__dataclass_fields__[name].default:
            del record["model"][name]
    return record


def scheme_of(record: Mapping[str, Any]) -> Variant:
    """The scheme in what `recorded` gave."""
    model = record["model"]
    return Variant.of(model["splitting"], {name: model.get(name) for name in SCHEME}, "settings.json")


def shared_layer(record: Mapping[str, Any]) -> str:
    """For reports, from what `recorded` gave: that all steps share one layer, or ""."""
    model = record["model"]
    return f", one layer for {model['num_hidden_layers']} steps" if model.get("horizon") == "fixed" else ""


# --- checks -----------------------------------------------------------------------------------------------------


def at_least(record: Any, least: float, *names: str) -> None:
    for name in names:
        if getattr(record, name) < least:
            raise RecipeError(f"{name} is {getattr(record, name)} but must be at least {least}; change --{flag(name)}")


def between(record: Any, low: float, high: float, *names: str) -> None:
    for name in names:
        if not low <= getattr(record, name) < high:
            raise RecipeError(
                f"{name} is {getattr(record, name)} but must lie in [{low}, {high}); change --{flag(name)}"
            )


def one_of(record: Any, choices: tuple[str, ...], name: str) -> None:
    if getattr(record, name) not in choices:
        raise RecipeError(f"{name} is {getattr(record, name)!r}; choose one of {', '.join(choices)}")


def flag(name: str) -> str:
    return name.replace("_", "-")
