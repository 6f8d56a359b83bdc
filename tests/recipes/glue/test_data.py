"""GLUE's files are read exactly: headers, byte order marks, quotation marks, words that look like missing values."""

from __future__ import annotations

import lzma
from pathlib import Path

import numpy as np
import pytest

from recipes.common.errors import RecipeError
from recipes.glue.data import from_files, load, read_tsv
from recipes.glue.tasks import TASKS, tasks_named


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_quotes_none_null_and_odd_line_ends_are_text(tmp_path: Path) -> None:
    text = '\ufeffsentence\tlabel\nhe said "no\t1\nNone\t0\nnull\t1\nNA\u2028nan\x85x\t0\n'
    rows = read_tsv(write(tmp_path / "a.tsv", text))
    assert rows == [
        ["sentence", "label"], ['he said "no', "1"], ["None", "0"], ["null", "1"], ["NA\u2028nan\x85x", "0"]
    ]  # fmt: skip
    packed = tmp_path / "a.tsv.xz"
    packed.write_bytes(lzma.compress((tmp_path / "a.tsv").read_bytes()))
    assert read_tsv(packed) == rows
    write(tmp_path / "b.tsv", text.replace("\n", "\r\n"))
    assert read_tsv(tmp_path / "b.tsv") == rows


def test_header_columns_and_labels(tiny_glue: Path) -> None:
    cola, mrpc, stsb = (from_files(TASKS[name], tiny_glue) for name in ("cola", "mrpc", "stsb"))
    assert cola.train and mrpc.train and stsb.train and mrpc.test
    assert cola.train.second is None and cola.train.first[0].startswith("bad") and cola.train.labels is not None
    assert cola.train.labels[:3].tolist() == [0, 1, 0] and len(cola.train) == 50  # no header line is lost
    assert mrpc.train.second and mrpc.train.second[:2] == ["dog", "red dog"] and mrpc.test.labels is None
    assert stsb.train.labels is not None and stsb.train.labels[:3].tolist() == [0.0, 1.0, 2.0]


def test_mnli_has_two_dev_sets_one_training_set_and_the_gold_label(tiny_glue: Path) -> None:
    matched, mismatched = from_files(TASKS["mnli"], tiny_glue), from_files(TASKS["mnli-mm"], tiny_glue)
    assert matched.train and mismatched.train and matched.dev and mismatched.dev
    assert matched.train.digest() == mismatched.train.digest() and matched.dev.digest() != mismatched.dev.digest()
    assert matched.dev.labels is not None and matched.dev.labels[:4].tolist() == [0, 1, 2, 0]
    ax = from_files(TASKS["ax"], tiny_glue)
    assert ax.train is None and ax.dev is None and ax.test is not None and len(ax.test) == 12


def test_lines_without_a_gold_label_and_malformed_lines_are_dropped_and_told(tmp_path: Path) -> None:
    head = "index\tsentence1\tsentence2\tgold_label\n"
    write(tmp_path / "MNLI/train.tsv", head + "0\ta\tb\t-\n1\ta\tb\tneutral\n2\ta\n")
    data = from_files(TASKS["mnli"], tmp_path)
    assert data.train and data.train.labels is not None and data.train.labels.tolist() == [1]
    assert any("1 malformed" in note for note in data.notes) and any("gold label" in note for note in data.notes)
    assert any("no dev, no test" in note for note in data.notes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("index\tsentence1\n0\ta\n", "no column 'sentence2', 'label'"),
        ("index\tsentence1\tsentence2\tlabel\n0\ta\tb\tmaybe\n", "label 'maybe' must be one of entailment, not_ent"),
    ],
)
def test_wrong_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    write(tmp_path / "RTE/train.tsv", text)
    with pytest.raises(RecipeError, match=message):
        from_files(TASKS["rte"], tmp_path)


