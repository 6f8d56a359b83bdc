"""fairseq's Adam on torch's fused and multi-tensor kernels."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from fairseq.optim import OPTIMIZER_REGISTRY, register_optimizer
from fairseq.optim import adam as fairseq_adam
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim.adam import adam as torch_adam

NAME = "macaron_adam"


class Adam(fairseq_adam.Adam):
    """Adam with decoupled weight decay, in one launch (or a few) for all parameters instead of a dozen for each.

        m ← β₁ m + (1 − β₁) g,   v ← β₂ v + (1 − β₂) g²
        p ← p − lr λ p − lr √(1 − β₂ᵗ) / (1 − β₁ᵗ) · m / (√v + ε)

    ε is added to the uncorrected √v, as in fairseq and in Kingma & Ba 2015 (arXiv:1412.6980), end of section 2. torch
    adds its own to √(v / (1 − β₂ᵗ)), and is therefore given ε / √(1 − β₂ᵗ). The state is that of fairseq's Adam, entry
    by entry. Parameters of half precision (`--memory-efficient-fp16`) take fairseq's loop.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        given = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        if any(p.dtype in (torch.float16, torch.bfloat16) for p in given):
            return super().step(closure)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for alike in self._alike(group["params"]):
                self._advance(group, alike)
        return loss

    def _alike(self, params: Iterable[Tensor]) -> Iterable[list[Tensor]]:
        """Parameters with a gradient, by device, dtype and the number of steps behind them."""
        groups: dict[Any, list[Tensor]] = {}
        for p in params:
            if p.grad is not None:
                if not self.state[p]:
                    self.state[p] = {"step": 0, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
                groups.setdefault((p.device, p.dtype, self.state[p]["step"]), []).append(p)
        return groups.values()

    def _advance(self, group: dict[str, Any], params: list[Tensor]) -> None:
        states = [self.state[p] for p in params]
        count = states[0]["step"]
        beta1, beta2 = group["betas"]
        fused = params[0].device.type in ("cpu", "cuda")
        counts = torch.full((len(params),), float(count), device=params[0].device if fused else "cpu")
        torch_adam(
            params,
            [p.grad for p in params],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            list(counts.unbind()),  # increased by torch
            foreach=not fused,
            fused=fused,
            decoupled_weight_decay=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"] / math.sqrt(1 - beta2 ** (count + 1)),
            maximize=False,
        )
        for state in states:
            state["step"] = count + 1


class FairseqAdam(fairseq_adam.FairseqAdam):
    """`--optimizer macaron_adam`; the name that checkpoints record is that of fairseq's, so that either goes on."""

    def __init__(self, cfg: Any, params: Iterable[Tensor]) -> None:
        super().__init__(cfg, params)
        if not (cfg.use_old_adam or cfg.fp16_adam_stats or getattr(cfg, "tpu", False)):
            self._optimizer = Adam(self._optimizer.param_groups, **self.optimizer_config)

    def clip_grad_norm(self, max_norm: float, aggregate_norm_fn: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """As fairseq's, in a few launches for all gradients instead of two for each."""
        params = [p for p in self.params if p.grad is not None]
        if not params or any(p.grad.dtype != torch.float32 or hasattr(p, "expert") for p in params):
            return super().clip_grad_norm(max_norm, aggregate_norm_fn)
        norm = get_total_norm([p.grad for p in params])
        if aggregate_norm_fn is not None:
            norm = aggregate_norm_fn(norm)
        if max_norm > 0:
            clip_grads_with_norm_(params, float(max_norm), norm)
        return norm


if NAME not in OPTIMIZER_REGISTRY:  # the plugin may be imported under two names
    register_optimizer(NAME, dataclass=fairseq_adam.FairseqAdamConfig)(FairseqAdam)
