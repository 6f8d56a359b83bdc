"""README.md of a fine-tuned model: what its outputs mean, how it was made, and its dev scores."""

from __future__ import annotations

from typing import Any

from ..common import multistep
from .results import attack_of
from .tasks import BINARY, CLASSES, METRIC_NAMES, SCORE_MAX, SCORE_MIDDLE, SCORE_SCALE, TASKS, Task


def card(task: Task, result: dict[str, Any]) -> str:
    """The text, from a run's `result.json`."""
    if task.head == BINARY:
        no, yes = task.classes
        meaning = (
            f"One logit; its sigmoid is the probability of `{yes}`. From 0 on the answer is `{yes}`, below `{no}`."
        )
    elif task.head == CLASSES:
        meaning = f"A logit for each of {', '.join(f'`{name}`' for name in task.classes)}."
    else:
        meaning = (
            f"One number y, trained on (score − {SCORE_MIDDLE:g}) / {SCORE_SCALE:g}: the similarity is "
            f"{SCORE_SCALE:g} y + {SCORE_MIDDLE:g}, clipped to 0 … {SCORE_MAX:g}."
        )
    scores = [
        f"* {TASKS[name].title}, dev, {METRIC_NAMES[metric]}: {value:.2f}"
        for name, metrics in result["scores"].items()
        for metric, value in metrics.items()
    ]
    attack = attack_of(result["setting"])
    scores += [
        f"* {TASKS[name].title}, dev under attack ({attack}), {METRIC_NAMES[metric]}: {value:.2f}"
        for name, metrics in result.get("attacked", {}).items()
        for metric, value in metrics.items()
    ]
    trained = {name: value for name, value in result["setting"].items() if not name.startswith("attack")}
    setting = ", ".join(f"{name} {value}" for name, value in trained.items())
    parts = [f"# {task.title}", meaning, "\n".join(scores), f"Fine-tuned with seed {result['seed']}: {setting}."]
    parts += ["\n".join(f"* {note}" for note in result["notes"])] if result["notes"] else []
    if "multistep" in result:
        parts.append(f"The two-step rule, {multistep.RULE}. {multistep.verdict(result['multistep'])}")
        lines = (multistep.HEAD, ["---"] * len(multistep.HEAD), *multistep.rows(result["multistep"]))
        parts += ["\n".join("| " + " | ".join(cells) + " |" for cells in lines)] if result["multistep"] else []
    return "\n\n".join(parts) + "\n"
