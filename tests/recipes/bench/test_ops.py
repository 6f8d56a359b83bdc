"""`bench ops` times the calls that the models make, as recorded in a training step, in decoding and in packed BERT."""

from __future__ import annotations

import functools
import inspect
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import macaron
import macaron.ops
from macaron.bert import MacaronBertConfig, MacaronBertForSequenceClassification
from macaron.particles.layer import TextLayer
from recipes.bench import ops, train

CPU = torch.device("cpu")
SETTINGS = ops.OpsSettings(tokens=4 * ops.LENGTH, dim=128, vocabulary=52)
TRAINING = ["step_norm", "euler_step", "act_dropout", "attention", "causal_attention", "cross_attention"]
Calls = set[tuple[Any, ...]]


def described(value: Any) -> Any:
    """Of a tensor dtype, shape and layout, where a dimension of one may have any stride; else the value itself."""
    if not isinstance(value, torch.Tensor):
        return value
    strides = tuple(stride for n, stride in zip(value.shape, value.stride(), strict=True) if n > 1)
    return value.dtype, tuple(value.shape), strides


class Recorder:
    """Listens at the operations, wherever a model or the benchmark has imported them until now."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: Calls = set()
        self.active = False
        functions = [getattr(macaron.ops, name) for name in macaron.ops.__all__]
        recorded = {function: self.recording(function) for function in functions}
        places = [
            vars(module)
            for name, module in list(sys.modules.items())
            if name.startswith(("macaron.", "recipes.bench.")) and not name.startswith("macaron.ops.")
        ]
        for names in (*places, TextLayer.integrate.__globals__):  # a copy, see macaron.particles.scripting
            for key, value in list(names.items()):
                if inspect.isfunction(value) and value in recorded:
                    monkeypatch.setitem(names, key, recorded[value])

    def recording(self, function: Any) -> Any:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def record(*args: Any, **kwargs: Any) -> Any:
            if self.active:
                bound = signature.bind(*args, **kwargs)
                bound.apply_defaults()
                # how far a step goes takes no time
                given = tuple((key, described(value)) for key, value in bound.arguments.items() if key != "step")
                self.calls.add((function.__name__, torch.is_grad_enabled(), *given))
            return function(*args, **kwargs)

        return record

    def listen_in(self, *modules: torch.nn.Module) -> None:
        """Record while one of these runs, until now nothing."""
        self.calls, self.active = set(), False
        for module in modules:
            module.register_forward_pre_hook(lambda *_: setattr(self, "active", True))
            module.register_forward_hook(lambda *_: setattr(self, "active", False))

    def of_cases(self, names: list[str], settings: ops.OpsSettings = SETTINGS) -> Calls:
        """The calls of these cases of the benchmark."""
        self.calls, self.active = set(), True
        for name in names:
            case = ops.OPS[name](settings, CPU)
            inputs = [t.requires_grad_(case.training) for t in case.inputs]
            ops.step("macaron", case.macaron, inputs, case.training)(None)
        assert {call[0] for call in self.calls} <= set(macaron.ops.__all__)
        return self.calls


def trainer(monkeypatch: pytest.MonkeyPatch, folder: Path, *options: str) -> Any:
    """fairseq's, of a model as wide as SETTINGS; of three layers one is neither the first nor the last."""
    sizes = {
        "embed-dim": SETTINGS.dim,
        "attention-heads": SETTINGS.heads,
        "layers": 3,
        "ffn-embed-dim": 2 * SETTINGS.dim,
    }
    given = [f"--{side}-{name}={size}" for side in ("encoder", "decoder") for name, size in sizes.items()]
    monkeypatch.setitem(train.SIZES, "narrow", ([], ["--arch", "macaron_base", *given, *options]))
    macaron.register_fairseq()
    for language in ("en", "de"):
        words = (f"w{i} 1\n" for i in range(SETTINGS.vocabulary - train.UNUSUAL))
        folder.joinpath(f"dict.{language}.txt").write_text("".join(words))
    return train.trainer("macaron", "fp32", train.StepSettings("narrow"), str(folder), CPU, seed=1)


