"""Adversarial training: the authors' own numbers, the geometry of δ, equal draws, and a cut that carries all of it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from macaron import adversary
from macaron.adversary import METHODS, NORMS, Attack, Pass, Split, perturb, train
from macaron.dynamics import Depth, LinearMultistep, StochasticDepth, euler, get_rule

GOLDEN = Path(__file__).resolve().parents[1].parent / "shared" / "golden_vision"
GIVEN = {"rtol": 0.0, "atol": 1e-7}  # the tolerance stated beside the numbers


def golden(folder: str, name: str) -> dict[str, Tensor]:
    safetensors = pytest.importorskip("safetensors.torch")
    path = GOLDEN / folder / f"{name}.safetensors"
    if not path.is_file():
        pytest.skip(f"the authors' numbers are not at {path}")
    return safetensors.load_file(path)


def facts(folder: str) -> dict[str, Any]:
    path = GOLDEN / folder / f"{folder}.json"
    if not path.is_file():
        pytest.skip(f"the authors' settings are not at {path}")
    return json.loads(path.read_text(encoding="utf-8"))


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, **GIVEN)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


# --- images: the authors' numbers ---------------------------------------------------------------------------------

IMAGES = ("cifar_like", "cifar_like_bn", "mnist_like")


class ToyNet(nn.Module):
    """conv1, [BatchNorm,] ReLU, conv of stride 2, ReLU, linear."""

    def __init__(self, stored: dict[str, Tensor], relu_first: bool) -> None:
        super().__init__()
        own = {name.removeprefix("param/"): value for name, value in stored.items() if name.startswith("param/")}
        own = {name.removeprefix("other_layers.0."): value for name, value in own.items()}
        own = {name: value for name, value in own.items() if not name.startswith("layer_one")}
        conv1 = nn.Conv2d(own["conv1.weight"].size(1), 4, 3, padding=1, bias=False)
        self.conv1 = conv1
        first = [nn.BatchNorm2d(4)] if "0.running_mean" in own else []
        relu = [] if relu_first else [nn.ReLU()]
        rest = [nn.Conv2d(4, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 10)]
        self.rest = nn.Sequential(*first, *relu, *rest)
        self.relu_first = relu_first
        self.double()
        renamed = {name if name == "conv1.weight" else f"rest.{name}": value for name, value in own.items()}
        self.load_state_dict(renamed)

    def first(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        return F.relu(x) if self.relu_first else x

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.first(x))


def toy(name: str) -> tuple[ToyNet, dict[str, Tensor], dict[str, Any]]:
    settings, stored = facts("yopo")[name], golden("yopo", name)
    return ToyNet(stored, "ReLU" in settings["first_layer"]), stored, settings


def stored_name(name: str) -> str:
    return name if name == "conv1.weight" else "other_layers.0." + name.removeprefix("rest.")


def yopo(settings: dict[str, Any], method: str = "yopo") -> Attack:
    eps, m, n, step = (settings[key] for key in ("eps", "m", "n", "step"))
    return Attack(method, m, n, step_size=step, norm="linf-sign", radius=eps, init=eps, bounds=(0.0, 1.0))


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("cleared", ["to none", "in place"])
def test_yopo_on_images_is_the_authors(name: str, cleared: str) -> None:
    net, stored, settings = toy(name)
    attack = yopo(settings)
    optimizer = torch.optim.SGD(
        net.parameters(), lr=settings["lr"], momentum=settings["momentum"], weight_decay=settings["weight_decay"]
    )
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.zero_grad(set_to_none=cleared == "to none")
    logits: list[Tensor] = []

    def rest(state: Tensor) -> Tensor:
        logits.append(net.rest(state))
        return F.cross_entropy(logits[-1], stored["label"])

    seen: list[Pass] = []
    outcome = train(Split.of(net.first, rest), stored["data"], attack, start=stored["eta0"], observe=seen.append)
    with torch.no_grad():
        net(stored["data"] + outcome.delta)  # the authors' progress bar

    assert len(seen) == len(logits) == settings["forward_calls"] - 1 == attack.passes
    for j, one in enumerate(seen):
        close(one.delta, stored[f"pass{j}/eta_in"])
        close(one.moved, stored[f"pass{j}/eta_out"])
        close(stored["data"] + one.delta, stored[f"pass{j}/network_input"])
        close(stored["data"] + one.moved, stored[f"pass{j}/adversarial_input"])
        close(logits[j].detach(), stored[f"pass{j}/logits"])
        close(-one.costate, stored[f"pass{j}/p"])
    found = gradients(net)
    expected = {key.removeprefix("fixed/grad/") for key in stored if key.startswith("fixed/grad/")}
    assert {stored_name(key) for key in found} == expected
    for key, gradient in found.items():
        close(gradient, stored[f"fixed/grad/{stored_name(key)}"])
    optimizer.step()
    for key, value in net.state_dict().items():
        close(value, stored[f"fixed/after_update/{stored_name(key)}"])


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize(
    ("method", "key"),
    [
        ("yopo-full", "parts/first_layer_full_pass"),
        ("yopo-hamiltonian", "parts/first_layer_hamiltonian"),
        ("yopo-restored", "restore_lines_modern_torch/grad/conv1.weight"),
    ],
)
def test_each_count_of_the_first_layer_is_the_authors(name: str, method: str, key: str) -> None:
    net, stored, settings = toy(name)
    split = Split.at(net.conv1, lambda x: F.cross_entropy(net(x), stored["label"]))
    if net.relu_first:  # which belongs to the first part
        split = Split.of(net.first, lambda state: F.cross_entropy(net.rest(state), stored["label"]))
    train(split, stored["data"], yopo(settings, method), start=stored["eta0"])
    close(net.conv1.weight.grad, stored[key])
    for other, gradient in gradients(net).items():
        if other != "conv1.weight":
            close(gradient, stored[f"fixed/grad/{stored_name(other)}"])
    if method == "yopo-restored":
        optimizer = torch.optim.SGD(
            net.parameters(), lr=settings["lr"], momentum=settings["momentum"], weight_decay=settings["weight_decay"]
        )
        optimizer.step()
        close(net.conv1.weight.detach(), stored["restore_lines_modern_torch/after_update/conv1.weight"])


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("steps", [1, 10])
def test_pgd_on_images_is_the_authors(name: str, steps: int) -> None:
    net, stored, settings = toy(name)
    net.eval()
    eps = settings["eps"]
    attack = Attack("pgd", steps, step_size=settings["step"], norm="linf-sign", radius=eps, init=eps, bounds=(0.0, 1.0))
    split = Split.at(net.conv1, lambda x: F.cross_entropy(net(x), stored["label"]))
    found = stored["data"] + perturb(split, stored["data"], attack, start=stored[f"pgd{steps}/eta0"])
    close(found, stored[f"pgd{steps}/adversarial_input"])
    close(net(found).detach(), stored[f"pgd{steps}/logits"])
    assert not gradients(net)


# --- text: the authors' numbers -----------------------------------------------------------------------------------


class ToyText(nn.Module):
    """tanh(W1 (E + δ + P)), tanh(W2 ·), the mean over the sentence, a head."""

    def __init__(self, stored: dict[str, Tensor]) -> None:
        super().__init__()
        vocabulary, d = stored["param/embed_tokens.weight"].shape
        self.embed_tokens = nn.Embedding(vocabulary, d, padding_idx=1)
        self.pos = nn.Parameter(torch.empty_like(stored["param/pos"]))
        self.l1, self.l2, self.head = nn.Linear(d, d), nn.Linear(d, d), nn.Linear(d, len(stored["param/head.bias"]))
        self.double()
        self.load_state_dict({k.removeprefix("param/"): v for k, v in stored.items() if k.startswith("param/")})

    def first(self, x: Tensor, real: Tensor) -> Tensor:
        return self.l1(x + self.pos).tanh() * real.unsqueeze(-1)

    def rest(self, h: Tensor, real: Tensor) -> Tensor:
        g = self.l2(h).tanh() * real.unsqueeze(-1)
        return self.head(g.sum(1) / real.sum(1, keepdim=True))


METHOD_OF = {"freelb": "freelb-fairseq", "pgd": "pgd", "yopo": "yopo-fairseq", "freeat": "freeat"}


def runs_of_text() -> list[str]:
    path = GOLDEN / "text_adversarial" / "text_adversarial.json"
    names = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"freelb_l2": None}
    return sorted(name for name in names if name != "model")


@pytest.mark.parametrize("run", runs_of_text())
def test_text_is_the_authors(run: str) -> None:
    settings, stored = facts("text_adversarial")[run], golden("text_adversarial", "text_adversarial")
    model = ToyText(stored)
    tokens, padding = stored["tokens"], stored["tokens"].eq(1)
    linf = settings["norm_method"] == "linf"
    attack = Attack(
        METHOD_OF[run.partition("_")[0]],
        settings["adv_steps"],
        settings.get("yopo_steps", 1),
        step_size=settings["adv_lr"],
        norm="linf-largest" if linf else "l2",
        radius=settings["max_norm"] if settings["max_norm"] > 0 else None,
        init=settings["rand_init_mag"],
    )
    split = Split.of(
        lambda x: model.first(x, ~padding),
        lambda h: F.cross_entropy(model.rest(h, ~padding), stored["target"], reduction="sum"),
    )
    clean = lambda: model.embed_tokens(tokens)  # noqa: E731
    draw = stored[f"{run}/uniform"] / (settings["rand_init_mag"] if linf else 1.0)
    delta = adversary.start(clean(), attack, padding=padding, draw=draw)
    seen: list[Pass] = []
    if attack.method == "freeat":  # one pass a call, δ handed on
        for s in range(settings["passes"]):
            model.zero_grad()
            outcome = train(split, clean, attack, padding=padding, start=delta, observe=seen.append)
            delta = outcome.delta
            close(delta, stored[f"{run}/delta_after_{s}"])
            for name, gradient in gradients(model).items():
                close(gradient, stored[f"{run}/step{s}/grad/{name}"])
    else:
        outcome = train(split, clean, attack, padding=padding, start=delta, observe=seen.append)
        assert attack.passes == settings["passes"]
        for name, gradient in gradients(model).items():
            close(gradient, stored[f"{run}/grad/{name}"])
    assert {key.rpartition("/grad/")[2] for key in stored if key.startswith(run) and "/grad/" in key} == set(
        gradients(model)
    )
    for s, one in enumerate(seen):
        close(one.delta, stored[f"{run}/delta_in_pass_{s}"])
    found = [one.loss.item() for one in seen]
    assert found == pytest.approx(settings["loss_sum_of_each_pass"], abs=1e-7)
    assert outcome.loss.item() == pytest.approx(settings["returned_loss"], abs=1e-7)


# --- a small text model of our own --------------------------------------------------------------------------------


class Small(nn.Module):
    """Embeddings, two layers with dropout, the mean over the sentence; all in one forward."""

    def __init__(self, dropout: float = 0.0, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6, padding_idx=0)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Dropout(dropout)) for _ in range(2))
        self.head = nn.Linear(6, 3)
        self.recompute: bool | None = None  # use_reentrant, where there is activation checkpointing
        self.masks: list[Tensor] = []
        for layer in self.layers:
            layer[2].register_forward_hook(lambda _m, i, o: self.masks.append((o == 0) & (i[0] != 0)))
        self.to(dtype)

    def layer(self, n: int, x: Tensor) -> Tensor:
        if self.recompute is None:
            return self.layers[n](x)
        return checkpoint(self.layers[n], x, use_reentrant=self.recompute)

    def first(self, x: Tensor) -> Tensor:
        return self.layer(0, x)

    def rest(self, h: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
        return F.cross_entropy(self.head(self.layer(1, h).mean(1)), target, reduction=reduction)


TOKENS = torch.tensor([[3, 4, 5, 6], [7, 8, 0, 0], [1, 2, 9, 0]])
TARGET = torch.tensor([0, 1, 2])
MOVING = [name for name in METHODS if name != "natural"]


def attack_of(method: str, norm: str = "l2", **changes: Any) -> Attack:
    inner = 3 if METHODS[method].inner else 1
    return Attack(method, **{"steps": 3, "inner_steps": inner, "step_size": 0.3, "norm": norm, "init": 0.2, **changes})


def small_split(model: Small) -> Split:
    return Split.of(model.first, lambda h: model.rest(h, TARGET))


def run_small(model: Small, attack: Attack, **options: Any) -> dict[str, Tensor]:
    model.zero_grad()
    torch.manual_seed(3)
    outcome = train(small_split(model), lambda: model.embed(TOKENS), attack, padding=TOKENS.eq(0), **options)
    return {**gradients(model), "delta": outcome.delta, "losses": outcome.losses}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], **tolerance: float) -> None:
    assert set(found) == set(expected)
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], **tolerance, msg=lambda text, name=name: f"{name}: {text}")


def test_each_method_counts_as_its_table_says() -> None:
    model = Small()
    table = {
        "natural": (1, 1),
        "pgd": (4, 1),
        "freeat": (1, 4),
        "freelb-fairseq": (4, 4),
        "freelb-hf": (3, 3),
        "yopo-fairseq": (4, 4),
    }
    for method in METHODS:
        passes, divisor = table.get(method, (3, 1))
        attack = attack_of(method)
        assert (attack.passes, attack.divisor) == (passes, divisor), method
        outcome = train(small_split(model), lambda: model.embed(TOKENS), attack, scale=0.5)
        assert outcome.losses.shape == (passes,) and outcome.norms.shape == (passes, 3)
        trained = outcome.losses[-1:] if method == "pgd" else outcome.losses
        torch.testing.assert_close(outcome.loss, trained.sum() * 0.5 / divisor)


def test_freelb_of_both_counts_by_hand() -> None:
    """K passes against K + 1: the two differ by one step, and nothing else."""
    model = Small()
    fairseq = run_small(model, attack_of("freelb-fairseq", steps=2))
    hf = run_small(model, attack_of("freelb-hf", steps=3))
    assert_same(hf, fairseq, rtol=0.0, atol=0.0)


def test_natural_is_an_ordinary_pass() -> None:
    """Draw by draw, those of the embeddings' own dropout included."""
    model = Small(dropout=0.5)
    torch.manual_seed(3)
    outcome = train(small_split(model), lambda: F.dropout(model.embed(TOKENS), 0.5), Attack("natural"))
    found = {**gradients(model), "delta": outcome.delta, "losses": outcome.losses}
    model.zero_grad()
    torch.manual_seed(3)
    loss = model.rest(model.first(F.dropout(model.embed(TOKENS), 0.5)), TARGET)
    loss.backward()
    expected = {**gradients(model), "delta": torch.zeros(3, 4, 6, dtype=torch.float64), "losses": loss.detach()[None]}
    assert_same(found, expected, rtol=0.0, atol=0.0)


