"""The tokenizer by itself: both sides, saving, pickling, and files that are damaged."""

from __future__ import annotations

import json
import pickle

import pytest
from macaron.user_dir.portable import describe
from transformers import AutoTokenizer

from macaron.seq2seq import MacaronTokenizer
from macaron.seq2seq.conversion import convert
from macaron.text import Pieces, Words


@pytest.fixture(scope="module")
def folder(make_release, tmp_path_factory):
    out = tmp_path_factory.mktemp("converted") / "out"
    convert(describe(make_release(text={"joined_dictionary": False})), out)
    return out


def test_each_side_has_its_own_numbers(folder, texts):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(texts[0], text_target=texts[2])
    settings, pieces = tokenizer.settings, Pieces(tokenizer.settings, folder / "bpecodes")
    source = pieces.encode(Words(settings, "de").encode(texts[0])).split()
    target = pieces.encode(Words(settings, "en").training(texts[2])).split()
    vocab, target_vocab = tokenizer.get_vocab(), tokenizer.get_target_vocab()
    assert batch["input_ids"] == [*(vocab.get(piece, 3) for piece in source), 2]
    assert batch["labels"] == [*(target_vocab.get(piece, 3) for piece in target), 2]
    assert len(vocab) == len(tokenizer) == tokenizer.vocab_size != len(target_vocab)
    assert tokenizer(texts[0])["input_ids"] == batch["input_ids"]  # back to the source
    assert tokenizer.decode(batch["labels"], skip_special_tokens=True) == texts[2]
    assert tokenizer.decode(batch["input_ids"], skip_special_tokens=True, use_source_tokenizer=True) == texts[0]
    assert tokenizer.decode(batch["labels"]).endswith("</s>")
    assert tokenizer.decode([3, 10_000]) == "<unk> <unk>"
    assert tokenizer("")["input_ids"] == [2]
    padded = tokenizer(texts, padding=True, truncation=True, max_length=9)
    assert {len(row) for row in padded["input_ids"]} == {9}
    assert [row[-1] for row in padded["input_ids"]] == [2] * len(texts)


def test_saved_and_pickled(folder, texts, tmp_path):
    tokenizer = MacaronTokenizer.from_pretrained(folder)
    before = tokenizer(texts)["input_ids"]
    assert pickle.loads(pickle.dumps(tokenizer))(texts)["input_ids"] == before
    tokenizer.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)  # where it is already
    assert AutoTokenizer.from_pretrained(tmp_path)(texts)["input_ids"] == before
    assert (tmp_path / "bpecodes").read_bytes() == (folder / "bpecodes").read_bytes()
    assert str(folder) not in (tmp_path / "tokenizer_config.json").read_text()


def test_damaged_files(folder, tmp_path):
    MacaronTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    codes = (tmp_path / "bpecodes").read_text(encoding="utf-8")
    (tmp_path / "bpecodes").write_text(codes[: codes.index("\n", 99) + 1], encoding="utf-8")  # a whole line's end
    with pytest.raises(ValueError, match=r"are not those that were saved with it; copy the tokenizer's folder again"):
        AutoTokenizer.from_pretrained(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert len(settings.pop("checksum")) == 64
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))  # on purpose, or by an earlier version
    AutoTokenizer.from_pretrained(tmp_path)
    for content, message in [
        ("[", "source_vocab.json: no JSON"),
        ('{"a": 1}', "not a list of symbols"),
        ('["a", "b"]', "does not begin with <s> <pad> </s> <unk>"),
    ]:
        (tmp_path / "source_vocab.json").write_text(content)
        with pytest.raises(ValueError, match=message):
            AutoTokenizer.from_pretrained(tmp_path)
    (tmp_path / "source_vocab.json").write_text(json.dumps(["<s>", "<pad>", "</s>", "<unk>", "a"]))
    (tmp_path / "bpecodes").unlink()
    with pytest.raises(ValueError, match="ask for subword_nmt, but bpecodes is missing"):
        AutoTokenizer.from_pretrained(tmp_path)
    (tmp_path / "source_vocab.json").unlink()
    with pytest.raises(ValueError, match=r"source_vocab\.json is missing; copy"):
        AutoTokenizer.from_pretrained(tmp_path)
