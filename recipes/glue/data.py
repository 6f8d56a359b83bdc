"""GLUE from local TSV files or from a data set of the hub, as lists of sentences and labels."""

from __future__ import annotations

import functools
import hashlib
import io
import lzma
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from ..common.errors import RecipeError
from .tasks import SCORE, SCORE_MAX, TASKS, Task

HUB = "nyu-mll/glue"
SPLITS = ("train", "dev", "test")
SUBSET_SEED = 0  # of --max-train-examples: every model and seed trains on the same ones
QQP_DEV = 2000  # of the subset, which has no dev set of its own
FOLDERS = {  # in --data-dir, whatever the case; the first that is there
    "mnli-mm": ("MNLI",),
    "mnli": ("MNLI",),
    "ax": ("AX", "diagnostic", "."),
}
WITHOUT_LAST_LINE_END = {("cola", "dev"), ("ax", "test")}  # of the official files


@dataclass
class TaskSplit:
    """Sentences, in pairs or alone, and labels: class numbers, scores, or nothing (test)."""

    first: list[str]
    second: list[str] | None
    labels: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.first)

    def subset(self, rows: Iterable[int]) -> TaskSplit:
        rows = list(rows)
        return TaskSplit(
            [self.first[i] for i in rows],
            None if self.second is None else [self.second[i] for i in rows],
            None if self.labels is None else self.labels[rows],
        )

    def digest(self) -> str:
        """Identifies the content."""
        sha = hashlib.sha256()
        for texts in (self.first, self.second or []):
            sha.update("\0".join(texts).encode())
        sha.update(b"" if self.labels is None else np.ascontiguousarray(self.labels, dtype=np.float64).tobytes())
        return sha.hexdigest()[:16]


@dataclass
class TaskData:
    """What is there of a task. Absent splits are None; `notes` says what is absent, dropped or not canonical."""

    train: TaskSplit | None = None
    dev: TaskSplit | None = None
    test: TaskSplit | None = None
    notes: list[str] = field(default_factory=list)
    subset: bool = False  # made here from a part of the official training set

    def present(self) -> dict[str, TaskSplit]:
        return {name: split for name in SPLITS if (split := getattr(self, name)) is not None}


@functools.lru_cache(maxsize=4)  # the runs of a task follow each other
def load(task_name: str, data_dir: Path | None = None, dataset: str = HUB) -> TaskData:
    """A task from the TSV files in `data_dir`, else from `dataset`: a name on the hub or a local folder of parquet.

    Raises:
        RecipeError: where neither is there, or a file is not what GLUE's is.
    """
    task = TASKS[task_name]
    data = from_files(task, data_dir) if data_dir else from_hub(task, dataset)
    for name, split in data.present().items():
        if len(split) not in task.size(name) and not (data.subset and name != "test"):
            data.notes.append(
                f"{task.title}: {len(split)} {name} lines instead of {task.size(name).start}: "
                + (
                    "not for the server"
                    if name == "test"
                    else f"not GLUE's whole {name} set, figures are not comparable"
                )
            )
    if data.train is not None and data.dev is not None and data.train.digest() == data.dev.digest():
        data.notes.append(f"{task.title}: the dev set is the training set; its figures say nothing about new sentences")
    return data


def limited(split: TaskSplit, count: int) -> TaskSplit:
    if not count or count >= len(split):
        return split
    return split.subset(np.random.default_rng(SUBSET_SEED).permutation(len(split))[:count].tolist())