@pytest.mark.parametrize("method", MOVING)
def test_the_adversary_raises_the_loss(method: str) -> None:
    model = Small()
    outcome = train(small_split(model), lambda: model.embed(TOKENS), attack_of(method, init=0.0, step_size=0.05))
    after = small_split(model).whole(model.embed(TOKENS) + outcome.delta, lambda state: state)
    assert outcome.norms[0].eq(0).all() and after > outcome.losses[0]


def test_frozen_costate_gives_the_exact_gradient_at_first() -> None:
    """∂⟨p, f₀⟩/∂δ = ∂L/∂δ at the δ where p was taken, and no longer after a step."""
    model = Small()
    x = model.embed(TOKENS).detach()

    def exact(delta: Tensor) -> tuple[Tensor, Tensor]:
        leaf = delta.detach().requires_grad_()
        state = model.first(x + leaf)
        return torch.autograd.grad(model.rest(state, TARGET), [leaf, state])

    found: list[Tensor] = []

    def first(x: Tensor) -> Tensor:
        state = model.first(x)
        if state.requires_grad and x.requires_grad:
            x.register_hook(found.append)
        return state

    watched = Split.of(first, lambda state: model.rest(state, TARGET))
    seen: list[Pass] = []
    train(watched, x, attack_of("yopo-fairseq", steps=1, inner_steps=2), observe=seen.append)
    del found[2:]  # of the last pass
    gradient, p = exact(seen[0].delta)
    torch.testing.assert_close(seen[0].costate * 2, p)  # two passes share the loss
    cosine = F.cosine_similarity(found[0].flatten(), gradient.flatten(), dim=0)
    assert cosine.item() == pytest.approx(1.0, abs=1e-12)
    torch.testing.assert_close(found[0] * 2, gradient)
    moved = adversary._Ball(x, attack_of("yopo-fairseq")).ascend(seen[0].delta, gradient)
    later = F.cosine_similarity(found[1].flatten(), exact(moved)[0].flatten(), dim=0)
    assert later < 1 - 1e-6


