"""The tasks of GLUE: columns, labels, heads, metrics, and what the server wants to see of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..common.errors import RecipeError

BINARY, CLASSES, SCORE = "binary", "classes", "score"  # one logit and a sigmoid; softmax; a similarity from 0 to 5
SCORE_MIDDLE, SCORE_SCALE, SCORE_MAX = 3.0, 2.0, 5.0  # STS-B trains on (score − 3)/2
TWO = ("0", "1")
INFERENCE = ("entailment", "neutral", "contradiction")
ENTAILMENT = ("entailment", "not_entailment")


@dataclass(frozen=True)
class Task:
    """One line of the GLUE table. `labels` are in the order of the class numbers of the hub's data set."""

    name: str
    title: str
    file: str  # in the submission
    columns: tuple[str, ...]  # of the TSV files, one or two sentences
    label: str  # column of the TSV files
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    train_size: int  # of the official files; 0 where there is none
    dev_size: int
    test_size: int
    placeholder: str  # a constant for submissions without a model: the commonest label of the training set
    head: str = CLASSES
    symmetric: bool = False  # the two sentences may change places
    large: bool = False  # the paper's larger batch is 24 rather than 32
    splits: tuple[str, str, str] = ("train", "dev", "test")  # of the TSV files
    hub: tuple[str, str, str, str] = ("", "train", "validation", "test")  # configuration and splits
    hub_columns: tuple[str, ...] = ("sentence1", "sentence2")
    names: tuple[str, ...] = ()  # of the classes, where `labels` only number them
    broken_lines: int = 0  # of the official training and dev files, which some copies keep and others drop
    trains_on: str = ""  # the task whose training set and model it shares

    @property
    def trained_as(self) -> str:
        return self.trains_on or self.name

    @property
    def num_labels(self) -> int:
        return len(self.labels) if self.head == CLASSES else 1

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, those of the hub's data set."""
        return self.names or self.labels

    @property
    def outputs(self) -> tuple[str, ...]:
        """What each logit stands for: a class, of two classes with one logit the second, or the scaled score."""
        return {CLASSES: self.classes, BINARY: self.classes[1:], SCORE: ("(similarity - 3) / 2",)}[self.head]

    def meaning(self) -> dict[str, Any]:
        """How to read the logits, for `config.json`."""
        if self.head == SCORE:
            reading = {"score": "scale * logit + offset, clipped", "scale": SCORE_SCALE, "offset": SCORE_MIDDLE}
            return {"task": self.title, **reading, "range": [0.0, SCORE_MAX]}
        rule = "sigmoid; class 1 where the logit is at least 0" if self.head == BINARY else "softmax"
        return {"task": self.title, "classes": list(self.classes), "logits": rule}

    def size(self, split: str) -> range:
        """How many examples the official files have in train, dev or test; empty where there are none."""
        size = {"train": self.train_size, "dev": self.dev_size, "test": self.test_size}[split]
        return range(size, size + 1 + (self.broken_lines if split != "test" else 0)) if size else range(0)

    def target(self, label: str) -> float | int:
        """What training and metrics see: a class number, or a score as it stands in the data."""
        return float(label) if self.head == SCORE else self.labels.index(label)

    def decode(self, logits: np.ndarray) -> np.ndarray:
        """Logits (N, num_labels) → class numbers (N,), or scores (N,) within 0 … 5."""
        if self.head == SCORE:
            return np.clip(SCORE_SCALE * logits[:, 0] + SCORE_MIDDLE, 0.0, SCORE_MAX)
        if self.head == BINARY:
            return (logits[:, 0] >= 0).astype(np.int64)
        return logits.argmax(axis=1)

    def written(self, prediction: Any) -> str:
        """A decoded prediction as the server reads it."""
        return f"{float(prediction):.3f}" if self.head == SCORE else self.labels[int(prediction)]


