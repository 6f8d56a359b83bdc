"""trajectories.html: one file that needs no network. Whatever is text of the user is data there, never markup."""

from __future__ import annotations

import base64
import html
import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from .measure import Array, Sighted

TEMPLATE = Path(__file__).with_name("page.html")


def render(shown: list[Sighted], about: list[tuple[str, str]], figure: bytes, title: str) -> str:
    """The page.

    Args:
        shown: the sentences that can be chosen there.
        about: rows of how it was made.
        figure: layers.png.
        title: of the model.
    """
    facts = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in about)
    values = {
        "title": html.escape(title),
        "figure": base64.b64encode(figure).decode("ascii"),
        "facts": f"<table>{facts}</table>",
        "data": in_script({"views": [view(s) for s in shown]}),
    }
    # all at once, so that nothing in a value is taken for a place
    return re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], TEMPLATE.read_text(encoding="utf-8"))


def in_script(content: Any) -> str:
    """JSON that cannot end the element that it stands in."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def view(s: Sighted) -> dict[str, Any]:
    return {
        "line": s.line,
        "side": s.side,
        "text": " ".join(s.text.replace("@@ ", "").split())[:200],
        "tokens": [plain(token) for token in s.tokens],
        "pieces": s.tokens,
        "substeps": [[layer, flow, round(step, 4)] for layer, flow, step in s.substeps],
        "planes": {
            name: {"points": rounded(points), "explained": rounded(explained)}
            for name, (points, explained) in s.planes.items()
        },
        **{name: rounded(s.values[name]) for name in ("length", "speed", "angle")},
        "lens": None if s.words is None else [[plain(word) for word in row] for row in s.words],
        "probability": None if s.words is None else rounded(s.values["lens_probability"]),
    }


def plain(piece: str) -> str:
    """A piece as one reads it: where a word goes on beyond it, a middle dot."""
    if piece.startswith("▁"):  # sentencepiece: a word begins
        return piece[1:] or "▁"
    if piece.startswith("##") and len(piece) > 2:  # WordPiece: a word goes on
        return "·" + piece[2:]
    if piece.endswith("@@") and len(piece) > 2:  # subword-nmt: the word goes on
        return html.unescape(piece[:-2]) + "·"
    return html.unescape(piece)  # Moses escapes what is markup


def rounded(values: Array) -> Any:
    """Lists of numbers with 5 digits, and None for what is no finite number."""
    if values.ndim:
        return [rounded(part) for part in values]
    return float(f"{values:.5g}") if np.isfinite(values) else None
