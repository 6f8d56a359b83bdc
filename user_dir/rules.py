"""What fairseq's training is told of a rule across depth: its place in the log, and what weight decay spares."""

import logging
from collections.abc import Iterator
from typing import Any

from fairseq.logging import metrics
from torch import nn

from macaron.dynamics.multistep import LinearMultistep, is_zero_stable

# Read by the optimiser, see `patches.py`; fairseq keeps an attribute of this name where it copies parameters.
SPARED = {"weight_decay": 0.0}


def multisteps(rule: Any) -> Iterator[LinearMultistep]:
    """The multistep rules in a rule."""
    if isinstance(rule, nn.Module):
        yield from (module for module in rule.modules() if isinstance(module, LinearMultistep))


def spared(rule: Any) -> Any:
    """The rule itself, its k marked as what weight decay leaves alone."""
    for multistep in multisteps(rule):
        for parameter in multistep.parameters():
            parameter.optim_overrides = SPARED
    return rule


def log_rule(side: str, rule: Any) -> None:
    """The smallest and the greatest k of a side into the training log, and a warning of the first unstable one."""
    for multistep in multisteps(rule):
        if not (k := multistep.k):
            continue
        metrics.log_scalar(f"{side}_k_min", min(k), weight=0, priority=600, round=4)
        metrics.log_scalar(f"{side}_k_max", max(k), weight=0, priority=601, round=4)
        unstable = {n: value for n, value in enumerate(k, start=1) if not is_zero_stable(value)}
        if unstable and not getattr(multistep, "told", False):
            multistep.told = True
            logging.getLogger(__name__).warning(
                "the two-step rule of %s layer %d has k = %.3f, and is zero-stable for -1 < k <= 1 only: a "
                "perturbation grows with the depth",
                *(side, *next(iter(unstable.items()))),
            )
