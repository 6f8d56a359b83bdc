"""What a learned horizon saves: what is counted and timed, through the command and beside sentences one by one."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, BertTokenizer

from macaron.bert import MacaronBertConfig, MacaronBertForSequenceClassification
from recipes.bench import horizon
from recipes.bench.__main__ import main

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c"]
STEPS = 4


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model whose policy stops sentences at different times, in a folder as `recipes.glue --save-model` leaves it."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    BertTokenizer(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(1)
    config = MacaronBertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=STEPS, num_attention_heads=2, horizon="learned",
        max_position_embeddings=16, initializer_range=1.0,
    )  # fmt: skip
    net = MacaronBertForSequenceClassification(config)
    for name, value in net.macaron_bert.policy.named_parameters():
        torch.nn.init.normal_(value) if "weight" in name else torch.nn.init.zeros_(value)
    net.save_pretrained(folder)
    return folder


@pytest.fixture
def glue(tmp_path: Path) -> Path:
    (tmp_path / "glue" / "CoLA").mkdir(parents=True)
    lines = [f"src\t{n % 2}\t\t" + " ".join("abc"[(n * k) % 3] for k in range(2 + n % 7)) for n in range(20)]
    for split in ("train", "dev"):
        (tmp_path / "glue" / "CoLA" / f"{split}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tmp_path / "glue"


def test_rows(model: Path, glue: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "results.csv"
    words = ["horizon", "--model", str(model), "--task", "cola", "--data-dir", str(glue), "--costs", "0", "1000"]
    given = [*words, "--batch-size=8", "--repeats=2", "--device=cpu", "--threads=1", "--clock=cpu", f"--out={out}"]
    assert main(given) == 0
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["case"] for row in rows] == ["horizon padded"] * 3 + ["horizon packed"] * 3
    for part in (rows[:3], rows[3:]):
        shares = json.loads(part[0]["settings"])["computed"]
        assert [row["contender"] for row in part] == list(shares) and part[0]["contender"] == f"all {STEPS} steps"
        assert part[2]["contender"] == "price 1000: 1.00 steps"
        first, middle, last = shares.values()
        assert first == 1 and last == 1 / STEPS and 1 / STEPS < middle < 1  # of 4 steps one: whatever the lengths
        assert all(float(row["median_ms"]) > 0 and row["repeats"] == "2" for row in part)
    assert "particle-steps computed, of all: all 4 steps: 1.0" in capsys.readouterr().out


@pytest.mark.parametrize("case", ["padded", "packed"])
def test_what_is_not_taken_is_not_computed(case: str, model: Path, glue: Path) -> None:
    """The calls of the layer add up to the steps of each sentence, asked one by one, times its particles."""
    net, tokenizer = horizon.load_model(model)
    (work,) = horizon.batches(horizon.sentences("cola", glue), tokenizer, 16, 20, seed=1)
    step = horizon.chosen(net, 0.0, horizon.CASES[case])
    alone = []
    for ids, mask in zip(work["input_ids"], work["attention_mask"], strict=True):
        n = int(mask.sum())
        alone.append((int(step({"input_ids": ids[None, :n], "attention_mask": mask[None, :n]}).horizon_steps[0]), n))
    assert len({steps for steps, _ in alone}) > 1
    mean, particles = horizon.computed(net, step, [work])
    width = work["input_ids"].size(1)
    assert particles == sum(steps * (n if case == "packed" else width) for steps, n in alone)
    assert mean == pytest.approx(sum(steps for steps, _ in alone) / len(alone))


def test_mistakes(model: Path, glue: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "results.csv"

    def says(message: str, *words: str) -> None:
        given = ["--task=cola", "--device=cpu", f"--data-dir={glue}", f"--model={model}", f"--out={out}", *words]
        assert main(["horizon", *given]) == 1
        assert message in capsys.readouterr().err

    says("no config.json there", f"--model={tmp_path}")
    says("has no dev set of SST-2", "--task=sst2")
    says("--costs -1.0: a price of a step is a number", "--costs", "-1")
    says("measured in fp32", "--precision=bf16")
    fixed = tmp_path / "fixed"
    MacaronBertForSequenceClassification(
        MacaronBertConfig(vocab_size=8, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, horizon="fixed")
    ).save_pretrained(fixed)
    AutoTokenizer.from_pretrained(model).save_pretrained(fixed)
    says("has horizon='fixed', and no policy that stops a sentence", f"--model={fixed}")
    (fixed / "model.safetensors").write_bytes(b"half")
    says("cannot be loaded", f"--model={fixed}")
    assert not out.exists()
