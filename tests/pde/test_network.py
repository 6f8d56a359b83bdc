"""PDE-Net as a field: initial filters, upwinding, steps, losses."""

from __future__ import annotations

import math
from itertools import accumulate, repeat

import pytest
import torch

from macaron.dynamics import EULER, HEUN, MIDPOINT, RK4
from macaron.pde import DerivativeFilter, PDENet, data_loss, sparsity, stability_loss

EXACT = {"rtol": 0, "atol": 1e-13}  # float64 and numbers of up to 30, by sums in another order


def hand_set(net: PDENet, equations: list[dict[str, float]]) -> PDENet:
    """Write polynomials of degree 2 into the networks, a product layer each."""
    with torch.no_grad():
        for parameter in net.symnets.parameters():
            parameter.zero_()
        for symnet, equation in zip(net.symnets, equations, strict=True):
            column = {name: i for i, name in enumerate(symnet.channels)}
            products = iter(range(symnet.layers))
            for monomial, c in equation.items():
                names = monomial.split("*")
                if len(names) == 1:
                    symnet.layer_final.weight[0, column[monomial]] = c
                    continue
                k = next(products)
                for row, name in enumerate(names):
                    symnet.get_submodule(f"layer{k}").weight[row, column[name]] = 1.0
                symnet.layer_final.weight[0, len(column) + k] = c
    return net


def test_counts_of_the_paper():
    net = PDENet()
    assert sum(p.numel() for p in net.parameters()) == 486
    assert sum((~f.held).sum().item() for f in net.filters.values()) == 105
    assert not any(p.requires_grad for p in PDENet(constraint="frozen").filters.parameters())


def test_the_wind_chooses_the_side():
    """u_t = −c u_x: whatever the sign of c, the difference is taken on the side the wind comes from."""
    u = torch.randn(1, 1, 8, 8, dtype=torch.float64)
    for c in (1.0, -1.0):
        net = hand_set(PDENet(["u"], constraint="free"), [{"u01": -c}])
        one, two = torch.roll(u, int(c), -1), torch.roll(u, int(2 * c), -1)
        want = -c * (3 * u - 4 * one + two) / (2 * c)
        torch.testing.assert_close(net(u), want, **EXACT)


@pytest.mark.parametrize("solver, order", [(EULER, 1), (MIDPOINT, 2), (HEUN, 2), (RK4, 4)])
def test_steps_are_those_of_the_solver(solver, order):
    net = hand_set(PDENet(["u"], scheme="central"), [{"u00": 1.0}])
    u = torch.ones(1, 1, 8, 8, dtype=torch.float64)

    def error(dt: float) -> float:
        *_, end = accumulate(repeat(None, round(1 / dt)), lambda x, _: net.advance(x, dt, solver), initial=u)
        return (end - math.e).abs().max().item()

    # the next term of the error of (1 + h + …)ⁿ at h = 1/8: up to 0.08
    assert math.log2(error(1 / 8) / error(1 / 16)) == pytest.approx(order, abs=0.15)


def test_the_equation_that_was_written_is_read(facts):
    pattern = [dict(facts["burgers_pattern"][f"poly{c}"]) for c in (0, 1)]
    net = hand_set(PDENet(), pattern)
    assert [symnet.coefficients() for symnet in net.symnets] == [pytest.approx(p) for p in pattern]
    assert net.equations()[0].startswith("u_t = -1.000")


def test_what_is_no_network_is_refused():
    for arguments, message in [
        (dict(size=4), "size=4"),
        (dict(size=3), "size=3"),
        (dict(scheme="other"), "scheme='other'"),
        (dict(max_order=0), "max_order=0"),
        (dict(max_order=4), "enlarge size"),
    ]:
        with pytest.raises(ValueError, match=message):
            PDENet(**arguments)
    with pytest.raises(ValueError, match="2, H, W"):
        PDENet()(torch.zeros(1, 1, 8, 8, dtype=torch.float64))


def test_initial_filters_of_the_original(golden):
    stored = golden("filters")
    names = sorted({key.split("/")[0] for key in stored if key.startswith("init_")})
    assert names
    for name in names:
        _, scheme, size = name.split("_")
        net, held = (PDENet(size=int(size), scheme=scheme, constraint=c) for c in ("free", 2))
        for key, want in stored.items():
            if key.startswith(f"{name}/"):
                label = key.split("/")[1]
                module: DerivativeFilter = (held if "after" in label else net).filter(f"fd{label[1:3]}")
                got = module.moment if label[0] == "m" else module.kernel()
                torch.testing.assert_close(got.detach(), want, **EXACT, msg=lambda m, k=key: f"{k}: {m}")


