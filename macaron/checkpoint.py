"""Checkpoint files, read with torch's safe loader: fairseq's own and those of the original implementation.

Besides tensors and plain containers only the names of `SAFE_GLOBALS` may occur in a file; anything else is refused
before it is built, and so are options that fairseq would run as code (`macaron.options`). A file in torch's zip
format carries a checksum for every record, which torch does not look at; they are compared here.
"""

import argparse
import os
import pickle
import re
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from macaron.options import find_code
from macaron.quantization import restored


class _Meter:
    """Stands in for a meter class that a checkpoint of the original names; holds its numbers."""


def _numpy_globals() -> list[Any]:
    """What the n-gram counts of `--eval-bleu` in a checkpoint refer to, under numpy 1's and numpy 2's names.

    They are int64, and float64 where several processes summed them.
    """
    reconstruct: Any = np.empty(0).__reduce__()[0]
    names = [(reconstruct, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")]
    return [*names, np.ndarray, np.dtype, *(type(np.dtype(t)) for t in (np.int64, np.float64))]


SAFE_GLOBALS: list[Any] = [
    argparse.Namespace,
    *((_Meter, f"fairseq.meters.{name}") for name in ("AverageMeter", "TimeMeter", "StopwatchMeter")),
    *_numpy_globals(),
]


# How torch's safe loader says that a file wants more than tensors and containers.
_REFUSED = re.compile(
    r"(?:Trying to load unsupported )?GLOBAL (?P<name>\S+) (?:was not an allowed|whose module)|(?:Can only|Trying to) "
)


# Where a checkpoint keeps the sums of its dictionaries: in the state of the task, which every way to save keeps.
DICTIONARIES = "macaron_dictionaries"

# Entries of fairseq's model state that are buffers; the second is uninitialised memory in old versions.
NO_PARAMETERS = (".version", "._float_tensor")


class CheckpointError(ValueError):
    """A checkpoint that cannot be used, with the reason and the remedy."""


def describe_load_failure(path: str | Path, error: BaseException) -> str:
    """What a failed load means: the file, what is wrong with it, and what to do."""
    text = str(error)
    refused = _REFUSED.search(text) if isinstance(error, pickle.UnpicklingError) else None
    if refused:
        return (
            f"{path}: refused, because it refers to {refused['name'] or 'code'}, which a checkpoint has no need of. "
            f"Safe loading builds tensors and plain containers only. If you trust its source, convert it there to "
            f"plain tensors."
        )
    return (
        f"{path}: not a readable checkpoint; the file is truncated or corrupt, or no checkpoint at all. Copy or "
        f"download it again, or resume from an earlier one in the same folder. ({type(error).__name__}: "
        f"{text.splitlines()[0] if text else 'no detail'})"
    )


def load(path: str | Path, *, mmap: bool = False) -> dict[str, Any]:
    """Read a checkpoint to the CPU with `weights_only=True`, after a comparison of its checksums.

    Args:
        mmap: leave the tensors in the file until they are used; for who wants the rest of it only. Files older than
            torch 1.6 are read whole.

    Raises:
        FileNotFoundError, IsADirectoryError: no such file.
        CheckpointError: truncated, corrupt or refused, or without a `model` entry.
    """
    check_records(Path(path))
    return read(path, mmap=mmap)


def read(path: str | Path, *, mmap: bool = False) -> dict[str, Any]:
    """As `load`, without the comparison of checksums: for a second look at a file."""
    path = Path(path)
    mmap = mmap and is_zip(path)
    known = torch.serialization.get_safe_globals()  # for good, where fairseq is loaded: not to be taken away below
    try:
        with torch.serialization.safe_globals([entry for entry in SAFE_GLOBALS if entry not in known]):
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # torch raises many kinds for a damaged file
        raise CheckpointError(describe_load_failure(path, error)) from error
    if not isinstance(state, dict) or "model" not in state:
        found = f"entries {', '.join(map(str, state))}" if isinstance(state, dict) else f"a {type(state).__name__}"
        raise CheckpointError(f"{path}: holds {found}, but a fairseq checkpoint has an entry 'model'")
    if code := find_code(state):
        raise CheckpointError(
            f"{path}: refused, because {code}. What stands in a file is data. If you trust its source, have it written "
            f"anew there with a plain value."
        )
    try:
        return restored(state)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}; the file is damaged, copy it again") from error


def is_zip(path: str | Path) -> bool:
    """Whether torch will read the file as a zip archive, its format since version 1.6.

    Raises:
        FileNotFoundError, IsADirectoryError: no such file.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"checkpoint {path} does not exist; check the path")
    if path.is_dir():
        raise IsADirectoryError(f"checkpoint {path} is a folder; name a file in it")
    if not path.is_file():  # a pipe would be waited for
        raise FileNotFoundError(f"checkpoint {path} is no ordinary file; check the path")
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def check_records(path: Path) -> None:
    """Compare a zip file's records with their checksums, and its end with where it has to be.

    Raises:
        FileNotFoundError, IsADirectoryError: no such file.
        CheckpointError: they differ.
    """
    if not is_zip(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.casefold() for name in archive.namelist()]  # torch finds them whatever their case
            if len(set(names)) < len(names):
                raise zipfile.BadZipFile("two records of one name")
            summed = any(record.CRC for record in archive.infolist())  # torch can be told to leave the sums out
            if summed and (damaged := archive.testzip()):
                raise zipfile.BadZipFile(f"the checksum of record {damaged!r} is wrong")
            with path.open("rb") as file:
                file.seek(-22 - len(archive.comment), 2)
                if file.read(4) != b"PK\x05\x06":
                    raise zipfile.BadZipFile("something follows its end")
    except Exception as error:  # zipfile, too, raises many kinds for a damaged file
        raise CheckpointError(describe_load_failure(path, error)) from error


def check_model(state: dict[str, Any], path: Path) -> None:
    """Raise ValueError unless the entry 'model' is a dictionary of tensors by name."""
    model = state.get("model")
    if not isinstance(model, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in model.items()
    ):
        raise ValueError(
            f"{path}: no model in it (found {', '.join(map(str, state))}); a fairseq checkpoint has "
            f"a dictionary 'model' of tensors, so check that the file was written by fairseq"
        )


def check_finite(model: Mapping[str, torch.Tensor]) -> None:
    """Raise CheckpointError if a parameter is no tensor of floating-point numbers, or holds what is no number."""
    for name, value in model.items():
        if name.endswith(NO_PARAMETERS):
            continue
        if not value.is_floating_point() or value.dim() == 0:
            raise CheckpointError(
                f"parameter {name} is a {value.dtype} of shape {tuple(value.shape)}, and should be a vector or matrix "
                f"of floating-point numbers; the checkpoint is damaged, or of another kind"
            )
        if not torch.isfinite(value).all():
            raise CheckpointError(
                f"parameter {name} is not finite: the run diverged, or the file is damaged; use another checkpoint"
            )


def architecture(state: Mapping[str, Any]) -> str:
    """The name of the architecture."""
    return str(model_option(state, "_name") or model_option(state, "arch") or "unknown")


def model_option(state: Mapping[str, Any], name: str) -> Any:
    """An option of the model, from either of fairseq's two ways to keep the configuration; None if it is not there."""
    cfg = state.get("cfg")
    config = (cfg.get("model") if isinstance(cfg, dict) else None) or state.get("args")
    return config.get(name) if isinstance(config, dict) else getattr(config, name, None)


def save(state: dict[str, Any], path: Path) -> None:
    """Write `path` whole or not at all; where it is a link, the file that it points to."""
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{os.fsdecode(os.fsencode(path.name)[:200])}."  # a file's name has 255 bytes at most
    _sweep(path.parent, prefix)
    partial = path.with_name(f"{prefix}{os.getpid()}.tmp")
    try:
        torch.save(state, partial)
        os.replace(partial, path)
    except RuntimeError as error:  # of torch, which does not say what the system said
        free = shutil.disk_usage(path.parent).free
        raise OSError(f"{path} cannot be written; {free:,} bytes are free in {path.parent} ({error})") from error
    finally:
        partial.unlink(missing_ok=True)


def _sweep(folder: Path, prefix: str) -> None:
    """Delete what a killed process left of an earlier attempt."""
    for path in folder.iterdir():
        pid = path.name.removeprefix(prefix).removesuffix(".tmp")
        if path.name == f"{prefix}{pid}.tmp" and pid.isdecimal() and not _runs(int(pid)):
            path.unlink(missing_ok=True)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        return True
    return True
