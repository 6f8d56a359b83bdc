"""Filters against exact derivatives of polynomials, and against the original's numbers."""

from __future__ import annotations

import math

import pytest
import torch

from macaron.pde import DerivativeFilter, correlate, k2m, m2k, moment_matrix
from macaron.pde.filters import inverse_moment_matrix


def close(got: torch.Tensor, want: torch.Tensor) -> None:
    """In float64, of sums of up to 9² terms: a few hundred ε of the largest entry."""
    torch.testing.assert_close(got, want, rtol=0, atol=1e-13 * want.abs().max().clamp(min=1).item())


def polynomial(a: int, b: int, height: int, width: int, dx: float) -> torch.Tensor:
    """y^a x^b on a grid with its 0 in the middle, not periodic: judged away from the border."""
    y = (torch.arange(height, dtype=torch.float64) - height // 2) * dx
    x = (torch.arange(width, dtype=torch.float64) - width // 2) * dx
    return y[:, None] ** a * x[None, :] ** b


def derivative(power: int, order: int, at: float) -> float:
    return math.perm(power, order) * at ** (power - order) if power >= order else 0.0


@pytest.mark.parametrize("size", [3, 4, 5, 7, (5, 7), (6, 5)])
@pytest.mark.parametrize("order", [(0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (2, 0)])
@pytest.mark.parametrize("constraint", [1, 2, 3])
def test_a_constrained_filter_is_exact_on_polynomials(size, order, constraint):
    sizes = (size, size) if isinstance(size, int) else size
    if any(m + constraint > points for m, points in zip(order, sizes, strict=True)):
        with pytest.raises(ValueError, match="enlarge size"):
            DerivativeFilter(order, size, constraint=constraint)
        return
    dx = 0.3
    module = DerivativeFilter(order, size, dx, constraint)
    torch.nn.init.normal_(module.moment)  # whatever the free moments are
    for a in range(sum(order) + constraint):
        for b in range(sum(order) + constraint - a):
            got = module(polynomial(a, b, 16, 16, dx))
            for i, j in [(8, 8), (7, 9)]:
                want = derivative(a, order[0], (i - 8) * dx) * derivative(b, order[1], (j - 8) * dx)
                # float64, of moments drawn at random, divided by dx² and moved by a matrix of condition 3e2 (of size 7)
                assert got[i, j].item() == pytest.approx(want, abs=1e-11)


@pytest.mark.parametrize("size", range(1, 10))
def test_moments_and_kernels_are_inverse(size):
    identity = moment_matrix(size) @ inverse_moment_matrix(size)
    close(identity, torch.eye(size, dtype=torch.float64))
    kernel = torch.randn(2, size, 5, dtype=torch.float64)
    # ε times the conditions of the two matrices, at size 9 3e3 and 3e1
    torch.testing.assert_close(m2k(k2m(kernel)), kernel, rtol=0, atol=5e-12)


def test_the_gradient_reaches_free_moments_only():
    module = DerivativeFilter((0, 1), 5, constraint=2)
    module(torch.randn(2, 8, 8, dtype=torch.float64)).square().sum().backward()
    held = module.moment.grad == 0
    assert held.sum() == 6
    assert torch.equal(held, module.held)


def test_correlation_is_periodic_and_not_flipped():
    kernel = torch.zeros(3, 3, dtype=torch.float64)
    kernel[1, 2] = 1.0
    field = torch.randn(2, 3, 6, 7, dtype=torch.float64)
    torch.testing.assert_close(correlate(field, kernel), torch.roll(field, -1, -1))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(order=(3, 0), size=3), "no moment"),
        (dict(order=(-1, 0)), "no moment"),
        (dict(order=(0, 1), constraint=0), "constraint=0"),
        (dict(order=(0, 1), constraint="fixed"), "constraint='fixed'"),
        (dict(order=(0, 1), dx=0.0), "dx=0.0"),
        (dict(order=(0, 1), dx=math.nan), "dx=nan"),
        (dict(order=(0, 0), size=0), "at least one point|no moment"),
    ],
)
def test_what_is_no_filter_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        DerivativeFilter(**arguments)


def test_a_field_smaller_than_the_filter_is_refused():
    with pytest.raises(ValueError, match="smaller than the filter"):
        DerivativeFilter((0, 1), 5)(torch.zeros(4, 8, dtype=torch.float64))


def test_moment_maps_of_the_original(golden):
    stored = golden("moment_maps")
    names = {key.split("/")[0] for key in stored}
    assert names
    for name in names:
        height, width = map(int, name.split("x"))
        for got, key in [
            (moment_matrix(height), "M0"),
            (moment_matrix(width), "M1"),
            (inverse_moment_matrix(height), "invM0"),
            (inverse_moment_matrix(width), "invM1"),
            (m2k(stored[f"{name}/m2k_in"]), "m2k_out"),
            (k2m(stored[f"{name}/k2m_in"]), "k2m_out"),
        ]:
            close(got, stored[f"{name}/{key}"])


