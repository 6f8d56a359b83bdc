"""README says what is true: its layer example runs, its names exist, its table is the code's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import macaron

macaron.register_fairseq()


@pytest.fixture(scope="module")
def readme(project_root: Path) -> str:
    return (project_root / "README.md").read_text(encoding="utf-8")


def test_the_layer_example_runs(readme: str) -> None:
    (example,) = (b for b in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "ParticleLayer" in b)
    assert len(example.strip().splitlines()) <= 10
    names: dict[str, object] = {}
    exec(example, names)  # our own text
    y = names["y"]
    assert isinstance(y, torch.Tensor) and y.shape == (20, 4, 512) and y.isfinite().all()


def test_the_bert_example_runs(readme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = (b for b in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "MacaronBertConfig" in b)
    assert len(example.strip().splitlines()) <= 10
    monkeypatch.chdir(tmp_path)
    exec(example, {})  # our own text
    assert (tmp_path / "my-bert" / "model.safetensors").is_file()
    assert (tmp_path / "my-bert-for-the-hub" / "modeling_macaron_bert.py").is_file()


def test_the_recipes_exist(readme: str, project_root: Path) -> None:
    names = set(re.findall(r"recipes\.(\w+)", readme))
    assert {"iwslt14_de_en", "wmt14_en_de", "compare", "bert_pretrain", "glue", "bench"} <= names
    for name in names:
        assert (project_root / "recipes" / name / "__main__.py").is_file(), name


def test_a_scheme_of_ones_own_is_what_it_says(readme: str) -> None:
    expression = re.search(r"`Splitting\.parse\(\"(.*)\"\)`", readme)
    assert expression is not None
    assert macaron.Splitting.parse(expression[1]).order == 2


def test_the_architectures_are_registered_with_the_sizes_of_the_table(readme: str) -> None:
    from macaron.user_dir.architectures import LANGUAGE_MODELS, TRANSLATION

    rows = re.findall(r"^\| `(macaron_\w+)`.*? \| (\d+) / (\d+) / (\d+) / (\d+)\+\d+ \| pre \|$", readme, re.MULTILINE)
    assert {name for name, *_ in rows} == {name for name in TRANSLATION if name.startswith("macaron_")}
    for name, *sizes in rows:
        architecture = TRANSLATION[name]
        keys = ("encoder_embed_dim", None, "encoder_attention_heads", "encoder_layers")
        expected = [architecture.ffn if key is None else architecture.defaults[key] for key in keys]
        assert list(map(int, sizes)) == expected, name
    for name in LANGUAGE_MODELS:
        assert name == "macaron_lm" or f"`{name.removeprefix('macaron_lm')}`" in readme, name


def test_files_and_commands_that_it_names_exist(readme: str, project_root: Path) -> None:
    tree = re.search(r"```text\n(macaron/dynamics.*?)```", readme, re.DOTALL)
    assert tree is not None
    folders = re.findall(r"^(\S+/)", tree[1], re.MULTILINE)
    links = re.findall(r"\]\(([A-Za-z.]+)\)", readme)
    targets = re.findall(r"make ([a-z]+)", readme)
    assert folders and links and targets
    for folder in folders:
        assert (project_root / folder).is_dir(), folder
    for link in links:
        assert (project_root / link).exists(), link
    makefile = (project_root / "Makefile").read_text(encoding="utf-8")
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
