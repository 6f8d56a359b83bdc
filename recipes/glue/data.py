"""GLUE from local TSV files or from a data set of the hub, as lists of sentences and labels."""

from __future__ import annotations

import functools
import hashlib
import io
import lzma
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from recipes.common.errors import RecipeError
from recipes.glue.tasks import SCORE, SCORE_MAX, TASKS, Task

HUB = "nyu-mll/glue"
QQP_DEV = 2000  # of the subset, which has no dev set of its own
FOLDERS = {  # in --data-dir, whatever the case; the first that is there
    "mnli-mm": ("MNLI",),
    "mnli": ("MNLI",),
    "ax": ("AX", "diagnostic", "."),
}


@dataclass
class Split:
    """Sentences, in pairs or alone, and labels: class numbers, scores, or nothing (test)."""

    first: list[str]
    second: list[str] | None
    labels: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.first)

    def subset(self, rows: Iterable[int]) -> Split:
        rows = list(rows)
        return Split(
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
class Data:
    """What is there of a task. Absent splits are None; `notes` says what is absent, dropped or not canonical."""

    train: Split | None = None
    dev: Split | None = None
    test: Split | None = None
    notes: list[str] = field(default_factory=list)


@functools.lru_cache(maxsize=4)  # the runs of a task follow each other
def load(task_name: str, data_dir: Path | None = None, dataset: str = HUB) -> Data:
    """A task from the TSV files in `data_dir`, else from `dataset`: a name on the hub or a local folder of parquet.

    Raises:
        RecipeError: where neither is there, or a file is not what GLUE's is.
    """
    task = TASKS[task_name]
    data = from_files(task, data_dir) if data_dir else from_hub(task, dataset)
    if data.test is not None and len(data.test) != task.test_size:
        data.notes.append(f"{task.title}: {len(data.test)} test lines instead of {task.test_size}: not for the server")
    return data


# --- TSV files ------------------------------------------------------------------------------------------------


def from_files(task: Task, data_dir: Path) -> Data:
    if not data_dir.is_dir():
        raise RecipeError(
            f"--data-dir {data_dir}: no such folder; it must hold CoLA/train.tsv, MRPC/train.tsv … "
            f"(plain or .xz), as the official zip does"
        )
    present = {path.name.lower(): path for path in data_dir.iterdir() if path.is_dir()} | {".": data_dir}
    candidates = [present[name.lower()] for name in FOLDERS.get(task.name, (task.title,)) if name.lower() in present]
    data = Data()
    for name, stem in zip(("train", "dev", "test"), task.splits, strict=True):
        stems = (stem, "AX") if task.name == "ax" and stem else (stem,)
        paths = (folder / f"{stem}.tsv{end}" for folder in candidates for stem in stems if stem for end in ("", ".xz"))
        path = next((path for path in paths if path.is_file()), None)
        if path:
            setattr(data, name, read_split(task, path, labelled=name != "test", notes=data.notes))
    if task.name == "qqp" and not candidates and "qqp_subset" in present:
        return qqp_subset(task, present["qqp_subset"])
    expected = {name for name, stem in zip(("train", "dev", "test"), task.splits, strict=True) if stem}
    absent = [name for name in ("train", "dev", "test") if name in expected and getattr(data, name) is None]
    if absent:
        data.notes.append(f"{task.title}: no {', no '.join(absent)} in {data_dir}")
    return data


def qqp_subset(task: Task, folder: Path) -> Data:
    """Labelled pairs of the training set alone: the last of a fixed shuffle are the dev set."""
    path = next((p for end in ("", ".xz") if (p := folder / f"qqp_subset.tsv{end}").is_file()), None)
    if path is None:
        return Data(notes=[f"{task.title}: no qqp_subset.tsv in {folder}"])
    data = Data()
    pairs = read_split(task, path, labelled=True, notes=data.notes)
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
        with lzma.open(path) if path.suffix == ".xz" else path.open("rb") as raw:
            # a byte order mark starts MRPC's files; a line ends at LF alone
            text = io.TextIOWrapper(raw, encoding="utf-8-sig", newline="\n")
            return [line.rstrip("\r\n").split("\t") for line in text if line.rstrip("\r\n")]
    except (lzma.LZMAError, EOFError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read ({error}); fetch the file again") from error


def read_split(task: Task, path: Path, labelled: bool, notes: list[str]) -> Split:
    rows = read_tsv(path)
    if task.name == "cola" and labelled:  # no header: source, label, the author's star, sentence
        head = ["source", "label", "star", "sentence"]
    elif rows:
        head, rows = rows[0], rows[1:]
    else:
        raise RecipeError(f"{path}: empty; fetch the file again")
    names = [*task.columns, *([task.label] if labelled else [])]
    missing = [name for name in names if name not in head]
    if missing:
        raise RecipeError(
            f"{path}: no column {', '.join(map(repr, missing))}; its header is {head}. Is it GLUE's file?"
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
    return split(task, [row[: len(task.columns)] for row in cells], labels, str(path))


def is_label(task: Task, text: str) -> bool:
    try:
        task.target(text)
    except ValueError:
        return False
    return True


def split(task: Task, sentences: list[list[str]], labels: list[float | int] | None, where: str) -> Split:
    first = [row[0] for row in sentences]
    second = [row[1] for row in sentences] if len(task.columns) == 2 else None
    if labels is None:
        return Split(first, second)
    target = np.asarray(labels, dtype=np.float64 if task.head == SCORE else np.int64)
    if task.head == SCORE and len(target) and not (target.min() >= 0 and target.max() <= SCORE_MAX):
        raise RecipeError(f"{where}: scores from {target.min()} to {target.max()} must lie within 0 and {SCORE_MAX}")
    return Split(first, second, target)


# --- the hub --------------------------------------------------------------------------------------------------


def from_hub(task: Task, dataset: str) -> Data:
    """With `datasets`: from the hub, from its cache when offline, or from a local folder of parquet files."""
    from datasets import load_dataset

    configuration, *names = task.hub
    configuration = configuration or task.name
    try:
        parts = load_dataset(dataset, configuration)
    except Exception as error:  # the hub's clients raise a dozen kinds
        raise RecipeError(
            f"{task.title}: datasets cannot load {dataset!r}, configuration {configuration!r}: "
            f"{str(error).splitlines()[0]}. Check the network, name a local copy with --dataset, or give TSV files "
            f"with --data-dir"
        ) from error
    data = Data()
    for name, part in zip(("train", "dev", "test"), names, strict=True):
        if not part:
            continue
        if part not in parts:
            data.notes.append(f"{task.title}: no {part} in {dataset}")
            continue
        columns = [list(parts[part][column]) for column in task.hub_columns]
        labels = list(parts[part]["label"]) if name != "test" else None
        setattr(data, name, split(task, [list(row) for row in zip(*columns, strict=True)], labels, dataset))
    return data
