"""`--compile`: the layers of a model share few graphs, and no batch shape needs another one."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import Any

import pytest
import torch
from macaron.user_dir import layers
from torch._dynamo.exc import FailOnRecompileLimitHit

from macaron import MacaronModel
from macaron.dynamics import solvers
from macaron.dynamics.solvers import SOLVERS
from macaron.particles.dropout import Dropout
from macaron.particles.layer import ParticleLayer

SHAPES = [(5, 8, 6), (3, 11, 12), (2, 5, 6), (9, 33, 31), (1, 30, 20), (4, 1, 2), (6, 2, 3), (4, 4, 4)]  # (B, S, T)


def batch(B: int, S: int, T: int, padded: bool) -> dict[str, torch.Tensor]:
    source = torch.randint(4, 40, (B, S))
    if padded:
        source[0, : S // 2] = 1
    target = torch.randint(4, 40, (B, T))
    return {"src_tokens": source, "src_lengths": source.ne(1).sum(1), "prev_output_tokens": target}


def build(toy_task, **options: Any):
    sizes = {"encoder_embed_dim": 16, "encoder_attention_heads": 2, "encoder_layers": 2, "decoder_layers": 3}
    args = MacaronModel.config(**{**sizes, **options}, encoder_ffn_embed_dim=16, dropout=0.0)
    torch.manual_seed(1)
    model = MacaronModel.build_model(args, toy_task()).train()
    model.decoder.weights_in_training = False  # as for a criterion that reads none
    return model


@pytest.fixture
def graphs(monkeypatch) -> list[int]:
    """One entry for each compilation; the graphs run as they are."""
    torch._dynamo.reset()
    made: list[int] = []

    def backend(graph: Any, _inputs: Any) -> Any:
        made.append(1)
        return graph.forward

    compiled = torch.compile(ParticleLayer.integrate, dynamic=True, fullgraph=True, backend=backend)
    monkeypatch.setattr(layers, "_compiled", lambda kind: compiled)
    return made


def test_no_shape_is_compiled_again(toy_task, graphs):
    model = build(toy_task, compile=True)
    for padded in (True, False):
        model(**batch(4, 9, 7, padded))
    # encoder with and without padding, and decoder, which is always told of it
    assert len(graphs) == 3
    for i, shape in enumerate(SHAPES):
        model(**batch(*shape, padded=i % 2 == 0))[0].sum().backward()
    assert len(graphs) == 3


def test_attention_weights_of_the_last_layer_are_a_graph_of_their_own(toy_task, graphs):
    model = build(toy_task, compile=True)
    model.decoder.weights_in_training = True
    for shape in ((4, 9, 7), (3, 8, 6)):
        assert model(**batch(*shape, True))[1]["attn"][0].shape == (shape[0], shape[2], shape[1])
    assert len(graphs) == 3  # the encoder's, the decoder's, and the last layer's


def test_values_and_gradients_are_those_of_eager(toy_task, graphs):
    compiled, eager = build(toy_task, compile=True), build(toy_task)
    sample = batch(4, 9, 7, True)
    outputs = [model(**sample)[0] for model in (compiled, eager)]
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-6, atol=1e-6)  # a graph is traced, and may fuse
    for output in outputs:
        output.square().sum().backward()
    for a, b in zip(compiled.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-6)  # of squares of logits, summed over tokens
    assert graphs


def test_evaluation_is_eager(toy_task, graphs):
    build(toy_task, compile=True).eval()(**batch(4, 9, 7, True))
    assert not graphs


@pytest.mark.slow
def test_training_with_compiled_layers_has_the_same_losses(trained, train, tiny_data_bin, batches):
    """With torch's own compiler; activation checkpointing goes around it."""
    for more in ([], ["--checkpoint-activations"]):
        compiled = train(tiny_data_bin, *batches, "--compile", *more, "--disable-validation")
        for (_, loss, _), (_, expected, _) in zip(compiled.losses, trained.losses, strict=True):
            assert float(loss) == pytest.approx(float(expected), abs=2e-3)  # two units of the last digit printed


@pytest.mark.parametrize("shared", [False, True], ids=["a function a kind", "one function"])
def test_any_number_of_splittings_in_one_process(shared, toy_task, monkeypatch):
    """torch takes some graphs of one function (8; here 1), and then refuses; so kinds of layers have one each."""
    torch._dynamo.reset()
    layers._compiled.cache_clear()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    if shared:
        one = layers._compiled("all")
        monkeypatch.setattr(layers, "_compiled", lambda kind: one)
    sample = batch(4, 9, 7, True)
    with torch._dynamo.config.patch(recompile_limit=1), ExitStack() as refused:
        if shared:
            refused.enter_context(pytest.raises(FailOnRecompileLimitHit))
        for splitting in ("lie", "strang"):
            options = {"splitting": splitting, "encoder_layers": 1, "decoder_layers": 1}
            expected = build(toy_task, **options)(**sample)[0]
            found = build(toy_task, compile=True, **options)(**sample)[0]
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)  # a graph is traced, and may fuse


@pytest.mark.parametrize("solver", [name for name in SOLVERS if name != "euler"])
def test_stages_of_a_solver(solver, toy_task, monkeypatch):
    torch._dynamo.reset()
    layers._compiled.cache_clear()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    sample = batch(4, 9, 7, True)
    found = []
    for compiled in (False, True):
        model = build(toy_task, compile=compiled, solver=solver)
        logits = model(**sample)[0]
        logits.square().sum().backward()
        found.append([logits, *(p.grad for p in model.parameters())])
    assert layers._compiled.cache_info().currsize == 3 + 4  # of the encoder's layers and the decoder's
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)  # float32; a graph is traced, and may fuse


def test_stages_have_the_same_masks(toy_task, monkeypatch):
    """Two stages at one point, half of each: with equal masks that is Euler's method with this mask."""
    torch._dynamo.reset()
    layers._compiled.cache_clear()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    monkeypatch.setattr(solvers, "SOLVERS", dict(solvers.SOLVERS))
    solvers.register_solver(solvers.Tableau("once", ((),), (1.0,), order=1))
    solvers.register_solver(solvers.Tableau("twice", ((), (0.0,)), (0.5, 0.5), order=1))
    found = []
    for solver in ("once", "twice"):
        model = build(toy_task, compile=True, solver=solver)
        for module in model.modules():
            if isinstance(module, Dropout):
                module.p = 0.4
        torch.manual_seed(7)
        found.append(model.encoder(torch.full((3, 6), 5), torch.full((3,), 6))["encoder_out"][0])
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-5)  # float32
    torch.manual_seed(8)
    other = model.encoder(torch.full((3, 6), 5), torch.full((3,), 6))["encoder_out"][0]
    assert not torch.allclose(other, found[1], atol=0.1)  # other masks: of the size of the states
