"""All runs of a command: what is there to do, in this process, in several, or on several GPUs; each done once."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..common.errors import RecipeError
from ..common.jobs import Call, Job, Outcome, run_all, slots
from ..common.workspace import Workspace, digest
from .finetune import drop_checkpoints, run_one
from .origin import check_made_from
from .settings import FineTuning, FineTuningOptions

WEIGHTS = ("*.safetensors", "*.bin", "config.json")


def model_identity(model: str) -> dict[str, str]:
    """Name, and for a folder a digest of its weights: results of two models are never mixed."""
    folder = Path(model)
    if not folder.exists():
        if model.startswith(("/", ".", "~")) or model.count("/") > 1:  # no name on the hub
            raise RecipeError(f"--model {model}: no such folder; give the folder of a saved model, or a hub name")
        return {"model": model}
    files = sorted({path for pattern in WEIGHTS for path in folder.glob(pattern)}) if folder.is_dir() else []
    if not (folder / "config.json").is_file():
        raise RecipeError(f"--model {model}: no config.json there; give the folder of a saved model, or a hub name")
    names = "".join(f"{path.name}:{digest(path)}" for path in files)
    return {"model": str(folder.resolve()), "model_digest": hashlib.sha256(names.encode()).hexdigest()[:16]}


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def shared_by_all(value: Any, cpu: bool) -> Any:
    """Rank 0's value, on every rank."""
    if world_size() == 1:
        return value
    import torch
    from accelerate import PartialState

    gloo = cpu or not torch.cuda.is_available()
    PartialState(**({"cpu": True, "backend": "gloo"} if gloo else {}))  # starts the process group
    box = [value]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]


def execute(
    runs: Sequence[FineTuning], options: FineTuningOptions, space: Workspace | None, jobs: int
) -> dict[str, str]:
    """Do the runs that are not stamped yet; {stage: message} of those that failed. `space` is None but on rank 0.

    A run that fails, for whatever reason, leaves the others alone; where several processes share one, all end with it.

    Raises:
        RecipeError: the folder holds runs that were made from other data or another tokenizer.
    """
    for run in {run.task: run for run in runs}.values() if space else []:
        check_made_from(run, options)
    todo = [run for run in runs if space is None or space.stamp(run.stage) is None]
    todo = shared_by_all(todo, options.cpu)
    if space and len(todo) < len(runs):
        print(f"runs      {len(runs) - len(todo)} of {len(runs)} done before")
    failed = {}
    of_stage = {run.stage: run for run in todo}

    def conclude(task: Job, outcome: Outcome) -> None:
        run = of_stage[task.name]
        if outcome.error:
            failed[run.stage] = explained(run, outcome)
            if world_size() > 1:
                raise RecipeError(f"{run.stage}: {failed[run.stage]}")  # the other processes stop at it too
            tqdm.write(f"{run.stage}: {failed[run.stage]}")
        elif space is not None:
            made = [run.folder / "result.json", run.folder / "predictions.npz"]
            space.finish(run.stage, made, time.time() - outcome.seconds)
            drop_checkpoints(run)
            tqdm.write(shown(run, outcome.value, outcome.seconds))

    beside = min(jobs, len(todo))
    calls = [Call(run.stage, run_one, (run, options)) for run in todo]
    run_all(calls, slots(beside, share=True) if beside > 1 else (), done=conclude)
    return failed


def explained(run: FineTuning, outcome: Outcome) -> str:
    """In one line; what the user cannot mend is kept in full beside the run."""
    message = " ".join(outcome.error.split())
    if not outcome.trace:
        return message
    try:
        (run.folder / "error.txt").write_text(outcome.trace, encoding="utf-8")
    except OSError:
        return message
    return f"{message} (the whole of it is in {run.folder / 'error.txt'})"


def shown(run: FineTuning, result: dict[str, Any], seconds: float) -> str:
    scores = "; ".join(
        f"{task} {said}" + ", ".join(f"{name} {value:.2f}" for name, value in metrics.items())
        for scores, said in (("scores", ""), ("attacked", "under attack "))
        for task, metrics in result.get(scores, {}).items()
    )
    return f"{run.stage:<40} {scores}   ({seconds:.0f} s)"