def test_filters_of_the_original(golden, facts):
    stored = golden("filters")
    cases = sorted({tuple(key.split("/")[:2]) for key in stored if key[0].isdigit() and "/d" in key})
    assert cases
    checked = 0
    for size, name in cases:
        height, width = map(int, size.split("x"))
        order, field = (int(name[1]), int(name[2])), stored[f"{size}/input"]

        def same(got: torch.Tensor, key: str, at: str = f"{size}/{name}") -> None:
            close(got.detach(), stored[f"{at}/{key}"])

        initial = DerivativeFilter(order, (height, width), facts["model"]["dx"], "free")
        same(initial.moment, "moment_initial")
        same(initial.kernel(), "kernel_initial")
        same(initial(field), "output_initial")
        assert initial.scale == pytest.approx(stored[f"{size}/{name}/scale"].item())
        for constraint in ("free", "moment", "1", "2", "3"):
            if f"{size}/{name}/{constraint}/moment" not in stored:
                continue
            module = DerivativeFilter(
                order, (height, width), facts["model"]["dx"], int(constraint) if constraint.isdigit() else constraint
            )
            module.moment.data.copy_(stored[f"{size}/{name}/moment_random"])
            same(module.projected(), f"{constraint}/moment")
            same(module.kernel(), f"{constraint}/kernel")
            same(module(field), f"{constraint}/output")
            module.projected().backward(stored[f"{size}/{name}/grad_random"])
            same(module.moment.grad, f"{constraint}/grad")
            checked += 1
    assert checked >= 2 * len(cases)


def test_moments_of_whole_numbers_are_fractions():
    kernel = m2k(torch.tensor([[0, 1, 0]]))
    torch.testing.assert_close(kernel, torch.tensor([[-0.5, 0.0, 0.5]], dtype=torch.float64))
    torch.testing.assert_close(k2m(torch.tensor([[0, 0, 1]])), torch.tensor([[1.0, 1.0, 0.5]], dtype=torch.float64))
    for wrong in (torch.zeros(3), torch.zeros(3, 3, dtype=torch.complex64), torch.zeros(0, 3)):
        with pytest.raises(ValueError, match="real numbers"):
            m2k(wrong)


@pytest.mark.parametrize(
    "order, size, constraint",
    [
        ((0, 3), (1, 9), 2),
        ((0, 2), (3, 5), 3),
        ((1, 1), 3, 2),
        ((4, 4), 9, 5),
        ((2, 1), (5, 3), 2),
        ((1, 0), (4, 2), 2),
    ],
)
def test_a_filter_of_any_shape_is_as_accurate_as_it_says(order, size, constraint):
    """On x^p y^q with p + q < a + b + c exact, whatever the moments that are free."""
    torch.manual_seed(0)
    (a, b), points = order, torch.arange(-12.0, 13.0, dtype=torch.float64)
    module = DerivativeFilter(order, size, 1.0, constraint)
    module.moment.data += torch.randn_like(module.moment)
    for q in range(a + b + constraint):
        for p in range(a + b + constraint - q):
            got = module(points[:, None] ** q * points**p)[12, 12].item()
            # 12^8 in float64 leaves 1e-7
            assert got == pytest.approx(math.factorial(a) * math.factorial(b) if (q, p) == order else 0.0, abs=1e-5)
    for height, width in ((a + constraint - 1, 9), (9, b + constraint - 1)):
        if 1 in (height, width):
            continue
        with pytest.raises(ValueError, match=r"no moment|needs"):
            DerivativeFilter(order, (height, width), 1.0, constraint)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(constraint=1.5), "constraint=1.5"),
        (dict(constraint=None), "constraint=None"),
        (dict(order=3), "order=3"),
        (dict(order=(0.5, 1)), "two whole numbers"),
        (dict(size=(3, 5, 5)), "size="),
        (dict(size=5.0), "size=5.0"),
        (dict(dx=(0.1, 0.2)), "dx="),
        (dict(dtype=torch.int64), "int64"),
    ],
)
def test_another_kind_of_number_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        DerivativeFilter(**{"order": (0, 1)} | arguments)


def test_what_a_filter_cannot_take_is_named():
    module = DerivativeFilter((0, 1))
    for field in (torch.zeros(8, 8), torch.zeros(8, 8, dtype=torch.int64)):
        with pytest.raises(ValueError, match=r"for a filter of torch\.float64"):
            module(field)
    assert module.float()(torch.zeros(8, 8)).dtype == torch.float32
    with pytest.raises(ValueError, match="mirror=0"):
        module(torch.zeros(8, 8), mirror=0)
    with pytest.raises(ValueError, match="NaN"):
        module.set_kernel(torch.full((5, 5), math.nan))
