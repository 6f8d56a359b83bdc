"""What a checkpoint must hold for a model to be loaded from it."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor
from transformers.modeling_utils import PreTrainedModel


def check_names(
    model: PreTrainedModel, report: dict[str, Any], source: str, complete: bool, encoder: Iterable[str]
) -> None:
    """Refuse what `from_pretrained` of transformers only warns of.

    Args:
        report: its lists of missing and unexpected names.
        complete: the checkpoint was saved by this class, so that nothing is new.
        encoder: the parts that every checkpoint has.

    Raises:
        ValueError: a part of which there is something, or the encoder, is not whole; or the checkpoint has more.
    """
    encoder = set(encoder)

    def part(name: str) -> str:
        return name.removeprefix(f"{model.base_model_prefix}.").partition(".")[0]

    parameters = [name for name, _ in model.named_parameters()]
    missing = set(report["missing_keys"])
    # a part of which there is something is no new one
    found = {part(name) for name in parameters if name not in missing} | encoder
    lost = [name for name in missing if complete or part(name) in found]
    ours = {part(name) for name in parameters} - {"pooler"} | encoder
    left = [name for name in report["unexpected_keys"] if part(name) in ours]
    if lost or left:
        wrong = [f"lacks {listed(lost)}"] if lost else []
        wrong += [f"has {listed(left)}, for which there is no place"] if left else []
        raise ValueError(
            f"{source} does not fit {type(model).__name__} and its configuration: it {', and '.join(wrong)}. Copy or "
            f"download it again, or load it by the class and configuration that it was saved with; "
            f"output_loading_info=True returns these lists instead of this error"
        )


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of those that hold NaN or an infinity, which no trained model does."""
    return [name for name, tensor in tensors.items() if not tensor.isfinite().all()]


def listed(names: Iterable[str], most: int = 6) -> str:
    names = sorted(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
