"""All runs of a command: what is there to do, in this process, in several, or on several GPUs; each done once."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import queue
import time
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from tqdm import tqdm

from recipes.common.errors import RecipeError
from recipes.common.leash import end_with_parent
from recipes.common.workspace import Workspace, digest
from recipes.glue.data import first_line
from recipes.glue.finetune import Options, Run, drop_checkpoints, run_one
from recipes.glue.origin import check_made_from

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


def execute(runs: Sequence[Run], options: Options, space: Workspace | None, jobs: int) -> dict[str, str]:
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
    outcomes = in_parallel(todo, options, jobs) if jobs > 1 and len(todo) > 1 else in_turn(todo, options)
    for run, outcome, seconds in outcomes:
        if isinstance(outcome, str):
            failed[run.stage] = outcome
            tqdm.write(f"{run.stage}: {outcome}")
        elif space is not None:
            made = [run.folder / "result.json", run.folder / "predictions.npz"]
            space.finish(run.stage, made, time.time() - seconds)
            drop_checkpoints(run)
            tqdm.write(shown(run, outcome, seconds))
    return failed


def explained(run: Run, error: Exception) -> str:
    """In one line; what the user cannot mend is kept in full beside the run."""
    if isinstance(error, RecipeError):
        return first_line(error)
    message = f"{type(error).__name__}: {first_line(error)}"
    try:
        (run.folder / "error.txt").write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    except OSError:
        return message
    return f"{message} (the whole of it is in {run.folder / 'error.txt'})"


def shown(run: Run, result: dict[str, Any], seconds: float) -> str:
    scores = "; ".join(
        f"{task} " + ", ".join(f"{name} {value:.2f}" for name, value in metrics.items())
        for task, metrics in result["scores"].items()
    )
    return f"{run.stage:<40} {scores}   ({seconds:.0f} s)"


def in_turn(runs: Sequence[Run], options: Options) -> Iterator[tuple[Run, dict[str, Any] | str, float]]:
    for run in runs:
        outcome, seconds = timed(run, options)
        if isinstance(outcome, str) and world_size() > 1:
            raise RecipeError(f"{run.stage}: {outcome}")  # the other processes stop at it too
        yield run, outcome, seconds


def in_parallel(runs: Sequence[Run], options: Options, jobs: int) -> Iterator[tuple[Run, dict[str, Any] | str, float]]:
    """`jobs` processes, each with a GPU of its own where there are any, else with its share of the cores."""
    workers: queue.Queue[Worker] = queue.Queue()
    for place in range(min(jobs, len(runs))):
        workers.put(Worker(place, jobs))

    def run_in_one(run: Run) -> tuple[dict[str, Any] | str, float]:
        worker = workers.get()
        try:
            return worker(run, options)
        finally:
            workers.put(worker)

    pool = ThreadPoolExecutor(workers.qsize())
    try:
        futures = {pool.submit(run_in_one, run): run for run in runs}
        for future in tqdm(as_completed(futures), total=len(runs), desc="runs", unit="run"):
            yield futures[future], *future.result()
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        while not workers.empty():
            workers.get().close()


class Worker:
    """A process that does one run after another; a new one where it was killed."""

    def __init__(self, place: int, jobs: int):
        self.place, self.jobs = place, jobs
        self.open()

    def open(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.process = ProcessPoolExecutor(1, mp_context=context, initializer=prepare, initargs=(self.place, self.jobs))

    def close(self) -> None:
        self.process.shutdown()

    def __call__(self, run: Run, options: Options) -> tuple[dict[str, Any] | str, float]:
        try:
            return self.process.submit(timed, run, options).result()
        except BrokenProcessPool:
            self.close()
            self.open()
            return "its process was killed; was there memory enough? The same command goes on with it", 0.0


def timed(run: Run, options: Options) -> tuple[dict[str, Any] | str, float]:
    """(the result, or what went wrong, and seconds)"""
    started = time.time()
    try:
        outcome: dict[str, Any] | str = run_one(run, options)
    except Exception as error:
        outcome = explained(run, error)
    return outcome, time.time() - started


def prepare(place: int, jobs: int) -> None:
    """A worker: takes a GPU or its share of the cores, and ends with the process that started it."""
    import torch

    gpus = visible_gpus()
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[place % len(gpus)]
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // jobs))
    end_with_parent()


def visible_gpus() -> list[str]:
    """Names for CUDA_VISIBLE_DEVICES, without starting CUDA here."""
    import torch

    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return given.split(",")[:count] if given else [str(index) for index in range(count)]
