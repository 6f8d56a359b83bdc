"""The card of a fine-tuned model shows the k of its two-step rule, if it has one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from macaron.bert import MacaronBertConfig, MacaronBertForSequenceClassification
from recipes.glue.card import card
from recipes.glue.finetune import two_step
from recipes.glue.tasks import TASKS

SIZES: dict[str, Any] = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2}
RESULT: dict[str, Any] = {"scores": {}, "setting": {"lr": 1e-4}, "seed": 1, "notes": ["a note"]}


@pytest.mark.parametrize(
    ("k", "words"), [(0.25, "Zero-stable in every layer"), (-1.5, "NOT zero-stable in encoder la")]
)
def test_the_k_of_the_model_itself(k: float, words: str) -> None:
    model = MacaronBertForSequenceClassification(MacaronBertConfig(**SIZES, depth_rule="multistep"))
    torch.nn.init.constant_(model.get_parameter("macaron_bert.layers.rule.bias"), k)
    found = two_step(model)
    assert found == {"multistep": {"encoder": [k, k]}}
    text = card(TASKS["cola"], {**RESULT, **found})
    assert words in text and f"| encoder | 2 | {k:+.4f} | " in text and "* a note\n\nThe two-step rule" in text


def test_other_models_have_none() -> None:
    model = MacaronBertForSequenceClassification(MacaronBertConfig(**SIZES))
    assert two_step(model) == {}
    assert "two-step" not in card(TASKS["cola"], RESULT) and card(TASKS["cola"], RESULT).endswith("* a note\n")
