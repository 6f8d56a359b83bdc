"""Which examples meet in an update. Decided by seed and epoch alone, not by processes or micro-batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from ..common.errors import RecipeError
from .data import TaskSplit

IGNORED = -100  # label of examples that only fill a micro-batch; what Trainer leaves out of its counts too
POOL = 50  # batches' worth of examples that are sorted by length together


class Item(NamedTuple):
    row: int
    swapped: bool = False  # the second sentence first
    counted: bool = True


class Batches(Sampler[list[Item]]):
    """Micro-batches of one process.

    Every epoch is shuffled, sorted by length within pools so that little is padding, and cut into the batches of
    the updates. Each batch is then dealt out in equal micro-batches to `world` processes × `accumulate` steps; a
    short last one is filled up with examples that do not count. So the updates are the same for every such number.

    Args:
        lengths: tokens per example.
        batch_size: examples per update, a multiple of world · accumulate.
        swap: exchange the sentences of a random half of the examples, anew in every epoch.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        seed: int,
        *,
        swap: bool = False,
        world: int = 1,
        rank: int = 0,
        accumulate: int = 1,
    ):
        if batch_size % (world * accumulate):
            raise RecipeError(
                f"batch size {batch_size} must be a multiple of {world} processes × {accumulate} accumulated "
                f"micro-batches; change --batch-size, --accumulate or the number of processes"
            )
        self.lengths = np.asarray(lengths)
        self.batch_size, self.seed, self.swap = batch_size, seed, swap
        self.world, self.rank, self.accumulate = world, rank, accumulate
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    @property
    def updates(self) -> int:
        return -(-len(self.lengths) // self.batch_size)

    def __len__(self) -> int:
        return self.updates * self.accumulate

    def batches(self) -> list[list[Item]]:
        """The batches of this epoch's updates."""
        generator = np.random.default_rng([self.seed, self.epoch])
        n, size = len(self.lengths), self.batch_size
        order = generator.permutation(n)
        swapped = generator.random(n) < 0.5 if self.swap else np.zeros(n, dtype=bool)
        pools = [order[start : start + POOL * size] for start in range(0, n, POOL * size)]
        ordered = np.concatenate([pool[np.argsort(self.lengths[pool], kind="stable")] for pool in pools])
        batches = [ordered[start : start + size] for start in range(0, n, size)]
        return [
            [Item(int(row), bool(swapped[row])) for row in batches[place]]
            for place in generator.permutation(len(batches))
        ]

    def __iter__(self) -> Iterator[list[Item]]:
        micro = self.batch_size // (self.world * self.accumulate)
        for batch in self.batches():
            batch = batch + [batch[0]._replace(counted=False)] * (self.batch_size - len(batch))
            for step in range(self.accumulate):
                start = (step * self.world + self.rank) * micro
                yield batch[start : start + micro]


class Loader(DataLoader):
    """Tells its batches which epoch it is: what Trainer calls before each."""

    def set_epoch(self, epoch: int) -> None:
        self.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]


class Examples(torch.utils.data.Dataset):
    """A split as (first sentence, second or None, label or None), by Item or by row."""

    def __init__(self, split: TaskSplit):
        self.split = split

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, key: Item | int) -> tuple[str, str | None, float | None]:
        item = key if isinstance(key, Item) else Item(key)
        first = self.split.first[item.row]
        second = None if self.split.second is None else self.split.second[item.row]
        if item.swapped:
            assert second is not None
            first, second = second, first
        label = None if self.split.labels is None else self.split.labels[item.row].item()
        return first, second, label if item.counted else IGNORED


class Collator:
    """Texts → what the model reads, padded to the longest of the batch, and labels where there are any."""

    def __init__(self, tokenizer: Any, max_length: int, label_dtype: torch.dtype):
        self.tokenizer, self.max_length, self.label_dtype = tokenizer, max_length, label_dtype

    def encode(self, first: list[str], second: list[str | None], **options: Any) -> Any:
        pairs = None if second[0] is None else second
        return self.tokenizer(first, pairs, truncation=True, max_length=self.max_length, **options)

    def __call__(self, rows: list[tuple[str, str | None, float | None]]) -> dict[str, torch.Tensor]:
        first, second, labels = zip(*rows, strict=True)
        inputs = dict(self.encode(list(first), list(second), padding=True, return_tensors="pt"))
        if labels[0] is not None:
            inputs["labels"] = torch.tensor(labels, dtype=self.label_dtype)
        return inputs
