"""The zip against the server's format, as its FAQ and sample submission state it."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from recipes.common.errors import RecipeError
from recipes.glue.submission import check_submission, write_submission
from recipes.glue.tasks import TASKS

LINES = {  # of the sample submission, without the header
    "CoLA.tsv": 1063, "SST-2.tsv": 1821, "MRPC.tsv": 1725, "STS-B.tsv": 1379, "QQP.tsv": 390965, "MNLI-m.tsv": 9796,
    "MNLI-mm.tsv": 9847, "QNLI.tsv": 5463, "RTE.tsv": 3000, "WNLI.tsv": 146, "AX.tsv": 1104,
}  # fmt: skip


def test_complete_submission(tmp_path: Path) -> None:
    path = tmp_path / "submission.zip"
    predictions = {"stsb": [TASKS["stsb"].written(v) for v in [5.0, 0.0, 2.71828] + [1.0] * 1376]}
    predictions["rte"] = [TASKS["rte"].written(n % 2) for n in range(3000)]
    filled = write_submission(path, predictions, fill_missing=True)
    assert len(filled) == 9 and "STS-B" not in filled and "RTE" not in filled
    with zipfile.ZipFile(path) as archive:
        assert {name: archive.read(name).count(b"\n") - 1 for name in archive.namelist()} == LINES
        assert archive.read("STS-B.tsv").decode().split("\n")[:4] == [
            "index\tprediction", "0\t5.000", "1\t0.000", "2\t2.718"
        ]  # fmt: skip
        assert archive.read("RTE.tsv").decode().split("\n")[1:3] == ["0\tentailment", "1\tnot_entailment"]
        allowed = {
            "CoLA": "01", "SST-2": "01", "MRPC": "01", "QQP": "01", "WNLI": "01",
            "QNLI": ("entailment", "not_entailment"),
            "MNLI-m": ("entailment", "neutral", "contradiction"), "MNLI-mm": ("entailment", "neutral", "contradiction"),
            "AX": ("entailment", "neutral", "contradiction"),
        }  # fmt: skip
        for name, labels in allowed.items():
            assert archive.read(f"{name}.tsv").decode().split("\n")[1].split("\t")[1] in labels
    check_submission(path)


def test_incomplete_or_wrong_submissions_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    path = tmp_path / "submission.zip"
    with pytest.raises(RecipeError, match=r"no test predictions for CoLA.*--fill-missing"):
        write_submission(path, {"rte": ["entailment"] * 3000})
    for predictions, message in [
        ({"rte": ["entailment"] * 277}, "277 predictions for 3000"),
        ({"rte": ["1"] * 3000}, "must be entailment or not_entailment"),
        ({"stsb": ["5.2"] * 1379}, "must be a number in 0 … 5"),
        ({"stsb": ["nan"] * 1379}, "must be a number"),
    ]:
        with pytest.raises(RecipeError, match=message):
            write_submission(path, predictions, fill_missing=True)
    assert not path.exists()


def test_placeholders_are_the_commonest_labels(shared: Path) -> None:
    from recipes.glue.data import load

    for name in ("cola", "sst2", "mrpc", "rte", "wnli", "stsb"):
        task, train = TASKS[name], load(name, shared / "data" / "glue").train
        assert train is not None and train.labels is not None
        common = (
            train.labels.mean() if name == "stsb" else max(set(train.labels.tolist()), key=train.labels.tolist().count)
        )
        assert task.written(common)[:3] == task.placeholder[:3]
