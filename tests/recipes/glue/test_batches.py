"""The updates do not depend on processes or micro-batches; every example comes once an epoch."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
import torch

from recipes.common.errors import RecipeError
from recipes.glue.batches import IGNORED, Batches, Collator, Examples, Item
from recipes.glue.data import TaskSplit
from recipes.glue.finetune import TaskLoss
from recipes.glue.tasks import TASKS

LENGTHS = np.random.default_rng(0).integers(5, 60, size=203).tolist()


def updates(world: int, accumulate: int, epoch: int = 0) -> list[list[Item]]:
    """What the processes see together, update by update."""
    samplers = [
        Batches(LENGTHS, 16, 7, swap=True, world=world, rank=rank, accumulate=accumulate) for rank in range(world)
    ]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    streams = [list(sampler) for sampler in samplers]
    assert {len(stream) for stream in streams} == {len(samplers[0])}
    steps = [[item for stream in streams for item in stream[step]] for step in range(len(streams[0]))]
    return [list(itertools.chain(*steps[at : at + accumulate])) for at in range(0, len(steps), accumulate)]


@pytest.mark.parametrize(("world", "accumulate"), [(1, 1), (2, 1), (1, 4), (2, 2), (4, 4)])
def test_same_updates_however_they_are_dealt(world: int, accumulate: int) -> None:
    reference = Batches(LENGTHS, 16, 7, swap=True).batches()
    seen = [[item for item in batch if item.counted] for batch in updates(world, accumulate)]
    assert seen == reference
    assert Counter(item.row for batch in seen for item in batch) == Counter(range(len(LENGTHS)))


def test_epochs_and_seeds_differ_and_half_is_swapped() -> None:
    first, second = updates(1, 1), updates(1, 1, epoch=1)
    assert first != second and first == updates(1, 1)
    share = np.mean([item.swapped for batch in first for item in batch])
    assert 0.35 < share < 0.65
    assert not any(item.swapped for batch in Batches(LENGTHS, 16, 7).batches() for item in batch)


def test_batches_hold_sentences_of_like_length() -> None:
    spread = [np.ptp([LENGTHS[item.row] for item in batch]) for batch in Batches(LENGTHS, 16, 7).batches()]
    assert np.mean(spread) < 10


def test_batch_size_must_divide() -> None:
    with pytest.raises(RecipeError, match="16 must be a multiple of 3 processes × 1"):
        Batches(LENGTHS, 16, 7, world=3)


def test_examples_swap_and_hide_labels() -> None:
    examples = Examples(TaskSplit(["a", "b"], ["c", "d"], np.array([1, 0])))
    assert examples[Item(0)] == ("a", "c", 1) and examples[1] == ("b", "d", 0)
    assert examples[Item(0, swapped=True)] == ("c", "a", 1)
    assert examples[Item(1, counted=False)] == ("b", "d", IGNORED)


def test_collator_makes_what_the_model_reads(stock_bert) -> None:  # type: ignore[no-untyped-def]
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(stock_bert)
    batch = Collator(tokenizer, 8, torch.float32)([("the dog", "a man sees", 2.5), ("good", "red " * 20, 0.0)])
    assert tokenizer.decode(batch["input_ids"][0]) == "[CLS] the dog [SEP] a man sees [SEP]"
    assert batch["input_ids"].shape == (2, 8) and batch["token_type_ids"][0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert batch["labels"].tolist() == [2.5, 0.0]
    single = Collator(tokenizer, 8, torch.long)([("the dog", None, 1), ("a", None, 0)])
    assert single["attention_mask"].sum(1).tolist() == [4, 3] and single["labels"].dtype == torch.long


@pytest.mark.parametrize("name", ["cola", "stsb", "mnli"])
def test_loss_of_parts_adds_up_to_the_loss_of_the_whole(name: str) -> None:
    """Σ over micro-batches of loss(part, N) = loss(whole), fillers and all; by the textbook formula."""
    task, loss = TASKS[name], TaskLoss(TASKS[name])
    logits = torch.randn(7, task.num_labels)
    labels = {"cola": torch.tensor([1.0, 0, 1, 1, 0, 0, 1]), "stsb": torch.rand(7) * 5}.get(name, torch.arange(7) % 3)
    whole = loss({"logits": logits}, labels)
    parts = [loss({"logits": logits[rows]}, labels[rows], 7) for rows in (slice(0, 3), slice(3, 7))]
    torch.testing.assert_close(sum(parts), whole)
    filled = torch.cat([labels, torch.full((2,), IGNORED, dtype=labels.dtype)])
    torch.testing.assert_close(loss({"logits": torch.cat([logits, torch.randn(2, task.num_labels)])}, filled), whole)
    expected = {
        "cola": lambda: torch.nn.functional.binary_cross_entropy_with_logits(logits[:, 0], labels),
        "stsb": lambda: torch.nn.functional.mse_loss(logits[:, 0], (labels - 3) / 2),
        "mnli": lambda: torch.nn.functional.cross_entropy(logits, labels),
    }[name]()
    torch.testing.assert_close(whole, expected)


def test_a_micro_batch_of_fillers_alone_has_no_gradient() -> None:
    for name in ("cola", "stsb", "mnli"):
        logits = torch.randn(2, TASKS[name].num_labels, requires_grad=True)
        labels = torch.full((2,), IGNORED, dtype=torch.long if name == "mnli" else torch.float32)
        TaskLoss(TASKS[name])({"logits": logits}, labels, 5).backward()
        assert logits.grad is not None and not logits.grad.any()
