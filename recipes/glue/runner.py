"""All runs of a command: what is there to do, in this process, in several, or on several GPUs; each done once."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from tqdm import tqdm

from recipes.common.errors import RecipeError
from recipes.common.workspace import Workspace, digest
from recipes.glue.finetune import Options, Run, drop_checkpoints, run_one

WEIGHTS = ("*.safetensors", "*.bin", "config.json")


def model_identity(model: str) -> dict[str, str]:
    """Name, and for a folder a digest of its weights: results of two models are never mixed."""
    folder = Path(model)
    if not folder.exists():
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


def execute(runs: Sequence[Run], options: Options, space: Workspace | None, jobs: int) -> dict[str, str]:
    """Do the runs that are not stamped yet; {stage: message} of those that failed. `space` is None but on rank 0."""
    todo = [run for run in runs if space is None or space.stamp(run.stage) is None]
    todo = shared_by_all(todo, options.cpu)
    if space and len(todo) < len(runs):
        print(f"runs      {len(runs) - len(todo)} of {len(runs)} done before")
    for run in todo:
        run.folder.mkdir(parents=True, exist_ok=True)
    failed = {}
    outcomes = in_parallel(todo, options, jobs) if jobs > 1 and len(todo) > 1 else in_turn(todo, options)
    for run, outcome, seconds in outcomes:
        if isinstance(outcome, Exception):
            failed[run.stage] = f"{type(outcome).__name__}: {outcome}"
            tqdm.write(f"{run.stage}: {failed[run.stage]}")
        elif space is not None:
            made = [run.folder / "result.json", run.folder / "predictions.npz"]
            space.finish(run.stage, made, time.time() - seconds)
            drop_checkpoints(run)
            tqdm.write(shown(run, outcome, seconds))
    return failed


def shown(run: Run, result: dict[str, Any], seconds: float) -> str:
    scores = "; ".join(
        f"{task} " + ", ".join(f"{name} {value:.2f}" for name, value in metrics.items())
        for task, metrics in result["scores"].items()
    )
    return f"{run.stage:<40} {scores}   ({seconds:.0f} s)"


def in_turn(runs: Sequence[Run], options: Options) -> Iterator[tuple[Run, Any, float]]:
    for run in runs:
        started = time.time()
        try:
            outcome: Any = run_one(run, options)
        except RecipeError as error:
            if world_size() > 1:
                raise  # the other processes stop at it too
            outcome = error
        yield run, outcome, time.time() - started


def in_parallel(runs: Sequence[Run], options: Options, jobs: int) -> Iterator[tuple[Run, Any, float]]:
    """`jobs` processes, each with a GPU of its own where there are any, else with its share of the cores."""
    context = multiprocessing.get_context("spawn")
    places = context.Queue()
    for place in range(jobs):
        places.put(place)
    pool = ProcessPoolExecutor(min(jobs, len(runs)), mp_context=context, initializer=prepare, initargs=(places, jobs))
    try:
        futures = {pool.submit(timed, run, options): run for run in runs}
        for future in tqdm(as_completed(futures), total=len(runs), desc="runs", unit="run"):
            error = future.exception()
            if error is not None:
                yield futures[future], error, 0.0
            else:
                yield futures[future], *future.result()
    except BaseException:
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def timed(run: Run, options: Options) -> tuple[dict[str, Any], float]:
    started = time.time()
    return run_one(run, options), time.time() - started


def prepare(places: Any, jobs: int) -> None:
    """A worker: takes a GPU or its share of the cores, and ends with the process that started it."""
    place = places.get()
    import torch

    gpus = visible_gpus()
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[place % len(gpus)]
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // jobs))
    threading.Thread(target=end_with_parent, daemon=True).start()


def end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def visible_gpus() -> list[str]:
    """Names for CUDA_VISIBLE_DEVICES, without starting CUDA here."""
    import torch

    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return given.split(",")[:count] if given else [str(index) for index in range(count)]
