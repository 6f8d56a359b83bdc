"""GLUE's files are read exactly: headers, byte order marks, quotation marks, words that look like missing values."""

from __future__ import annotations

import lzma
from pathlib import Path

import numpy as np
import pytest

from recipes.common.errors import RecipeError
from recipes.glue.data import TaskData, from_files, load, read_tsv
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


@pytest.mark.parametrize("name", ["cola", "rte", "stsb"])
@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_empty_files_are_refused(tmp_path: Path, name: str, split: str) -> None:
    task = TASKS[name]
    columns = ["index", *task.columns, *([task.label] if split != "test" else [])]
    headless = name == "cola" and split != "test"
    for text in ("", "\n", "\ufeff", *([] if headless else ["\t".join(columns) + "\n"])):
        write(tmp_path / f"{task.title}/{split}.tsv", text)
        with pytest.raises(RecipeError, match=r"empty|holds no examples|no column"):
            from_files(task, tmp_path)


def test_columns_that_are_there_twice(tmp_path: Path) -> None:
    write(tmp_path / "RTE/dev.tsv", "index\tsentence1\tsentence2\tlabel\tsentence1\n0\ta\tb\tentailment\tc\n")
    with pytest.raises(RecipeError, match="'sentence1' is there 2 times"):
        from_files(TASKS["rte"], tmp_path)


def test_files_that_are_cut_off_are_told(tmp_path: Path) -> None:
    """Not of GLUE's size; the last line without an end; a last line that lacks its label."""
    lines = "".join(f"gj04\t{n % 2}\t\tthe man ran home {n}\n" for n in range(1043))
    write(tmp_path / "CoLA/dev.tsv", lines)
    assert not load("cola", tmp_path).notes[1:]  # no train, no test
    write(tmp_path / "cut/CoLA/dev.tsv", lines[:9000])
    notes = load("cola", tmp_path / "cut").notes
    (said,) = [note for note in notes if "dev lines instead of 1043" in note]
    assert "not comparable" in said and said.startswith(f"CoLA: {lines[:9000].count(chr(10))} dev")
    assert any("1 malformed" in note for note in notes)  # the last, which is cut within
    head = "index\tsentence1\tsentence2\tscore\n"
    write(tmp_path / "STS-B/dev.tsv", head + "".join(f"{n}\ta {n}\tb\t4.750\n" for n in range(1500))[:-3])
    assert any("last line of dev.tsv has no end" in note for note in load("stsb", tmp_path).notes)
    write(tmp_path / "STS-B/train.tsv", head + "0\ta\tb\t4.750\n1\ta\tb")
    notes = load.__wrapped__("stsb", tmp_path).notes
    assert any("1 malformed" in note for note in notes) and any("1 train lines instead of 5749" in n for n in notes)


def test_what_is_odd_but_taken_is_told(tmp_path: Path) -> None:
    head = "index\tsentence1\tsentence2\tlabel\n"
    for name in ("train", "dev"):
        write(tmp_path / f"RTE/{name}.tsv", head + "0\ta\t \tentailment\n1\ta\tb\tentailment\n")
    notes = load("rte", tmp_path).notes
    assert any("1 of 2 examples of dev.tsv have an empty sentence" in note for note in notes)
    assert any("the dev set is the training set" in note for note in notes)


def test_a_tab_inside_a_sentence_is_not_taken_for_its_end(tmp_path: Path) -> None:
    head = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
    write(tmp_path / "MRPC/train.tsv", head + "1\t1\t2\tone\ttwo\n0\t1\t2\tone\tcut\there\n")
    with pytest.raises(RecipeError, match=r"1 of 2 lines have more than its 5 columns.*there is a tab inside"):
        from_files(TASKS["mrpc"], tmp_path)


def test_a_subset_of_qqp_that_is_too_small_to_split(tmp_path: Path) -> None:
    write(tmp_path / "QQP_subset/qqp_subset.tsv", "question1\tquestion2\tis_duplicate\n" + "a\tb\t1\n" * 2000)
    with pytest.raises(RecipeError, match="2000 pairs, but the last 2000"):
        load("qqp", tmp_path)


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
    if name not in ("qnli", "mnli"):
        assert not any("instead of" in note or "no end" in note or "malformed" in note for note in data.notes)
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
    (tmp_path / "glue/README.md").rename(tmp_path / "README.md")  # the folders alone say as much
    load.cache_clear()
    again = load("mrpc", None, str(tmp_path / "glue"))
    assert [again.present()[name].digest() for name in ("train", "dev", "test")] == [
        data.present()[name].digest() for name in ("train", "dev", "test")
    ]
    with pytest.raises(RecipeError, match=r"Put rte/train….parquet and so on there"):
        load("rte", None, str(tmp_path / "glue"))


# --- data sets of the hub -------------------------------------------------------------------------------------


