"""Safe and well-explained loading of checkpoints in every fairseq command."""

import functools
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from fairseq import checkpoint_utils
from fairseq.file_io import PathManager
from fairseq.trainer import Trainer

from macaron.checkpoint import SAFE_GLOBALS, CheckpointError, is_zip, load, read
from macaron.legacy.translation import convert, keep_final_norm
from macaron.names import is_foreign
from macaron.quantization import restored

from . import match

logger = logging.getLogger(__name__)


def install() -> None:
    """Make fairseq's loader accept what its checkpoints hold, and nothing more, and read those of the original.

    fairseq has no hook between reading a file and using it, so its loading functions are wrapped: a file that cannot
    be read, or that holds more than data, is explained, a checkpoint of the original implementation is converted, its
    optimiser state included, and one that belongs to another model or another dictionary is not used in silence.
    """
    torch.serialization.add_safe_globals(SAFE_GLOBALS)
    _wrap(checkpoint_utils, "load_checkpoint_to_cpu", _load_checkpoint_to_cpu)
    _wrap(checkpoint_utils, "load_ema_from_checkpoint", _load_ema_from_checkpoint)
    _wrap(checkpoint_utils, "load_model_ensemble_and_task", _load_model_ensemble_and_task)
    _wrap(Trainer, "load_checkpoint", _resume)
    _wrap(Trainer, "state_dict", _state_dict)


def _wrap(owner: Any, name: str, around: Callable[..., Any]) -> None:
    """Replace `owner.name` by `around`, which gets the original first; once, also if the plugin has two names."""
    original = getattr(owner, name)
    if getattr(original, "_macaron", False):
        return

    @functools.wraps(original)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return around(original, *args, **kwargs)

    wrapper._macaron = True  # type: ignore[attr-defined]
    setattr(owner, name, wrapper)


def _check(path: str) -> None:
    """Look at a file before fairseq does: its checksums, what it refers to, and its options."""
    # again each time, since others take names of theirs away that are ours too (transformers' Trainer, numpy's)
    torch.serialization.add_safe_globals(SAFE_GLOBALS)
    load(PathManager.get_local_path(path), mmap=True)


def _load_checkpoint_to_cpu(original: Callable[..., Any], path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
    _check(path)
    state = restored(original(path, *args, **kwargs))
    if lost := match.lost_numerics(state):
        raise CheckpointError(f"{path}: {lost}")
    try:
        return _read_original(state)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _load_ema_from_checkpoint(original: Callable[..., Any], fpath: str) -> dict[str, Any]:
    _check(fpath)
    return original(fpath)


def _read_original(state: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint of the original for the model of its name: one of ours, or fairseq's own Transformer."""
    from .models.macaron import MODELS

    if not is_foreign(state["model"]):
        return state
    if getattr(state.get("args"), "arch", None) in MODELS:
        return convert(state)
    return {**state, "model": keep_final_norm(state["model"])}


def _load_model_ensemble_and_task(
    original: Callable[..., Any],
    filenames: list[str],
    arg_overrides: dict[str, Any] | None = None,
    task: Any = None,
    strict: bool = True,
    suffix: str = "",
    num_shards: int = 1,
    state: dict[str, Any] | None = None,
) -> Any:
    loaded = original(filenames, arg_overrides, task, strict, suffix, num_shards, state)
    for filename, model in zip(filenames, loaded[0], strict=True):
        name = checkpoint_utils.get_maybe_sharded_checkpoint_filename(filename, suffix, 0, num_shards)
        if match.is_ours(model) and (problem := match.other_dictionaries(model, state or _beside_tensors(name))):
            raise CheckpointError(f"{name}: {problem}")
        if match.is_ours(model) and hasattr(model, "decoder"):
            model.decoder.weights_in_training = True  # whoever trains it in a loop of his own may read them
    return loaded


def _beside_tensors(name: str) -> dict[str, Any]:
    """What a file holds beside its tensors; nothing for those older than torch 1.6, which would be read whole."""
    path = PathManager.get_local_path(name)
    return read(path, mmap=True) if is_zip(path) else {}


def _resume(
    original: Callable[..., Any], trainer: Any, filename: str, reset_optimizer: bool = False, *args: Any, **kwargs: Any
) -> Any:
    """As `Trainer.load_checkpoint`; where training goes on, model and dictionaries have to be those of the checkpoint.

    Who starts anew from its weights (--finetune-from-model, --reset-optimizer) is told what differs.
    """
    with _each_process_reads(trainer):
        extra_state = original(trainer, filename, reset_optimizer, *args, **kwargs)
    model = trainer.get_model()
    path = PathManager.get_local_path(filename)
    if not match.is_ours(model) or not os.path.isfile(path):
        return extra_state
    state = read(path, mmap=True)
    for find in (match.other_dictionaries, match.changed_options):
        if problem := find(model, state):
            if not reset_optimizer:
                raise CheckpointError(
                    f"{path}: {problem}. To train on from its weights nevertheless, with a fresh optimiser: "
                    f"--finetune-from-model, or --reset-optimizer"
                )
            logger.warning("%s: %s", path, problem)
    return extra_state


@contextmanager
def _each_process_reads(trainer: Any) -> Iterator[None]:
    """Several processes read a checkpoint each: what the first would send to the others, an object of omegaconf among
    it, torch ≥ 2.6 refuses to unpack there."""
    options = trainer.cfg.checkpoint
    before = options.load_checkpoint_on_all_dp_ranks
    options.load_checkpoint_on_all_dp_ranks = before or trainer.data_parallel_world_size > 1
    try:
        yield
    finally:
        options.load_checkpoint_on_all_dp_ranks = before


def _state_dict(original: Callable[..., Any], trainer: Any) -> dict[str, Any]:
    """As `Trainer.state_dict`, with the sums of the dictionaries that the embeddings belong to."""
    state = original(trainer)
    model = trainer.get_model()
    if match.is_ours(model) and (sums := match.dictionary_sums(model)):
        state["task_state"] = {**(state.get("task_state") or {}), match.DICTIONARIES: sums}
    return state