def test_other_refusals(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no such folder"):
        from_files(TASKS["rte"], tmp_path / "nowhere")
    write(tmp_path / "RTE/test.tsv", "index\tsentence1\tsentence2\n0\ta\tb\n1\ta\n")
    with pytest.raises(RecipeError, match="1 of 2 lines have fewer than 3 columns"):
        from_files(TASKS["rte"], tmp_path)
    write(tmp_path / "STS-B/dev.tsv", "index\tsentence1\tsentence2\tscore\n0\ta\tb\t7.0\n")
    with pytest.raises(RecipeError, match="must lie within 0 and 5"):
        from_files(TASKS["stsb"], tmp_path)
    (tmp_path / "WNLI").mkdir()
    (tmp_path / "WNLI/train.tsv.xz").write_bytes(lzma.compress(b"index\tsentence1")[:-9])
    with pytest.raises(RecipeError, match="cannot be read"):
        from_files(TASKS["wnli"], tmp_path)
    with pytest.raises(RecipeError, match="no such task"):
        tasks_named(["cola", "squad"])


SIZES = {  # train, dev, test: the published sizes of GLUE
    "cola": (8551, 1043, 1063),
    "sst2": (67349, 872, 1821),
    "mrpc": (3668, 408, 1725),
    "stsb": (5749, 1500, 1379),
    "rte": (2490, 277, 3000),
    "wnli": (635, 71, 146),
    "qnli": (None, 5463, 5463),
    "mnli": (None, None, None),
    "ax": (None, None, 1104),
}


@pytest.mark.parametrize("name", SIZES)
def test_the_real_files(shared: Path, name: str) -> None:
    data = load(name, shared / "data" / "glue")
    sizes = tuple(None if split is None else len(split) for split in (data.train, data.dev, data.test))
    assert sizes == SIZES[name]
    if name == "qnli":
        assert any("no train" in note for note in data.notes)
        assert data.dev and data.dev.second and data.dev.second[694].startswith('" Luis Walter Alvarez')
    if name == "mrpc":
        assert data.train and data.train.first[0].startswith("Amrozi accused") and data.train.labels is not None
        assert data.train.labels.mean() == pytest.approx(2474 / 3668)
    if name == "stsb":
        assert data.dev and data.dev.labels is not None and data.dev.labels[0] == 5.0
    if name == "rte":
        assert data.train and data.train.labels is not None and data.train.labels[0] == 1  # not_entailment


def test_the_real_subset_of_qqp_is_split_and_said_to_be_one(shared: Path) -> None:
    data = load("qqp", shared / "data" / "glue")
    assert data.train and data.dev and (len(data.train), len(data.dev), data.test) == (21496, 2000, None)
    assert "Not comparable" in data.notes[0]


def test_parquet_folder_of_the_hubs_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline: a local folder with the hub's configurations gives the same as files do."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    configurations = []
    for name, columns in {"mrpc": ("sentence1", "sentence2"), "ax": ("premise", "hypothesis")}.items():
        parts = ("train", "validation", "test") if name == "mrpc" else ("test",)
        lines = "".join(f"  - split: {part}\n    path: {name}/{part}.parquet\n" for part in parts)
        configurations.append(f"- config_name: {name}\n  data_files:\n{lines}")
        for part in parts:
            rows = {columns[0]: ["None", "a"], columns[1]: ["b", part], "label": [1, 0] if part != "test" else [-1, -1]}
            (tmp_path / "glue" / name).mkdir(parents=True, exist_ok=True)
            datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "glue" / name / f"{part}.parquet")
    write(tmp_path / "glue/README.md", "---\nconfigs:\n" + "".join(configurations) + "---\n")
    data = load("mrpc", None, str(tmp_path / "glue"))
    assert data.train and data.dev and data.test and data.train.first == ["None", "a"]
    assert data.dev.second == ["b", "validation"] and data.test.labels is None
    assert (
        data.train.labels is not None and data.train.labels.dtype == np.int64 and data.train.labels.tolist() == [1, 0]
    )
    ax = load("ax", None, str(tmp_path / "glue"))
    assert ax.train is None and ax.test and ax.test.second == ["b", "test"]
    with pytest.raises(RecipeError, match="configuration 'rte'"):
        load("rte", None, str(tmp_path / "glue"))