# --- δ: where it may be -------------------------------------------------------------------------------------------

batches = st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 4))
magnitudes = st.floats(1e-3, 10.0)


@hypothesis_settings(max_examples=40)
@given(batches, st.sampled_from(NORMS), magnitudes, magnitudes, st.floats(1e-30, 1e30), st.integers(0, 2**31))
def test_an_ascent_stays_in_the_ball_and_off_the_padding(shape, norm, radius, step, size, seed) -> None:
    torch.manual_seed(seed)
    padding = torch.rand(shape[:2]) < 0.3
    attack = Attack("pgd", step_size=step, norm=norm, radius=radius, init=radius)
    ball = adversary._Ball(torch.randn(shape), attack, padding)
    delta = ball.start(torch.rand(shape) * 2 - 1)
    for _ in range(3):
        gradient = torch.randn(shape) * size
        before, delta = delta, ball.ascend(delta, gradient)
        assert delta[padding].eq(0).all()
        assert (ball.norm(delta) <= radius * (1 + 1e-5)).all()  # float32
        inside = ball.project(before + 0.0)
        torch.testing.assert_close(ball.project(inside), inside)  # a projection


@hypothesis_settings(max_examples=40)
@given(batches, st.sampled_from(NORMS), magnitudes, st.floats(1e-30, 1e30), st.integers(0, 2**31))
def test_a_free_step_has_its_length_in_its_norm(shape, norm, step, size, seed) -> None:
    torch.manual_seed(seed)
    ball = adversary._Ball(torch.zeros(shape), Attack("pgd", step_size=step, norm=norm))
    moved = ball.ascend(ball.empty, torch.randn(shape) * size)
    torch.testing.assert_close(ball.norm(moved), torch.full((shape[0],), step), rtol=1e-5, atol=0.0)


