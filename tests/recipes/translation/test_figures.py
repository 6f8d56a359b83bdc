"""Figures of any run: one without a curve yet, and one without a sentence that fits."""

from __future__ import annotations

from recipes.common.report import Figure
from recipes.translation.figures import attention_sample, curve_figure


def test_attention_is_shown_for_the_longest_correct_sentence_that_fits() -> None:
    def sample(words: int, right: bool) -> dict[str, str]:
        return {"source": " ".join(["wort"] * words), "reference": "x", "hypothesis": "x" if right else "y"}

    assert attention_sample([sample(3, True), sample(9, True), sample(12, False), sample(30, True)]) == sample(9, True)
    assert attention_sample([sample(3, False), sample(9, False)]) == sample(9, False)
    assert attention_sample([sample(40, True), sample(30, False)]) == sample(30, False)


def test_a_curve_without_points_is_drawn() -> None:
    assert Figure("curves", curve_figure({"train": [], "valid": [(10, 2.0), (20, 1.0)]})).png.startswith(b"\x89PNG")
