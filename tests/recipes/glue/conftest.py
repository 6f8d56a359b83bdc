"""A tiny stock BERT, and GLUE in the official layout with a few made-up lines per file."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

WORDS = [
    "good", "bad", "film", "old", "new", "man", "dog", "sees", "runs", "the", "a", "big", "red", "never",
    "None", "null", "house", '"', "green",
]  # fmt: skip


def sentence(generator: random.Random) -> str:
    return " ".join(generator.choices(WORDS, k=generator.randint(3, 9)))


def write_split(path: Path, columns: list[str], rows: list[list[str]], header: bool = True, mark: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["\t".join(columns)] * header + ["\t".join(row) for row in rows]
    path.write_text(mark + "".join(line + "\n" for line in lines), encoding="utf-8")


@pytest.fixture(scope="session")
def tiny_glue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CoLA, MRPC, STS-B, MNLI and AX: 50 lines to train on, 20 of dev, 12 of test. The label shows in the words."""
    folder = tmp_path_factory.mktemp("glue_data")
    generator = random.Random(4)
    for split, count in {"train": 50, "dev": 20}.items():
        rows = [["src", str(n % 2), "", ("good " if n % 2 else "bad ") + sentence(generator)] for n in range(count)]
        write_split(folder / f"CoLA/{split}.tsv", [], rows, header=False)
        rows = [[str(n % 2), "1", "2", sentence(generator), ("red " * (n % 2)) + "dog"] for n in range(count)]
        write_split(
            folder / f"MRPC/{split}.tsv", ["Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"], rows, mark="\ufeff"
        )
        rows = [[str(n), sentence(generator), "big " * (n % 6) + "a", f"{n % 6:.3f}"] for n in range(count)]
        write_split(folder / f"STS-B/{split}.tsv", ["index", "sentence1", "sentence2", "score"], rows)
    labels = ["entailment", "neutral", "contradiction"]
    for split, count in {"train": 50, "dev_matched": 20, "dev_mismatched": 20}.items():
        rows = [[str(n), sentence(generator), WORDS[n % 3], "neutral", labels[n % 3]] for n in range(count)]
        write_split(folder / f"MNLI/{split}.tsv", ["index", "sentence1", "sentence2", "label1", "gold_label"], rows)
    for name in ("CoLA/test", "MRPC/test", "STS-B/test", "MNLI/test_matched", "MNLI/test_mismatched", "AX/diagnostic"):
        columns = {"C": ["index", "sentence"], "M": ["index", "#1 String", "#2 String"]}.get(name[0])
        if not columns or name.startswith("MNLI"):
            columns = ["index", "sentence1", "sentence2"]
        rows = [[str(n), *(sentence(generator) for _ in columns[1:])] for n in range(12)]
        write_split(folder / f"{name}.tsv", columns, rows)
    return folder


def save_bert(folder: Path, dropout: float) -> Path:
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    folder.mkdir(parents=True)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(word.lower() for word in WORDS)]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    BertTokenizer(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        max_position_embeddings=32,
    )
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def stock_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ordinary BERT without dropout, so that runs can be compared number by number."""
    return save_bert(tmp_path_factory.mktemp("models") / "stock_bert", dropout=0.0)


@pytest.fixture(scope="session")
def stock_bert_with_dropout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bert(tmp_path_factory.mktemp("models") / "stock_bert_with_dropout", dropout=0.1)
