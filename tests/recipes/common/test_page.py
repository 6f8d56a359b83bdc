"""Pages are safe to open, whatever the sentences are."""

from __future__ import annotations

from recipes.common.page import table


def test_sentences_cannot_become_markup() -> None:
    page = table([["<script>alert(1)</script>", "a & b"]], ["<b>"], [True])
    assert "<script>" not in page and "<th>&lt;b&gt;</th>" in page and "a &amp; b" in page