@hypothesis_settings(max_examples=40)
@given(st.sampled_from(NORMS), magnitudes, st.integers(0, 2**31))
def test_images_stay_within_their_bounds(norm, radius, seed) -> None:
    torch.manual_seed(seed)
    x = torch.rand(2, 1, 3, 3).round(decimals=1)
    ball = adversary._Ball(x, Attack("pgd", step_size=radius, norm=norm, radius=radius, bounds=(0.0, 1.0)))
    delta = ball.ascend(torch.randn_like(x), torch.randn_like(x))
    assert (x + delta).min() >= -1e-6 and (x + delta).max() <= 1 + 1e-6  # x + (clip − x) rounds
    assert (ball.norm(delta) <= radius * (1 + 1e-5) + 1e-6).all()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("bad", [0.0, math.inf, math.nan])
def test_a_gradient_that_says_nothing_moves_nothing(norm: str, bad: float) -> None:
    """Vanished, or overflowed under a loss scale: that item stays, the others move."""
    ball = adversary._Ball(torch.zeros(2, 3), Attack("pgd", step_size=1.0, norm=norm, radius=2.0))
    gradient = torch.tensor([[bad, bad, bad], [1.0, 0.0, -2.0]])
    delta = ball.ascend(torch.full((2, 3), 0.5), gradient)
    assert delta[0].eq(0.5).all() and delta.isfinite().all() and delta[1].ne(0.5).any()


def test_the_start_has_its_magnitude_over_what_may_move() -> None:
    x = torch.zeros(2, 5, 4)
    padding = torch.tensor([[False] * 5, [False, False, True, True, True]])
    movable = torch.tensor([[False, True, True, False, False], [True, False, False, False, False]])
    draw = torch.ones_like(x)
    l2, linf = (Attack("pgd", step_size=1.0, norm=norm, init=0.3) for norm in ("l2", "linf-sign"))
    found = adversary.start(x, l2, padding=padding, draw=draw)
    torch.testing.assert_close(found.flatten(1).norm(dim=1), torch.full((2,), 0.3))
    assert found[0, 0, 0] == pytest.approx(0.3 / math.sqrt(5 * 4)) and found[1, 2:].eq(0).all()
    found = adversary.start(x, l2, padding=padding, movable=movable, draw=draw)
    torch.testing.assert_close(found.flatten(1).norm(dim=1), torch.full((2,), 0.3))
    assert found[~movable].eq(0).all()
    assert adversary.start(x, linf, padding=padding, draw=draw)[~padding].eq(0.3).all()
    drawn = adversary.start(x, linf, generator=torch.Generator().manual_seed(1))
    assert drawn.abs().max() <= 0.3 and drawn.min() < -0.1 and drawn.max() > 0.1


@pytest.mark.parametrize("method", MOVING)
@pytest.mark.parametrize("norm", NORMS)
def test_special_tokens_stay_where_they_are_told_to(method: str, norm: str) -> None:
    model = Small()
    movable = TOKENS.ne(0)
    movable[:, 0] = False
    seen: list[Pass] = []
    run_small(model, attack_of(method, norm), movable=movable, observe=seen.append)
    for one in seen:
        assert one.delta[~movable].eq(0).all() and one.moved[~movable].eq(0).all()
    assert seen[-1].moved[movable].ne(0).all()


@pytest.mark.parametrize("layout", ["(N, C)", "(1, N, C)"])
@pytest.mark.parametrize("norm", NORMS)
def test_a_packed_batch_moves_as_a_padded_one(norm: str, layout: str) -> None:
    real = TOKENS.ne(0)
    sentences = torch.arange(3)[:, None].expand_as(TOKENS)[real]
    lead = (len(sentences),) if layout == "(N, C)" else (1, len(sentences))
    x, draw, gradient = torch.randn(3, *TOKENS.shape, 6, dtype=torch.float64)
    attack = Attack("pgd", step_size=0.4, norm=norm, radius=0.5, init=0.3)
    padded = adversary._Ball(x, attack, ~real)
    packed = adversary._Ball(x[real].reshape(*lead, 6), attack, sentences=sentences.reshape(lead))
    one, other = padded.start(draw), packed.start(draw[real].reshape(*lead, 6))
    for _ in range(2):
        torch.testing.assert_close(other.reshape(-1, 6), one[real])
        torch.testing.assert_close(packed.norm(other), padded.norm(one))
        one = padded.ascend(one, gradient)
        other = packed.ascend(other, gradient[real].reshape(*lead, 6))


@pytest.mark.parametrize("method", list(METHODS))
def test_training_on_a_packed_batch_is_that_on_a_padded_one(method: str) -> None:
    """Through the whole engine, for a model whose positions do not see padding."""
    model = Small()
    real = TOKENS.ne(0)
    sentences = torch.arange(3)[:, None].expand_as(TOKENS)[real]
    attack = attack_of(method, radius=0.5)
    start = torch.randn(3, 4, 6, dtype=torch.float64) * 0.1 * real[..., None]

    def rest(h: Tensor) -> Tensor:
        g = model.layer(1, h).reshape(-1, 6)
        mean = torch.zeros(3, 6, dtype=g.dtype).index_add(0, sentences, g[real.flatten()] if len(g) == 12 else g)
        return F.cross_entropy(model.head(mean / real.sum(1, keepdim=True)), TARGET)

    found = []
    for tokens, options in (
        (TOKENS, {"padding": ~real, "start": start}),
        (TOKENS[real][None], {"sentences": sentences[None], "start": start[real][None]}),
    ):
        model.zero_grad()
        outcome = train(Split.of(model.first, rest), lambda tokens=tokens: model.embed(tokens), attack, **options)
        delta = outcome.delta[real] if tokens is TOKENS else outcome.delta[0]
        found.append({**gradients(model), "delta": delta, "losses": outcome.losses, "norms": outcome.norms})
    assert_same(found[1], found[0])


def test_items_do_not_see_each_other() -> None:
    """A sentence's δ is that of the sentence alone."""
    model = Small()
    together = run_small(model, attack_of("pgd", init=0.0, radius=0.4))["delta"]
    for i in range(3):
        split = Split.of(model.first, lambda h, i=i: model.rest(h, TARGET[i : i + 1]))
        alone = train(split, lambda i=i: model.embed(TOKENS[i : i + 1]), attack_of("pgd", init=0.0, radius=0.4),
                      padding=TOKENS[i : i + 1].eq(0)).delta  # fmt: skip
        torch.testing.assert_close(alone[0], together[i])


