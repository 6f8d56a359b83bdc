"""Safe and well-explained loading of checkpoints in every fairseq command."""

import functools
from typing import Any

import torch
from fairseq import checkpoint_utils

from macaron.legacy.checkpoint import SAFE_GLOBALS, CheckpointError, describe_load_failure
from macaron.legacy.names import is_foreign
from macaron.legacy.translation import convert, keep_final_norm


def _read_original(state: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint of the original for the model of its name: one of ours, or fairseq's own Transformer."""
    from .models.macaron import MODELS

    if not is_foreign(state["model"]):
        return state
    if getattr(state.get("args"), "arch", None) in MODELS:
        return convert(state)
    return {**state, "model": keep_final_norm(state["model"])}


def install() -> None:
    """Make fairseq's loader accept what its checkpoints hold, and nothing more, and read those of the original.

    fairseq has no hook between reading a file and using it, so its one loading function is wrapped: a file that
    cannot be read is explained, and a checkpoint of the original implementation is converted, its optimiser state
    included.
    """
    torch.serialization.add_safe_globals(SAFE_GLOBALS)
    original = checkpoint_utils.load_checkpoint_to_cpu
    if getattr(original, "_macaron", False):
        return

    @functools.wraps(original)
    def load_checkpoint_to_cpu(path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        # again each time, since others take names of theirs away that are ours too (transformers' Trainer, numpy's)
        torch.serialization.add_safe_globals(SAFE_GLOBALS)
        try:
            state = original(path, *args, **kwargs)
        except FileNotFoundError:
            raise
        except Exception as error:
            if _comes_from_torch_load(error):
                raise CheckpointError(describe_load_failure(path, error)) from error
            raise
        return _read_original(state)

    load_checkpoint_to_cpu._macaron = True  # type: ignore[attr-defined]
    checkpoint_utils.load_checkpoint_to_cpu = load_checkpoint_to_cpu


def _comes_from_torch_load(error: BaseException) -> bool:
    traceback = error.__traceback__
    while traceback is not None:
        if traceback.tb_frame.f_globals.get("__name__") == "torch.serialization":
            return True
        traceback = traceback.tb_next
    return False
