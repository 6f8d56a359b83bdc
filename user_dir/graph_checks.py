"""What keeps a recorded step from being another one: what is refused before, and what is compared after."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


def refuse_what_cannot_be_recorded(model: nn.Module) -> None:
    """Raise ValueError where a replay would not be what a run is: what the host draws or decides anew in each step."""
    reasons = []
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    if distributed and torch.distributed.get_world_size() > 1:
        reasons.append("gradients are reduced between processes; train with one")
    if torch.is_autocast_enabled("cuda"):
        reasons.append("--amp casts the weights anew in each pass; take --bf16 or --fp16")
    for module in model.modules():
        if getattr(module, "layerdrop", 0.0):
            reasons.append("--encoder-layerdrop and --decoder-layerdrop draw layers on the host")
        if getattr(module, "noise", None) is not None:
            reasons.append("--stochastic-depth draws layers on the host")
        if not getattr(module, "fused", True):
            reasons.append("a --solver of several stages restores random states on the host")
        if type(module).__module__.startswith("fairseq.modules.quantization.scalar"):
            reasons.append("--quant-noise-scalar counts steps on the host")
        if hasattr(module, "precheckpoint_forward"):
            reasons.append("--checkpoint-activations restores random states on the host")
        if "integrate" in vars(module) or "velocity" in vars(module):
            reasons.append("--compile has graphs of its own")
        if getattr(getattr(getattr(module, "cfg", None), "quant_noise", None), "pq", 0):
            reasons.append("--quant-noise-pq draws blocks on the host")
    if reasons:
        raise ValueError(f"--cuda-graphs cannot be combined: {'; '.join(dict.fromkeys(reasons))}")


@dataclass
class Step:
    """What a step comes to.

    Args:
        loss: ().
        logged: what is logged, each ().
        grads: of factor · loss with respect to the parameters, None for one that takes no part.
        factor: as a loss scale.
    """

    loss: Tensor
    logged: dict[str, Tensor]
    grads: Sequence[Tensor | None]
    factor: float = 1.0

    def finite(self) -> bool:
        return bool(torch.isfinite(_norms([self.loss, *(g for g in self.grads if g is not None)])).all())


class AnotherStep(ValueError):
    """A recorded step is not the step that was recorded."""


def refuse_another(found: Step, expected: Step, names: Sequence[str], where: str) -> None:
    """Raise AnotherStep unless both steps are the same up to rounding.

        ‖g − e‖ ≤ √ε · max(‖e‖, r)        r = root mean square of ‖e‖ over the parameters, ε of the coarsest dtype

    r, because some gradients are nothing but rounding, such as that of a key's bias. Losses likewise, with r = 1.

    Args:
        found, expected: of the replay, and of the step that was not recorded.
        names: of the parameters.
        where: the shapes, for the message.
    """
    taken = [i for i, grad in enumerate(expected.grads) if grad is not None]
    wrong = [names[i] for i, grad in enumerate(found.grads) if (grad is None) != (i not in taken)]
    if wrong:
        _refuse(f"{', '.join(wrong[:3])} {'has' if len(wrong) == 1 else 'have'} a gradient in one of them alone", where)
    theirs = [expected.grads[i] for i in taken]
    most = max(torch.finfo(t.dtype).eps for t in (expected.loss, *theirs)) ** 0.5
    one, other = ({"loss": step.loss, **step.logged} for step in (found, expected))
    for name in other:
        distance = abs(float(one[name]) - float(other[name])) / max(abs(float(other[name])), 1.0)
        if not distance <= most:
            _refuse(f"{name} is {float(one[name]):.6g}, not {float(other[name]):.6g}", where)
    if taken:
        sizes = _norms(theirs)
        scale = sizes.clamp(min=max(float(sizes.square().mean().sqrt()), torch.finfo(torch.float32).tiny))
        distances = _norms(found.grads[i] - expected.grads[i] for i in taken) / scale
        worst = int(torch.where(distances.isnan(), torch.inf, distances).argmax())
        if not float(distances[worst]) <= most:
            _refuse(
                f"the gradient of {names[taken[worst]]} is off by {float(distances[worst]):.2g} of its norm, where "
                f"rounding is at most {most:.2g}",
                where,
            )


def _norms(tensors: Iterable[Tensor]) -> Tensor:
    return torch.stack([t.float().norm() for t in tensors])


def _refuse(what: str, where: str) -> None:
    raise AnotherStep(
        f"--cuda-graphs: a recorded step is not the step that was recorded: {what}, for batches with {where}. Nothing "
        f"has been trained with it. Leave out --cuda-graphs, and report this with the versions of torch and the GPU"
    )
