"""Looking inside: closed forms on linear fields, real models of both hosts, and nothing changed in any of them."""

from __future__ import annotations

import math
from argparse import Namespace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import macaron
from macaron import analysis
from macaron.dynamics import (
    BACKWARD_EULER,
    EULER,
    HEUN,
    HEUN_LEARNED,
    LIE,
    MIDPOINT,
    RK4,
    STRANG,
    Depth,
    Scheme,
    Splitting,
    Step,
    StochasticDepth,
    Tableau,
    euler,
    get_rule,
    get_solver,
)
from macaron.dynamics.splitting import FFN
from macaron.particles import FeedForward, Mask, Packed, ParticleLayer, SelfAttention, Surroundings

T, B, C = 5, 3, 4
DT = 0.5
SOLVERS = (EULER, BACKWARD_EULER, MIDPOINT, HEUN, RK4)
THREE = Splitting.parse("attention/2 ffn attention/2", name="three")


# --- linear fields, where everything has a closed form ------------------------------------------------------------


class NoNorm(nn.Module):
    """In the place of a norm: moves, and normalises nothing."""

    def forward(self, x: Tensor, velocity: Tensor | None = None, step: float = 0.0, dropout: float = 0.0):
        y = x if velocity is None else x + step * velocity
        return y, y


def linear_ffn(a: Tensor) -> FeedForward:
    """relu(A x) − relu(−A x) = A x."""
    flow = FeedForward(C, 2 * C).double()
    with torch.no_grad():
        flow.fc1.weight.copy_(torch.cat([a, -a]))
        flow.fc2.weight.copy_(torch.cat([torch.eye(C), -torch.eye(C)], dim=1))
    return flow


def linear_attention(b: Tensor) -> SelfAttention:
    """Without queries and keys every particle sees the mean: dx_i/dt = B ⟨x_j⟩."""
    flow = SelfAttention(C, 2).double()
    with torch.no_grad():
        flow.qkv_proj.weight.zero_()[2 * C :].copy_(torch.eye(C))
        flow.out_proj.weight.copy_(b)
    return flow


class Linear:
    """Layers on linear fields, and the same in matrices of the T · C coordinates of one sentence."""

    def __init__(self, splitting: Splitting, solver: Tableau, layers: int = 2) -> None:
        self.splitting, self.solver = splitting, solver
        self.stack = nn.ModuleList()
        self.matrices: list[list[tuple[str, float, Tensor]]] = []  # of each layer: flow, h, M
        for _ in range(layers):
            flows, matrices = [], []
            for substep in splitting.substeps:
                m = torch.randn(C, C, dtype=torch.float64) / C
                ffn = substep.flow == FFN
                flows.append(linear_ffn(m) if ffn else linear_attention(m))
                mix = torch.eye(T).double() if ffn else torch.full((T, T), 1 / T, dtype=torch.float64)
                matrices.append((substep.flow, substep.share * DT, torch.kron(mix, m)))
            layer = ParticleLayer(Scheme(splitting, solver, dt=DT), flows, C)
            layer.norms = nn.ModuleList(NoNorm() for _ in flows)
            self.stack.append(layer.eval())
            self.matrices.append(matrices)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.stack:
            x, _ = layer(x)
        return x

    def step(self, m: Tensor, h: float) -> Tensor:
        """The solver's stability function of h M, a polynomial of the terms of exp that it has."""
        terms = {"backward_euler": [1, 1, 1]}.get(
            self.solver.name, [1 / math.factorial(k) for k in range(self.solver.order + 1)]
        )
        result, power = torch.zeros_like(m), torch.eye(len(m)).double()
        for term in terms:
            result = result + term * power
            power = power @ (h * m)
        return result


def norms(flat: Tensor) -> Tensor:
    """(T · C,) → (T,) lengths."""
    return flat.view(T, C).norm(dim=-1)


@pytest.fixture(params=SOLVERS, ids=lambda solver: solver.name)
def solver(request: pytest.FixtureRequest) -> Tableau:
    return request.param


