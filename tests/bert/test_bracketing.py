"""A BERT of attention and FFN read as one of Macaron layers: the same function where all neurons have a place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertModel

from macaron.bert import (
    AUTO_CLASSES,
    MacaronBertForMaskedLM,
    MacaronBertForSequenceClassification,
    MacaronBertModel,
    from_transformers,
    to_strang,
)
from macaron.bracketing import Widths, by_norm

HEADS = sorted(set(AUTO_CLASSES.values()), key=lambda head: head.__name__)
POST = {"splitting": "lie", "normalize_before": False, "intermediate_size": 24, "layer_norm_eps": 1e-12}
PRE = {"splitting": "lie", "intermediate_size": 24}


def outputs(model: Any, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    with torch.no_grad():
        return {name: value for name, value in model(**batch).items() if isinstance(value, Tensor)}


@pytest.mark.parametrize("kind", [POST, PRE], ids=["post-norm", "pre-norm"])
@pytest.mark.parametrize("first", [1, 12, 40])
def test_with_all_neurons_behind_the_attention_it_is_the_same_function(
    kind: dict[str, Any], first: int, build: Callable[..., Any], batch: dict[str, Tensor]
) -> None:
    lie = build(MacaronBertModel, **kind, use_pooler=True).double()
    strang = to_strang(lie, Widths(first, 24))
    assert strang.config.splitting == "strang"
    torch.testing.assert_close(outputs(strang, batch), outputs(lie, batch), atol=1e-9, rtol=1e-9)


def test_of_a_bert_of_transformers(batch: dict[str, Tensor]) -> None:
    size = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 20}
    theirs = BertModel(BertConfig(vocab_size=50, **size)).eval()
    strang = to_strang(from_transformers(theirs), Widths(10, 20))
    real = batch["attention_mask"].bool()
    with torch.no_grad():
        wanted, got = theirs(**batch).last_hidden_state[real], strang(**batch).last_hidden_state[real]
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.__name__)
def test_heads_stay(head: type, build: Callable[..., Any]) -> None:
    lie = build(head, **POST, use_pooler=True)
    strang = to_strang(lie)
    assert type(strang) is head
    kept = {name: tensor for name, tensor in strang.state_dict().items() if "layers." not in name}
    beside = [name for name in kept if "embeddings.norm" not in name]
    assert beside and all(torch.equal(kept[name], lie.state_dict()[name]) for name in beside)


def test_halves_have_the_parameters_of_the_teacher(build: Callable[..., Any]) -> None:
    lie = build(MacaronBertModel, **POST)
    strang = to_strang(lie)
    added = 2 * (2 * 32 + 32)  # in each of two layers a norm, and the offset of a second FFN
    assert strang.num_parameters() == lie.num_parameters() + added
    assert (strang.config.first_intermediate_size, strang.config.intermediate_size) == (12, 12)


def test_each_neuron_has_its_place(build: Callable[..., Any]) -> None:
    """Behind the attention those of greatest norm, the others before that of the next layer, twice as strong."""
    lie = build(MacaronBertModel, **POST)
    strang = to_strang(lie)
    source = lie.layers[0].flows[1]
    order = by_norm(source.fc1.weight, source.fc2.weight)
    behind, before = strang.layers[0].flows[2], strang.layers[1].flows[0]
    for flow, neurons in ((behind, order[:12]), (before, order[12:])):
        assert torch.equal(flow.fc1.weight, source.fc1.weight[neurons])
        assert torch.equal(flow.fc1.bias, source.fc1.bias[neurons])
        assert torch.equal(flow.fc2.weight, 2 * source.fc2.weight[:, neurons])
    assert torch.equal(behind.fc2.bias, 2 * source.fc2.bias) and not before.fc2.bias.any()
    assert not strang.layers[0].flows[0].fc2.weight.any()
    given = [torch.arange(24).flip(0)] * 2
    flow = to_strang(lie, order=given).layers[0].flows[2]
    assert torch.equal(flow.fc1.weight, source.fc1.weight[given[0][:12]])


def test_neurons_without_a_past_learn(build: Callable[..., Any], batch: dict[str, Tensor]) -> None:
    strang = to_strang(build(MacaronBertModel, **POST), Widths(12, 24))
    strang(**batch).last_hidden_state.square().sum().backward()
    assert all(layer.flows[0].fc2.weight.grad.abs().max() > 0 for layer in strang.layers)


def test_the_model_given_stays_as_it_is(build: Callable[..., Any], batch: dict[str, Tensor]) -> None:
    lie = build(MacaronBertForMaskedLM, **POST)
    before = {name: tensor.clone() for name, tensor in lie.state_dict().items()}
    config = lie.config.to_dict()
    strang = to_strang(lie)
    with torch.no_grad():
        for parameter in strang.parameters():
            parameter.add_(1)
    assert lie.config.to_dict() == config
    assert all(torch.equal(tensor, before[name]) for name, tensor in lie.state_dict().items())


def test_saved_and_loaded(tmp_path: Any, build: Callable[..., Any], batch: dict[str, Tensor]) -> None:
    strang = to_strang(build(MacaronBertForSequenceClassification, **POST))
    strang.save_pretrained(tmp_path)
    again = MacaronBertForSequenceClassification.from_pretrained(tmp_path)
    torch.testing.assert_close(outputs(again, batch), outputs(strang, batch), atol=0, rtol=0)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"splitting": "strang"}, "splitting='strang': only a BERT of attention and FFN"),
        ({"solver": "midpoint"}, "solver='midpoint'.*solver='euler' only"),
        ({"horizon": "fixed"}, "horizon='fixed'"),
        ({"norm_affine": False}, "norm_affine=False"),
        ({"embedding_size": 8}, "embedding_size=8 puts a linear layer.*does not fit"),
        ({"embedding_norm": False}, "no norm stands ahead of the first layer"),
    ],
)
def test_what_does_not_fit(changed: dict[str, Any], message: str, build: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=message):
        to_strang(build(MacaronBertModel, **{**POST, **changed}))


def test_a_foreign_model_is_not_ours() -> None:
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 20}
    with pytest.raises(ValueError, match="'bert' is no Macaron BERT; make one of it with"):
        to_strang(BertModel(BertConfig(vocab_size=50, **size)))


@pytest.mark.parametrize("widths", [(0, 12), (12, 0), (12, 25)])
def test_widths(widths: tuple[int, int], build: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=rf"widths {widths[0]} and {widths[1]} do not divide an FFN of 24 neurons"):
        to_strang(build(MacaronBertModel, **POST), Widths(*widths))
