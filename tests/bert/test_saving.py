"""Saving, loading, and the Auto classes."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, BertConfig, BertModel

from macaron.bert import (
    AUTO_CLASSES,
    MacaronBertConfig,
    MacaronBertForMaskedLM,
    MacaronBertForMultipleChoice,
    MacaronBertForPreTraining,
    MacaronBertForQuestionAnswering,
    MacaronBertForSequenceClassification,
    MacaronBertForTokenClassification,
    MacaronBertModel,
)

BITS = {"rtol": 0, "atol": 0}  # the same weights and the same operations: to the bit


def same(a: nn.Module, b: nn.Module) -> None:
    a_state, b_state = a.state_dict(), b.state_dict()
    assert list(a_state) == list(b_state)
    for name, value in a_state.items():
        torch.testing.assert_close(value, b_state[name], **BITS)


@pytest.mark.parametrize("head", AUTO_CLASSES.values())
def test_what_is_saved_is_loaded(head, build, tmp_path):
    model = build(head, use_pooler=True)
    model.save_pretrained(tmp_path)
    loaded, report = head.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    same(loaded, model)


def test_shards(build, batch, tmp_path):
    model = build(MacaronBertForMaskedLM)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 1
    same(MacaronBertForMaskedLM.from_pretrained(tmp_path), model)


@pytest.mark.parametrize("tied", [True, False])
def test_tied_weights_are_stored_once(tied, build, tmp_path):
    model = build(MacaronBertForPreTraining, tie_word_embeddings=tied)
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert ("mlm_head.decoder.weight" in file.keys()) != tied  # noqa: SIM118
    loaded = MacaronBertForPreTraining.from_pretrained(tmp_path)
    same(loaded, model)
    shared = loaded.mlm_head.decoder.weight is loaded.macaron_bert.embeddings.word_embeddings.weight
    assert shared == tied


@pytest.mark.parametrize("argument", ["dtype", "torch_dtype"])
def test_dtype(argument, build, tmp_path):
    model = build(MacaronBertForMaskedLM, position_embedding_type="sinusoidal")
    model.save_pretrained(tmp_path)
    loaded = MacaronBertForMaskedLM.from_pretrained(tmp_path, **{argument: torch.bfloat16})
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    loaded.save_pretrained(tmp_path)
    again = MacaronBertForMaskedLM.from_pretrained(tmp_path, dtype="auto")
    assert again.dtype == torch.bfloat16 == again.config.dtype


@pytest.mark.parametrize("splitting", ["strang", "lie"])
def test_what_no_file_holds_is_there_after_loading(splitting, build, batch, tmp_path):
    """Models are loaded on the meta device, where the table of sinusoids is not computed."""
    model = build(position_embedding_type="sinusoidal", position_offset=2, splitting=splitting)
    model.save_pretrained(tmp_path)
    loaded = MacaronBertModel.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded.embeddings.sinusoids, model.embeddings.sinusoids, **BITS)
    torch.testing.assert_close(loaded(**batch), model(**batch), **BITS)


PLACES = {
    "macaron_bert.embeddings": "cpu",
    "macaron_bert.layers.0": "disk",
    "macaron_bert.layers.1": "cpu",
    "macaron_bert.final_norm": "disk",
    "mlm_head": "cpu",
}


@pytest.mark.parametrize("device_map", ["auto", {"": "cpu"}, PLACES], ids=["auto", "one", "disk"])
def test_device_map(device_map, build, batch, tmp_path):
    """From the disk too: the fused steps read the norms' weights without calling the norms."""
    model = build(MacaronBertForMaskedLM)
    model.save_pretrained(tmp_path / "model")
    loaded = MacaronBertForMaskedLM.from_pretrained(
        tmp_path / "model", device_map=device_map, offload_folder=tmp_path / "offload"
    )
    batch = {name: t.to(loaded.device) for name, t in batch.items()}
    model = model.to(loaded.device)
    with torch.no_grad():
        torch.testing.assert_close(
            loaded(**batch).logits, model(**batch).logits, rtol=0, atol=1e-6
        )  # the same weights, in another memory layout


@pytest.mark.parametrize("auto", AUTO_CLASSES, ids=lambda auto: auto.__name__)
def test_auto_classes(auto, build, tmp_path):
    """Every head from a pre-trained model, with its encoder."""
    model = build(MacaronBertForPreTraining)
    model.save_pretrained(tmp_path)
    loaded = auto.from_pretrained(tmp_path)
    assert type(loaded) is AUTO_CLASSES[auto]
    same(loaded.base_model, model.macaron_bert)
    assert type(auto.from_config(model.config)) is AUTO_CLASSES[auto]


def test_a_classifier_from_a_pretrained_model(build, tmp_path):
    build(MacaronBertForPreTraining).save_pretrained(tmp_path)
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=5)
    assert isinstance(loaded, MacaronBertForSequenceClassification)
    assert loaded.classifier.weight.shape == (5, 32)
    assert loaded.config.num_labels == 5


