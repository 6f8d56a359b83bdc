"""One layer: one step of a splitting scheme, walked over its flows."""

from collections.abc import Sequence

from torch import Tensor, nn

from macaron.dynamics.dropout import Dropout
from macaron.dynamics.flows import Surroundings
from macaron.dynamics.norm import StepNorm
from macaron.dynamics.splitting import Splitting
from macaron.ops.step_norm import euler_step

_EMPTY = Surroundings()


class ParticleLayer(nn.Module):
    """One time step Δt of a particle system, one explicit Euler sub-step for each flow of a `Splitting`.

        pre-norm     x ← x + c_s · dropout(f_s(LN_s(x)))         for each substep s with share c_s
        post-norm    x ← LN_s(x + c_s · dropout(f_s(x)))

    With `STRANG` this is the Macaron layer of Lu et al. 2019 (arXiv:1906.02762), with `LIE` the Transformer layer.
    The share multiplies the velocity, not the residual; dropout comes before the share.

    Args:
        splitting: the scheme; for cross-attention use `Splitting.with_cross_attention()`.
        flows: one module for each substep, of the kind that it names.
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
        splitting: Splitting,
        flows: Sequence[nn.Module],
        dim: int,
        *,
        dropout: float = 0.0,
        normalize_before: bool = True,
        affine: bool = True,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        expected = [s.flow for s in splitting.substeps]
        given = [getattr(f, "kind", type(f).__name__) for f in flows]
        if given != expected:
            raise ValueError(
                f"ParticleLayer: splitting {splitting.name!r} walks the flows {', '.join(expected)}, but was given "
                f"{', '.join(given)}; pass one flow for each substep, in this order"
            )
        self.shares = [s.share for s in splitting.substeps]
        self.normalize_before = normalize_before
        self.flows = nn.ModuleList(flows)
        self.norms = nn.ModuleList(StepNorm(dim, eps=eps, elementwise_affine=affine) for _ in flows)
        self.dropout_module = Dropout(dropout)

    def forward(self, x: Tensor, surroundings: Surroundings = _EMPTY) -> tuple[Tensor, Tensor | None]:
        """Take one step.

        Args:
            x: (T, B, C) or (B, T, C), as the flows were built; (N, C) where `surroundings` has offsets.
            surroundings: masks, memory and caches.

        Returns:
            The moved particles, shape of `x`, and the attention weights asked for, (B, H, T, S), or None.
        """
        return self.integrate(x, surroundings)

    def integrate(self, x: Tensor, surroundings: Surroundings) -> tuple[Tensor, Tensor | None]:
        """`forward` under a name that a scriptable sub-class can call."""
        dropout = self.dropout_module.rate()
        weights: Tensor | None = None
        velocity: Tensor | None = None  # pre-norm: of the substep whose move awaits the next normalisation
        share = 0.0
        for i, (flow, norm) in enumerate(zip(self.flows, self.norms)):  # noqa: B905  TorchScript's zip has no strict=
            z = x
            if self.normalize_before:
                x, z = norm(x, velocity, share, dropout)
            velocity, attended = flow(z, surroundings)
            share = self.shares[i]
            if attended is not None:
                weights = attended
            if not self.normalize_before:
                _, x = norm(x, velocity, share, dropout)
        if self.normalize_before and velocity is not None:
            x = euler_step(x, velocity, step=share, dropout=dropout)
        return x, weights