# --- passes of a batch --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", MOVING)
def test_dropout_masks_are_equal_in_all_passes(method: str) -> None:
    model = Small(dropout=0.5)
    run_small(model, attack_of(method))
    first = [mask for i, mask in enumerate(model.masks) if mask.equal(model.masks[0])]
    assert len({tuple(mask.flatten().tolist()) for mask in model.masks}) == 2  # one of each layer
    assert len(first) >= len(model.masks) / 2 and model.masks[0].any()
    model.masks.clear()
    run_small(model, attack_of(method), start=None)
    torch.manual_seed(4)
    before = model.masks[0]
    train(small_split(model), lambda: model.embed(TOKENS), attack_of(method))
    assert not model.masks[-1].equal(before)  # another batch, other masks


@pytest.mark.parametrize("method", MOVING)
def test_generators_stand_where_one_pass_leaves_them(method: str) -> None:
    model = Small(dropout=0.5)
    delta = torch.zeros(3, 4, 6, dtype=torch.float64)
    run_small(model, Attack("natural"))
    expected = torch.get_rng_state()
    run_small(model, attack_of(method), start=delta)
    assert torch.get_rng_state().equal(expected)


def test_layers_are_dropped_alike_in_all_passes() -> None:
    """Stochastic depth in the rest, with the first layer never dropped."""

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.map = nn.Linear(6, 6)
            self.calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return x + self.map(x).tanh()

    depth = Depth([Residual() for _ in range(6)], noise=StochasticDepth(6, 0.9))

    def loss(x: Tensor) -> Tensor:
        for layer in depth:
            x = layer(x)
        return x.square().sum()

    attack = attack_of("yopo", steps=4, inner_steps=2)
    train(Split.at(depth[0], loss), torch.randn(2, 3, 6), attack)
    calls = [layer.calls for layer in depth._own()]
    assert calls[0] == 4 + 4 * 2 + 4 and set(calls[1:]) == {0, 4}


@pytest.mark.parametrize("method", list(METHODS))
@pytest.mark.parametrize("reentrant", [False, True], ids=["non-reentrant", "reentrant"])
def test_activation_checkpointing_changes_nothing(method: str, reentrant: bool) -> None:
    model = Small(dropout=0.3)
    attack = attack_of(method)
    expected = run_small(model, attack)
    model.recompute = reentrant
    frozen = tuple(model.parameters()) if reentrant else ()
    assert_same(run_small(model, attack, frozen=frozen), expected, rtol=0.0, atol=1e-12)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("method", list(METHODS))
def test_gradients_accumulate_over_batches(method: str) -> None:
    model = Small()
    attack = attack_of(method)
    once = run_small(model, attack, scale=0.25)
    for _ in range(2):
        torch.manual_seed(3)
        train(small_split(model), lambda: model.embed(TOKENS), attack, padding=TOKENS.eq(0), scale=0.25)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, 3 * once[name])


@pytest.mark.parametrize("method", list(METHODS))
def test_a_loss_scaler_changes_nothing_but_the_scale(method: str) -> None:
    model = Small()
    attack = attack_of(method)
    expected = run_small(model, attack)
    found = run_small(model, attack, backward=lambda loss: (loss * 1024).backward())
    for name, value in found.items():
        factor = 1 if name in ("delta", "losses") else 1024
        torch.testing.assert_close(value / factor, expected[name])


@pytest.mark.parametrize("method", list(METHODS))
def test_bf16_autocast_is_near_fp32(method: str) -> None:
    torch.manual_seed(0)
    model = Small(dtype=torch.float32)
    attack = attack_of(method, radius=0.4, step_size=0.1)
    expected = run_small(model, attack)

    def whole(x: Tensor, watch: Callable[[Tensor], Tensor]) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return model.rest(watch(model.first(x)), TARGET)

    def first(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return model.first(x)

    model.zero_grad()
    torch.manual_seed(3)
    seen: list[Pass] = []
    outcome = train(Split(first, whole), lambda: model.embed(TOKENS), attack, padding=TOKENS.eq(0), observe=seen.append)
    assert outcome.delta.dtype == torch.float32
    if METHODS[method].inner:
        assert seen[0].costate.dtype == torch.bfloat16
    found = {**gradients(model), "delta": outcome.delta, "losses": outcome.losses}
    for name, value in found.items():  # 8 bits of mantissa, a few roundings, relative to the largest entry
        assert (value - expected[name]).abs().max() <= 0.05 * expected[name].abs().max(), name


@pytest.mark.parametrize("method", list(METHODS))
def test_autocast_around_everything_is_autocast_inside(method: str) -> None:
    """Its cache of casts serves all passes, those included that ask for no gradient of parameters."""
    torch.manual_seed(0)
    model, projection = Small(dtype=torch.float32), nn.Linear(6, 6)
    attack = attack_of(method, step_size=0.1)
    found = []
    for cache in (True, False):
        model.zero_grad()
        projection.zero_grad()
        torch.manual_seed(3)
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=cache):
            outcome = train(small_split(model), lambda: projection(model.embed(TOKENS)), attack,
                            frozen=tuple(model.parameters()))  # fmt: skip
        found.append({**gradients(model), **gradients(projection), "delta": outcome.delta})
    assert {"weight", "bias"} <= set(found[0])
    assert_same(found[0], found[1], rtol=0.0, atol=0.01)  # sums in bf16 or in float32


def test_delta_of_a_half_precision_model_is_float32() -> None:
    model = Small(dtype=torch.bfloat16)
    outcome = train(
        small_split(model), lambda: model.embed(TOKENS), attack_of("yopo-fairseq", step_size=1e-4, init=0.0)
    )
    assert outcome.delta.dtype == torch.float32 and outcome.delta.abs().max() > 0