# -- what is missing, too much or of another size


def edit(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    tensors = change(load_file(folder / "model.safetensors"))
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "model.safetensors", metadata={"format": "pt"})


def without(part: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: {name: t for name, t in tensors.items() if part not in name}


@pytest.mark.parametrize("saved", [MacaronBertModel, MacaronBertForPreTraining])
@pytest.mark.parametrize("auto", AUTO_CLASSES, ids=lambda auto: auto.__name__)
@pytest.mark.parametrize(
    "part",
    ["layers.", "layers.1.", "layers.0.flows.1.qkv_proj.bias", "norms.2.weight", "word_embeddings", "final_norm.bias"],
)
def test_parameters_of_the_encoder_that_are_missing_are_named(part, auto, saved, build, tmp_path):
    build(saved).save_pretrained(tmp_path)
    names = [name for name in load_file(tmp_path / "model.safetensors") if part in name]
    edit(tmp_path, without(part))
    with pytest.raises(ValueError, match=rf"does not fit MacaronBert\w+ and its configuration: it lacks [^;]*{part}"):
        auto.from_pretrained(tmp_path)
    if saved is AUTO_CLASSES[auto]:
        assert auto.from_pretrained(tmp_path, output_loading_info=True)[1]["missing_keys"] >= set(names)


HEAD_PARTS = [
    (MacaronBertForMaskedLM, "mlm_head.norm.bias"),
    (MacaronBertForMaskedLM, "mlm_head."),  # saved by this class, so no new head
    (MacaronBertForPreTraining, "nsp_head."),
    (MacaronBertForSequenceClassification, "classifier.bias"),
    (MacaronBertForSequenceClassification, "classifier."),
    (MacaronBertForSequenceClassification, "pooler.dense.weight"),
    (MacaronBertForQuestionAnswering, "qa_outputs.weight"),
]


@pytest.mark.parametrize(("head", "part"), HEAD_PARTS)
def test_parameters_of_a_head_that_are_missing_are_named(head, part, build, tmp_path):
    build(head, use_pooler=True).save_pretrained(tmp_path)
    edit(tmp_path, without(part))
    with pytest.raises(ValueError, match=f"it lacks [^;]*{part}"):
        head.from_pretrained(tmp_path)


def test_half_a_head_is_no_new_head(build, tmp_path):
    """Though the folder was saved by another class."""
    build(MacaronBertForPreTraining).save_pretrained(tmp_path)
    edit(tmp_path, without("mlm_head.dense.bias"))
    with pytest.raises(ValueError, match=r"it lacks mlm_head\.dense\.bias"):
        AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert type(AutoModelForSequenceClassification.from_pretrained(tmp_path)) is MacaronBertForSequenceClassification


def test_a_shard_that_the_index_forgot(build, tmp_path):
    build(MacaronBertForMaskedLM).save_pretrained(tmp_path, max_shard_size="20KB")
    index = tmp_path / "model.safetensors.index.json"
    stored = json.loads(index.read_text())
    gone = stored["weight_map"]["macaron_bert.layers.1.flows.0.fc1.weight"]
    stored["weight_map"] = {name: file for name, file in stored["weight_map"].items() if file != gone}
    index.write_text(json.dumps(stored))
    with pytest.raises(ValueError, match=r"it lacks .*macaron_bert\.layers\.1\.flows\.0\.fc1\.weight"):
        MacaronBertForMaskedLM.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": 1}, r"it has (macaron_bert\.)?layers\.1.*, for which there is no place"),
        ({"num_hidden_layers": 3}, r"it lacks (macaron_bert\.)?layers\.2"),
        ({"final_norm": False}, r"it has macaron_bert\.final_norm\.bias"),
        ({"mlm_bias": False}, r"it has mlm_head\.decoder\.bias"),
        ({"tie_word_embeddings": False}, r"it lacks mlm_head\.decoder\.weight"),
        ({"type_vocab_size": 0}, r"it has .*token_type_embeddings"),
        ({"embedding_norm": True}, r"it lacks .*embeddings\.norm"),
    ],
    ids=str,
)
def test_a_configuration_that_is_not_that_of_the_weights(change, message, build, tmp_path):
    build(MacaronBertForMaskedLM).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        MacaronBertForMaskedLM.from_pretrained(tmp_path, **change)


def test_sizes_that_differ_are_named_and_can_be_ignored(build, tmp_path):
    build(MacaronBertForSequenceClassification, num_labels=3).save_pretrained(tmp_path)
    with pytest.raises(
        RuntimeError, match=r"classifier\.weight \(3, 32\) for \(5, 32\); .* ignore_mismatched_sizes=True"
    ):
        AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=5)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=5, ignore_mismatched_sizes=True)
    assert loaded.classifier.weight.shape == (5, 32)
    edit(tmp_path, without("layers.0."))
    with pytest.raises(ValueError, match="it lacks"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=5, ignore_mismatched_sizes=True)


