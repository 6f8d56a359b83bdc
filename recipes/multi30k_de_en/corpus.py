"""Multi30k task 1 (Elliott et al. 2016, arXiv:1605.00459): image captions, raw text, in three fixed splits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from recipes.translation.data.corpus import Corpus, Input, Rules

NAMES = {"train": "train", "valid": "val", "test": "test_2016_flickr"}


@dataclass(frozen=True)
class Multi30k(Corpus):
    def find(self, folder: Path) -> Input | None:
        splits = self.splits(folder, NAMES)
        return splits and Input("Multi30k task 1", *((splits[split],) for split in splits))

    def looked_for(self) -> str:
        return f"{', '.join(NAMES.values())}.{{de,en}} (plain, .xz or .gz)"


CORPUS = Multi30k("Multi30k De-En", "de", "en", Rules())
