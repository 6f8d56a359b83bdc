"""The report: everything in it, and nothing from outside."""

from __future__ import annotations

import re

import pytest

from recipes.common.workspace import read_json
from recipes.translation.report import bucket, length_figure, page


@pytest.fixture(scope="module")
def text(finished) -> str:
    return (finished.folder / "report" / "index.html").read_text(encoding="utf-8")


def test_it_opens_without_a_network(finished, text: str) -> None:
    assert not re.search(r'(src|href)="(?!data:image/png;base64,)', text) and text.count("<img") == 3
    assert "@import" not in text and "<script" not in text
    for name in ("curves", "length", "attention"):
        assert (finished.folder / "report" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_everything_is_in_it(finished, text: str) -> None:
    result = read_json(finished.folder / "report" / "result.json")
    for entry in result["scores"].values():
        assert entry["signature"] in text and f"{entry['low']:.2f} to {entry['high']:.2f}" in text
    assert sum(entry["sentences"] for entry in result["by_length"]) == 12
    assert len(result["samples"]) == 12
    assert [update for update, _ in result["learning_curve_bits_per_token"]["valid"]][-1] == 24
    for words in (
        "fairseq-hydra-train --config-dir",
        "macaron average",
        "fairseq-generate",
        "torch",
        "commit",
        "_24.pt",
    ):
        assert words in text, words
    assert result["environment"]["command"].startswith("python -m recipes.iwslt14_de_en")
    assert "Macaron (Strang–Marchuk splitting)" in text
    assert "<td>training pairs dropped</td><td>none</td>" in text


def test_buckets_of_length() -> None:
    entries = [{"from": 0, "to": 9, "sentences": 5, "BLEU": 3.0}, {"from": 60, "to": None, "sentences": 1, "BLEU": 0}]
    assert [bucket(entry) for entry in entries] == ["0–9", "≥ 60"]
    assert [bar.get_height() for bar in length_figure(entries).axes[0].patches] == [3.0, 0]


def test_the_two_step_rule_is_shown(finished, text: str) -> None:
    """Its k, its plot and the verdict; under another rule nothing of it."""
    assert "two-step" not in text and "multistep" not in read_json(finished.folder / "report" / "result.json")
    result = dict(read_json(finished.folder / "report" / "result.json"))
    settings = {**result["settings"], "model.depth_rule": "multistep"}
    text = page({**result, "settings": settings, "multistep": {"encoder": [0.125], "decoder": [1.5]}}).html()
    assert 'alt="multistep"' in text and "<td>+0.1250</td><td>yes</td>" in text
    assert "NOT zero-stable in decoder layer 1 (k = +1.500)" in text
    assert "Macaron (Strang–Marchuk splitting), depth rule multistep" in text
