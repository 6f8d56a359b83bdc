"""Kernels run on the GPU where there is one, else in Triton's interpreter, and are judged by eager's own error."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

Judge = Callable[[Sequence[str], Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]], None]


@pytest.fixture(scope="session")
def judge() -> Judge:
    """`judge(names, truth, eager, fused)`: the error of `fused` is at most about twice that of `eager`.

    `truth` is a float64 run. Every tensor has its name and must be finite, of eager's shape and dtype.
    """

    def compare(
        names: Sequence[str], truth: Sequence[Tensor], eager: Sequence[Tensor], fused: Sequence[Tensor]
    ) -> None:
        for name, t, e, f in zip(names, truth, eager, fused, strict=True):
            assert (f.shape, f.dtype) == (e.shape, e.dtype), name
            assert f.isfinite().all(), f"{name}: not finite, perhaps not written"
            if t.numel():
                allowed = 2 * (e.double() - t).abs().max() + 1e-5 + torch.finfo(e.dtype).eps
                error = (f.double() - t).abs().max()
                assert error <= allowed, f"{name}: error {error:.1e} above {allowed:.1e}"

    return compare