@pytest.fixture
def hub_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """`make(task, train=…, validation=…)` reads a data set of one configuration, given as columns and features."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def make(name: str, labels: list[object], feature: object = None, **columns: list[object] | None) -> TaskData:
        texts = {column: ["a", "b", "c"][: len(labels)] for column in TASKS[name].hub_columns}
        rows = {key: value for key, value in {**texts, "label": labels, **columns}.items() if value is not None}
        table = datasets.Dataset.from_dict(rows)
        if feature is not None:
            table = datasets.Dataset.from_dict(rows, features=datasets.Features({**table.features, "label": feature}))
        number = len(list(tmp_path.glob("glue*")))
        folder = tmp_path / f"glue{number}"
        folder.mkdir()
        table.to_parquet(folder / "train.parquet")
        parts = "  - split: train\n    path: train.parquet\n"
        write(folder / "README.md", f"---\nconfigs:\n- config_name: {name}\n  data_files:\n{parts}---\n")
        return load(name, None, str(folder))

    return make


@pytest.mark.parametrize(
    ("name", "classes", "labels", "expected"),
    [
        ("cola", ["unacceptable", "acceptable"], [0, 1, 1], [0, 1, 1]),
        ("cola", ["acceptable", "unacceptable"], [0, 1, 1], [1, 0, 0]),
        ("sst2", ["positive", "negative"], [0, 1, 1], [1, 0, 0]),
        ("mrpc", ["equivalent", "not_equivalent"], [0, 1, 1], [1, 0, 0]),
        ("qqp", ["Duplicate", "not duplicate"], [0, 1, 1], [1, 0, 0]),
        ("rte", ["not_entailment", "entailment"], [0, 1, 1], [1, 0, 0]),
        ("wnli", ["entailment", "not_entailment"], [0, 1, 1], [1, 0, 0]),
        ("wnli", ["1", "0"], [0, 1, 1], [1, 0, 0]),
        ("mnli", ["contradiction", "entailment", "neutral"], [0, 1, 2], [2, 0, 1]),
    ],
)
def test_classes_are_mapped_by_name(
    hub_data, name: str, classes: list[str], labels: list[object], expected: list[int]
) -> None:  # type: ignore[no-untyped-def]
    import datasets

    data = hub_data(name, labels, datasets.ClassLabel(names=classes))
    assert data.train.labels.tolist() == expected and not any("taken as" in note for note in data.notes)
    words = hub_data(name, [classes[label] for label in labels])  # type: ignore[index]
    assert words.train.labels.tolist() == expected


def test_labels_without_names_are_taken_in_glues_order_and_told(hub_data) -> None:  # type: ignore[no-untyped-def]
    data = hub_data("rte", [1, 0, 1])
    assert data.train.labels.tolist() == [1, 0, 1]
    assert any("taken as 0 = entailment, 1 = not_entailment" in note for note in data.notes)
    scores = hub_data("stsb", [0, 5, 2.5])
    assert scores.train.labels.tolist() == [0, 5, 2.5] and not any("taken as" in note for note in scores.notes)


@pytest.mark.parametrize(
    ("name", "labels", "message"),
    [
        ("cola", [0, -1, 1], "label -1 of row 1 must be 0, 1 or unacceptable, acceptable"),
        ("cola", [0, 1, 5], "label 5 of row 2"),
        ("mnli", [0, 1, 3], "label 3 of row 2"),
        ("rte", [0, 1, None], "label None of row 2"),
        ("rte", [0.0, 1.0, 0.5], "label 0.5 of row 2"),
        ("rte", [0.0, 1.0, float("nan")], "label nan of row 2|label None of row 2"),
        ("rte", [True, False, True], "label True of row 0"),
        ("rte", ["entailment", "maybe", "entailment"], "label 'maybe' of row 1"),
        ("rte", [[0], [1], [0]], r"label \[0\] of row 0"),
        ("stsb", [0.0, 5.0, 7.0], "must lie within 0 and 5"),
        ("stsb", [0.0, -1.0, 3.0], "must lie within 0 and 5"),
        ("stsb", [0.0, float("nan"), 3.0], "must lie within 0 and 5|label None"),
        ("stsb", [0.0, float("inf"), 3.0], "must lie within 0 and 5"),
        ("stsb", [0.0, None, 3.0], "label None of row 1"),
        ("stsb", ["much", "little", "some"], "label 'much' of row 0 must be a score"),
        ("rte", [], "corresponds to no data|holds no examples"),
    ],
)
def test_labels_that_the_task_does_not_have(hub_data, name: str, labels: list[object], message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(RecipeError, match=message):
        hub_data(name, labels)


@pytest.mark.parametrize(
    ("name", "classes", "labels", "message"),
    [
        ("rte", ["yes", "no"], [0, 1, 0], "must be entailment, not_entailment, in any order"),
        ("rte", ["LABEL_0", "LABEL_1"], [0, 1, 0], "must be entailment, not_entailment"),
        ("rte", ["entailment", "neutral", "contradiction"], [0, 1, 2], "must be entailment, not_entailment"),
        ("mnli", ["entailment", "neutral"], [0, 1, 0], "must be entailment, neutral, contradiction"),
        ("rte", ["entailment", "not_entailment"], [0, -1, 1], "label -1 of row 1 must be 0 to 1"),
        ("stsb", ["0", "1", "2"], [0, 1, 2], "but STS-B has scores"),
    ],
)
def test_classes_that_the_task_does_not_have(
    hub_data, name: str, classes: list[str], labels: list[object], message: str
) -> None:  # type: ignore[no-untyped-def]
    import datasets

    with pytest.raises(RecipeError, match=message):
        hub_data(name, labels, datasets.ClassLabel(names=classes))


def test_columns_and_values_that_are_missing(hub_data) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(RecipeError, match="no column 'sentence2'; it has"):
        hub_data("rte", [0, 1, 0], sentence2=None)
    with pytest.raises(RecipeError, match="no column 'label'"):
        hub_data("rte", [0, 1, 0], label=None)
    with pytest.raises(RecipeError, match="sentence1 of row 1 is None, not text"):
        hub_data("rte", [0, 1, 0], sentence1=["a", None, "c"])
    with pytest.raises(RecipeError, match="sentence1 of row 0 is 1, not text"):
        hub_data("rte", [0, 1, 0], sentence1=[1, 2, 3])
    data = hub_data("rte", [0, 1, 0], sentence1=["", "b", "c"])
    assert any("have an empty sentence" in note for note in data.notes)
    assert any("no validation in" in note and "which has train" in note for note in data.notes)
    assert any("3 train lines instead of 2490" in note for note in data.notes)
