"""Text for a teacher: the data path of `recipes.bert_pretrain` with the teacher's own tokenizer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..bert_pretrain.pipeline import TOKENIZER_FILES, ExamplePreparation
from ..bert_pretrain.settings import ExampleSettings
from ..bert_pretrain.text import sentences
from ..common.errors import RecipeError
from ..common.workspace import Made, read_json

Batch = dict[str, torch.Tensor]
PARTS = ("normalizer", "pre_tokenizer", "model", "post_processor", "added_tokens")  # what decides of a text's pieces
CHARACTERS = range(20, 401)  # of a sentence that is measured on


class TeachersText(ExamplePreparation):
    """Cleaned text, and examples in the teacher's word pieces."""

    def __init__(self, data: ExampleSettings, files: list[Path], folder: Path, tokenizer: Any):
        super().__init__(data, files, folder)
        self.given = tokenizer
        self.settings["tokenizer"] = vocabulary(tokenizer)

    def run(self) -> None:
        super().run()
        self.check_tokenizer()

    def check_tokenizer(self) -> None:
        """Of one vocabulary there are several tokenizers, with and without capitals for instance."""
        held = read_json(self.folder / "tokenizer" / "tokenizer.json")
        now = json.loads(self.given.backend_tokenizer.to_str())
        if differing := [part for part in PARTS if held.get(part) != now.get(part)]:
            raise RecipeError(
                f"{self.folder}: prepared with another tokenizer than the teacher's ({', '.join(differing)} differ); "
                f"results are not mixed. Name another --data"
            )

    def tokenizer(self) -> Made:
        folder = self.folder / "tokenizer"
        self.given.save_pretrained(folder)
        lost = [name for name in TOKENIZER_FILES if not (folder / name).is_file()]
        if lost:
            raise RecipeError(f"the teacher's tokenizer has no {', '.join(lost)}; only fast tokenizers are used")
        return Made([folder / name for name in TOKENIZER_FILES], size=len(self.given))


def vocabulary(tokenizer: Any) -> str:
    """sha256 of the word pieces and their numbers."""
    text = json.dumps(sorted(tokenizer.get_vocab().items()), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


class Collator:
    """Examples → a padded batch. Of pairs, every other example is its first segment alone, as many tasks have it."""

    def __init__(self, tokenizer: Any):
        self.pad = tokenizer.pad_token_id

    def __call__(self, examples: Sequence[dict[str, Any]]) -> Batch:
        ids = [cut(example) for example in examples]
        lengths = np.array([len(row) for row in ids])
        present = np.arange(lengths.max()) < lengths[:, None]  # (B, T)
        padded = np.full(present.shape, self.pad, np.int64)
        padded[present] = np.concatenate(ids)
        second = np.array([example["second"] for example in examples])
        segments = (np.arange(present.shape[1]) >= second[:, None]) & present
        batch = {"input_ids": padded, "attention_mask": present.astype(np.int64)}
        if any(example["is_next"] >= 0 for example in examples):
            batch["token_type_ids"] = segments.astype(np.int64)
        return {name: torch.from_numpy(value) for name, value in batch.items()}


def cut(example: dict[str, Any]) -> Any:
    alone = example["is_next"] >= 0 and example["example"] % 2
    return example["input_ids"][: example["second"]] if alone else example["input_ids"]


def held_out(documents: Any, most: int) -> list[str]:
    """At most so many sentences of documents, evenly over all of them.

    Raises:
        RecipeError: there are not even ten.
    """
    found = [s for text in documents["text"] for s in sentences(text) if len(s) in CHARACTERS]
    if len(found) < 10:
        raise RecipeError(
            f"the held-out documents have {len(found)} sentences of {CHARACTERS[0]} to {CHARACTERS[-1]} characters, "
            f"too few to measure on; give more text, or raise --valid-fraction"
        )
    return [found[i] for i in np.linspace(0, len(found) - 1, min(most, len(found))).astype(int)]


def encoded(texts: Sequence[str], tokenizer: Any, length: int, size: int = 50) -> Iterator[Batch]:
    """Batches of sentences as a user encodes them, the longest ones together."""
    ordered = sorted(texts, key=len)
    for start in range(0, len(ordered), size):
        yield dict(
            tokenizer(
                ordered[start : start + size], padding=True, truncation=True, max_length=length, return_tensors="pt"
            )
        )