@pytest.mark.parametrize("splitting", [LIE, STRANG, THREE], ids=lambda s: s.name)
def test_linear_fields_have_closed_forms(splitting: Splitting, solver: Tableau) -> None:
    linear = Linear(splitting, solver)
    x = torch.randn(T, B, C, dtype=torch.float64)
    with analysis.record(linear.stack) as trajectories:
        linear.forward(x)
    (trajectory,) = trajectories.values()
    K = len(splitting.substeps) * 2
    assert trajectory.states.shape == (K + 1, B * T, C)
    assert trajectory.sentences.tolist() == [b for b in range(B) for _ in range(T)]

    expected: dict[str, list[Tensor]] = {
        name: [] for name in ("lengths", "speeds", "cosines", "ratios", "errors", "commutators")
    }
    for b in range(B):
        state = x[:, b].flatten()
        states, velocities, ratios, errors, commutators = [state], [], [], [], []
        for matrices in linear.matrices:
            begin = state
            totals = {True: torch.zeros_like(state), False: torch.zeros_like(state)}
            for flow, h, m in matrices:
                moved = linear.step(m, h) @ state
                velocities.append((moved - state) / h)
                totals[flow == FFN] += moved - state
                state = moved
                states.append(state)
            ratios.append(norms(totals[False]) / norms(totals[True]))
            half = begin
            for _ in range(2):
                for _, h, m in matrices:
                    half = linear.step(m, h / 2) @ half
            errors.append(norms(state - half) / norms(begin))
            f = g = torch.eye(T * C).double()
            for flow, h, m in matrices:
                if flow == FFN:
                    g = linear.step(m, h) @ g
                else:
                    f = linear.step(m, h) @ f
            commutators.append(norms((f @ g - g @ f) @ begin))
        v = [velocity.view(T, C) for velocity in velocities]
        cosines = [torch.cosine_similarity(one, other, dim=-1) for one, other in pairwise(v)]
        found = ([*map(norms, states)], [*map(norms, velocities)], cosines, ratios, errors, commutators)
        for name, values in zip(expected, found, strict=True):
            expected[name].append(torch.stack(values))
    measured = {
        "lengths": analysis.lengths(trajectory),
        "speeds": analysis.speeds(trajectory),
        "cosines": analysis.cosines(trajectory),
        "ratios": analysis.ratios(trajectory),
        "errors": analysis.splitting_errors(trajectory),
        "commutators": analysis.commutators(trajectory),
    }
    for name, values in measured.items():
        # float64, sums of 20 terms of size 1 and quotients of them
        torch.testing.assert_close(
            values, torch.cat(expected[name], dim=1), rtol=1e-12, atol=1e-13, msg=lambda m, name=name: f"{name}: {m}"
        )
        assert values.abs().min() > 1e-6, f"{name}: a test of zeros shows nothing"


def test_the_commutator_of_two_linear_flows_is_that_of_their_matrices() -> None:
    linear = Linear(LIE, EULER, layers=1)
    x = torch.randn(T, 1, C, dtype=torch.float64)
    with analysis.record(linear.stack) as trajectories:
        linear.forward(x)
    (_, _, a), (_, _, b) = linear.matrices[0]
    expected = DT**2 * norms((a @ b - b @ a) @ x.flatten())
    torch.testing.assert_close(analysis.commutators(trajectories["layers"])[0], expected)


@pytest.mark.parametrize(
    ("splitting", "solver", "order"), [(LIE, EULER, 1), (LIE, RK4, 1), (STRANG, EULER, 1), (STRANG, RK4, 2)],
    ids=lambda value: getattr(value, "name", str(value)),
)  # fmt: skip
def test_the_local_error_of_real_fields_falls_with_the_order(splitting: Splitting, solver: Tableau, order: int) -> None:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(B, T, 8, generator=generator, dtype=torch.float64)
    kinds = {FFN: FeedForward(8, 16, activation="gelu").double(), "self_attention": SelfAttention(8, 2).double()}
    flows = [kinds[s.flow] for s in splitting.substeps]  # one FFN for both halves; two of them are of first order
    errors = []
    for dt in (1 / 32, 1 / 64):
        layer = ParticleLayer(Scheme(splitting, solver, dt=dt), flows, 8, affine=False).double().eval()
        with analysis.record(layer) as trajectories:
            layer(x)
        errors.append(analysis.splitting_errors(trajectories["layers"]).mean().item())
    # the next term of the expansion is at these steps a few per cent of the first, of log2 measured to 0.005
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order + 1, abs=0.05)


