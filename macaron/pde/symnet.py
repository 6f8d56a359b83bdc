"""SymNet: a network of products, which is a polynomial and can be read back as one."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

Polynomial = dict[tuple[int, ...], float]  # indices of the factors, sorted ↦ coefficient
MOST_TERMS = 20_000


class SymNet(nn.Module):
    """o = x · nw; for each layer [p, q] = W o + b and p·q is appended to o; then one linear map of all of them.

    Args:
        channels: names of the inputs, such as u00, u01 (∂u/∂x), u10 (∂u/∂y).
        layers: products.
    """

    nw: Tensor

    def __init__(self, channels: Sequence[str], layers: int = 5, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        if not channels or len(set(channels)) < len(channels):
            raise ValueError(f"channels={list(channels)!r} must be names, each once")
        if wrong := [name for name in channels if not name or "*" in name or name == "1"]:
            raise ValueError(f"channels: {wrong[0]!r} cannot be told from a monomial; take names without * and not 1")
        if layers < 0:
            raise ValueError(f"layers={layers} must not be negative")
        self.channels, self.layers = list(channels), layers
        for k in range(layers):
            self.add_module(f"layer{k}", nn.Linear(len(channels) + k, 2, dtype=dtype))
        self.layer_final = nn.Linear(len(channels) + layers, 1, dtype=dtype)
        self.register_buffer("nw", torch.ones(len(channels), dtype=dtype))
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.1)

    def products(self) -> list[nn.Linear]:
        return [self.get_submodule(f"layer{k}") for k in range(self.layers)]  # type: ignore[misc]

    def forward(self, x: Tensor) -> Tensor:
        """(…, channels) → (…).

        Raises:
            ValueError: another number of channels.
        """
        n = len(self.channels)
        if not x.dim() or x.shape[-1] != n:
            raise ValueError(f"inputs of shape {tuple(x.shape)}, but (…, {n}) are needed, a channel each")
        points = x.movedim(-1, 0).reshape(n, -1) * self.nw[:, None]
        layers = [*self.products(), self.layer_final]
        # What the inputs add to all layers is one product; the rows of a channel lie together.
        weight = torch.cat([layer.weight[:, :n] for layer in layers])
        linear = torch.addmm(torch.cat([layer.bias for layer in layers])[:, None], weight, points)
        *pairs, result = linear.split([*[2] * self.layers, 1])
        made: list[Tensor] = []
        for layer, pair in zip(layers, pairs, strict=False):
            p, q = torch.addmm(pair, layer.weight[:, n:], torch.stack(made)) if made else pair
            made.append(p * q)
        if made:
            result = torch.addmm(result, self.layer_final.weight[:, n:], torch.stack(made))
        return result.reshape(x.shape[:-1])

    @torch.no_grad()
    def renormalize(self, nw: Tensor | Sequence[float]) -> None:
        """Change the inputs' weights and let the function stay.

        Raises:
            ValueError: not one nonzero number a channel.
        """
        new = torch.as_tensor(nw, dtype=self.nw.dtype, device=self.nw.device)
        if new.shape != self.nw.shape or not new.isfinite().all() or (new == 0).any():
            raise ValueError(f"nw must be {len(self.channels)} finite numbers other than 0")
        for layer in [*self.products(), self.layer_final]:
            layer.weight[:, : len(self.channels)] *= self.nw / new
        self.nw.copy_(new)

    def coefficients(self, precision: int = 6, degree: int | None = None) -> dict[str, float]:
        """The polynomial: monomial ("1", "u00*u01", "u00**2") ↦ coefficient, of falling magnitude.

        Args:
            precision: terms with |c| ≤ 10^−precision are dropped from p, q and the result, before they are
                multiplied, as the original does.
            degree: monomials above it are left out, which does not change the others.

        Raises:
            ValueError: too many terms, as a dense network has; a negative degree; parameters that are NaN or infinite.
        """
        if degree is not None and degree < 0:
            raise ValueError(f"degree={degree} must not be negative")
        if wrong := [name for name, p in self.named_parameters() if not p.isfinite().all()]:
            raise ValueError(f"{', '.join(wrong)}: NaN or infinite, so that there is no polynomial; train again")
        least = 10.0**-precision
        o: list[Polynomial] = [{(i,): w} for i, w in enumerate(self.nw.tolist())]
        for layer in self.products():
            (p, q) = (
                _dropped(_affine(o, w, b), least)
                for w, b in zip(layer.weight.tolist(), layer.bias.tolist(), strict=True)
            )
            o.append(_product(p, q, degree))
        whole = _affine(o, self.layer_final.weight[0].tolist(), self.layer_final.bias.item())
        if degree == 0:  # the inputs themselves are no product
            whole = {(): whole[()]}
        kept = [(self._name(term), c) for term, c in _dropped(whole, least).items()]
        return dict(sorted(kept, key=lambda item: -abs(item[1])))

    def formula(self, left: str = "", digits: int = 3, precision: int = 6, degree: int | None = None) -> str:
        """The polynomial as one line, `left` = …, with u_xy for u11; terms that round to 0 are left out."""
        kept = {m: c for m, c in self.coefficients(precision, degree).items() if round(abs(c), digits) != 0}
        return formula(kept, left, f".{digits}f")

    def _name(self, term: tuple[int, ...]) -> str:
        names = sorted(self.channels[i] for i in term)
        powers = [(name, names.count(name)) for name in dict.fromkeys(names)]
        return "*".join(name if n == 1 else f"{name}**{n}" for name, n in powers) or "1"


def formula(coefficients: dict[str, float], left: str = "", form: str = ".3f") -> str:
    """Monomials with their coefficients as one line, `left` = …, in their order."""
    text = ""
    for monomial, c in coefficients.items():
        words = [f"{abs(c):{form}}", *map(readable, factors_of(monomial))]
        text += f" {'-' if c < 0 else '+'} {' '.join(words)}"
    text = "-" + text[3:] if text.startswith(" - ") else text[3:]
    return (f"{left} = " if left else "") + (text or "0")


def factors_of(monomial: str) -> list[str]:
    """u00**2*v01 → [u00**2, v01]; none of 1."""
    return [] if monomial == "1" else re.split(r"(?<!\*)\*(?!\*)", monomial)


def _affine(o: Sequence[Polynomial], weights: Sequence[float], bias: float) -> Polynomial:
    total: Polynomial = {(): bias}
    for polynomial, weight in zip(o, weights, strict=True):
        for term, c in polynomial.items() if weight else ():
            total[term] = total.get(term, 0.0) + weight * c
    return total


def _dropped(polynomial: Polynomial, least: float) -> Polynomial:
    return {term: c for term, c in polynomial.items() if abs(c) > least}


def _product(p: Polynomial, q: Polynomial, degree: int | None) -> Polynomial:
    total: Polynomial = {}
    for left, c in p.items():
        for right, d in q.items():
            if degree is None or len(left) + len(right) <= degree:
                term = tuple(sorted(left + right))
                total[term] = total.get(term, 0.0) + c * d
        if len(total) > MOST_TERMS:
            raise ValueError(
                f"the network has more than {MOST_TERMS} monomials; expand it after sparsity has acted, with a lower "
                f"precision, or up to a degree"
            )
    return total


def readable(factor: str) -> str:
    """u12**2 → u_xxy^2, u00 → u."""
    name, _, power = factor.partition("**")
    if match := re.fullmatch(r"([A-Za-z]+)(\d)(\d)", name):
        below = "x" * int(match[3]) + "y" * int(match[2])
        name = match[1] + (f"_{below}" if below else "")
    return f"{name}^{power}" if power else name
