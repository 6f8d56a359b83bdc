"""Losses over no items: 0, with finite gradients, in every head; and what the label −100 is left out of."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from macaron.bert import (
    AUTO_CLASSES,
    MacaronBertForMaskedLM,
    MacaronBertForPreTraining,
    MacaronBertForSequenceClassification,
)

IGNORED = -100
HEADS = {m.__name__.removeprefix("MacaronBertFor"): m for m in AUTO_CLASSES.values() if "For" in m.__name__}
CLASSES = {"problem_type": "single_label_classification", "num_labels": 3}
KINDS: dict[str, tuple[dict[str, Any], dict[str, tuple[int, ...] | int]]] = {
    # configuration; the shape of each label, B = −1 and T = −2
    "MaskedLM": ({}, {"labels": (-1, -2)}),
    "MaskedLM, sparse": ({"sparse_prediction": True}, {"labels": (-1, -2)}),
    "PreTraining": ({}, {"labels": (-1, -2), "next_sentence_label": (-1,)}),
    "PreTraining, sparse": ({"sparse_prediction": True}, {"labels": (-1, -2), "next_sentence_label": (-1,)}),
    "PreTraining, pairs alone": ({}, {"next_sentence_label": (-1,)}),
    "SequenceClassification": (CLASSES, {"labels": (-1,)}),
    "SequenceClassification, regression": ({"num_labels": 1}, {"labels": (-1,)}),
    "SequenceClassification, several values": ({"num_labels": 3, "problem_type": "regression"}, {"labels": (-1, 3)}),
    "SequenceClassification, several labels": (
        {"num_labels": 3, "problem_type": "multi_label_classification"},
        {"labels": (-1, 3)},
    ),
    "SequenceClassification, one logit": (
        {"num_labels": 1, "problem_type": "multi_label_classification"},
        {"labels": (-1,)},
    ),
    "TokenClassification": ({"num_labels": 3}, {"labels": (-1, -2)}),
    "QuestionAnswering": ({}, {"start_positions": (-1,), "end_positions": (-1,)}),
    "MultipleChoice": ({}, {"labels": (-1,)}),
}


def nothing(kind: str, sentences: int, length: int) -> dict[str, Tensor]:
    """Inputs whose labels say nothing."""
    shape = (sentences, 2, length) if kind == "MultipleChoice" else (sentences, length)
    ids = torch.randint(1, 50, shape)
    mask = torch.ones(shape, dtype=torch.long)
    mask[1:, ..., 2:] = 0  # padding, where there is a second sentence
    sizes = {-1: sentences, -2: length}
    labels = {name: torch.full([sizes.get(n, n) for n in shape], IGNORED) for name, shape in KINDS[kind][1].items()}
    return {"input_ids": ids, "attention_mask": mask, **labels}


# −100 is a value of a regression like any other, so that only no sentences are no items
COUNTS_ALL = ("SequenceClassification, regression", "SequenceClassification, several values")


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_loss_over_nothing_is_zero(kind, training, build):
    model = build(HEADS[kind.partition(",")[0]], **KINDS[kind][0]).train(training)
    for sentences in (0,) if kind in COUNTS_ALL else (0, 1, 3):
        for num_items_in_batch in (None, 0, torch.tensor(0), 5):
            loss = model(**nothing(kind, sentences, 5), num_items_in_batch=num_items_in_batch).loss
            assert loss.shape == () and loss.item() == 0.0
            loss.backward()
            assert not any(p.grad.any() for p in model.parameters() if p.grad is not None)  # of NaN, any() is true
            model.zero_grad()


@pytest.mark.parametrize("num_items_in_batch", [0, torch.tensor(0)])
@pytest.mark.parametrize("sparse", [True, False])
def test_an_update_of_no_items_changes_nothing(sparse, num_items_in_batch, build):
    model = build(MacaronBertForMaskedLM, sparse_prediction=sparse).train()
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    model(**nothing("MaskedLM", 2, 5), num_items_in_batch=num_items_in_batch).loss.backward()
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize(
    ("num_labels", "problem_type", "labels"),
    [
        (3, "single_label_classification", torch.tensor([1, -100, 2])),
        (3, "multi_label_classification", torch.tensor([[0, 1, 1], [-100, -100, -100], [1, 0, 0]])),
    ],
)
def test_an_ignored_label_is_as_a_sentence_that_is_not_there(num_labels, problem_type, labels, build, batch):
    model = build(MacaronBertForSequenceClassification, num_labels=num_labels, problem_type=problem_type)
    others = {name: t[[0, 2]] for name, t in batch.items()}
    torch.testing.assert_close(model(**batch, labels=labels).loss, model(**others, labels=labels[[0, 2]]).loss)
    items = int((labels != IGNORED).sum())
    total = model(**batch, labels=labels, num_items_in_batch=7).loss * 7
    torch.testing.assert_close(total, model(**batch, labels=labels).loss * items)


@pytest.mark.parametrize("values", [[0.5, -100.0, 2.0], [[0.5, 1.0], [-100.0, -100.0], [2.0, -100.0]]])
def test_a_value_of_minus_100_is_learned_like_any_other(values, build, batch):
    labels = torch.tensor(values)
    model = build(MacaronBertForSequenceClassification, num_labels=labels[0].numel(), problem_type="regression")
    out = model(**batch, labels=labels)
    torch.testing.assert_close(out.loss, (out.logits.view_as(labels) - labels).square().mean())


def test_a_pair_that_nobody_knows_takes_no_part(build, batch):
    model = build(MacaronBertForPreTraining)
    known = {name: t[[0, 2]] for name, t in batch.items()}
    loss = model(**batch, next_sentence_label=torch.tensor([1, -100, 0])).loss
    torch.testing.assert_close(loss, model(**known, next_sentence_label=torch.tensor([1, 0])).loss)
