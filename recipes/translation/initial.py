"""Fine-tuning: a run that begins with a released model, its languages, pieces, dictionaries and architecture."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from macaron.files import digest

from ..common.errors import RecipeError
from .checkpoints import load
from .recipe import Recipe
from .text import TextSettings

# What may differ from the released model: none of it is a part of what the parameters were trained to compute.
FREE = ("dropout", "attention_dropout", "activation_dropout", "relu_dropout", "checkpoint_activations")
LR, WARMUP = 0.1, 200  # a tenth of the recipe's peak, reached soon, unless others are given


@dataclass(frozen=True)
class Release:
    """
    Args:
        folder: as `macaron translate` takes it; its sums were right.
        sha256: of the model.
        text: how its text becomes pieces.
        model: fairseq's options of the model, those that differ from the architecture's.
    """

    folder: Path
    sha256: str
    text: TextSettings
    arch: str
    model: dict[str, Any]

    @property
    def checkpoint(self) -> Path:
        from macaron.user_dir import released

        return self.folder / released.MODEL

    @property
    def codes(self) -> Path:
        return self.folder / self.text.released_name


def read(folder: Path) -> Release:
    """
    Raises:
        RecipeError: no folder of a released model of ours for translation, or a damaged one.
    """
    from omegaconf import OmegaConf

    import macaron

    macaron.register_fairseq()
    from macaron.user_dir import hub, released
    from macaron.user_dir.config import complete
    from macaron.user_dir.models.macaron import MODELS

    if not folder.is_dir():
        raise RecipeError(f"--init-from {folder}: no such folder; give the release/ of a run")
    try:
        description = released.read(folder)
        state = load(folder / released.MODEL, mmap=True)
        hub.check_settings(folder / released.MODEL, state, macaron.MacaronModel)
    except (ValueError, KeyError) as error:
        raise RecipeError(f"--init-from {folder}: no released model that can be used: {error}") from error
    options: dict[str, Any] = state["cfg"]["model"]
    arch = str(options["_name"])
    model: Any = MODELS[arch]
    usual = vars(complete(OmegaConf.create({"_name": arch}), model.config(), model.architecture))
    known = {field.name for field in dataclasses.fields(model.config())} - {"_name", *hub.PLACES}
    # a value that refers to the environment of the machine that trained would be looked up on this one
    given = {name: value for name, value in options.items() if name in known and not hub.refers(value)}
    return Release(
        folder.resolve(),
        digest(folder / released.MODEL),
        TextSettings(**description.text.content()),
        arch,
        {name: value for name, value in given.items() if value != usual.get(name)},
    )


def begun(recipe: Recipe, release: Release) -> Recipe:
    """The recipe with what a released model decides, and a learning rate for one that has learned already.

    Raises:
        RecipeError: it translates other languages.
    """
    if recipe.text.languages != release.text.languages:
        ours, theirs = (" to ".join(text.languages) for text in (recipe.text, release.text))
        raise RecipeError(
            f"--init-from {release.folder}: translates {theirs}, this run {ours}; its dictionaries and codes are for "
            f"its own direction, so give a model of {ours}"
        )
    model = {f"model.{name}": value for name, value in release.model.items()}
    for name in recipe.tree["model"]:  # the yaml's own
        if name not in ("_name", "splitting", *release.model):
            model[f"model.{name}"] = usual_of(release.arch, name)
    (rate, *_) = recipe.get("optimization.lr")
    changes = {
        **dict(recipe.changes), **model, "model._name": release.arch,
        "model.splitting": release.model.get("splitting", usual_of(release.arch, "splitting")),
        "optimization.lr": [rate * LR],
        "lr_scheduler.warmup_updates": min(WARMUP, recipe.get("lr_scheduler.warmup_updates")),
    }  # fmt: skip
    return dataclasses.replace(recipe, text=release.text, init=release.sha256, changes=()).changed(
        changes=changes.items()
    )


def usual_of(arch: str, name: str) -> Any:
    from macaron.user_dir.config import complete
    from macaron.user_dir.models.macaron import MODELS
    from omegaconf import OmegaConf

    model: Any = MODELS[arch]
    return getattr(complete(OmegaConf.create({"_name": arch}), model.config(), model.architecture), name, None)


def check(recipe: Recipe, begun_as: Recipe, release: Release) -> None:
    """
    Raises:
        RecipeError: options that would make another model of the released one.
    """
    now, then = recipe.tree["model"], begun_as.tree["model"]
    for name in sorted(now.keys() | then.keys()):
        if now.get(name) != then.get(name) and name not in FREE:
            raise RecipeError(
                f"--init-from {release.folder}: was trained with {name.lstrip('_')} = {then.get(name)!r}, and this run "
                f"asks for {now.get(name)!r}; its parameters fit nothing else, so leave that option out"
            )