def test_a_flow_of_ones_own_is_convection_unless_it_is_named() -> None:
    class Drift(nn.Linear):
        kind = "drift"

        def forward(self, x: Tensor, context: Any) -> tuple[Tensor, None]:
            return super().forward(x), None

    layer = ParticleLayer(Splitting.parse("attention drift"), [SelfAttention(C, 2), Drift(C, C)], C).eval()
    with analysis.record(layer) as trajectories:
        layer(torch.randn(T, B, C))
    trajectory = trajectories["layers"]
    assert [move.flow for move in trajectory.moves] == ["self_attention", "drift"]
    one, other = analysis.speeds(trajectory)
    torch.testing.assert_close(analysis.ratios(trajectory)[0], one / other)
    assert analysis.ratios(trajectory, ("self_attention", "drift")).isinf().all()
    assert (analysis.commutators(trajectory, ()) == 0).all()


def test_successive_velocities_at_rest_have_no_angle() -> None:
    layer = ParticleLayer(LIE, [SelfAttention(C, 2), FeedForward(C, 8)], C).eval()
    with torch.no_grad():
        layer.flows[1].fc2.weight.zero_()
    with analysis.record(layer) as trajectories:
        layer(torch.randn(T, B, C))
    assert analysis.cosines(trajectories["layers"]).isnan().all()


# --- the numbers of the pass itself -------------------------------------------------------------------------------


def make_layer(solver: Tableau = EULER, *, pre: bool = True, dropout: float = 0.0) -> ParticleLayer:
    flows = [FeedForward(8, 12), SelfAttention(8, 2, batch_first=True), FeedForward(8, 20)]
    layer = ParticleLayer(Scheme(STRANG, solver), flows, 8, normalize_before=pre, dropout=dropout)
    for p in layer.parameters():
        nn.init.normal_(p, mean=float(p.dim() == 1), std=0.3)
    return layer


@pytest.mark.parametrize("pre", [True, False], ids=["pre-norm", "post-norm"])
def test_every_substep_is_its_solvers_step_along_its_flow(solver: Tableau, pre: bool) -> None:
    layer = make_layer(solver, pre=pre).double().eval()
    x = torch.randn(B, T, 8, dtype=torch.float64)
    with analysis.record(layer) as trajectories:
        end, _ = layer(x)
    moves = trajectories["layers"].moves
    assert [(move.flow, move.step) for move in moves] == [("ffn", 0.5), ("self_attention", 1.0), ("ffn", 0.5)]
    state = x
    for move, flow, norm in zip(moves, layer.flows, layer.norms, strict=True):
        torch.testing.assert_close(move.before, state.flatten(0, 1))

        def field(y: Tensor, flow: nn.Module = flow, norm: nn.Module = norm) -> Tensor:
            return flow(norm(y)[1] if pre else y, Surroundings())[0]

        moved = macaron.dynamics.follow(field, state, move.step, solver)
        torch.testing.assert_close(move.moved, moved.flatten(0, 1))
        torch.testing.assert_close(move.velocity, ((moved - state) / move.step).flatten(0, 1))
        state = moved if pre else norm(moved)[1]
        torch.testing.assert_close(move.after, state.flatten(0, 1))
    assert torch.equal(moves[-1].after, end.flatten(0, 1))


@pytest.mark.parametrize("pre", [True, False], ids=["pre-norm", "post-norm"])
def test_what_is_recorded_is_the_pass_with_its_dropout(solver: Tableau, pre: bool) -> None:
    layer = make_layer(solver, pre=pre, dropout=0.5).train()
    x = torch.randn(B, T, 8)
    torch.manual_seed(5)
    expected, _ = layer(x)
    torch.manual_seed(5)
    with analysis.record(layer) as trajectories:
        found, _ = layer(x)
    assert torch.equal(found, expected)
    moves = trajectories["layers"].moves
    assert torch.equal(moves[-1].after, found.flatten(0, 1))
    dropped = (moves[0].velocity == 0).float().mean().item()
    assert 0.3 < dropped < 0.7  # of 120 numbers a half, four standard deviations
    if pre:
        with pytest.raises(
            ValueError, match=r"draws dropout, so its fields are others each time; call model\.eval\(\)"
        ):
            analysis.splitting_errors(trajectories["layers"])