# --- the cut ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", list(METHODS))
def test_a_model_cut_by_hooks_is_the_one_cut_by_hand(method: str) -> None:
    model = Small(dropout=0.3)
    attack = attack_of(method)
    expected = run_small(model, attack)
    model.zero_grad()
    torch.manual_seed(3)
    split = Split.at(model.layers[0], lambda x: model.rest(model.first(x), TARGET))
    outcome = train(split, lambda: model.embed(TOKENS), attack, padding=TOKENS.eq(0))
    found = {**gradients(model), "delta": outcome.delta, "losses": outcome.losses}
    assert_same(found, expected, rtol=0.0, atol=0.0)
    assert not model.layers[0]._forward_hooks


def test_a_host_that_adds_delta_itself_gets_zeros() -> None:
    model = Small()
    attack = attack_of("yopo-fairseq")
    expected = run_small(model, attack)
    model.zero_grad()
    torch.manual_seed(3)
    split = Split.of(lambda delta: model.first(model.embed(TOKENS) + delta), lambda h: model.rest(h, TARGET))
    outcome = train(split, torch.zeros(3, 4, 6, dtype=torch.float64), attack, padding=TOKENS.eq(0))
    assert_same({**gradients(model), "delta": outcome.delta, "losses": outcome.losses}, expected)


class Pair(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"state": x}


def test_a_model_that_cannot_be_split_is_refused() -> None:
    attack = attack_of("yopo")
    x = torch.randn(2, 3, 6)
    linear, other = nn.Linear(6, 6), nn.Linear(6, 6)
    around = Split(linear, lambda x, watch: (watch(linear(x)) + x).square().sum())
    cases: dict[str, Split] = {
        r"not only through the first part": around,
        r"Linear is called more than once": Split.at(linear, lambda x: linear(linear(x)).sum()),
        r"Linear was not called": Split.at(other, lambda x: linear(x).sum()),
        r"Pair returns dict": Split.at(pair := Pair(), lambda x: pair(x)["state"].sum()),
        r"did not call its watch": Split(linear, lambda x, watch: linear(x).sum()),
        r"does not depend on what the watch returned": Split(
            linear, lambda x, watch: (watch(linear(x)), linear(x))[1].sum()
        ),
        r"does not depend on the input": Split.of(lambda x: linear(torch.ones_like(x)), lambda h: h.square().sum()),
        r"returns tuple, not one tensor": Split.of(lambda x: (x, x), lambda h: h[0].sum()),
        r"alone returns shape \(2, 3, 5\)": Split(
            lambda x: linear(x)[..., :5], lambda x, watch: watch(linear(x)).square().sum()
        ),
        r"scalar loss, not \(2, 3, 6\)": Split.of(linear, lambda h: h),
    }  # fmt: skip
    for reason, split in cases.items():
        with pytest.raises(ValueError, match=reason):
            train(split, x, attack)
        assert not linear._forward_hooks and not other._forward_hooks


