"""Saving, loading, and the Auto classes."""

from __future__ import annotations

import pytest
import torch
import transformers
from safetensors import safe_open
from torch import nn

from macaron.bert import (
    AUTO_CLASSES,
    MacaronBertForMaskedLM,
    MacaronBertForPreTraining,
    MacaronBertForSequenceClassification,
    MacaronBertModel,
)


def same(a: nn.Module, b: nn.Module) -> None:
    a_state, b_state = a.state_dict(), b.state_dict()
    assert list(a_state) == list(b_state)
    for name, value in a_state.items():
        torch.testing.assert_close(value, b_state[name], rtol=0, atol=0)


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
    torch.testing.assert_close(loaded.embeddings.sinusoids, model.embeddings.sinusoids, rtol=0, atol=0)
    torch.testing.assert_close(loaded(**batch), model(**batch), rtol=0, atol=0)


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
        torch.testing.assert_close(loaded(**batch).logits, model(**batch).logits, rtol=0, atol=1e-6)


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