def padded() -> tuple[Tensor, Tensor]:
    return torch.randn(B, T, 8), torch.arange(T) < torch.tensor([[5], [2], [4]])  # real (B, T)


@pytest.mark.parametrize("mask", ["padding", "pairs", "added", "given"])
def test_padding_is_left_out(mask: str) -> None:
    layer = make_layer().eval()
    x, real = padded()
    added = torch.zeros(B, 1, 1, T).masked_fill(~real[:, None, None], float("-inf"))
    around = {
        "padding": Surroundings(Mask(padding=~real)),
        "pairs": Surroundings(Mask(pairs=real[:, None, None])),
        "added": Surroundings(Mask(pairs=added)),
        "given": Surroundings(),
    }[mask]
    with analysis.record(layer, real=real if mask == "given" else None) as trajectories:
        end, _ = layer(x, around)
    trajectory = trajectories["layers"]
    assert torch.equal(trajectory.states[0], x[real]) and torch.equal(trajectory.states[-1], end[real])
    assert trajectory.sentences.tolist() == [0] * 5 + [1] * 2 + [2] * 4
    for b in range(B) if mask != "given" else ():
        with analysis.record(layer) as alone:
            layer(x[b : b + 1, : int(real[b].sum())])
        here = trajectory.sentences == b
        for measure in (analysis.lengths, analysis.splitting_errors, analysis.commutators):
            # float32: a padded sentence sums its attention in another order
            torch.testing.assert_close(measure(trajectory)[:, here], measure(alone["layers"]), rtol=1e-5, atol=2e-6)


def test_packed_particles_are_those_of_the_padded_batch() -> None:
    layer = make_layer().eval()
    x, real = padded()
    offsets = torch.tensor([0, 5, 7, 11], dtype=torch.int32)
    with analysis.record(layer) as trajectories:
        layer(x, Surroundings(Mask(padding=~real)))
        layer(x[real], Surroundings(packed=Packed(offsets, 5)))
    one, other = trajectories.values()
    assert list(trajectories) == ["layers", "layers (2)"]
    assert torch.equal(one.sentences, other.sentences)
    # float32, and attention over a padded or a packed batch
    for measure in (analysis.lengths, analysis.speeds, analysis.splitting_errors, analysis.commutators):
        torch.testing.assert_close(measure(one), measure(other), rtol=1e-5, atol=2e-6)


def test_layers_that_are_used_twice_are_one_trajectory_and_another_batch_is_another() -> None:
    layer = make_layer().eval()
    stack = Depth([layer] * 3)

    def run(x: Tensor) -> Tensor:
        for each in stack:
            x, _ = each(x)
        return x

    x = torch.randn(B, T, 8)
    with analysis.record(stack) as trajectories:
        end = run(x)
        run(torch.randn(B, T, 8))
    first, second = trajectories.values()
    assert len(first.layers) == len(second.layers) == 3
    assert torch.equal(first.states[-1], end.flatten(0, 1)) and first.is_joined
    assert repr(trajectories) == (
        "Trajectories(Trajectory(0 … 0: 9 substeps of 15 particles), Trajectory(0 … 0: 9 substeps of 15 particles))"
    )


def doubled(step: Step) -> Tensor:
    return 2 * step.layer(step.x)


@pytest.mark.parametrize("rule", ["doubled", "multistep", "rk2", "rk2_learned", "rk4", "sde"])
def test_states_are_those_of_the_rule(rule: str) -> None:
    """Of two batches, each a trajectory; a layer is seen as it is at x_n, however often the rule evaluates it."""
    noise = StochasticDepth(3, 0.5, form="sde", schedule="constant") if rule == "sde" else None
    chosen = {"doubled": doubled, "sde": euler}.get(rule) or get_rule(rule, 3, dim=8, multistep_init=0.5)
    stack = Depth([make_layer() for _ in range(3)], chosen, others=(None,), noise=noise).double().eval()
    passes = []
    with analysis.record(stack) as trajectories, analysis.record(stack) as inner:
        for _ in range(2):
            states = [torch.randn(B, T, 8, dtype=torch.float64)]
            for layer in stack:
                states.append(layer(states[-1])[0])
            passes.append(states)
    assert len(trajectories) == len(inner) == 2 and "observers" not in vars(stack)
    for states, trajectory in zip(passes, trajectories.values(), strict=True):
        assert trajectory.is_joined and len(trajectory.moves) == 9
        assert torch.equal(trajectory.states[::3], torch.stack(states).flatten(1, 2))
        for recorded in trajectory.layers:  # the layer's own fields at x_n
            alone = recorded.layer(recorded.x)[0].flatten(0, 1)
            torch.testing.assert_close(recorded.moves[-1].after, alone, rtol=0, atol=1e-12)  # float64
    assert analysis.splitting_errors(trajectory).shape == (3, B * T)
    plain = Depth(list(stack[:]), others=(None,))
    with analysis.record(plain) as trajectories:
        for layer in plain:
            layer(states[0])
    assert "observers" not in vars(plain)


