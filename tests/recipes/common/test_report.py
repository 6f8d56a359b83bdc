"""A report is safe to open, whatever the sentences are, and needs nothing but itself."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import pytest
from matplotlib.figure import Figure as Drawing

from recipes.common.report import Figure, Report, Table, Text

HOSTILE = "<script>alert('|')</script> & {{ 7 * 7 }}"


def drawn() -> Drawing:
    drawing = Drawing(figsize=(1, 1))
    drawing.subplots().plot([0, 1], [0, 1])
    return drawing


class Reader(HTMLParser):
    """The text of a page, and what it would fetch."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text, self.tags, self.fetched = "", set[str](), list[str]()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.fetched += [
            value or "" for name, value in attrs if name in ("src", "href") and "data:" not in (value or "")
        ]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def report() -> Report:
    parts = [Text(HOSTILE, style) for style in ("plain", "big", "warning", "subheading", "item", "item", "code")]
    table = Table([[HOSTILE, "1"], ["a\nb", "2"]], [HOSTILE, "n"], [True, False])
    return Report(HOSTILE, [*parts]).section(HOSTILE, table, Figure("curves", drawn(), HOSTILE))


def test_sentences_cannot_become_markup(report: Report) -> None:
    page = Reader(report.html())
    assert "script" not in page.tags and page.fetched == []
    assert page.text.count(HOSTILE) == 12  # title, its heading, 7 texts, a heading, 2 cells
    markdown = report.markdown()
    assert markdown.count("<script>") == 1 and f"```text\n{HOSTILE}\n```" in markdown
    assert "| a b | 2 |" in markdown.splitlines()
    assert "| &lt;script>alert('\\|')&lt;/script> & {{ 7 * 7 }} | 1 |" in markdown.splitlines()


def test_a_bar_behind_a_backslash_ends_no_cell() -> None:
    """As GitHub reads it, two backslashes are one, and a bar after them is bare."""
    assert Table([[r"a\| b"], [r"c\\|"], [r"d\e"]]).markdown().splitlines()[2:] == [
        r"| a\\\| b |", r"| c\\\\\| |", r"| d\e |",
    ]  # fmt: skip


def test_a_fence_of_markdown_cannot_be_closed_from_inside() -> None:
    assert Text("a\n```\nb", "code").markdown() == "````text\na\n```\nb\n````"


def test_marked_rows_are_shaded() -> None:
    html = Report("r", [Table([["a"], ["b"]], marks=[False, True])]).html()
    assert '<tr><td>a</td></tr>\n<tr class="wrong"><td>b</td></tr>' in html
    with pytest.raises(ValueError, match="zip"):
        Report("r", [Table([["a"], ["b"]], marks=[True])]).html()


def test_a_section_without_parts_has_no_heading() -> None:
    assert Report("r").section("nothing").parts == []


def test_an_unknown_style_is_refused() -> None:
    with pytest.raises(ValueError, match="style 'loud': choose one of plain, big"):
        Text("x", "loud")


def test_written(report: Report, tmp_path: Path) -> None:
    paths = report.write(tmp_path / "report", "index.html", "report.md")
    assert [path.name for path in paths] == ["index.html", "report.md", "curves.png"]
    assert paths == [path for path in paths if path.is_file()] and len(list(paths[0].parent.iterdir())) == 3
    assert paths[2].read_bytes().startswith(b"\x89PNG") and "(curves.png)" in paths[1].read_text()
