"""fairseq's optimizer around one in single precision, for models in half."""

from __future__ import annotations

import torch
from fairseq.optim import fp16_optimizer


class FP16Optimizer(fp16_optimizer.FP16Optimizer):
    """fairseq's, whose copies between the precisions are a few launches instead of three for each parameter.

    Taken for `--optimizer macaron_adam`, where parameters are not one flat vector (`--bf16`,
    `--fp16-no-flatten-grads`). Its name is fairseq's, which checkpoints record.
    """

    def zero_grad(self) -> None:
        params = self.fp32_params
        if self.has_flat_params or not params:
            return super().zero_grad()
        if grads := [p.grad for p in params if p.grad is not None]:
            torch._foreach_zero_(grads)
        self.fp32_params = []  # so that fairseq's loop does not do it again
        try:
            super().zero_grad()
        finally:
            self.fp32_params = params

    def _sync_fp16_grads_to_fp32(self) -> None:
        if not self._needs_sync or self.has_flat_params:
            return super()._sync_fp16_grads_to_fp32()
        pairs = [(p, q) for p, q in zip(self.fp16_params, self.fp32_params, strict=True) if p.requires_grad]
        if not pairs or any(p.grad is None or q.grad is None for p, q in pairs):
            return super()._sync_fp16_grads_to_fp32()
        torch._foreach_copy_([q.grad for _, q in pairs], [p.grad for p, _ in pairs])
        self._needs_sync = False

    def _sync_fp32_params_to_fp16(self) -> None:
        if self.has_flat_params:
            return super()._sync_fp32_params_to_fp16()
        pairs = [(p, q) for p, q in zip(self.fp16_params, self.fp32_params, strict=True) if p.requires_grad]
        if pairs:
            torch._foreach_copy_([p.data for p, _ in pairs], [q.data for _, q in pairs])
