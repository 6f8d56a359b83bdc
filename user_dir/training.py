"""What fairseq has to be told, and what is checked, before a model is built."""

import importlib.util
import os
from argparse import Namespace
from typing import Any

import numpy as np
from fairseq import utils
from fairseq.data.indexed_dataset import MMapIndexedDataset, infer_dataset_impl


def prepare_training(args: Any) -> None:
    """fairseq's architecture hook, called with the parsed options of a command that builds a model anew.

    * `--bf16` means bfloat16: fairseq's command line would also ask for a TPU.
    * Binarised data is checked before anything reads it.

    Raises:
        FileNotFoundError: no such data folder, or a file is missing in it.
        ValueError: a truncated data file.
    """
    if not isinstance(args, Namespace):
        return
    if getattr(args, "bf16", False) and importlib.util.find_spec("torch_xla") is None:
        args.tpu = False
    check_data(getattr(args, "data", None))


def check_task_data(task: Any) -> None:
    """The same check for the commands that build a model from a checkpoint or a hydra configuration."""
    cfg = getattr(task, "cfg", None) or getattr(task, "args", None)
    check_data(getattr(cfg, "data", None))


def check_data(data: Any) -> None:
    """Raise an error that says what to do if binarised data is missing or truncated.

    Args:
        data: what a task has as its `data`: folders, joined by ":"; anything but a string is left to the task.
    """
    if not isinstance(data, str):
        return
    for path in utils.split_paths(data):
        if "://" in path:
            continue
        if not os.path.exists(path):
            raise FileNotFoundError(
                f"data folder {path!r} does not exist; pass the --destdir that fairseq-preprocess wrote"
            )
        names = sorted(os.listdir(path)) if os.path.isdir(path) else []
        for name in names:
            prefix, extension = os.path.splitext(os.path.join(path, name))
            if extension == ".idx":
                _check_pair(prefix)


def _check_pair(prefix: str) -> None:
    """Compare the size of a .bin with what its .idx describes, and the two things that the .idx says of every line."""
    if not os.path.isfile(prefix + ".bin"):
        raise FileNotFoundError(f"data file {prefix}.bin is missing beside its .idx; run fairseq-preprocess again")
    try:
        implementation = infer_dataset_impl(prefix)
        if implementation not in ("mmap", None):
            return
        index = MMapIndexedDataset.Index(prefix + ".idx")
        ends = np.cumsum(index.sizes, dtype=np.int64) * index.dtype().itemsize
        expected = int(ends[-1]) if len(ends) else 0
        if not np.issubdtype(index.dtype, np.integer):
            raise ValueError("its numbers are no integers")
        if (index.sizes < 0).any() or not np.array_equal(index._pointers[1:], ends[:-1]) or index._pointers[:1].any():
            raise ValueError("its pointers are not where its sizes put them")
    except Exception as error:  # a damaged header can fail anywhere
        raise ValueError(
            f"data file {prefix}.idx is truncated or corrupt; run fairseq-preprocess again ({error})"
        ) from error
    found = os.path.getsize(prefix + ".bin")
    if found != expected:
        raise ValueError(
            f"data file {prefix}.bin has {found} bytes, but its index describes {expected}; it is truncated or "
            f"from another run: run fairseq-preprocess again"
        )