def first_line(error: BaseException) -> str:
    """What an error of another library says, in one line."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


# --- TSV files ------------------------------------------------------------------------------------------------


def from_files(task: Task, data_dir: Path) -> TaskData:
    if not data_dir.is_dir():
        raise RecipeError(
            f"--data-dir {data_dir}: no such folder; it must hold CoLA/train.tsv, MRPC/train.tsv … "
            f"(plain or .xz), as the official zip does"
        )
    present = {path.name.lower(): path for path in data_dir.iterdir() if path.is_dir()} | {".": data_dir}
    candidates = [present[name.lower()] for name in FOLDERS.get(task.name, (task.title,)) if name.lower() in present]
    data = TaskData()
    for name, stem in zip(SPLITS, task.splits, strict=True):
        stems = (stem, "AX") if task.name == "ax" and stem else (stem,)
        paths = (folder / f"{stem}.tsv{end}" for folder in candidates for stem in stems if stem for end in ("", ".xz"))
        path = next((path for path in paths if path.is_file()), None)
        if path:
            setattr(data, name, read_split(task, path, labelled=name != "test", notes=data.notes))
            if (task.name, name) not in WITHOUT_LAST_LINE_END and not ends_with_line_end(path):
                data.notes.append(f"{task.title}: the last line of {path.name} has no end; the file may be cut off")
    if task.name == "qqp" and not candidates and "qqp_subset" in present:
        return qqp_subset(task, present["qqp_subset"])
    expected = {name for name, stem in zip(SPLITS, task.splits, strict=True) if stem}
    absent = [name for name in SPLITS if name in expected and getattr(data, name) is None]
    if absent:
        data.notes.append(f"{task.title}: no {', no '.join(absent)} in {data_dir}")
    return data


def qqp_subset(task: Task, folder: Path) -> TaskData:
    """Labelled pairs of the training set alone: the last of a fixed shuffle are the dev set."""
    path = next((p for end in ("", ".xz") if (p := folder / f"qqp_subset.tsv{end}").is_file()), None)
    if path is None:
        return TaskData(notes=[f"{task.title}: no qqp_subset.tsv in {folder}"])
    data = TaskData(subset=True)
    pairs = read_split(task, path, labelled=True, notes=data.notes)
    if len(pairs) <= QQP_DEV:
        raise RecipeError(
            f"{path}: {len(pairs)} pairs, but the last {QQP_DEV} of a shuffle become the dev set and the others train; "
            f"give a file with more"
        )
    order = np.random.default_rng(0).permutation(len(pairs)).tolist()
    data.train, data.dev = pairs.subset(order[:-QQP_DEV]), pairs.subset(order[-QQP_DEV:])
    data.notes.append(
        f"{task.title}: only {len(pairs)} pairs of the official training set, split here into {len(data.train)} for "
        f"training and {len(data.dev)} for dev; no test set. Not comparable with published figures"
    )
    return data


def read_tsv(path: Path) -> list[list[str]]:
    """Cells of every line. There is no quoting in GLUE: a quotation mark, `None` and `null` are text."""
    try:
        with opened(path) as raw:
            # a byte order mark starts MRPC's files; a line ends at LF alone
            text = io.TextIOWrapper(raw, encoding="utf-8-sig", newline="\n")
            return [line.rstrip("\r\n").split("\t") for line in text if line.rstrip("\r\n")]
    except (lzma.LZMAError, EOFError, UnicodeDecodeError, OSError) as error:
        raise RecipeError(f"{path}: cannot be read ({error}); fetch the file again") from error


def opened(path: Path) -> IO[bytes]:
    return lzma.open(path) if path.suffix == ".xz" else path.open("rb")


def ends_with_line_end(path: Path) -> bool:
    with opened(path) as raw:
        raw.seek(-1, io.SEEK_END)
        return raw.read() == b"\n"


def read_split(task: Task, path: Path, labelled: bool, notes: list[str]) -> TaskSplit:
    rows = read_tsv(path)
    if task.name == "cola" and labelled:  # no header: source, label, the author's star, sentence
        head = ["source", "label", "star", "sentence"]
    elif rows:
        head, rows = rows[0], rows[1:]
    else:
        raise RecipeError(f"{path}: empty; fetch the file again")
    names = [*task.columns, *([task.label] if labelled else [])]
    double = [name for name in names if head.count(name) > 1]
    if double:
        raise RecipeError(f"{path}: column {double[0]!r} is there {head.count(double[0])} times; fetch the file again")
    missing = [name for name in names if name not in head]
    if missing:
        raise RecipeError(
            f"{path}: no column {', '.join(map(repr, missing))}; its header is {head}. Is it GLUE's file?"
        )
    wide = [row for row in rows if len(row) > len(head)]
    if wide:
        raise RecipeError(
            f"{path}: {len(wide)} of {len(rows)} lines have more than its {len(head)} columns, the first begins "
            f"{' | '.join(wide[0])[:80]!r}; there is a tab inside a sentence: fetch the file again, or put a space"
        )
    places = [head.index(name) for name in names]
    width = max(places) + 1
    kept = [row for row in rows if len(row) >= width]
    if len(kept) < len(rows):
        if not labelled:
            raise RecipeError(
                f"{path}: {len(rows) - len(kept)} of {len(rows)} lines have fewer than {width} columns, and a test "
                f"set must be complete; fetch the file again"
            )
        notes.append(f"{task.title}: {len(rows) - len(kept)} malformed lines of {path.name} dropped")
    cells = [[row[place] for place in places] for row in kept]
    if labelled and any(row[-1] == "-" for row in cells):  # SNLI's mark for annotators who disagree
        before = len(cells)
        cells = [row for row in cells if row[-1] != "-"]
        notes.append(f"{task.title}: {before - len(cells)} lines of {path.name} without a gold label dropped")
    try:
        labels = [task.target(row[-1]) for row in cells] if labelled else None
    except ValueError:
        bad = next(row[-1] for row in cells if not is_label(task, row[-1]))
        allowed = "a number" if task.head == SCORE else f"one of {', '.join(task.labels)}"
        raise RecipeError(f"{path}: label {bad!r} must be {allowed}; fetch the file again") from None
    return split(task, [row[: len(task.columns)] for row in cells], labels, str(path), notes)


def is_label(task: Task, text: str) -> bool:
    try:
        task.target(text)
    except ValueError:
        return False
    return True


def split(
    task: Task, sentences: Sequence[Sequence[str]], labels: list[float | int] | None, where: str, notes: list[str]
) -> TaskSplit:
    """What both sources are held to.

    Args:
        sentences: one or two of each example.
        where: the file or data set, for messages; what is odd but taken goes into `notes`.
    """
    if not sentences:
        raise RecipeError(f"{where}: holds no examples; fetch it again, or take it away where the task may do without")
    first = [row[0] for row in sentences]
    second = [row[1] for row in sentences] if len(task.columns) == 2 else None
    empty = sum(not all(cell.strip() for cell in row) for row in sentences)
    if empty:
        notes.append(f"{task.title}: {empty} of {len(sentences)} examples of {Path(where).name} have an empty sentence")
    if labels is None:
        return TaskSplit(first, second)
    target = np.asarray(labels, dtype=np.float64 if task.head == SCORE else np.int64)
    if task.head == SCORE and not (target.min() >= 0 and target.max() <= SCORE_MAX):
        raise RecipeError(f"{where}: scores from {target.min()} to {target.max()} must lie within 0 and {SCORE_MAX}")
    return TaskSplit(first, second, target)


# --- the hub --------------------------------------------------------------------------------------------------


def from_hub(task: Task, dataset: str) -> TaskData:
    """With `datasets`: from the hub, from its cache when offline, or from a local folder of parquet files.

    Raises:
        RecipeError: where it is not there, lacks a column or a value, or its labels are not the task's.
    """
    from datasets import load_dataset

    configuration, *names = task.hub
    configuration = configuration or task.name
    local, folder = Path(dataset), Path(dataset, configuration)
    alone = folder.is_dir() and not (local / "README.md").exists()  # which would say what the configurations are
    remedy = "Check the network, name a local copy with --dataset,"
    if local.is_dir():
        remedy = f"Put {configuration}/train….parquet and so on there, or a copy of {HUB} with its README.md,"
    try:
        parts = load_dataset(str(folder)) if alone else load_dataset(dataset, configuration)
    except Exception as error:  # the hub's clients raise a dozen kinds
        raise RecipeError(
            f"{task.title}: datasets cannot load {dataset!r}, configuration {configuration!r}: "
            f"{first_line(error)}. {remedy} or give TSV files with --data-dir"
        ) from error
    data = TaskData()
    for name, part in zip(SPLITS, names, strict=True):
        if not part:
            continue
        if part not in parts:
            data.notes.append(f"{task.title}: no {part} in {dataset}, which has {', '.join(map(str, parts))}")
            continue
        setattr(data, name, hub_split(task, parts[part], name != "test", f"{dataset}, {part}", data.notes))
    return data


def hub_split(task: Task, part: Any, labelled: bool, where: str, notes: list[str]) -> TaskSplit:
    where = f"{task.title}: {where}"
    names = [*task.hub_columns, *(["label"] if labelled else [])]
    missing = [name for name in names if name not in part.column_names]
    if missing:
        raise RecipeError(
            f"{where}: no column {', '.join(map(repr, missing))}; it has {part.column_names}. Name a data set in the "
            f"layout of {HUB} with --dataset, or give TSV files with --data-dir"
        )
    columns = {name: list(part[name]) for name in names}
    for name in task.hub_columns:
        bad = next((row for row, text in enumerate(columns[name]) if not isinstance(text, str)), None)
        if bad is not None:
            raise RecipeError(
                f"{where}: {name} of row {bad} is {columns[name][bad]!r}, not text; mend the data set (readers of CSV "
                f"take words such as None for missing values)"
            )
    labels = hub_labels(task, columns["label"], part.features["label"], where, notes) if labelled else None
    return split(task, list(zip(*(columns[name] for name in task.hub_columns), strict=True)), labels, where, notes)


def hub_labels(task: Task, values: list[Any], feature: Any, where: str, notes: list[str]) -> list[float | int]:
    """Scores, or class numbers in our order: by the names of the classes where the data set has them."""
    names = getattr(feature, "names", None)
    if task.head == SCORE:
        allowed, targets = "a score", {}
        if names:
            raise RecipeError(f"{where}: the label is one of the classes {names}, but {task.title} has scores")
    elif names:
        targets = {number: class_number(task, name) for number, name in enumerate(names)}
        if sorted(targets.values(), key=str) != list(range(len(task.classes))):
            raise RecipeError(
                f"{where}: its classes are {names} but must be {', '.join(task.classes)}, in any order; rename them"
            )
        allowed = f"0 to {len(names) - 1}"
    else:
        numbers = range(len(task.classes))
        targets = {
            **{number: number for number in numbers},
            **{v: class_number(task, v) for v in set(filter(is_name, values))},
        }
        allowed = f"{', '.join(map(str, numbers))} or {', '.join(task.classes)}"
        if not any(map(is_name, values)):
            order = ", ".join(f"{number} = {name}" for number, name in enumerate(task.classes))
            notes.append(f"{where}: the labels have no names; taken as {order}")
    labels = []
    for row, value in enumerate(values):
        number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
        target = value if task.head == SCORE and number else targets.get(value) if number or is_name(value) else None
        if target is None:
            raise RecipeError(f"{where}: label {value!r} of row {row} must be {allowed}; mend the data set")
        labels.append(target)
    return labels


def is_name(value: Any) -> bool:
    return isinstance(value, str)


def class_number(task: Task, name: str) -> int | None:
    """By the hub's name, or by what TSV files call it; case and spaces do not matter."""
    plain = re.sub(r"[\s-]+", "_", name.strip().lower())
    return next((names.index(plain) for names in (task.classes, task.labels) if plain in names), None)
