"""The normalisation as a module: its formula, and that everything which acts on called modules meets it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from macaron.dynamics import STRANG
from macaron.particles import FeedForward, ParticleLayer, SelfAttention, StepNorm

C = 16
BITS = {"rtol": 0, "atol": 0}  # the same operations in the same order: to the bit


def layer(normalize_before: bool = True) -> ParticleLayer:
    flows = [FeedForward(C, 24), SelfAttention(C, 4), FeedForward(C, 24)]
    return ParticleLayer(STRANG, flows, C, normalize_before=normalize_before).double()


def test_it_is_torchs_layer_norm_by_name_parameters_and_start() -> None:
    ours, theirs = StepNorm(C, eps=1e-3), nn.LayerNorm(C, eps=1e-3)
    assert isinstance(ours, nn.LayerNorm) and str(ours) == f"Step{theirs}".replace("LayerNorm", "Norm")
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(3, 2, C)
    y, z = ours(x)
    assert y is x
    torch.testing.assert_close(z, theirs(x), **BITS)


@pytest.mark.parametrize("affine", [True, False])
def test_it_moves_and_then_normalises(affine: bool) -> None:
    norm = StepNorm(C, elementwise_affine=affine).double()
    x, v = torch.randn(2, 3, 2, C, dtype=torch.float64).unbind()
    y, z = norm(x, v, 0.5)
    torch.testing.assert_close(y, x + v / 2)
    torch.testing.assert_close(z, F.layer_norm(x + v / 2, (C,), norm.weight, norm.bias))
    ones = torch.ones(400, C, dtype=torch.float64)
    y, _ = norm(0 * ones, ones, 0.5, dropout=0.75)
    assert set(y.unique().tolist()) == {0.0, 2.0}  # ½ / (1 − ¾)


@pytest.mark.parametrize("normalize_before", [True, False])
def test_forward_hooks_fire_once_a_substep_and_can_replace_the_output(normalize_before: bool) -> None:
    model, x = layer(normalize_before), torch.randn(5, 2, C, dtype=torch.float64)
    expected, _ = model(x)
    calls: list[tuple[int, Tensor]] = []
    for i, norm in enumerate(model.norms):
        norm.register_forward_hook(lambda module, args, output, i=i: calls.append((i, output[1])))
    torch.testing.assert_close(model(x)[0], expected, **BITS)
    assert [i for i, _ in calls] == [0, 1, 2]
    assert all(z.shape == x.shape for _, z in calls)
    model.norms[0].register_forward_hook(lambda module, args, output: (output[0], torch.zeros_like(output[1])))
    assert not torch.equal(model(x)[0], expected)


@pytest.mark.parametrize("normalize_before", [True, False])
def test_backward_hooks_see_gradients(normalize_before: bool) -> None:
    model, seen = layer(normalize_before), []
    for norm in model.norms:
        norm.register_full_backward_hook(lambda module, grad_input, grad_output: seen.append(grad_output[1].norm()))
    model(torch.randn(5, 2, C, dtype=torch.float64, requires_grad=True))[0].square().sum().backward()
    assert len(seen) == 3 and all(g > 0 for g in seen)


@pytest.mark.parametrize("normalize_before", [True, False])
def test_a_norm_can_be_wrapped_or_parametrised(normalize_before: bool) -> None:
    """As peft, FSDP and torch's own parametrisations do: what stands in the norm's place is what is called."""

    class Wrapped(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner, self.calls = inner, 0

        def forward(self, *args: object, **kwargs: object) -> object:
            self.calls += 1
            return self.inner(*args, **kwargs)

    model, x = layer(normalize_before), torch.randn(5, 2, C, dtype=torch.float64)
    expected, _ = model(x)
    for i in range(3):
        model.norms[i] = Wrapped(model.norms[i])
    torch.testing.assert_close(model(x)[0], expected, **BITS)
    assert [norm.calls for norm in model.norms] == [1, 1, 1]