def test_multistep_depth_is_refused_since_its_state_is_two_states() -> None:
    class Residual(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return x + super().forward(x).tanh()

    depth = Depth([Residual(6, 6) for _ in range(3)], LinearMultistep(3))
    with torch.no_grad():
        for parameter in depth.rule.parameters():
            parameter.fill_(0.5)

    def loss(x: Tensor) -> Tensor:
        for layer in depth:
            x = layer(x)
        return x.square().sum()

    for module in (depth, depth[0]):
        with pytest.raises(ValueError, match="multistep rule across depth"):
            train(Split.at(module, loss), torch.randn(2, 3, 6), attack_of("yopo"))
    assert depth.watch is None


@pytest.mark.parametrize("rule", ["euler", "rk2", "rk4", "dropped first"])
def test_depth_is_cut_behind_its_first_step(rule: str) -> None:
    """Whatever a step is: all stages of a solver, or a layer that is dropped; and the cut changes no number."""

    class Residual(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return x + super().forward(x).tanh()

    noise = None
    if rule == "dropped first":
        noise = StochasticDepth(3, 0.5)
        noise.survival = [1e-9, 1.0, 1.0]
    depth = Depth([Residual(6, 6) for _ in range(3)], get_rule(rule, 3) if noise is None else euler, noise=noise)
    depth.double()

    def loss(x: Tensor) -> Tensor:
        for layer in depth:
            x = layer(x)
        return x.square().sum()

    x = torch.randn(2, 3, 6, dtype=torch.float64)
    attack = attack_of("yopo-fairseq", steps=1, inner_steps=1)
    found = []
    for one in (attack, attack_of("freelb-fairseq", steps=1)):
        depth.zero_grad()
        torch.manual_seed(5)
        outcome = train(Split.at(depth, loss), x, one)
        found.append({**gradients(depth), "delta": outcome.delta, "losses": outcome.losses})
    assert_same(*found)  # one inner step is one step
    assert ("0.weight" in found[0]) == (rule != "dropped first")
    assert depth.is_plain == (rule == "euler") and depth.watch is None
    torch.manual_seed(5)
    start = adversary.start(x, attack)
    torch.testing.assert_close(loss(x + start).detach(), found[0]["losses"][0], rtol=1e-12, atol=0.0)
    if rule in ("rk2", "rk4"):
        with pytest.raises(ValueError, match="Residual is called more than once"):
            train(Split.at(depth[0], loss), x, attack)


def test_a_depth_is_split_once_at_a_time() -> None:
    depth = Depth([nn.Linear(6, 6)])
    inner = Split.at(depth, lambda x: depth[0](x).sum())
    outer = Split.at(depth, lambda x: inner.whole(x, lambda state: state))
    with pytest.raises(ValueError, match="this Depth is watched already"):
        train(outer, torch.randn(2, 6), attack_of("yopo"))


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"method": "fgsm"}, r"method='fgsm' is unknown; choose one of natural, pgd"),
        ({"method": "freelb"}, r"say which: freelb-fairseq, freelb-hf"),
        ({"method": ""}, r"method='' is unknown"),
        ({"steps": 0}, r"steps=0 must be a whole number of at least 1"),
        ({"steps": True}, r"steps=True"),
        ({"steps": 2.0}, r"steps=2\.0"),
        ({"method": "yopo", "inner_steps": 0}, r"inner_steps=0"),
        ({"inner_steps": 2}, r"inner_steps=2 with method 'pgd'; only yopo-fairseq, yopo"),
        ({"norm": "linf"}, r"norm='linf' is unknown; choose one of l2, linf-sign, linf-largest"),
        ({"norm": None}, r"radius=1\.0 without a norm bounds nothing"),
        ({"norm": None, "radius": None}, r"'pgd' moves δ, but norm=None"),
        ({"step_size": 0.0}, r"step_size=0\.0; give a step_size above 0"),
        ({"step_size": -1.0}, r"step_size=-1\.0 must be a finite number of at least 0"),
        ({"step_size": math.nan}, r"step_size=nan"),
        ({"radius": math.inf}, r"radius=inf"),
        ({"radius": 0.0}, r"radius=0 leaves no room to move; radius=None"),
        ({"radius": "1"}, r"radius='1'"),
        ({"init": -0.1}, r"init=-0\.1"),
        ({"bounds": (0.0, 255.0)}, r"bounds=\(0\.0, 255\.0\) must be two numbers"),
        ({"bounds": (-1.0, 1.0)}, r"put a normalisation into the model"),
        ({"bounds": (0.5, 0.5)}, r"0 ≤ least < largest ≤ 1"),
        ({"bounds": (0.0,)}, r"must be two numbers"),
    ],
)
def test_attacks_that_make_no_sense_are_refused(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Attack(**{"method": "pgd", "step_size": 0.1, "norm": "l2", "radius": 1.0, **settings})


def test_input_that_makes_no_sense_is_refused() -> None:
    model = Small()
    x = torch.rand(3, 4, 6, dtype=torch.float64)
    padding = TOKENS.eq(0)
    images = Attack("pgd", step_size=0.1, norm="linf-sign", radius=0.1, bounds=(0.0, 1.0))
    outside = torch.full_like(x, 0.1)
    cases: list[tuple[str, Any, dict[str, Any]]] = [
        (r"would move padding: movable is true at 3 positions", x, {"movable": ~padding | True, "padding": padding}),
        (r"start is not 0 at padding", x, {"start": outside, "padding": padding}),
        (r"start has shape \(2, 4, 6\)", x, {"start": outside[:2]}),
        (r"start holds values that are not finite", x, {"start": outside / 0}),
        (r"padding is torch\.int64", x, {"padding": TOKENS}),
        (r"padding is torch\.bool of shape \(3, 3\)", x, {"padding": padding[:, :3]}),
        (r"movable is torch\.bool of shape \(4,\)", x, {"movable": padding[0]}),
        (r"but the clean input is torch\.int64", TOKENS, {}),
        (r"sentences has torch\.float32", x, {"sentences": torch.ones(3, 4)}),
        (r"sentences has torch\.int64 and shape \(4,\)", x, {"sentences": torch.ones(4).long()}),
        (r"sentences holds negative numbers", x, {"sentences": -torch.ones(3, 4).long()}),
        (r"scale=nan", x, {"scale": math.nan}),
    ]
    for reason, clean, options in cases:
        with pytest.raises(ValueError, match=reason):
            train(small_split(model), clean, attack_of("yopo"), **options)
    for wrong in (x * 2, x - 1, x / 0):
        with pytest.raises(ValueError, match=r"outside of bounds=\(0\.0, 1\.0\)"):
            train(small_split(model), wrong, images)
    with pytest.raises(ValueError, match="'yopo' is a way to train"):
        perturb(small_split(model), x, attack_of("yopo"))
    assert not gradients(model)


@pytest.mark.parametrize("method", ["yopo-full", "yopo-fairseq"])
def test_a_backward_pass_in_one_go_is_that_in_two_parts(method: str) -> None:
    model = Small(dropout=0.3)
    expected = run_small(model, attack_of(method))
    model.zero_grad()
    torch.manual_seed(3)
    split = Split.at(model.layers[0], lambda x: model.rest(model.first(x), TARGET), entire=True)
    outcome = train(split, lambda: model.embed(TOKENS), attack_of(method), padding=TOKENS.eq(0))
    found = {**gradients(model), "delta": outcome.delta, "losses": outcome.losses}
    assert_same(found, expected, rtol=1e-12, atol=1e-13)  # float64, in another order of sums


def test_several_states_add_up() -> None:
    """Two sequences in one δ, each with a first part of its own: the gradient at the first step is the exact one."""
    left, right, top = nn.Linear(6, 6).double(), nn.Linear(6, 6).double(), nn.Linear(6, 1).double()
    x = torch.randn(2, 4, 6, dtype=torch.float64)

    def first(x: Tensor) -> tuple[Tensor, Tensor]:
        return left(x[:, :2]).tanh(), right(x[:, 2:]).tanh()

    def whole(x: Tensor, watch: Callable[[Tensor], Tensor]) -> Tensor:
        a, b = first(x)
        a = watch(a)
        return top((a * watch(b)).tanh()).square().sum()

    seen: list[Pass] = []
    train(Split(first, whole, entire=True), x, attack_of("yopo-full", init=0.0, inner_steps=1), observe=seen.append)
    for one in seen:
        leaf = one.delta.clone().requires_grad_()
        gradient = torch.autograd.grad(whole(x + leaf, lambda state: state), leaf)[0]
        step = 0.3 * gradient / gradient.flatten(1).norm(dim=1)[:, None, None]
        torch.testing.assert_close(one.moved, one.delta + step)
        assert isinstance(one.costate, tuple) and len(one.costate) == 2


def test_what_goes_around_the_first_part_is_seen_in_one_go_too() -> None:
    linear = nn.Linear(6, 6)
    around = Split(linear, lambda x, watch: (watch(linear(x)) + x).square().sum(), entire=True)
    with pytest.raises(ValueError, match="not only through the first part"):
        train(around, torch.randn(2, 3, 6), attack_of("yopo-full"))
    with pytest.raises(ValueError, match="in two parts, but the split asks for one; take yopo-full"):
        train(around, torch.randn(2, 3, 6), attack_of("yopo"))
    silent = Split(linear, lambda x, watch: linear(x).sum(), entire=True)
    with pytest.raises(ValueError, match="did not call its watch"):
        train(silent, torch.randn(2, 3, 6), attack_of("yopo-full"))


def test_ascents_that_train_nothing_keep_their_gradient_in_a_narrow_type() -> None:
    """A gradient of 1e-9 is 0 in float16; with the scaler's factor δ moves, and as it would in float32."""
    x, weight = torch.randn(2, 3, 6), nn.Parameter(torch.randn(6))  # which the last pass trains

    def moved(dtype: torch.dtype, magnify: float) -> Tensor:
        split = Split.of(lambda x: x, lambda h: (h * weight.to(h)).float().square().sum() * 1e-9)
        return train(split, x.to(dtype), attack_of("pgd", init=0.0, steps=1), magnify=magnify).delta

    x.copy_(x.half().float())
    assert moved(torch.float16, 1.0).abs().max() == 0
    torch.testing.assert_close(moved(torch.float16, 2.0**20), moved(torch.float32, 1.0), rtol=0.02, atol=1e-3)


def test_short_notation() -> None:
    options = {"step_size": 0.1, "norm": "l2"}
    assert Attack.of("yopo-3-5", **options) == Attack("yopo", 3, 5, **options)
    assert Attack.of("freelb-fairseq-2", **options) == Attack("freelb-fairseq", 2, **options)
    assert Attack.of("yopo", steps=2, inner_steps=4, **options) == Attack("yopo", 2, 4, **options)
    assert Attack.of("yopo-3", steps=3, inner_steps=4, **options) == Attack("yopo", 3, 4, **options)
    assert Attack.of("natural") == Attack("natural")
    for name, counts, reason in [
        ("yopo-3-5", {"steps": 2}, "'yopo-3-5' says steps=3, and steps=2"),
        ("yopo-3-5", {"inner_steps": 2}, "says inner_steps=5, and inner_steps=2"),
        ("pgd-3-2", {}, "inner_steps=2 with method 'pgd'"),
        ("yopo-0", {}, "steps=0 must be"),
        ("freelb-3", {}, "'freelb' is unknown.*freelb-fairseq, freelb-hf"),
        ("yopo-1-2-3", {}, "'yopo-1' is unknown"),
    ]:
        with pytest.raises(ValueError, match=reason):
            Attack.of(name, **counts, **options)


COUNT_OTHERWISE = ("freeat", "yopo", "yopo-hamiltonian", "yopo-restored")  # something twice or half, on purpose


@pytest.mark.parametrize("method", [method for method in METHODS if method not in COUNT_OTHERWISE])
def test_under_its_mean_a_batch_weighs_what_it_weighs_alone(method: str) -> None:
    """With steps too small to move δ, the gradient is the natural one."""
    model = Small()
    natural = run_small(model, Attack("natural"))
    attack = attack_of(method, step_size=1e-300, init=0.0)
    assert_same(run_small(model, attack, scale=attack.mean) | {"losses": natural["losses"]}, natural)


class Embedder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6, padding_idx=0)


