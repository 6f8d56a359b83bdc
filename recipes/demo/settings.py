"""What a demo run is: one frozen record per corpus, every number of it in the report."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from recipes.common.errors import RecipeError
from recipes.common.schemes import portable


@dataclass(frozen=True)
class Settings:
    """The settings that a result depends on. Changing one of them needs a fresh output folder."""

    corpus: str
    train_size: int  # sentence pairs; 0: all there are
    seed: int
    vocab_size: int
    arch: str
    splitting: str
    dim: int
    ffn: int  # width of each of the two half-step FFNs; another splitting has the same width in all
    heads: int
    encoder_layers: int
    decoder_layers: int
    dropout: float
    label_smoothing: float
    lr: float
    warmup_updates: int
    max_update: int
    max_tokens: int
    average: int  # newest epoch checkpoints that are averaged; 1: the last one alone
    beam: int
    lenpen: float

    def check(self) -> None:
        for name in ("vocab_size", "max_update", "max_tokens", "average", "beam", "dim", "ffn"):
            if getattr(self, name) < 1:
                raise RecipeError(f"{name} is {getattr(self, name)} but must be at least 1; choose a positive number")
        if self.train_size < 0 or self.seed < 0:
            raise RecipeError(
                f"train_size is {self.train_size} and seed is {self.seed} but neither may be negative; "
                f"choose zero or more (train size 0 means all pairs)"
            )
        if self.dim % self.heads:
            raise RecipeError(f"dim is {self.dim} but must be a multiple of heads = {self.heads}; change either")


PRESETS = {
    "grammar": Settings(
        corpus="grammar",
        train_size=12000,
        seed=1,
        vocab_size=1500,
        arch="macaron_tiny",
        splitting="strang",
        dim=128,
        ffn=128,
        heads=4,
        encoder_layers=2,
        decoder_layers=2,
        dropout=0.1,
        label_smoothing=0.1,
        lr=4e-3,
        warmup_updates=200,
        max_update=1000,
        max_tokens=2000,
        average=1,
        beam=5,
        lenpen=1.0,
    ),
    "multi30k": Settings(
        corpus="multi30k",
        train_size=0,
        seed=1,
        vocab_size=6000,
        arch="macaron_tiny",
        splitting="strang",
        dim=256,
        ffn=256,
        heads=4,
        encoder_layers=3,
        decoder_layers=3,
        dropout=0.2,
        label_smoothing=0.1,
        lr=2e-3,
        warmup_updates=400,
        max_update=2000,
        max_tokens=3000,
        average=3,
        beam=5,
        lenpen=1.0,
    ),
}


def settings_for(corpus: str, **overrides: int | float | str | None) -> Settings:
    """The preset of `corpus` with the given values (None: keep) in place of its own."""
    given = {name: value for name, value in overrides.items() if value is not None}
    settings = dataclasses.replace(PRESETS[corpus], **given)  # type: ignore[arg-type]
    settings = dataclasses.replace(settings, splitting=portable(settings.splitting))
    settings.check()
    return settings