@pytest.mark.parametrize("scheme", ["upwind", "central"])
def test_model_of_the_original(golden, facts, scheme):
    stored = {k.removeprefix(f"{scheme}/"): v for k, v in golden("model").items() if k.startswith(f"{scheme}/")}
    sizes = facts["model"]
    net = PDENet(
        ["u", "v"],
        sizes["dx"],
        sizes["kernel"],
        sizes["max_order"],
        sizes["hidden_layers"],
        sizes["constraint"],
        scheme,
    )

    def ours(key: str) -> str:
        head, _, rest = key.partition(".")
        return f"filters.{key}" if head.startswith("fd") else f"symnets.{head.removeprefix('poly')}.{rest}"

    parameters = dict(net.named_parameters())
    given = {k.removeprefix("param/"): v for k, v in stored.items() if k.startswith("param/")}
    assert {ours(k) for k in given} == set(parameters)
    for key, value in given.items():
        parameters[ours(key)].data.copy_(value)

    def close(got: torch.Tensor, key: str) -> None:
        torch.testing.assert_close(got.detach(), stored[key], **EXACT)

    u, dt = stored["u"], sizes["dt"]
    assert net.symnets[0].channels == sizes["channels"]
    close(net.features(u).movedim(-1, 1), "features_central")
    close(net(u), "rhs")
    states = list(accumulate(range(3), lambda x, _: net.advance(x, dt), initial=u))
    close(states[1], "u_after_1")
    close(states[3], "u_after_3")

    observed = [stored[k] for k in sorted(stored) if k.startswith("obs")]
    loss = facts[f"loss/{scheme}"]
    block = loss["block"]
    steps = states[1 : 1 + block]
    terms = {
        "data": data_loss(steps, observed[1 : 1 + block], dt),
        "stable": stability_loss(states[: 1 + block], sizes["kernel"]),
        "sparse": sparsity(net.symnets.parameters(), 1e-3),
        "moment": sparsity([f.projected() for f in net.filters.values()], 1e-2),
    }
    assert {k: v.item() for k, v in terms.items()} == pytest.approx({k: loss[k] for k in terms}, abs=EXACT["atol"])
    total = 0.3 * terms["stable"] + terms["data"] + block * (0.005 * terms["sparse"] + 0.001 * terms["moment"])
    assert total.item() == pytest.approx(loss["total"], abs=EXACT["atol"])
    total.backward()
    largest = max(v.abs().max().item() for k, v in stored.items() if k.startswith("grad/"))
    atol = 1e-13 * largest  # float64: small gradients are differences of terms of the largest's size
    for key in given:
        torch.testing.assert_close(parameters[ours(key)].grad, stored[f"grad/{key}"], atol=atol, rtol=0)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(components=()), "each once"),
        (dict(components=("u", "u")), "each once"),
        (dict(components=("u*v",)), r"'u\*v'"),
        (dict(components=("c1",)), "'c1'"),
        (dict(size=15, max_order=10), "at most 9"),
    ],
)
def test_names_that_no_equation_could_be_read_from_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        PDENet(**arguments)


def test_the_same_in_every_mode_of_autograd():
    torch.manual_seed(0)
    net, u = PDENet(["a", "b", "c"]), torch.randn(2, 3, 6, 9, dtype=torch.float64)
    whole = net(u).detach()
    with torch.no_grad():
        assert torch.equal(net(u), whole)
    with torch.inference_mode():
        assert torch.equal(net(u), whole) and torch.equal(net(u.clone()), whole)
    with pytest.raises(ValueError, match=r"for a network of torch\.float64"):
        net(u.float())
    # Single precision: near the change of wind a point may take the other side.
    assert (net.float()(u.float()) - whole).abs().median() < 1e-5


def test_losses_refuse_what_they_would_sum_up_wrongly():
    u = torch.zeros(2, 1, 6, 6, dtype=torch.float64)
    for states, observed, dt, message in (
        ([u], [u[:1]], 0.1, "the same"), ([], [], 0.1, "the same"), ([u], [u], 0.0, "dt=0.0")
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            data_loss(states, observed, dt)
    with pytest.raises(ValueError, match="s=0"):
        sparsity([u], 0)
    for states, size in (([u, u], 4), ([u], 3)):
        with pytest.raises(ValueError, match=f"size={size}"):
            stability_loss(states, size)
