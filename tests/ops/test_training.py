"""A short training run ends in the same losses with kernels and with references."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.backends.common import aot_autograd

from macaron.dynamics import STRANG
from macaron.ops import linear_cross_entropy
from macaron.particles import CrossAttention, FeedForward, Mask, Memory, ParticleLayer, SelfAttention, Surroundings

DIM, WORDS, LENGTH = 24, 37, 7
FLOWS = {
    "ffn": lambda: FeedForward(DIM, 40, activation="gelu"),
    "self_attention": lambda: SelfAttention(DIM, 2),
    "cross_attention": lambda: CrossAttention(DIM, 2),
}


def losses(backend, steps, normalize_before, device, monkeypatch):
    """Train a two-layer model to repeat the sentence that it sees as memory."""
    monkeypatch.setenv("MACARON_BACKEND", backend)
    torch.manual_seed(0)
    scheme = STRANG.with_cross_attention()
    layers = torch.nn.ModuleList(
        ParticleLayer(scheme, [FLOWS[s.flow]() for s in scheme.substeps], DIM, normalize_before=normalize_before)
        for _ in range(2)
    ).to(device)
    table = torch.nn.Parameter(torch.randn(WORDS, DIM, device=device))
    optimizer = torch.optim.Adam([*layers.parameters(), table], lr=0.01)
    taken = []
    for _ in range(steps):
        words = torch.randint(2, WORDS, (LENGTH, 2), device=device)  # (T, B)
        x = F.embedding(words.roll(1, 0), table)
        surroundings = Surroundings(Mask(causal=True), Memory(F.embedding(words, table)))
        for layer in layers:
            x, _ = layer(x, surroundings)
        loss, _ = linear_cross_entropy(x, table, words, label_smoothing=0.1, reduction="mean", chunk_size=5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        taken.append(loss.item())
    return taken


@pytest.mark.parametrize("normalize_before", [True, False], ids=["pre-norm", "post-norm"])
def test_kernels_and_references_end_in_the_same_losses(normalize_before, device, monkeypatch):
    reference = losses("reference", 15, normalize_before, device, monkeypatch)
    kernels = losses("triton", 15, normalize_before, device, monkeypatch)
    assert reference[-1] < 0.8 * reference[0], "the run must learn something, or equal losses say little"
    # float32, sums in another order, carried on over fifteen updates of Adam; measured to 3e-7
    assert kernels == pytest.approx(reference, rel=2e-5)


def test_layer_compiles_whole_around_its_kernels(device, monkeypatch):
    """`fullgraph` leaves no break, and the operators of the forward and the backward stay in the graphs."""
    monkeypatch.setenv("MACARON_BACKEND", "triton")
    layer = ParticleLayer(STRANG, [FLOWS[s.flow]() for s in STRANG.substeps], DIM, dropout=0.0).to(device)
    x = torch.randn(5, 2, DIM, device=device, requires_grad=True)
    graphs = []

    def keep_graph(graph, inputs):
        graphs.append(graph.code)
        return graph

    backend = aot_autograd(fw_compiler=keep_graph, bw_compiler=keep_graph)
    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    (got, _), (expected, _) = (op(x, Surroundings(Mask(causal=True))) for op in (compiled, layer))
    torch.testing.assert_close(got, expected)
    gradients = (torch.autograd.grad(out.square().sum(), [x, *layer.parameters()]) for out in (got, expected))
    torch.testing.assert_close(*gradients)
    for name in ("step_norm", "euler_step", "act_dropout"):
        assert any(f"macaron.{name}.default" in code for code in graphs)
        assert any(f"macaron.{name}_backward.default" in code for code in graphs)
