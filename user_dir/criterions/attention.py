"""Which criterions read the decoder's attention weights."""

from argparse import Namespace
from typing import Any

from omegaconf import DictConfig

from . import adversarial, label_smoothed_cross_entropy

# For any other the decoder computes them in training, as fairseq's does: guided alignment, a criterion of the user's.
_BLIND = {
    "adaptive_loss",
    "cross_entropy",
    "label_smoothed_cross_entropy",
    "label_smoothed_cross_entropy_with_rdrop",
    label_smoothed_cross_entropy.NAME,
}


def reads_attention(cfg: Any, task: Any) -> bool:
    """Whether the training that a model is built for may read its attention weights: yes, unless it is known not to.

    Args:
        cfg: what `build_model` was given; a hydra configuration knows the whole that it is a part of.
        task: whose training step calls the criterion.
    """
    name = getattr(cfg, "criterion", None) if isinstance(cfg, Namespace) else None
    inner = getattr(cfg, "inner", None) if isinstance(cfg, Namespace) else None
    if isinstance(cfg, DictConfig):
        whole = cfg._get_parent()
        criterion = whole.get("criterion") if isinstance(whole, DictConfig) else None
        name, inner = criterion, None
        if isinstance(criterion, DictConfig):
            name, inner = criterion.get("_name"), criterion.get("inner")
    name = inner if name == adversarial.NAME else name
    step = getattr(task, "train_step", None)
    own = getattr(step, "__module__", "").split(".")[0] == "fairseq"
    return not own or name not in _BLIND
