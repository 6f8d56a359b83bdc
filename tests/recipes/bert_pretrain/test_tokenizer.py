from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from recipes.bert_pretrain import tokenizer
from recipes.common.errors import RecipeError

TEXT = ["The cat sat on the mat.\nThe dog sat on the log.", "Cats and dogs, mats and logs; été."]


def trained(lowercase: bool = True, size: int = 50) -> Any:
    return tokenizer.train(lambda: [TEXT] * 3, size, lowercase, max_length=32)


def test_specials_and_segments_as_in_bert() -> None:
    t = trained()
    assert t.convert_ids_to_tokens(range(5)) == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pair = t("the cat", "été")
    assert t.convert_ids_to_tokens(pair["input_ids"])[0] == "[CLS]"
    first = len(t("the cat")["input_ids"])
    second = len(t("été", add_special_tokens=False)["input_ids"]) + 1
    assert pair["token_type_ids"] == [0] * first + [1] * second
    assert [i for i, id in enumerate(pair["input_ids"]) if id == t.sep_token_id] == [first - 1, first + second - 1]
    assert t.decode(t("The CAT sat.")["input_ids"], skip_special_tokens=True) == "the cat sat."
    assert t.model_max_length == 32 and len(t) == 50 and t.is_fast
    assert t.mask_token_id == t("[MASK]", add_special_tokens=False)["input_ids"][0]


@pytest.mark.parametrize("lowercase", [True, False])
def test_saved_and_loaded_it_is_the_same(tmp_path: Path, lowercase: bool) -> None:
    from transformers import AutoTokenizer, BertTokenizer

    t = trained(lowercase)
    t.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert isinstance(loaded, BertTokenizer)
    text = ("The Cat, été [MASK]", "dogs xyz 漢")
    assert dict(loaded(*text)) == dict(t(*text))
    assert loaded.get_vocab() == t.get_vocab()
    assert ("T" in t.get_vocab()) is not lowercase


def test_training_is_reproducible() -> None:
    """Between processes too, where hash tables have other orders."""
    first = trained().get_vocab()
    assert all(trained().get_vocab() == first for _ in range(5))
    assert [piece for piece, id in sorted(first.items(), key=lambda item: item[1])][5:8] == ["##t", "##a", "##e"]


def test_too_little_text() -> None:
    with pytest.raises(RecipeError, match=r"vocab_size is 5000 but the text gives .* choose a --vocab-size of"):
        trained(size=5000)
