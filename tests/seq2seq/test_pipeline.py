"""The pipeline for translation, and that transformers' own is gone."""

from __future__ import annotations

import pytest
from macaron.user_dir.models.macaron import MacaronModel as FairseqModel
from macaron.user_dir.portable import describe
from transformers import pipeline

from macaron.seq2seq.conversion import convert
from macaron.seq2seq.pipeline import TASK, TranslationPipeline


def test_raw_text_to_raw_text(make_release, texts, tmp_path):
    release = make_release(share_all_embeddings=False)
    convert(describe(release), tmp_path / "out")
    translate = pipeline(TASK, model=str(tmp_path / "out"))
    assert isinstance(translate, TranslationPipeline)
    lines = [*texts, "", "\u200b "]
    expected = FairseqModel.from_pretrained(str(release)).translate(lines)
    assert [row["translation_text"] for row in translate(lines)] == expected
    assert [row["translation_text"] for row in translate(lines, batch_size=3)] == expected
    greedy = translate(texts[0], num_beams=1, max_new_tokens=3)
    assert len(greedy["translation_text"]) < len(expected[0])
    with pytest.raises(TypeError, match="a sentence must be a string, not 5"):
        translate(5)
    with pytest.raises(KeyError, match=r"removed|Unknown task"):  # this one can go when transformers has its own again
        pipeline("translation", model=str(tmp_path / "out"))