def test_a_layer_that_is_dropped_is_no_part_of_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where it is the first of a second pass."""
    noise = StochasticDepth(2, 0.5, schedule="constant")
    stack = Depth([make_layer(), make_layer()], others=(None,), noise=noise).train()
    coins = iter([0.9, 0.1, 0.9, 0.1])  # below ½: kept
    monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.tensor(next(coins)))
    with analysis.record(stack) as trajectories:
        for _ in range(2):
            x = torch.randn(B, T, 8)
            for layer in stack:
                x, _ = layer(x)
    assert [[layer.name for layer in t.layers] for t in trajectories.values()] == [["1"], ["1"]]
    assert torch.equal(trajectories["layers (2)"].states[-1], x.flatten(0, 1))


# --- nothing is changed -------------------------------------------------------------------------------------------


def traces(model: nn.Module) -> list[Any]:
    """What a recording could leave behind."""
    return [(name, len(m._forward_hooks), "integrate" in vars(m), m.training) for name, m in model.named_modules()]


def test_learned_weights_of_a_solver_are_those_of_the_layer() -> None:
    """The one step of the local error is the layer's own, with its gates."""
    layer = make_layer(HEUN_LEARNED).double().eval()
    x = torch.randn(B, T, 8, dtype=torch.float64)
    with torch.no_grad(), analysis.record(layer) as trajectories:
        after, _ = layer(x)
    (trajectory,) = trajectories.values()
    fields = analysis._Fields(trajectory.layers[0])
    torch.testing.assert_close(fields.step(x, 1.0), after, rtol=1e-12, atol=1e-12)  # float64
    layer.gates = None
    assert not torch.allclose(layer(x)[0], after, atol=1e-3)  # the gates are not ½


def test_nothing_is_left_also_after_an_error() -> None:
    layer = make_layer().eval()
    before, parameters = traces(layer), list(layer.state_dict())
    with analysis.record(layer) as trajectories, pytest.raises(RuntimeError):
        assert traces(layer) != before and list(layer.state_dict()) == parameters
        layer(torch.randn(B, T, 7))
    assert traces(layer) == before and len(trajectories) == 0
    with pytest.raises(KeyError, match="stop"), analysis.record(layer):
        raise KeyError("stop")
    assert traces(layer) == before
    with analysis.record(layer) as trajectories:
        pass
    with pytest.raises(KeyError, match=r"but nothing\. Call the model inside of the `with` block"):
        _ = trajectories["layers"]


def test_recordings_inside_of_each_other_see_the_same() -> None:
    layer = make_layer(HEUN).eval()
    x = torch.randn(B, T, 8)
    with analysis.record(layer) as outer:
        with analysis.record(layer) as inner:
            layer(x)
        layer(x)
    assert len(inner) == 1 and len(outer) == 1 + 1
    assert torch.equal(inner["layers"].states, outer["layers"].states)
    assert "integrate" not in vars(layer)


@pytest.mark.parametrize("pre", [True, False], ids=["pre-norm", "post-norm"])
def test_states_are_copies(pre: bool) -> None:
    layer = make_layer(pre=pre).eval()
    x = torch.randn(B, T, 8)
    with analysis.record(layer) as trajectories:
        end, _ = layer(x)
    kept = trajectories["layers"].states.clone()
    with torch.no_grad():
        x.zero_()
        end.zero_()
    assert torch.equal(trajectories["layers"].states, kept) and not kept.requires_grad


