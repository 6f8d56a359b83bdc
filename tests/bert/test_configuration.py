"""The configuration: what it fills in, what it refuses, and that it survives a file."""

from __future__ import annotations

import json

import pytest
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import AutoConfig, PreTrainedConfig

from macaron.bert import MacaronBertConfig, MacaronBertForPreTraining
from macaron.dynamics import splitting as registry
from macaron.dynamics.splitting import SPLITTINGS, STRANG, Splitting, register_splitting


def test_defaults_are_of_base_size_with_twins_of_equal_width():
    strang, lie = MacaronBertConfig(), MacaronBertConfig(splitting="lie")
    assert (strang.hidden_size, strang.num_hidden_layers, strang.num_attention_heads) == (768, 12, 12)
    assert (strang.splitting, strang.first_intermediate_size, strang.intermediate_size) == ("strang", 1536, 1536)
    assert lie.intermediate_size == 3072
    assert strang.embedding_norm is False
    assert MacaronBertConfig(normalize_before=False).embedding_norm is True


def test_widths_and_activations_belong_to_their_place():
    config = MacaronBertConfig(
        intermediate_size=8, first_intermediate_size=6, hidden_act="gelu_new", first_hidden_act="relu"
    )
    assert config.layer_ffns() == [(6, "relu"), None, (8, "gelu_tanh")]
    assert MacaronBertConfig(splitting="lie", hidden_size=12).layer_ffns() == [None, (48, "gelu")]
    assert MacaronBertConfig(intermediate_size=8, hidden_act="swish").layer_ffns() == [(8, "silu"), None, (8, "silu")]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"splitting": "yoshida"}, r"splitting='yoshida' is unknown; choose one of strang, lie"),
        ({"hidden_size": 30}, r"hidden_size=30 does not divide into num_attention_heads=12"),
        ({"num_hidden_layers": 0}, r"num_hidden_layers=0 must be at least 1"),
        ({"intermediate_size": -1}, r"intermediate_size=-1 must be at least 1"),
        ({"hidden_act": "softplus"}, r"'softplus' is unknown; choose one of relu"),
        ({"first_hidden_act": "elu"}, r"'elu' is unknown"),
        ({"hidden_dropout_prob": 1.0}, r"hidden_dropout_prob=1.0 is not a probability in \[0, 1\)"),
        ({"classifier_dropout": -0.1}, r"classifier_dropout=-0.1 is not a probability"),
        ({"position_offset": 2}, r"position_offset=2 goes with position_embedding_type='sinusoidal'"),
        ({"segment_padding_idx": 2}, r"segment_padding_idx=2 is not one of the type_vocab_size=2 segments"),
        ({"type_vocab_size": -1}, r"type_vocab_size=-1 is negative; 0 takes no segment table"),
        ({"pad_token_id": 30522}, r"pad_token_id=30522 is not in the vocabulary of vocab_size=30522"),
        ({"layer_norm_eps": 0.0}, r"layer_norm_eps=0.0 must be positive"),
    ],
    ids=str,
)
def test_refuses(wrong, message):
    with pytest.raises(ValueError, match=message):
        MacaronBertConfig(**wrong)


@pytest.mark.parametrize("wrong", [{"hidden_size": "768"}, {"position_embedding_type": "rotary"}, {"norm_affine": 1}])
def test_refuses_values_of_another_type(wrong):
    with pytest.raises(StrictDataclassFieldValidationError, match=next(iter(wrong))):
        MacaronBertConfig(**wrong)


@pytest.mark.parametrize("splitting", SPLITTINGS)
def test_a_file_gives_the_same_configuration(splitting, config, tmp_path):
    first = config(splitting=splitting, first_hidden_act="relu", num_labels=3, segment_padding_idx=0)
    first.save_pretrained(tmp_path)
    second = AutoConfig.from_pretrained(tmp_path)
    assert type(second) is MacaronBertConfig
    assert {**second.to_dict(), "_name_or_path": ""} == first.to_dict()


def test_code_of_the_hub_is_not_claimed_for_the_installed_class(config, tmp_path):
    """A model of this package saves no code, so its configuration must not point to any."""
    config().save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    stored = json.loads(file.read_text())
    file.write_text(json.dumps({**stored, "auto_map": {"AutoConfig": "configuration_macaron_bert.MacaronBertConfig"}}))
    assert not hasattr(MacaronBertConfig.from_pretrained(tmp_path), "auto_map")


def test_the_original_is_expressible(config):
    """Sinusoids from position 2, scaled words, plain norms, ReLU first, no bias over the words, no pooler."""
    original = config(
        position_embedding_type="sinusoidal",
        position_offset=2,
        scale_embeddings=True,
        norm_affine=False,
        first_hidden_act="relu",
        mlm_bias=False,
        segment_padding_idx=0,
        pad_token_id=1,
    )
    names = set(MacaronBertForPreTraining(original).state_dict())
    flows = {"flows.0.fc1", "flows.0.fc2", "flows.1.qkv_proj", "flows.1.out_proj", "flows.2.fc1", "flows.2.fc2"}
    layers = {f"macaron_bert.layers.{i}.{flow}.{p}" for i in range(2) for flow in flows for p in ("weight", "bias")}
    head = {"dense.weight", "dense.bias", "norm.weight", "norm.bias", "decoder.weight"}
    tables = {f"macaron_bert.embeddings.{table}_embeddings.weight" for table in ("word", "token_type")}
    assert names == layers | tables | {f"mlm_head.{p}" for p in head} | {"nsp_head.weight", "nsp_head.bias"}
    assert isinstance(original, PreTrainedConfig)


def test_a_splitting_of_ones_own(tmp_path):
    notation = "attention/2 ffn/2 attention/2 ffn/2"
    config = MacaronBertConfig(
        splitting="attention/2  ffn/2 self_attention/2 ffn/2", hidden_size=32, num_attention_heads=2
    )
    assert config.splitting == notation and config.intermediate_size == 64
    assert config.layer_ffns() == [None, (64, "gelu"), None, (64, "gelu")]  # none before attention
    config.save_pretrained(tmp_path)
    assert MacaronBertConfig.from_pretrained(tmp_path).scheme() == config.scheme()
    assert MacaronBertConfig(splitting="ffn/2 attention ffn/2").scheme().splitting.substeps == STRANG.substeps


@pytest.mark.parametrize(
    ("splitting", "reason"),
    [
        ("conv attention ffn", "flow 'conv' is unknown here"),
        ("attention cross_attention ffn", "flow 'cross_attention' is unknown here"),
        ("ffn/2 ffn/2", "no substep follows 'attention'"),
        ("ffn/2 attention", "add up to 0.5"),
    ],
)
def test_splittings_that_are_refused(splitting, reason):
    with pytest.raises(ValueError, match=reason):
        MacaronBertConfig(splitting=splitting)


def test_a_registered_splitting_is_saved_as_its_notation(monkeypatch):
    monkeypatch.setattr(registry, "SPLITTINGS", dict(registry.SPLITTINGS))
    register_splitting(Splitting.parse("attention/2 ffn attention/2", name="mine"))
    assert MacaronBertConfig(splitting="mine").splitting == "attention/2 ffn attention/2"