def padded_batch(length: int = ops.LENGTH) -> dict[str, Any]:
    batch = SETTINGS.batch(length)
    words = torch.randint(train.UNUSUAL, SETTINGS.vocabulary, (batch, length))
    words[0, length // 2 :] = ops.PADDING
    lengths = words.ne(ops.PADDING).sum(1)
    inputs = {"src_tokens": words, "src_lengths": lengths, "prev_output_tokens": words}
    sizes = {"nsentences": batch, "ntokens": int(lengths.sum())}
    return {"id": torch.arange(batch), **sizes, "net_input": inputs, "target": words}


def test_training_step_of_fairseq(monkeypatch, tmp_path):
    it = trainer(monkeypatch, tmp_path, "--attention-dropout", "0.1", "--activation-dropout", "0.1")
    recorder = Recorder(monkeypatch)
    recorder.listen_in(it.model.encoder.layers[1], it.model.decoder.layers[1])
    it.train_step([padded_batch()])
    assert recorder.calls == recorder.of_cases(TRAINING)


@pytest.mark.parametrize("length", ops.LENGTHS)
def test_attention_without_dropout_at_a_length(length, monkeypatch, tmp_path):
    it = trainer(monkeypatch, tmp_path)
    recorder = Recorder(monkeypatch)
    recorder.listen_in(it.model.encoder.layers[1])
    words = padded_batch(length)["net_input"]
    it.model.train()
    it.model.encoder(words["src_tokens"], words["src_lengths"])
    found = {call for call in recorder.calls if call[0] == "attention"}
    assert found == recorder.of_cases([f"attention_{length}"])


def test_criterion_of_fairseq(monkeypatch, tmp_path):
    it = trainer(monkeypatch, tmp_path)
    recorder = Recorder(monkeypatch)
    recorder.active = True
    it.train_step([padded_batch()])
    found = {call for call in recorder.calls if call[0] == "linear_cross_entropy"}
    assert found == recorder.of_cases(["linear_cross_entropy"])


def test_decoding_with_fairseq(monkeypatch, tmp_path):
    """The last of LENGTH steps, after the beams were reordered."""
    model = trainer(monkeypatch, tmp_path).model.eval()
    recorder = Recorder(monkeypatch)
    inputs, state = padded_batch()["net_input"], {}
    words = inputs["src_tokens"].clamp(min=train.UNUSUAL)  # hypotheses have no padding
    with torch.no_grad():
        memory = model.encoder(inputs["src_tokens"], inputs["src_lengths"])
        for n in range(1, ops.LENGTH):
            model.decoder(words[:, :n], memory, incremental_state=state)
        model.decoder.reorder_incremental_state_scripting(state, torch.arange(len(words)).flip(0))
        recorder.listen_in(model.decoder.layers[1])
        model.decoder(words, memory, incremental_state=state)
    assert recorder.calls == recorder.of_cases([name for name in ops.OPS if name.startswith("decoding_")])


def test_packed_bert(monkeypatch):
    config = MacaronBertConfig(
        vocab_size=50, hidden_size=SETTINGS.dim, num_hidden_layers=1, num_attention_heads=SETTINGS.heads
    )
    model = MacaronBertForSequenceClassification(config).train()
    recorder = Recorder(monkeypatch)
    recorder.listen_in(*model.base_model.layers)
    mask = ops.packed_attention_case(SETTINGS, CPU).real  # (B, T)
    model(input_ids=torch.full(mask.shape, 7), attention_mask=mask.long()).logits.sum().backward()
    found = recorder.calls
    assert {call for call in found if call[0] == "packed_attention"} == recorder.of_cases(["packed_attention"])
    assert {call[0] for call in found} == {"packed_attention", "step_norm", "euler_step", "act_dropout"}


def test_every_case_is_compared():
    compared = {*TRAINING, *(f"attention_{n}" for n in ops.LENGTHS), "linear_cross_entropy", "packed_attention"}
    assert {name for name in ops.OPS if not name.startswith("decoding_")} == compared