def test_gradients_are_those_without_a_recording() -> None:
    layer = make_layer().train()
    x = torch.randn(B, T, 8)
    layer(x)[0].square().sum().backward()
    expected = [p.grad.clone() for p in layer.parameters()]
    layer.zero_grad()
    with analysis.record(layer):
        loss = layer(x)[0].square().sum()
    loss.backward()
    assert all(torch.equal(p.grad, g) for p, g in zip(layer.parameters(), expected, strict=True))


def test_a_compiled_layer_is_recorded_and_stays_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = make_layer().train()
    compiled = object()
    vars(layer)["integrate"] = compiled
    with analysis.record(layer) as trajectories:
        layer(torch.randn(B, T, 8))
    assert len(trajectories) == 1 and vars(layer)["integrate"] is compiled


# --- what is refused ----------------------------------------------------------------------------------------------


def test_a_model_without_particle_layers() -> None:
    with (
        pytest.raises(ValueError, match="Linear has no particle layer; give a model of macaron"),
        analysis.record(nn.Linear(2, 2)),
    ):
        pass


def test_real_of_another_shape_or_type() -> None:
    layer = make_layer().eval()
    x, real = padded()
    for wrong in (real[:, 1:], real.long()):
        with analysis.record(layer, real=wrong), pytest.raises(ValueError, match=r"give a bool tensor \(3, 5\)"):
            layer(x)


def test_post_norm_has_no_local_error() -> None:
    layer = make_layer(pre=False).eval()
    with analysis.record(layer) as trajectories:
        layer(torch.randn(B, T, 8))
    for measure in (analysis.splitting_errors, analysis.commutators):
        with pytest.raises(ValueError, match="is post-norm: it normalises the state"):
            measure(trajectories["layers"])


# --- what the output layer reads, and the plane -------------------------------------------------------------------


def test_the_lens_reads_each_state() -> None:
    layer = make_layer().double().eval()
    with analysis.record(layer) as trajectories:
        layer(torch.randn(B, T, 8, dtype=torch.float64))
    trajectory = trajectories["layers"]
    weight = torch.randn(11, 8, dtype=torch.float64)
    weight[10] = float("-inf")  # a word that cannot come: probability 0, no NaN
    lens = analysis.logit_lens(
        trajectory, lambda x: (x @ weight.nan_to_num(neginf=0).T).index_fill(-1, torch.tensor(10), -torch.inf)
    )
    p = torch.softmax(trajectory.states @ weight[:10].T, dim=-1)
    assert torch.equal(lens.words, p.argmax(-1)) and lens.words.shape == (4, B * T)
    torch.testing.assert_close(lens.probabilities, p.max(-1).values)
    torch.testing.assert_close(lens.last, p.gather(-1, p[-1].argmax(-1).expand(4, -1).unsqueeze(-1)).squeeze(-1))
    torch.testing.assert_close(lens.entropy, -(p * p.log()).sum(-1))


def test_points_of_a_plane_are_found_in_it() -> None:
    flat = torch.randn(7, 6, 2, dtype=torch.float64) * torch.tensor([3.0, 1.0])
    axes, _ = torch.linalg.qr(torch.randn(9, 2, dtype=torch.float64))
    states = flat @ axes.T + 5.0
    plane = analysis.principal_plane(states)
    assert plane.points.shape == (7, 6, 2)
    torch.testing.assert_close(torch.pdist(plane.points.flatten(0, 1)), torch.pdist(flat.flatten(0, 1)))
    assert plane.explained.sum().item() == pytest.approx(1.0) and plane.explained[0] > plane.explained[1]
    torch.testing.assert_close(analysis.principal_plane(states.flip(0)).points.flip(0), plane.points)


def test_points_on_a_line_and_a_single_point_have_a_plane_too() -> None:
    line = torch.arange(4.0).unsqueeze(-1) * torch.tensor([3.0, 4.0, 0.0])
    plane = analysis.principal_plane(line)
    torch.testing.assert_close(plane.points[:, 0].diff(), torch.full((3,), 5.0).double())
    torch.testing.assert_close(plane.explained, torch.tensor([1.0, 0.0]).double())
    assert analysis.principal_plane(torch.ones(1, 3)).points.tolist() == [[0.0, 0.0]]
    assert analysis.principal_plane(torch.randn(6, 1)).points.shape == (6, 2)


