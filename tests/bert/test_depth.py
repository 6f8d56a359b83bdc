"""Rules across depth in Macaron BERT, against loops written out."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from macaron.bert import MacaronBertConfig, MacaronBertForSequenceClassification, MacaronBertModel, export_for_hub
from macaron.dynamics import rules as registry
from macaron.dynamics import splitting
from macaron.dynamics.depth import Depth, Step
from macaron.dynamics.rules import register_rule
from macaron.hf.context import LayerContext
from macaron.particles import flows
from macaron.particles.surroundings import Surroundings

Layers = list[Callable[[Tensor], Tensor]]


class TwoStep(nn.Module):
    """x_{n+1} = (1 − k) x_n + k x_{n−1} + Δ_n(x_n), the first step plain."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.k = nn.Parameter(torch.full((depth,), 0.25))

    def forward(self, step: Step) -> Tensor:
        moved = step.layer(step.x)
        return moved if step.previous is None else moved + self.k[step.n] * (step.previous - step.x)


def twice(step: Step) -> Tensor:
    """Heun's: the mean of where a layer leads in no step and in two."""
    return (step.x + step.layer(step.layer(step.x))) / 2


def two_step_written_out(x: Tensor, layers: Layers) -> Tensor:
    states = [x, layers[0](x)]
    for layer in layers[1:]:
        moved = layer(states[-1]) - states[-1]
        states.append(0.75 * states[-1] + 0.25 * states[-2] + moved)
    return states[-1]


def twice_written_out(x: Tensor, layers: Layers) -> Tensor:
    for layer in layers:
        half = layer(x)
        x = 0.5 * x + 0.5 * layer(half)
    return x


RULES = {"two-step": (TwoStep, two_step_written_out), "twice": (lambda depth: twice, twice_written_out)}


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "RULES", dict(registry.RULES))
    for name, (make, _) in RULES.items():
        register_rule(name, make)


def layers_of(model: MacaronBertModel) -> Layers:
    """Each with a whole sentence around it, without padding."""
    alone = LayerContext(Surroundings(), None, {})
    return [lambda x, n=n: model.layers[n](x, alone) for n in range(len(model.layers))]


@pytest.mark.parametrize("padding_free", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("rule", RULES)
def test_a_registered_rule_is_followed(rule, implementation, padding_free, build, batch):
    model = build(
        depth_rule=rule, num_hidden_layers=4, padding_free=padding_free, attn_implementation=implementation
    ).double()
    assert model.config._attn_implementation == implementation
    out = model(**batch).last_hidden_state
    assert out.dtype == torch.float64
    for row, length in enumerate(batch["attention_mask"].sum(-1).tolist()):
        ids, segments = batch["input_ids"][row : row + 1, :length], batch["token_type_ids"][row : row + 1, :length]
        x = model.embeddings(ids, None, segments, torch.arange(length).unsqueeze(0))
        expected = model.final_norm(RULES[rule][1](x, layers_of(model)))
        # float64: attention sums over padding too
        torch.testing.assert_close(out[row, :length], expected[0], rtol=0, atol=1e-13)
        assert (out[row, length:] == 0).all()


@pytest.mark.parametrize("rule", RULES)
def test_training_with_checkpoints_gives_the_same_gradients(rule, build, batch):
    model = build(MacaronBertForSequenceClassification, depth_rule=rule, num_hidden_layers=3).train()
    gradients = []
    for checkpointed in (False, True):
        if checkpointed:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        model(**batch, labels=torch.tensor([0, 1, 0])).loss.backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and any("layers.2." in name for name in gradients[0])
    assert ("macaron_bert.layers.rule.k" in gradients[0]) == (rule == "two-step")
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def test_a_rule_with_parameters_is_saved_with_the_model(build, batch, tmp_path):
    model = build(depth_rule="two-step")
    with torch.no_grad():
        model.layers.rule.k.copy_(torch.tensor([0.5, -0.5]))
    model.save_pretrained(tmp_path)
    again = MacaronBertModel.from_pretrained(tmp_path).eval()
    assert again.config.depth_rule == "two-step"
    assert torch.equal(again(**batch).last_hidden_state, model(**batch).last_hidden_state)


def test_euler_is_the_plain_list(build, batch, tmp_path):
    """A file of before there were rules gives it, with the names of before."""
    model = build()
    assert isinstance(model.layers, Depth) and list(model.layers) == [model.layers[0], model.layers[1]]
    assert {name.split(".")[1] for name in model.state_dict() if name.startswith("layers.")} == {"0", "1"}
    model.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored.pop("depth_rule") == "euler"
    (tmp_path / "config.json").write_text(json.dumps(stored))
    again = MacaronBertModel.from_pretrained(tmp_path).eval()
    assert again.config.depth_rule == "euler"
    assert torch.equal(again(**batch).last_hidden_state, model(**batch).last_hidden_state)


def test_what_a_rule_cannot_give_is_refused(build, tmp_path):
    with pytest.raises(ValueError, match=r"depth_rule='leapfrog' is unknown; choose one of euler, .*two-step, twice"):
        MacaronBertConfig(depth_rule="leapfrog")
    model = build(MacaronBertForSequenceClassification, depth_rule="twice")
    with pytest.raises(ValueError, match="depth_rule='twice' is of another module than this package's"):
        export_for_hub(model, tmp_path / "hub")
    assert not (tmp_path / "hub").exists()


class Drift(nn.Linear):
    """dx/dt = W x + b."""

    kind = "drift"

    def forward(self, x: Tensor, context: LayerContext) -> tuple[Tensor, None]:
        return super().forward(x), None


def test_a_flow_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    with pytest.raises(ValueError, match="flow 'drift' is unknown here; choose from ffn, attention"):
        MacaronBertConfig(splitting="ffn/2 attention drift ffn/2", **sizes)
    monkeypatch.setitem(flows.FLOWS, Drift.kind, lambda dim: Drift(dim, dim))
    model = MacaronBertModel(MacaronBertConfig(splitting="ffn/2 attention drift ffn/2", **sizes))
    assert [flow.kind for flow in model.layers[1].flows] == ["ffn", "self_attention", "drift", "ffn"]
    model(torch.randint(5, 30, (2, 6))).last_hidden_state.square().mean().backward()
    assert model.layers[0].flows[2].weight.grad.abs().sum() > 0


def test_a_name_given_later_is_saved_as_its_notation(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setattr(splitting, "SPLITTINGS", dict(splitting.SPLITTINGS))
    splitting.register_splitting(splitting.Splitting.parse("attention/2 ffn attention/2", name="mine"))
    MacaronBertConfig().save_pretrained(tmp_path)
    config = MacaronBertConfig.from_pretrained(tmp_path, splitting="mine")  # transformers sets it afterwards
    config.save_pretrained(tmp_path)
    del splitting.SPLITTINGS["mine"]
    assert MacaronBertConfig.from_pretrained(tmp_path).splitting == "attention/2 ffn attention/2"