PAIR = ("sentence1", "sentence2")
QUESTIONS = ("question1", "question2")
PREMISE = ("premise", "hypothesis")
MISMATCHED = ("mnli", "train", "validation_mismatched", "test_mismatched")

# name, title, file, columns, label column, labels, metrics, examples in train, dev and test, placeholder
TASKS = {
    task.name: task
    for task in (
        Task("cola", "CoLA", "CoLA", ("sentence",), "label", TWO, ("mcc",), 8551, 1043, 1063, "1", head=BINARY,
             names=("unacceptable", "acceptable"),
             hub_columns=("sentence",)),
        Task("sst2", "SST-2", "SST-2", ("sentence",), "label", TWO, ("accuracy",), 67349, 872, 1821, "1", large=True,
             hub_columns=("sentence",), names=("negative", "positive")),
        Task("mrpc", "MRPC", "MRPC", ("#1 String", "#2 String"), "Quality", TWO, ("f1", "accuracy"), 3668, 408, 1725,
             "1", names=("not_equivalent", "equivalent"),
             head=BINARY, symmetric=True),
        Task("stsb", "STS-B", "STS-B", PAIR, "score", (), ("pearson", "spearman"), 5749, 1500, 1379, "2.700",
             head=SCORE, symmetric=True),
        Task("qqp", "QQP", "QQP", QUESTIONS, "is_duplicate", TWO, ("f1", "accuracy"), 363846, 40430, 390965, "0",
             names=("not_duplicate", "duplicate"), broken_lines=30,
             head=BINARY, symmetric=True, large=True, hub_columns=QUESTIONS),
        Task("mnli", "MNLI-m", "MNLI-m", PAIR, "gold_label", INFERENCE, ("accuracy",), 392702, 9815, 9796,
             "contradiction",
             large=True, splits=("train", "dev_matched", "test_matched"), hub_columns=PREMISE,
             hub=("mnli", "train", "validation_matched", "test_matched")),
        Task("mnli-mm", "MNLI-mm", "MNLI-mm", PAIR, "gold_label", INFERENCE, ("accuracy",), 392702, 9832, 9847,
             "contradiction",
             large=True, splits=("train", "dev_mismatched", "test_mismatched"), hub_columns=PREMISE,
             hub=MISMATCHED, trains_on="mnli"),
        Task("qnli", "QNLI", "QNLI", ("question", "sentence"), "label", ENTAILMENT, ("accuracy",), 104743, 5463, 5463,
             "entailment", large=True, hub_columns=("question", "sentence")),
        Task("rte", "RTE", "RTE", PAIR, "label", ENTAILMENT, ("accuracy",), 2490, 277, 3000, "entailment"),
        Task("wnli", "WNLI", "WNLI", PAIR, "label", TWO, ("accuracy",), 635, 71, 146, "0",
             names=("not_entailment", "entailment")),
        Task("ax", "AX", "AX", PAIR, "label", INFERENCE, ("mcc",), 0, 0, 1104, "contradiction", hub_columns=PREMISE,
             hub=("ax", "", "", "test"), splits=("", "", "diagnostic"), trains_on="mnli"),
    )
}  # fmt: skip

METRIC_NAMES = {
    "mcc": "Matthews correlation",
    "accuracy": "accuracy",
    "f1": "F1",
    "pearson": "Pearson",
    "spearman": "Spearman",
}


def tasks_named(names: list[str]) -> list[Task]:
    """`all` or task names, without repeats, in the order of GLUE.

    Raises:
        RecipeError: for a name that GLUE does not have.
    """
    unknown = [name for name in names if name not in TASKS and name != "all"]
    if unknown:
        raise RecipeError(f"--task {' '.join(unknown)}: no such task; choose from {', '.join(TASKS)}, all")
    return [task for task in TASKS.values() if "all" in names or task.name in names]


def evaluated_with(trained: str) -> list[Task]:
    """The tasks that a model trained on `trained` answers: MNLI also mismatched MNLI and AX."""
    return [task for task in TASKS.values() if task.trained_as == trained]
