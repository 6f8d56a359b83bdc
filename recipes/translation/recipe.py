"""What a translation run is: a yaml that fairseq-hydra-train takes as it stands, and what fairseq has no place for."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from ..common.errors import RecipeError
from ..common.main import module
from ..common.schemes import OPTIONS, Variant, portable

if TYPE_CHECKING:
    from .data.own import Own
    from .text import TextSettings

OWN = "translation"  # the recipe for any corpus
INSTANCES = ("iwslt14_de_en", "wmt14_en_de", "multi30k_de_en", "demo")
RECIPES = (*INSTANCES, OWN)
PRECISIONS = ("fp32", "bf16", "fp16")

# Names of the main hyper-parameters, and where fairseq has them.
KEYS = {
    "seed": "common.seed",
    "arch": "model._name",
    "splitting": "model.splitting",
    "dropout": "model.dropout",
    "label_smoothing": "criterion.label_smoothing",
    "lr": "optimization.lr",
    "max_update": "optimization.max_update",
    "warmup_updates": "lr_scheduler.warmup_updates",
    "weight_decay": "optimizer.weight_decay",
    "max_tokens": "dataset.max_tokens",
    "beam": "generation.beam",
    "lenpen": "generation.lenpen",
    **{name: f"model.{name}" for name, *_ in OPTIONS},
}

# Where and how a run is computed, not what: a run may go on elsewhere. Instead of processes and accumulation the
# batch of one update is recorded, as batch_tokens.
_MACHINE = (
    *("hydra", "defaults", "distributed_training", "task.data", "checkpoint.save_dir"),
    *("dataset.num_workers", "optimization.update_freq"),
    *(f"common.{name}" for name in ("user_dir", "cpu", "log_format", "log_interval", "reset_logging")),
)


@dataclass(frozen=True)
class Recipe:
    """Everything that the result of a run depends on, but for the corpus itself.

    Args:
        name: the folder under recipes/.
        config: the training and the beam search are those of conf/<config>.yaml in that folder.
        text: how sentences become pieces, and pieces sentences.
        metrics: whose papers the scores are compared with, see `scoring.metric_set`.
        average: how many of the newest checkpoints are averaged; 1: the last one alone.
        precision: "fp32", "bf16" or "fp16", of the training.
        valid: which validation set, where the corpus leaves a choice.
        own: what is chosen of a corpus of one's own.
        init: sha256 of the released model that the training begins with.
        changes: what differs from the yaml, (key, value) pairs such as ("model.dropout", 0.1).
    """

    name: str
    config: str
    text: TextSettings
    metrics: str
    average: int
    precision: str = "fp32"
    valid: str = ""
    own: Own | None = None
    init: str = ""
    changes: tuple[tuple[str, Any], ...] = ()

    @property
    def title(self) -> str:
        """What reports call it."""
        return self.own.title if self.own else self.name

    @property
    def yaml(self) -> Path:
        """A corpus of one's own has the yaml of another recipe: its `config` is recipe/size."""
        name, _, size = self.config.rpartition("/")
        return Path(__file__).resolve().parents[1] / (name or self.name) / "conf" / f"{size}.yaml"

    @cached_property
    def tree(self) -> dict[str, Any]:
        """The yaml with the changes: what fairseq-hydra-train gets."""
        config = OmegaConf.load(self.yaml)
        for key, value in self.changes:
            if key.count(".") != 1:
                raise RecipeError(
                    f"--set {key}={value}: {key} is no entry of fairseq's configuration; give a group and a name, such "
                    f"as model.dropout"
                )
            OmegaConf.update(config, key, value)
        tree: dict[str, Any] = OmegaConf.to_container(config)  # type: ignore[assignment]
        return tree

    def get(self, key: str, default: Any = None) -> Any:
        """The value of "group.name", or `default`."""
        node: Any = self.tree
        for part in key.split("."):
            if not isinstance(node, Mapping) or part not in node:
                return default
            node = node[part]
        return node

    @property
    def seed(self) -> int:
        return int(self.get("common.seed"))

    @property
    def arch(self) -> str:
        return str(self.get("model._name"))

    @property
    def splitting(self) -> str:
        return str(self.get("model.splitting"))

    @cached_property
    def scheme(self) -> Variant:
        """The splitting, and whatever else is chosen of the integrator."""
        return self.scheme_as(f"{self.config}.yaml")

    def scheme_as(self, option: str) -> Variant:
        """The scheme; messages name `option`."""
        values = {name: self.get(KEYS[name]) for name, *_ in OPTIONS}
        return Variant.of(self.splitting, values, option)

    @property
    def max_update(self) -> int:
        return int(self.get("optimization.max_update"))

    @property
    def max_tokens(self) -> int:
        """Tokens (padding counts) that one process holds at a time, per side of the pair."""
        return int(self.get("dataset.max_tokens"))

    @property
    def batch_tokens(self) -> int:
        """The effective batch: tokens of one update, over all processes and accumulated batches."""
        processes = self.get("distributed_training.distributed_world_size", 1)
        return self.max_tokens * processes * self.get("optimization.update_freq", [1])[0]

    @property
    def checkpoint_kind(self) -> str:
        """What is averaged: "epoch" or "update" checkpoints, whichever the yaml saves; the best ones, by the "highest"
        or "lowest" value of the validation, where the training stops by it.
        """
        if self.patience > 0:
            return "highest" if self.get("checkpoint.maximize_best_checkpoint_metric", False) else "lowest"
        return "update" if self.get("checkpoint.no_epoch_checkpoints", False) else "epoch"

    @property
    def patience(self) -> int:
        """Validations without a better one after which the training ends; below 1: it does not."""
        return int(self.get("checkpoint.patience", -1))

    def update_freq(self, processes: int) -> int:
        """Batches that each of `processes` accumulates, so that the effective batch stays what it is.

        Raises:
            RecipeError: if the batches of an update cannot be shared equally.
        """
        batches = self.batch_tokens // self.max_tokens
        if batches % processes:
            fitting = ", ".join(map(str, divisors(batches)))
            remedy = f"--max-tokens {self.batch_tokens // processes}" if self.batch_tokens % processes == 0 else ""
            raise RecipeError(
                f"{processes} processes cannot share an update of {self.batch_tokens} tokens equally: it is {batches} "
                f"batches of --max-tokens {self.max_tokens}. Use {fitting} processes in all, or change "
                f"{remedy or '--max-tokens or --batch-tokens'}"
            )
        return batches // processes

    def changed(self, **values: Any) -> Recipe:
        """The recipe with other values; None keeps what is there.

        Args:
            values: the names in KEYS, `batch_tokens`, `average`, `precision`, `text`, `valid`, and `changes`, (key,
                value) pairs of fairseq's configuration.
        """
        given = {name: value for name, value in values.items() if value is not None}
        own = {name: given.pop(name) for name in ("average", "precision", "text", "valid") if name in given}
        changes = dict(self.changes)
        if not given.keys().isdisjoint(("max_tokens", "batch_tokens")):
            changes |= self._batch(given.pop("batch_tokens", self.batch_tokens), given.pop("max_tokens", None))
        more = given.pop("changes", ())
        for name, value in given.items():
            if name not in KEYS:
                raise TypeError(f"no setting {name!r}; there are {', '.join(KEYS)}")
            changes[KEYS[name]] = [value] if name == "lr" else value
        changes |= dict(more)
        if "model.splitting" in changes:
            changes["model.splitting"] = portable(changes["model.splitting"])
        recipe = dataclasses.replace(self, changes=tuple(self._canonical(changes).items()), **own)
        recipe.check()
        return recipe

    def _canonical(self, changes: dict[str, Any]) -> dict[str, Any]:
        """The changes with the options of the scheme checked, in one spelling, and without those that change nothing.

        So a run that chooses nothing but a splitting has the settings that it always had.
        """
        asked = {name: KEYS[name] for name, *_ in OPTIONS if KEYS[name] in changes}
        if not asked:
            return changes
        said = " ".join(f"--{name.replace('_', '-')} {changes[key]}" for name, key in asked.items())
        found = dataclasses.replace(self, changes=tuple(changes.items())).scheme_as(said).values
        published = dataclasses.replace(self, changes=())
        for name, key in asked.items():
            del changes[key]
            if found[name] != published.get(key):
                changes[key] = found[name]
        return changes

    def _batch(self, batch_tokens: int, max_tokens: int | None) -> dict[str, Any]:
        """The changes that make one update of `batch_tokens` in batches of `max_tokens`."""
        max_tokens = max_tokens or min(self.max_tokens, batch_tokens)
        if max_tokens < 1 or batch_tokens % max_tokens:
            raise RecipeError(
                f"--batch-tokens {batch_tokens} is no multiple of --max-tokens {max_tokens}, the batch of one process; "
                f"the effective batch is made of whole batches, so change either"
            )
        return {
            "dataset.max_tokens": max_tokens,
            "distributed_training.distributed_world_size": 1,
            "optimization.update_freq": [batch_tokens // max_tokens],
        }

    def check(self) -> None:
        """Raise a RecipeError for values that cannot work, before an hour is spent on data."""
        if self.precision not in PRECISIONS:
            raise RecipeError(f"--precision {self.precision}: must be one of {', '.join(PRECISIONS)}")
        at_least_one = {name: self.get(KEYS[name]) for name in ("max_update", "max_tokens", "beam", "warmup_updates")}
        for name, value in {**at_least_one, "average": self.average}.items():
            if not isinstance(value, int) or value < 1:
                raise RecipeError(f"--{name.replace('_', '-')} {value}: must be a whole number of at least 1")
        for name in ("dropout", "label_smoothing"):
            value = self.get(KEYS[name], 0.0)
            if not isinstance(value, (int, float)) or not 0 <= value < 1:
                raise RecipeError(f"--{name.replace('_', '-')} {value}: must be at least 0 and below 1")
        (rate, *_) = self.get(KEYS["lr"])
        if not isinstance(rate, (int, float)) or not 0 < rate < math.inf:
            raise RecipeError(f"--lr {rate}: must be a positive, finite number")
        if not isinstance(self.get(KEYS["seed"]), int) or self.seed < 0:
            raise RecipeError(f"--seed {self.get(KEYS['seed'])}: must be a whole number of at least 0")

    def settings(self) -> dict[str, Any]:
        """All of it as one flat record for a run's settings.json: "group.name" → value."""
        flat = {key: value for key, value in flatten(self.tree) if not key.startswith(_MACHINE)}
        text = {f"text.{key}": value for key, value in dataclasses.asdict(self.text).items()}
        own = {name: getattr(self, name) for name in ("name", "config", "metrics", "average", "precision", "valid")}
        if self.own:
            own |= {f"corpus.{key}": value for key, value in dataclasses.asdict(self.own).items()}
        if self.init:
            own["init_from"] = self.init
        return {**own, **text, "batch_tokens": self.batch_tokens, **flat}


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + str(name), value


def divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def sizes_of(name: str) -> dict[str, Recipe]:
    """The recipe `name` as published, in each of its sizes.

    Raises:
        RecipeError: no such recipe.
    """
    if name not in INSTANCES:
        raise RecipeError(f"no recipe {name!r}; there are {', '.join(INSTANCES)}")
    sizes: dict[str, Recipe] = import_module(module(name)).SIZES
    return sizes


def load(name: str, size: str | None = None) -> Recipe:
    """The recipe `name` as published, in the size asked for (None: its first).

    Raises:
        RecipeError: no such recipe or size.
    """
    sizes = sizes_of(name)
    if size is not None and size not in sizes:
        raise RecipeError(f"--size {size}: {name} has {', '.join(sizes)}")
    return sizes[size or next(iter(sizes))]


# Whose settings an architecture has on a corpus of one's own: those of the recipe that it was tuned in.
TUNED = {
    "macaron_tiny": ("multi30k_de_en", "tiny"),
    "macaron_multi30k_de_en": ("multi30k_de_en", "tiny"),
    "macaron_iwslt_de_en": ("iwslt14_de_en", "small"),
    "macaron": ("wmt14_en_de", "base"),
    "macaron_base": ("wmt14_en_de", "base"),
    "macaron_big": ("wmt14_en_de", "big"),
}

# (pairs, …): an architecture, and a number of pieces, for corpora of fewer than so many training pairs.
ARCHITECTURES = ((50_000, "macaron_multi30k_de_en"), (1_000_000, "macaron_iwslt_de_en"), (math.inf, "macaron_base"))
UNITS = ((10_000, 2_000), (50_000, 4_000), (200_000, 8_000), (1_000_000, 16_000), (math.inf, 32_000))


def by_size(table: tuple[tuple[float, Any], ...], pairs: int) -> Any:
    """What a table has for a corpus of so many pairs."""
    return next(value for below, value in table if pairs < below)


def for_corpus(own: Own, text: TextSettings, arch: str) -> Recipe:
    """The recipe of a corpus of one's own."""
    name, size = TUNED.get(arch, ("iwslt14_de_en", "small"))
    changes = {"task.source_lang": text.source, "task.target_lang": text.target, "model._name": arch}
    return dataclasses.replace(
        load(name, size), name=OWN, config=f"{name}/{size}", text=text, metrics="any", valid="", own=own
    ).changed(changes=changes.items())