# --- Macaron BERT -------------------------------------------------------------------------------------------------


@pytest.fixture
def bert():
    from macaron.bert import MacaronBertConfig, MacaronBertForMaskedLM

    def make(**options: Any) -> Any:
        sizes = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
        config = MacaronBertConfig(**{**sizes, "max_position_embeddings": 40, **options})
        return MacaronBertForMaskedLM(config).eval()

    ids = torch.randint(1, 50, (3, 9))
    real = torch.arange(9) < torch.tensor([[9], [6], [4]])
    return make, {"input_ids": ids.masked_fill(~real, 0), "attention_mask": real.long()}


@pytest.mark.parametrize("options", [{}, {"solver": "rk4"}, {"normalize_before": False}], ids=str)
@pytest.mark.parametrize("padding_free", [True, False], ids=["packed", "padded"])
def test_bert_packed_or_padded(bert, options: dict[str, Any], padding_free: bool) -> None:
    make, batch = bert
    options = dict(options)
    solver = options.pop("solver", "euler")
    model = make(**options, padding_free=padding_free)
    for layer in model.macaron_bert.layers:
        layer.solver, layer.fused = get_solver(solver), solver == "euler"
    expected = model(**batch).logits
    names = list(model.state_dict())
    with analysis.record(model) as trajectories:
        found = model(**batch).logits
        assert list(model.state_dict()) == names
    assert torch.equal(found, expected) and torch.equal(model(**batch).logits, expected)
    trajectory = trajectories["macaron_bert.layers"]
    assert trajectory.sentences.tolist() == [0] * 9 + [1] * 6 + [2] * 4
    assert trajectory.states.shape == (10, 19, 32) and trajectory.is_joined
    assert (trajectory.layers[0].x.dim() == 2) is padding_free  # the two ways are both taken
    if options.get("normalize_before", True):
        alone = {name: value[1:2, :6] for name, value in batch.items()}
        with analysis.record(model) as one:
            model(**alone)
        here = trajectory.sentences == 1
        errors = analysis.splitting_errors(one["macaron_bert.layers"])
        # float32, and attention sums over padding of weight 0
        torch.testing.assert_close(analysis.splitting_errors(trajectory)[:, here], errors, rtol=1e-4, atol=1e-6)


def test_bert_with_padding_before_the_sentence_and_eager_attention(bert) -> None:
    make, batch = bert
    model = make(attn_implementation="eager")
    flipped = {name: value.flip(1) for name, value in batch.items()}
    with analysis.record(model) as trajectories:
        expected = model(**flipped, output_hidden_states=True).hidden_states
    states = trajectories["macaron_bert.layers"].states
    real = flipped["attention_mask"].bool()
    assert torch.equal(states[::3][:3], torch.stack(expected)[:3][:, real])


def test_bert_with_an_attention_function_of_its_own_asks_for_the_padding(bert) -> None:
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    from macaron.hf.context import eager_attention_forward

    make, batch = bert
    ALL_ATTENTION_FUNCTIONS.register("mine", eager_attention_forward)
    ALL_MASK_ATTENTION_FUNCTIONS.register("mine", sdpa_mask)
    model = make()
    model.config._attn_implementation = "mine"
    real = batch["attention_mask"].bool()
    with analysis.record(model), pytest.raises(ValueError, match=r"pass real=attention_mask\.bool\(\) to record"):
        model(**batch)
    with analysis.record(model, real=real) as trajectories:
        model(**batch)
    assert len(trajectories["macaron_bert.layers"].sentences) == 19


# --- fairseq ------------------------------------------------------------------------------------------------------


