"""Pieces of a report that opens without a network: tables, figures, one style."""

from __future__ import annotations

import base64
import html
import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def png(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; width: 100% } td, th { border-bottom: 1px solid #ddd; padding: .3rem .6rem;
text-align: left; vertical-align: top } img { max-width: 100% } .wrong { background: #fff4e5 }
code, pre { font-size: .85em; white-space: pre-wrap; overflow-wrap: anywhere } .big { font-size: 2rem }
"""


def table(rows: list[list[str]], head: list[str] | None = None, marks: list[bool] | None = None) -> str:
    """Cells are escaped here, so that no sentence can become markup."""
    lines = ["<table>"]
    if head:
        lines.append("<tr>" + "".join(f"<th>{html.escape(cell)}</th>" for cell in head) + "</tr>")
    for index, row in enumerate(rows):
        style = ' class="wrong"' if marks and marks[index] else ""
        lines.append(f"<tr{style}>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>")
    return "\n".join([*lines, "</table>"])
