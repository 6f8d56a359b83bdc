"""torch.export, ONNX and torch.compile, at batch sizes and lengths other than those of the example."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from macaron.bert import (
    MacaronBertForMaskedLM,
    MacaronBertForMultipleChoice,
    MacaronBertForQuestionAnswering,
    MacaronBertForSequenceClassification,
    MacaronBertModel,
)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
SHAPES = [(3, 7), (5, 11), (1, 4)]


def batch_of(sentences: int, length: int) -> dict[str, Tensor]:
    """Sentences padded on the right, and the first on the left too."""
    lengths = torch.randint(2, length + 1, (sentences, 1))
    real = torch.arange(length) < lengths
    real[0] = torch.arange(length) >= length - lengths[0]
    ids = torch.randint(1, 50, (sentences, length))
    return {
        "input_ids": ids * real,
        "attention_mask": real.long(),
        "token_type_ids": torch.randint(0, 2, (sentences, length)),
    }


def dynamic() -> dict[str, dict[int, object]]:
    size = torch.export.Dim.DYNAMIC
    return {name: {0: size, 1: size} for name in batch_of(1, 2)}


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=1e-5)  # float32, by another compiler


def test_torch_export(build):
    model = build(MacaronBertForMaskedLM, position_embedding_type="sinusoidal")
    program = torch.export.export(model, (), batch_of(3, 7), dynamic_shapes=dynamic()).module()
    for shape in SHAPES:
        batch = batch_of(*shape)
        close(program(**batch)["logits"], model(**batch).logits)


def test_onnx(build, tmp_path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model = build(MacaronBertForSequenceClassification, num_hidden_layers=1)
    file, example = tmp_path / "model.onnx", batch_of(3, 7)
    torch.onnx.export(
        model,
        (),
        file,
        kwargs=example,
        dynamo=True,
        dynamic_shapes=dynamic(),
        input_names=list(example),
        output_names=["logits"],
        verbose=False,
    )
    session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for shape in SHAPES:
        batch = batch_of(*shape)
        (logits,) = session.run(["logits"], {name: t.numpy() for name, t in batch.items()})
        close(torch.from_numpy(logits), model(**batch).logits)


@pytest.mark.parametrize(
    ("head", "inputs", "implementation"),
    [
        (MacaronBertModel, 3, "sdpa"),
        (MacaronBertForMaskedLM, 1, "sdpa"),
        (MacaronBertForSequenceClassification, 3, "eager"),
        (MacaronBertForQuestionAnswering, 2, "sdpa"),
        (MacaronBertForMultipleChoice, 3, "sdpa"),
    ],
)
def test_tracing_and_the_exporter_that_builds_on_it(head, inputs, implementation, build, tmp_path):
    """`torch.onnx.export(dynamo=False)`, with free numbers of sentences and of tokens, and `torch.jit.trace`."""
    runtime = pytest.importorskip("onnxruntime")
    model = build(head, num_hidden_layers=1, use_pooler=True, position_embedding_type="sinusoidal", return_dict=False)
    model.set_attn_implementation(implementation)

    def some(sentences: int, length: int) -> dict[str, Tensor]:
        batch = dict(list(batch_of(sentences, length).items())[:inputs])
        if head is not MacaronBertForMultipleChoice:
            return batch
        return {name: torch.stack([t, t.roll(1, 0)], 1) for name, t in batch.items()}

    example, file = some(3, 7), tmp_path / "model.onnx"
    length = next(iter(example.values())).dim() - 1
    axes = {name: {0: "sentences", length: "tokens"} for name in example}
    traced = torch.jit.trace(model, tuple(example.values()), strict=False)  # with gradients, and checked by torch
    with torch.no_grad():
        torch.onnx.export(
            model, tuple(example.values()), file, dynamo=False, input_names=list(example), dynamic_axes=axes
        )
        session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
        for shape in [*SHAPES, (1, 40)]:
            batch = some(*shape)
            expected = model(**batch)
            found = session.run(None, {name: t.numpy() for name, t in batch.items()})
            for ours, theirs, out in zip(expected, found, traced(*batch.values()), strict=True):
                close(torch.from_numpy(theirs), ours)
                close(out, ours)


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_torch_compile_without_graph_breaks(backend, build):
    torch.compiler.reset()
    model = build(MacaronBertForMaskedLM, num_hidden_layers=1)
    compiled = torch.compile(model, fullgraph=True, backend=backend, dynamic=True)
    for shape in SHAPES[:2]:
        batch = batch_of(*shape)
        close(compiled(**batch).logits, model(**batch).logits)


@pytest.mark.slow
@pytest.mark.parametrize("sparse_prediction", [False, True])
def test_training_compiles_without_graph_breaks(sparse_prediction, build):
    torch.compiler.reset()
    model = build(MacaronBertForMaskedLM, num_hidden_layers=1, sparse_prediction=sparse_prediction).train()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)
    batch = batch_of(3, 7)
    labels = batch["input_ids"].masked_fill(torch.rand(3, 7) < 0.5, -100)
    grads = []
    for run in (model, compiled):
        model.zero_grad()
        run(**batch, labels=labels).loss.backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    for a, b in zip(*grads, strict=True):
        close(a, b)
