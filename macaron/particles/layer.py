"""One layer: one step of a scheme, along the flows of a Transformer."""

from collections.abc import Sequence
from copy import copy
from dataclasses import astuple
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from macaron.dynamics.draws import SameDraws
from macaron.dynamics.scheme import Scheme
from macaron.dynamics.solvers import EULER, Field, Gate, follow
from macaron.dynamics.splitting import Splitting
from macaron.ops.step_norm import euler_step
from macaron.particles.dropout import Dropout
from macaron.particles.norm import StepNorm
from macaron.particles.scripting import scriptable
from macaron.particles.surroundings import Surroundings

Context = TypeVar("Context")  # what the flows see besides the particles: of text, `Surroundings`
_EMPTY: Any = Surroundings()


class ParticleLayer(nn.Module, Generic[Context]):
    """One time step Δt of a particle system, one sub-step for each flow of a splitting.

        pre-norm     x ← Φ(x; c_s Δt)           along  dx/dt = dropout(f_s(LN_s(x)))       for each substep s, share c_s
        post-norm    x ← LN_s(Φ(x; c_s Δt))     along  dx/dt = dropout(f_s(x))

    Φ is a step of the scheme's solver. With Euler's, x + c_s Δt dx/dt, it is fused with the normalisation next to it;
    with `STRANG` this is then the Macaron layer of Lu et al. 2019 (arXiv:1906.02762), with `LIE` the Transformer layer.
    The share multiplies the velocity, not the residual; dropout comes before the share, and its masks are drawn once a
    sub-step, whatever the solver's stages.

    Args:
        scheme: splitting, solver and Δt; a splitting alone means Euler's method and Δt = 1. For cross-attention use
            `Splitting.with_cross_attention()`. (The rule across depth is not a layer's concern, but `Depth`'s.)
        flows: one module for each substep, of the kind that it names. Each is called with the particles and the
            context that the layer got, and returns a velocity, and attention weights or None.
        dim: C, the width of the particles.
        dropout: probability on each velocity.
        normalize_before: pre-norm (True) or post-norm (False).
        affine: whether the normalisations have a gain and an offset.
        eps: of the normalisations.

    Raises:
        ValueError: flows that do not match the splitting in number or kind.
    """

    def __init__(
        self,
        scheme: Scheme | Splitting,
        flows: Sequence[nn.Module],
        dim: int,
        *,
        dropout: float = 0.0,
        normalize_before: bool = True,
        affine: bool = True,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        # by what they hold and not by class, of which code from the hub may have two copies
        chosen: Any = scheme if hasattr(scheme, "splitting") else Scheme(scheme)
        splitting: Splitting = chosen.splitting
        expected = [s.flow for s in splitting.substeps]
        given = [getattr(f, "kind", type(f).__name__) for f in flows]
        if given != expected:
            raise ValueError(
                f"ParticleLayer: splitting {splitting.name!r} walks the flows {', '.join(expected)}, but was given "
                f"{', '.join(given)}; pass one flow for each substep, in this order"
            )
        self.solver = chosen.solver
        self.fused = astuple(chosen.solver) == astuple(EULER)
        self.steps = [s.share * chosen.dt for s in splitting.substeps]
        self.normalize_before = normalize_before
        self.flows = nn.ModuleList(flows)
        for i, flow in enumerate(flows):
            if (before := given[:i].count(given[i])) and hasattr(flow, "cache_suffix"):
                flow.cache_suffix = str(before)  # type: ignore[assignment]
        self.norms = nn.ModuleList(StepNorm(dim, eps=eps, elementwise_affine=affine) for _ in flows)
        self.gates = nn.ModuleList(Gate(dim) for _ in flows) if getattr(chosen.solver, "learned", False) else None
        self.dropout_module = Dropout(dropout)

    def forward(self, x: Tensor, context: Context = _EMPTY) -> tuple[Tensor, Tensor | None]:
        """Take one step.

        Args:
            x: (T, B, C) or (B, T, C), as the flows were built; (N, C) where they are packed.
            context: what the flows see besides; of those of text, `Surroundings` with masks, memory and caches.

        Returns:
            The moved particles, shape of `x`, and the attention weights asked for, (B, H, T, S), or None.
        """
        return self.integrate(x, context)

    def integrate(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor | None]:
        """`forward`, for sub-classes whose own has the signature of a host."""
        if not torch.jit.is_scripting() and not self.fused:
            return self._by_stages(x, context)
        dropout = self.dropout_module.rate()
        weights: Tensor | None = None
        velocity: Tensor | None = None  # pre-norm: of the substep whose move awaits the next normalisation
        step = 0.0
        for i, (flow, norm) in enumerate(zip(self.flows, self.norms)):  # noqa: B905  TorchScript's zip has no strict=
            z = x
            if self.normalize_before:
                x, z = norm(x, velocity, step, dropout)
            velocity, attended = flow(z, context)
            step = self.steps[i]
            if attended is not None:
                weights = attended
            if not self.normalize_before:
                _, x = norm(x, velocity, step, dropout)
        if self.normalize_before and velocity is not None:
            x = euler_step(x, velocity, step=step, dropout=dropout)
        return x, weights

    def _by_stages(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor | None]:
        """`integrate` with any solver; attention weights are those at the beginning of their sub-step."""
        weights: Tensor | None = None
        for i, step in enumerate(self.steps):
            attended: list[Tensor | None] = []
            field = self._field(i, context, SameDraws(x.device, active=self._is_random()), attended)
            x = follow(field, x, step, self.solver, None if self.gates is None else self.gates[i])
            if not self.normalize_before:
                _, x = self.norms[i](x)
            if attended[0] is not None:
                weights = attended[0]
        return x, weights

    def _field(self, i: int, context: Context, draws: SameDraws, attended: list[Tensor | None]) -> Field:
        """x ↦ dx/dt of one substep; `attended` collects the attention weights of its evaluations.

        A context whose flows remember their evaluations (keys and values, in step-wise decoding) has one for each
        stage.
        """

        def field(x: Tensor) -> Tensor:
            stage = len(attended)
            seen: Any = context.at_stage(stage) if stage and hasattr(context, "at_stage") else context
            with draws:
                velocity, weights = self.velocity(i, x, seen)
            attended.append(weights)
            return velocity

        return field

    def velocity(self, i: int, x: Tensor, context: Context) -> tuple[Tensor, Tensor | None]:
        """dx/dt of the i-th substep at x, (…, C) → (…, C), dropout included; and attention weights or None."""
        velocity, weights = self.flows[i](self.norms[i](x)[1] if self.normalize_before else x, context)
        return self.dropout_module(velocity), weights

    def _is_random(self) -> bool:
        return self.training or any(getattr(m, "apply_during_inference", False) for m in self.modules())

    def __prepare_scriptable__(self) -> nn.Module:
        if not self.fused:
            raise ValueError(
                f"TorchScript knows no solver but Euler's, and this layer has {self.solver.name!r}; use the model "
                f"unscripted, or solver='euler'"
            )
        if type(self) is not ParticleLayer:
            return self
        layer = copy(self)
        layer.__class__ = TextLayer  # type: ignore[assignment]
        return layer


class TextLayer(ParticleLayer[Surroundings]):
    """A `ParticleLayer` on the flows of text, as TorchScript can read it."""

    forward = scriptable(ParticleLayer.forward, Context=Surroundings)
    integrate = scriptable(ParticleLayer.integrate, Context=Surroundings)
