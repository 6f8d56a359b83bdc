"""README is a front door: short lines, examples of ten lines, figures of this project; names and tables are the code's.

Its snippets are run, and its commands parsed, by test_docs.py.
"""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

import macaron

macaron.register_fairseq()


@pytest.fixture(scope="module")
def readme(project_root: Path) -> str:
    return (project_root / "README.md").read_text(encoding="utf-8")


def page(project_root: Path, name: str) -> str:
    return (project_root / "docs" / name).read_text(encoding="utf-8")


def test_no_line_is_longer_than_120_columns(readme: str) -> None:
    assert [line for line in readme.splitlines() if len(line) > 120] == []


def test_it_is_short_and_has_what_a_front_door_has(readme: str) -> None:
    assert len(readme.splitlines()) <= 140
    sections = re.findall(r"^## (.*)$", readme, re.MULTILINE)
    assert sections[:2] == ["Install", "Two commands"] and "Results" in sections
    assert len([name for name in sections if name.startswith("Ten lines: ")]) == 3
    assert len(re.findall(r"^\|---\|", readme, re.MULTILINE)) == 1  # one table


def test_its_examples_are_of_ten_lines(readme: str) -> None:
    examples = re.findall(r"^## Ten lines.*?\n```\w+\n(.*?)```", readme, re.DOTALL | re.MULTILINE)
    assert len(examples) == 3
    for example in examples:
        assert len(example.strip().splitlines()) <= 10


def test_its_figures_are_made_by_scripts_of_the_project(readme: str, project_root: Path, tmp_path: Path) -> None:
    figures = re.findall(r"!\[.*?\]\((.*?)\)", readme)
    assert len(figures) == 2
    for name in figures:
        assert (project_root / name).stat().st_size > 10_000
        assert (project_root / name).with_suffix(".py").is_file()
    runpy.run_path(str(project_root / "docs/figures/schemes.py"))["draw"](tmp_path / "schemes.png")
    assert (tmp_path / "schemes.png").stat().st_size > 10_000


def test_what_its_table_says_of_results_stands_where_it_leads(readme: str, project_root: Path) -> None:
    """Each figure of a row is found in the file that the row links."""
    rows = re.findall(r"^\| \[.*?\]\(([\w./]+)(?:#[\w-]+)?\).*?\| (.*) \|$", readme, re.MULTILINE)
    assert len(rows) >= 6
    for link, said in rows:
        text = (project_root / link).read_text(encoding="utf-8").replace("−", "-")
        numbers = re.findall(r"\d+\.\d+", said)
        assert numbers
        for number in numbers:
            assert number in text, f"{link} does not have {number}"


def test_the_recipes_exist(readme: str, project_root: Path) -> None:
    names = set(re.findall(r"recipes\.(\w+)", readme))
    assert {"iwslt14_de_en", "wmt14_en_de", "compare", "bert_pretrain", "glue", "bench"} <= names
    for name in names:
        assert (project_root / "recipes" / name / "__main__.py").is_file(), name


def test_a_scheme_of_ones_own_is_what_it_says(readme: str) -> None:
    expression = re.search(r"`Splitting\.parse\(\"(.*)\"\)`", readme)
    assert expression is not None
    assert macaron.Splitting.parse(expression[1]).order == 2


def test_the_architectures_are_registered_with_the_sizes_of_the_table(project_root: Path) -> None:
    from macaron.user_dir.architectures import LANGUAGE_MODELS, TRANSLATION

    text = page(project_root, "howto/fairseq.md")
    rows = re.findall(r"^\| `(macaron_\w+)`.*? \| (\d+) / (\d+) / (\d+) / (\d+)\+\d+ \| pre \|$", text, re.MULTILINE)
    assert {name for name, *_ in rows} == {name for name in TRANSLATION if name.startswith("macaron_")}
    for name, *sizes in rows:
        architecture = TRANSLATION[name]
        keys = ("encoder_embed_dim", None, "encoder_attention_heads", "encoder_layers")
        expected = [architecture.ffn if key is None else architecture.defaults[key] for key in keys]
        assert list(map(int, sizes)) == expected, name
    for name in LANGUAGE_MODELS:
        assert name == "macaron_lm" or f"`{name.removeprefix('macaron_lm')}`" in text, name


def test_files_and_commands_that_it_names_exist(readme: str, project_root: Path) -> None:
    tree = re.search(r"```text\n(macaron/dynamics.*?)```", page(project_root, "structure.md"), re.DOTALL)
    assert tree is not None
    folders = re.findall(r"^(\S+/)", tree[1], re.MULTILINE)
    links = re.findall(r"\]\(([\w./]+)(?:#[\w-]+)?\)", readme)
    targets = re.findall(r"(?:^|`)make ([a-z]+)", readme, re.MULTILINE)
    assert folders and len(links) > 15 and {"demo", "test", "docs"} <= set(targets)
    for folder in folders:
        assert (project_root / folder).is_dir(), folder
    for link in links:
        assert (project_root / link).exists(), link
    makefile = (project_root / "Makefile").read_text(encoding="utf-8")
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
