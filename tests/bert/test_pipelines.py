"""transformers' pipelines."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoTokenizer, BertTokenizer, pipeline

from macaron.bert import MacaronBertForMaskedLM, MacaronBertForSequenceClassification

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghij"]


F32 = {"abs": 1e-6}  # probabilities in float32, alone or in a padded batch


@pytest.fixture
def folder(build, tmp_path):
    """`folder(Model, **overrides)`: where a model and a tokenizer lie."""

    def make(model, **overrides):
        build(model, vocab_size=len(WORDS), **overrides).save_pretrained(tmp_path)
        (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
        BertTokenizer(vocab=str(tmp_path / "vocab.txt"), model_max_length=40).save_pretrained(tmp_path)
        return str(tmp_path)

    return make


def test_fill_mask(folder):
    fill = pipeline("fill-mask", model=folder(MacaronBertForMaskedLM))
    assert isinstance(fill.model, MacaronBertForMaskedLM)
    found = fill(["a b [MASK] d", "a [MASK]"], top_k=len(WORDS), batch_size=2)
    ids = fill.tokenizer("a b [MASK] d", return_tensors="pt")
    expected = fill.model(**ids).logits[0, 3].softmax(-1)
    assert {entry["token"]: pytest.approx(entry["score"], **F32) for entry in found[0]} == dict(
        enumerate(expected.tolist())
    )
    assert found[0][0]["token_str"] == WORDS[expected.argmax()]


def test_text_classification(folder):
    names = {0: "bad", 1: "good", 2: "odd"}
    path = folder(MacaronBertForSequenceClassification, id2label=names, label2id={v: k for k, v in names.items()})
    classify = pipeline("text-classification", model=path, top_k=None)
    texts = ["a b c d e", "b"]
    found = classify(texts, batch_size=2)
    for text, scores in zip(texts, found, strict=True):
        logits = classify.model(**AutoTokenizer.from_pretrained(path)(text, return_tensors="pt")).logits[0]
        expected = dict(zip(names.values(), logits.softmax(-1).tolist(), strict=True))
        assert {entry["label"]: entry["score"] for entry in scores} == pytest.approx(expected, **F32)
    pair = classify({"text": "a b", "text_pair": "c"})
    assert sum(entry["score"] for entry in pair) == pytest.approx(1.0)
    assert torch.get_default_dtype() == torch.float32
