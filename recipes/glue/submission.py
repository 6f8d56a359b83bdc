"""The zip that the GLUE server (gluebenchmark.com/submit) takes: one TSV per task, header index, prediction."""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..common.errors import RecipeError
from .tasks import SCORE, SCORE_MAX, TASKS, Task

HEADER = "index\tprediction"


def write_submission(path: Path, predictions: Mapping[str, Sequence[str]], fill_missing: bool = False) -> list[str]:
    """Write the zip; all or nothing.

    Args:
        predictions: task name → what `Task.written` made of every test line, in order.
        fill_missing: a constant for tasks without predictions, which the server would miss otherwise.

    Returns:
        Titles of the tasks that got a constant.

    Raises:
        RecipeError: for an incomplete set of tasks, or lines and labels that the server would reject.
    """
    missing = [task for task in TASKS.values() if task.name not in predictions]
    if missing and not fill_missing:
        raise RecipeError(
            f"submission: no test predictions for {', '.join(task.title for task in missing)}, but the server wants "
            f"all {len(TASKS)} files; fine-tune on these too, or give --fill-missing for constant ones"
        )
    filled = {task.name: [task.placeholder] * task.test_size for task in missing}
    partial = path.with_name(path.name + ".part")
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
        for task in TASKS.values():
            lines = predictions.get(task.name) or filled[task.name]
            rows = (f"{index}\t{line}" for index, line in enumerate(lines))
            archive.writestr(f"{task.file}.tsv", "\n".join([HEADER, *rows]) + "\n")
    check_submission(partial)
    os.replace(partial, path)
    return [task.title for task in missing]


def check_submission(path: Path) -> None:
    """Raise RecipeError unless the zip is what the server accepts."""
    with zipfile.ZipFile(path) as archive:
        expected = {f"{task.file}.tsv" for task in TASKS.values()}
        if set(archive.namelist()) != expected:
            raise RecipeError(f"{path}: holds {sorted(archive.namelist())} but must hold {sorted(expected)} at its top")
        for task in TASKS.values():
            check_file(task, f"{path}, {task.file}.tsv", archive.read(f"{task.file}.tsv").decode("utf-8"))


def check_file(task: Task, where: str, text: str) -> None:
    header, *rows = text.removesuffix("\n").split("\n")
    if header != HEADER:
        raise RecipeError(f"{where}: header {header!r} must be {HEADER!r}")
    if len(rows) != task.test_size:
        raise RecipeError(
            f"{where}: {len(rows)} predictions for {task.test_size} test lines; the server wants each one"
        )
    for number, row in enumerate(rows):
        index, _, prediction = row.partition("\t")
        if index != str(number):
            raise RecipeError(f"{where}: line {number + 2} has index {index!r}, must be {number}")
        if not allowed(task, prediction):
            labels = f"a number in 0 … {SCORE_MAX:g}" if task.head == SCORE else " or ".join(task.labels)
            raise RecipeError(f"{where}: line {number + 2} has prediction {prediction!r}, must be {labels}")


def allowed(task: Task, prediction: str) -> bool:
    if task.head != SCORE:
        return prediction in task.labels
    try:
        value = float(prediction)
    except ValueError:
        return False
    return math.isfinite(value) and 0 <= value <= SCORE_MAX