SIZES = {
    **dict.fromkeys(("encoder_embed_dim", "decoder_embed_dim"), 16),
    **dict.fromkeys(("encoder_ffn_embed_dim", "decoder_ffn_embed_dim"), 24),
    **dict.fromkeys(("encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 2),
    **dict.fromkeys(("encoder_normalize_before", "decoder_normalize_before"), True),
    "dropout": 0.1,
}


@pytest.fixture
def translation():
    pytest.importorskip("fairseq")
    from fairseq.data import Dictionary

    def make(model: type | None = None, **options: Any) -> Any:
        model = model or macaron.MacaronModel
        sizes = {name: size for name, size in SIZES.items() if model is macaron.MacaronModel or "encoder" not in name}
        words = Dictionary()
        for number in range(40):
            words.add_symbol(f"word{number}")
        task = Namespace(source_dictionary=words, target_dictionary=words)
        return model.build_model(Namespace(**{**sizes, **options}), task).eval(), words

    return make


def sentences(words: Any, lengths: list[int], left: bool) -> Tensor:
    from fairseq.data import data_utils

    rows = [torch.randint(4, len(words), (n,)) for n in lengths]
    return data_utils.collate_tokens(rows, words.pad(), left_pad=left)


@pytest.mark.parametrize("pre", [True, False], ids=["pre-norm", "post-norm"])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("solver", ["euler", "heun_learned"])
def test_both_sides_of_a_translation_model(translation, solver: str, pre: bool, training: bool) -> None:
    model, words = translation(encoder_normalize_before=pre, decoder_normalize_before=pre, solver=solver)
    model.train(training)
    source, target = sentences(words, [7, 3, 5], left=True), sentences(words, [4, 6, 2], left=False)
    batch = {"src_tokens": source, "src_lengths": torch.tensor([7, 3, 5]), "prev_output_tokens": target}
    torch.manual_seed(1)
    expected, _ = model(**batch)
    torch.manual_seed(1)
    with analysis.record(model) as trajectories:
        found, _ = model(**batch)
    assert torch.equal(found, expected)
    assert list(trajectories) == ["encoder.layers", "decoder.layers"]
    encoder, decoder = trajectories.values()
    assert encoder.sentences.tolist() == [0] * 7 + [1] * 3 + [2] * 5
    assert decoder.sentences.tolist() == [0] * 4 + [1] * 6 + [2] * 2
    assert [move.flow for move in decoder.moves][:4] == ["ffn", "self_attention", "cross_attention", "ffn"]
    assert encoder.is_joined and decoder.is_joined
    end = decoder.states[-1]
    if model.decoder.layer_norm is not None:
        end = model.decoder.layer_norm(end)
    real = target != words.pad()
    torch.testing.assert_close(model.decoder.output_projection(end), found[real])
    if pre and not training:
        for trajectory in (encoder, decoder):
            errors = analysis.splitting_errors(trajectory)
            assert errors.shape == (2, len(trajectory.sentences)) and (errors > 0).all() and errors.isfinite().all()


def test_a_language_model(translation) -> None:
    from macaron.user_dir.models.macaron_lm import MacaronLanguageModel

    model, words = translation(MacaronLanguageModel, tokens_per_sample=20)
    tokens = sentences(words, [7, 3], left=False)
    expected, _ = model(tokens)
    with analysis.record(model) as trajectories:
        assert torch.equal(model(tokens)[0], expected)
    (trajectory,) = trajectories.values()
    assert trajectory.sentences.tolist() == [0] * 7 + [1] * 3

    def readout(x: Tensor) -> Tensor:
        return model.decoder.output_layer(model.decoder.layer_norm(x))

    lens = analysis.logit_lens(trajectory, readout)
    assert torch.equal(lens.words[-1], expected.argmax(-1)[tokens != words.pad()])


def test_each_word_of_step_wise_decoding_is_a_trajectory(translation) -> None:
    model, words = translation()
    source = sentences(words, [4], left=True)
    target = sentences(words, [3], left=False)
    with torch.no_grad():
        memory = model.encoder(source, torch.tensor([4]))
        with analysis.record(model) as whole:
            model.decoder(target, memory)
        state: dict[str, Any] = {}
        with analysis.record(model) as words_alone:
            for n in range(1, 4):
                model.decoder(target[:, :n], memory, incremental_state=state)
    assert list(words_alone) == ["decoder.layers", "decoder.layers (2)", "decoder.layers (3)"]
    joined = torch.cat([trajectory.states for trajectory in words_alone.values()], dim=1)
    # float32: products of one row and of three round otherwise
    torch.testing.assert_close(joined, whole["decoder.layers"].states, rtol=1e-5, atol=5e-6)
    with pytest.raises(ValueError, match="recorded in step-wise decoding, whose caches hold one evaluation"):
        analysis.commutators(words_alone["decoder.layers"])