def test_delta_is_added_to_the_tokens_that_it_is_for() -> None:
    model, delta, real = Embedder(), torch.randn(3, 4, 6), TOKENS.ne(0)
    plain = model.embed(TOKENS)
    with adversary.added(model.embed, TOKENS, delta, real=real):
        torch.testing.assert_close(model.embed(TOKENS.clone()), plain + delta)
        torch.testing.assert_close(model.embed(torch.cat([TOKENS, TOKENS])), torch.cat([plain + delta] * 2))
        torch.testing.assert_close(model.embed(TOKENS[real]), (plain + delta)[real])
    assert not model.embed._forward_hooks
    torch.testing.assert_close(model.embed(TOKENS), plain)
    with (
        pytest.raises(ValueError, match=r"called for tokens of shape \(3, 4\), which are not the batch's"),
        adversary.added(model.embed, TOKENS, delta),
    ):
        model.embed(TOKENS.flip(0))
    with pytest.raises(ValueError, match="no way in: Embedding"), adversary.added(model.embed, TOKENS, delta):
        pass
    assert not model.embed._forward_hooks


# --- two processes ------------------------------------------------------------------------------------------------


class Whole(nn.Module):
    """What DistributedDataParallel wraps: the full pass."""

    def __init__(self, model: Small) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, watch: Callable[[Tensor], Tensor], target: Tensor) -> Tensor:
        return self.model.rest(watch(self.model.first(x)), target, reduction="sum")


def of_rows(rows: slice, world: int, method: str, start: Tensor) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = Small()
    tokens, target = TOKENS[[0, 2, 1, 0]][rows], TARGET[[0, 2, 1, 0]][rows]
    whole: nn.Module = Whole(model)
    reductions = 0
    if world > 1:
        whole = DistributedDataParallel(whole)

        def counted(_state, bucket):  # DDP reads annotations, and would take strings for others
            nonlocal reductions
            reductions += bucket.is_last()
            return default_hooks.allreduce_hook(None, bucket)

        whole.register_comm_hook(None, counted)
    split = Split(model.first, lambda x, watch: whole(x, watch, target))
    no_sync = whole.no_sync if world > 1 else nullcontext
    attack = attack_of(method, "linf-sign" if method.startswith("yopo") else "l2")
    for _ in range(2):  # the second time in buckets as they were rebuilt
        model.zero_grad()
        outcome = train(split, lambda: model.embed(tokens), attack, padding=tokens.eq(0), start=start[rows],
                        scale=world, no_sync=no_sync)  # fmt: skip
    assert reductions == (2 if world > 1 else 0), reductions
    return {**gradients(model), "delta": outcome.delta}


def work(rank: int, port: int, folder: str, start: Tensor) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    found = {method: of_rows(slice(2 * rank, 2 * rank + 2), 2, method, start) for method in METHODS}
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_are_one_process(tmp_path: Path) -> None:
    """Sums of losses, so that the mean over two processes of twice the gradient is that of the whole batch."""
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = torch.randn(4, 4, 6, dtype=torch.float64) * 0.1 * TOKENS[[0, 2, 1, 0]].ne(0)[..., None]
    # Not forks of this one, whose autograd has threads; those of a server import everything once.
    torch.multiprocessing.set_forkserver_preload([__name__])
    torch.multiprocessing.start_processes(work, (port, str(tmp_path), start), nprocs=2, start_method="forkserver")
    both = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for method in METHODS:
        expected = of_rows(slice(0, 4), 1, method, start)
        delta = torch.cat([one[method].pop("delta") for one in both])
        torch.testing.assert_close(delta, expected.pop("delta"))
        for one in both:
            assert_same(one[method], expected)
