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
    several = translate(["", *texts[:2]], batch_size=3, num_return_sequences=2)
    assert [rows[0]["translation_text"] for rows in several] == ["", *expected[:2]]
    assert [len(rows) for rows in several] == [2, 2, 2] and several[1][0] != several[1][1]
    with pytest.raises(ValueError, match=r"tokens are more than the encoder's max_position_embeddings=64; truncate"):
        translate("der Hund " * 50)
    assert translate("der Hund " * 50, truncation=True, max_new_tokens=2)["translation_text"]
    assert translate([]) == []
    with pytest.raises(ValueError, match="no valid Unicode"):
        translate("der \ud800 Hund")
    with pytest.raises(TypeError, match="a sentence must be a string, not 5"):
        translate(5)
    with pytest.raises(KeyError, match=r"removed|Unknown task"):  # this one can go when transformers has its own again
        pipeline("translation", model=str(tmp_path / "out"))
