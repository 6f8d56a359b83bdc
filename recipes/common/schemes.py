"""Schemes as recipes take and name them: a splitting, and whatever else is chosen of the integrator.

A variant is written down as its splitting (a name or a notation), or one of NAMED, and after commas what is not the
default: an option with its value, or the name of a rule across depth alone.

    strang      strang,solver=heun      strang,multistep,multistep_init=-0.5      ode-transformer,stochastic_depth=0.2
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from .errors import RecipeError

_TITLES = {"strang": "Macaron (Strang–Marchuk splitting)", "lie": "Transformer (Lie–Trotter splitting)"}

# Beside the splitting, in the order in which they are written; the types that both hosts have them in.
OPTIONS: tuple[tuple[str, type, str], ...] = (
    ("solver", str, "how each flow of a layer is followed: euler, backward_euler, midpoint, heun, heun_learned, rk4"),
    ("depth_rule", str, "how the next state follows along depth: euler, multistep, rk2, rk2_learned, rk4"),
    ("dt", float, "time step of a layer, which scales all that it adds"),
    ("multistep_init", str, "where the k of the rule multistep begin: a number in (-1, 1], or lm_resnet"),
    ("stochastic_depth", float, "drop rate of the last layer in training, in [0, 1)"),
    ("stochastic_depth_schedule", str, "drop rates of the others: lm_resnet, torch or constant"),
    ("stochastic_depth_form", str, "scaled, or sde: the noise of a stochastic differential equation"),
    ("stochastic_depth_unit", str, "what a layer is dropped for: the batch, or each sentence"),
)

# Of the literature: (splitting, options, what it is).
NAMED: dict[str, tuple[str, dict[str, Any], str]] = {
    "ode-transformer": (
        "lie",
        {"depth_rule": "rk2_learned"},
        "ODE Transformer (Li et al. 2022: Lie–Trotter splitting, rule rk2_learned; here in encoder and decoder, there "
        "in the encoder alone)",
    )
}


@dataclass(frozen=True)
class Variant:
    """A scheme, so that equal ones are equal.

    Args:
        splitting: as `portable` gives it.
        options: (name, value) of what is not the default, in the order of OPTIONS.
    """

    splitting: str
    options: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def parse(cls, given: str, option: str = "--scheme") -> Variant:
        """From its notation.

        Raises:
            RecipeError: an unknown name, option or value, or choices that mean nothing together.
        """
        try:
            return cls._parse(given)
        except ValueError as error:
            raise RecipeError(f"{option} {given}: {error}") from error

    @classmethod
    def _parse(cls, given: Any) -> Variant:
        from macaron.dynamics.rules import RULES
        from macaron.dynamics.solvers import SOLVERS

        head, *items = [part.strip() for part in given.split(",")] if isinstance(given, str) else [given]
        splitting, values, _ = NAMED.get(head, (head, {}, ""))
        values = dict(values)
        types = {name: kind for name, kind, _ in OPTIONS}
        for item in items:
            name, sign, value = (part.strip() for part in item.partition("="))
            name = name.replace("-", "_")
            if not sign and item in RULES:
                name, value = "depth_rule", item
            elif not sign and item in SOLVERS:
                raise ValueError(f"{item!r} is a solver; write solver={item}")
            elif not sign or name not in types:
                raise ValueError(
                    f"{item!r} is neither a rule across depth ({', '.join(RULES)}) nor OPTION=VALUE, with an option of "
                    f"{', '.join(types)}"
                )
            if name in values:
                raise ValueError(f"{name} is there twice; give one value")
            try:
                values[name] = types[name](value)
            except ValueError:
                raise ValueError(f"{name}={value!r} is no number") from None
        try:
            splitting = _portable(splitting)
        except ValueError as error:
            raise ValueError(
                f"{error}. A variant begins with a splitting, as in strang,multistep, or with {', '.join(NAMED)}"
            ) from error
        return cls._of(splitting, values)

    @classmethod
    def of(cls, splitting: str, values: Mapping[str, Any], option: str = "--scheme") -> Variant:
        """From the values of options; None stands for the default.

        Raises:
            RecipeError: an unknown name, a value outside its range, or values that mean nothing together.
        """
        try:
            return cls._of(_portable(splitting), {name: v for name, v in values.items() if v is not None})
        except ValueError as error:
            raise RecipeError(f"{option}: {error}") from error

    @classmethod
    def of_settings(cls, settings: Mapping[str, Any]) -> Variant:
        """Of a run, from its settings.json.

        Raises:
            RecipeError: the settings name none.
        """
        values = {name: settings.get(f"model.{name}") for name, *_ in OPTIONS}
        return cls.of(settings["model.splitting"], values, "settings.json")

    @classmethod
    def _of(cls, splitting: str, values: Mapping[str, Any]) -> Variant:
        from macaron.dynamics.rules import is_built_in_rule
        from macaron.dynamics.scheme import Scheme
        from macaron.dynamics.solvers import is_built_in_solver

        scheme = Scheme.of(SimpleNamespace(splitting=splitting, **values))
        for name, value, known in (
            ("solver", scheme.solver.name, is_built_in_solver),
            ("depth_rule", scheme.depth_rule, is_built_in_rule),
        ):
            if not known(value):
                raise ValueError(
                    f"{name}={value!r} is registered in this process alone, and a recipe trains in others; choose one "
                    f"that comes with the package, or train with fairseq's own command and your --user-dir"
                )
        found = []
        for name, kind, _ in OPTIONS:
            value, default = (getattr(of, name) for of in (scheme, Scheme()))
            if value != default:
                value = value.name if name == "solver" else value
                found.append((name, kind(value) if kind is float else _text(value)))
        return cls(splitting, tuple(found))

    @property
    def values(self) -> dict[str, Any]:
        """Of all options, None where it is the default."""
        return {name: dict(self.options).get(name) for name, *_ in OPTIONS}

    @property
    def is_splitting(self) -> bool:
        """Whether nothing but a splitting is chosen."""
        return not self.options

    @property
    def name(self) -> str:
        """Its notation in the one spelling that reports and folders have."""
        for name, (splitting, values, _) in NAMED.items():
            if (splitting, values) == (self.splitting, dict(self.options)):
                return name
        words = [value if name == "depth_rule" else f"{name}={_text(value)}" for name, value in self.options]
        return ",".join([self.splitting, *words])

    def __str__(self) -> str:
        return self.name

    @property
    def described(self) -> str:
        """For reports."""
        if self.name in NAMED:
            return NAMED[self.name][2]
        words = [f"{name.replace('_', ' ')} {_text(value)}" for name, value in self.options]
        return ", ".join([described(self.splitting), *words])


def _text(value: Any) -> str:
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value)


def portable(splitting: object, option: str = "--splitting") -> str:
    """What the commands that a recipe starts understand too: the notation in place of a name registered here.

    Raises:
        RecipeError: an unknown name, a notation that does not hold together, or a layer without attention or FFN.
    """
    try:
        return _portable(splitting)
    except ValueError as error:
        raise RecipeError(f"{option} {splitting}: {error}") from error


def _portable(splitting: Any) -> str:
    if splitting in _TITLES:
        return str(splitting)
    from macaron.dynamics.splitting import CROSS_ATTENTION, FFN, SELF_ATTENTION, get_splitting

    found = get_splitting(splitting)
    found.check_flows((FFN, SELF_ATTENTION, CROSS_ATTENTION), needed=(FFN, SELF_ATTENTION))
    return found.portable


def described(splitting: str) -> str:
    """For reports."""
    return _TITLES.get(splitting, f"splitting {splitting}")


def folder_name(variant: str) -> str:
    """A notation as a part of a folder's name: ffn-2-attention-ffn-2, strang-solver-heun."""
    return re.sub(r"[ /,=]+", "-", variant)