def test_a_state_dict_instead_of_a_folder(config):
    state = MacaronBertForMaskedLM(config()).state_dict()
    load = MacaronBertForMaskedLM.from_pretrained
    assert torch.equal(
        load(None, config=config(), state_dict=state).mlm_head.dense.weight, state["mlm_head.dense.weight"]
    )
    assert type(load(None, config=config(), state_dict={})) is MacaronBertForMaskedLM  # a new one, as asked for
    with pytest.raises(ValueError, match="the state_dict does not fit"):
        load(None, config=config(), state_dict={n: t for n, t in state.items() if "layers.0" not in n})


def test_another_kind_of_model_is_refused(config, tmp_path):
    sizes = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    bert = BertModel(BertConfig(**sizes, intermediate_size=64))
    bert.save_pretrained(tmp_path)
    for load in (MacaronBertModel.from_pretrained, MacaronBertConfig.from_pretrained):
        with pytest.raises(ValueError, match="a model of type 'bert', not 'macaron_bert'"):
            load(tmp_path)
    with pytest.raises(ValueError, match="takes a MacaronBertConfig, not one of model_type='bert'"):
        MacaronBertModel.from_pretrained(tmp_path, config=bert.config)
    with pytest.raises(ValueError, match="it lacks"):
        MacaronBertModel.from_pretrained(tmp_path, config=config(max_position_embeddings=512))


# -- the pooler


USE_IT = (
    MacaronBertModel,
    MacaronBertForPreTraining,
    MacaronBertForSequenceClassification,
    MacaronBertForMultipleChoice,
)
DO_WITHOUT = (MacaronBertForMaskedLM, MacaronBertForTokenClassification, MacaronBertForQuestionAnswering)


@pytest.mark.parametrize("saved", [MacaronBertModel, MacaronBertForPreTraining])
@pytest.mark.parametrize("head", AUTO_CLASSES.values())
def test_only_those_that_use_the_pooler_have_one(head, saved, build, tmp_path, caplog):
    """In a checkpoint that has one the others leave it without a word; those that use it load it."""
    model = build(saved, use_pooler=True)
    model.save_pretrained(tmp_path)
    transformers.utils.logging.enable_propagation()
    try:
        loaded, report = head.from_pretrained(tmp_path, output_loading_info=True)
    finally:
        transformers.utils.logging.disable_propagation()
    assert "pooler" not in caplog.text and not any("pooler" in name for name in report["unexpected_keys"])
    if head in DO_WITHOUT:
        assert loaded.base_model.pooler is None
    else:
        same(loaded.base_model.pooler, model.base_model.pooler)


# -- pickles and copies


@pytest.mark.parametrize("head", AUTO_CLASSES.values())
def test_models_are_pickled_and_copied(head, build, batch):
    """Before and after transformers put its hooks into them."""
    model = build(head, use_pooler=True)
    inputs = {n: t.unsqueeze(1) for n, t in batch.items()} if head is MacaronBertForMultipleChoice else batch
    asked = {"output_hidden_states": True, "output_attentions": True}
    expected = model(**inputs)
    for _ in range(2):
        for made in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
            same(made, model)
            out = made(**inputs, **asked)
            assert (len(out.hidden_states), len(out.attentions)) == (3, 2)
            torch.testing.assert_close(made(**inputs)[0], expected[0], **BITS)
        out = model(**inputs, **asked)
        assert len(out.hidden_states) == 3
    detached = type(expected)(**{name: t.detach() for name, t in expected.items() if torch.is_tensor(t)})
    again = pickle.loads(pickle.dumps(detached))
    assert type(again) is type(expected) and torch.equal(again[0], expected[0])
    assert torch.equal(copy.deepcopy(detached)[0], expected[0])


def test_a_whole_model_in_a_file(build, batch, tmp_path):
    model = build(MacaronBertForMaskedLM)
    model(**batch, output_hidden_states=True)
    torch.save(model, tmp_path / "model.pt")
    same(torch.load(tmp_path / "model.pt", weights_only=False), model)


def test_configurations_are_pickled_and_copied(config):
    one = config(num_labels=3, splitting="lie")
    for other in (pickle.loads(pickle.dumps(one)), copy.deepcopy(one), copy.copy(one)):
        assert type(other) is MacaronBertConfig and other.to_dict() == one.to_dict()


def test_a_hook_of_ones_own_stays(build):
    model = build()
    model(torch.ones(1, 3, dtype=torch.long), output_hidden_states=True)
    model.layers[0].register_forward_hook(_own_hook)
    made = pickle.loads(pickle.dumps(model))
    assert list(made.layers[0]._forward_hooks.values()) == [_own_hook]


def _own_hook(module, args, output):
    return None
