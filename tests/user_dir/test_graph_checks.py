"""A replay is compared with the step that was recorded: rounding passes, and nothing else does."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from macaron.user_dir.graph_checks import Step, refuse_another

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
NAMES = ("embed", "k_proj.bias", "fc1", "unused", "norm")


def expected(dtype: torch.dtype, seed: int) -> Step:
    """Gradients of several sizes; that of a key's bias is rounding and nothing else."""
    torch.manual_seed(seed)
    eps = torch.finfo(dtype).eps
    grads = [torch.randn(40, 8), eps * torch.randn(8), 9 * torch.randn(8, 8), None, 0.5 * torch.randn(8)]
    made = [None if g is None else g.to(dtype) for g in grads]
    return Step(100 * torch.rand(()), {"nll_loss": torch.rand(())}, made)


def rounded(step: Step) -> Step:
    """Summed up in another order, as atomic additions are: each entry is off by some units in its last place."""
    eps = torch.finfo(step.grads[0].dtype).eps
    noise = [
        None if g is None else (g + 2 * eps * g.abs().max() * torch.randn(g.shape)).to(g.dtype) for g in step.grads
    ]
    noise[1] = (eps * torch.randn(8)).to(noise[0].dtype)
    return Step(step.loss * (1 + 1e-6), step.logged, noise)


@given(st.sampled_from(DTYPES), st.integers(0, 2**31))
def test_rounding_passes(dtype, seed):
    step = expected(dtype, seed)
    assert step.finite()
    refuse_another(step, step, NAMES, "")
    refuse_another(rounded(step), step, NAMES, "")


@given(st.sampled_from(DTYPES), st.integers(0, 2**31), st.sampled_from([0, 2]), st.sampled_from([0.0, -1.0, 1.5, 0.5]))
def test_a_gradient_that_is_another_is_refused(dtype, seed, which, factor):
    step = expected(dtype, seed)
    found = rounded(step)
    found.grads[which] *= factor
    with pytest.raises(
        ValueError, match=f"the gradient of {NAMES[which]} is off by .* for batches with x 2×3. Nothing"
    ):
        refuse_another(found, step, NAMES, "x 2×3")


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_told_and_refused(value):
    for which in (0, 1, 2, 4):
        step, found = expected(torch.float32, 0), expected(torch.float32, 0)
        found.grads[which].view(-1)[3] = value
        assert step.finite() and not found.finite()
        with pytest.raises(ValueError, match=f"the gradient of {NAMES[which]}"):
            refuse_another(found, step, NAMES, "")
    for found in (
        Step(torch.tensor(value), step.logged, step.grads),
        Step(step.loss, {"nll_loss": torch.tensor(value)}, step.grads),
    ):
        with pytest.raises(ValueError, match=r"loss is -?(nan|inf), not"):
            refuse_another(found, step, NAMES, "")
    assert not Step(torch.tensor(value), {}, []).finite()


def test_who_takes_part_has_to_be_the_same():
    step = expected(torch.float32, 0)
    with pytest.raises(ValueError, match="embed, fc1 have a gradient in one of them alone"):
        refuse_another(Step(step.loss, step.logged, [None, step.grads[1], None, None, step.grads[4]]), step, NAMES, "")
    with pytest.raises(ValueError, match="unused has a gradient in one of them alone"):
        refuse_another(Step(step.loss, step.logged, [*step.grads[:3], torch.ones(2), step.grads[4]]), step, NAMES, "")


def test_no_gradients_and_gradients_of_zero_are_the_same_as_themselves():
    for grads in ([], [None, None], [torch.zeros(3), torch.zeros(2)]):
        step = Step(torch.zeros(()), {}, grads)
        assert step.finite()
        refuse_another(step, step, NAMES, "")
