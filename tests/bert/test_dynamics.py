"""Solvers, rules and noise in Macaron BERT: packed and padded alike, saved and loaded, going on from a plain model."""

from __future__ import annotations

import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Trainer, TrainingArguments
from transformers.utils import output_capturing

from macaron.bert import MacaronBertConfig, MacaronBertForSequenceClassification, MacaronBertModel, export_for_hub
from macaron.dynamics.solvers import SOLVERS
from macaron.hf.context import LayerContext
from macaron.particles.surroundings import Surroundings

SCHEMES = [
    *({"solver": name} for name in SOLVERS if name != "euler"),
    {"solver": "midpoint", "normalize_before": False},
    {"depth_rule": "multistep", "multistep_init": "lm_resnet"},
    {"depth_rule": "rk2_learned", "solver": "heun_learned", "splitting": "lie"},
    {"depth_rule": "rk4", "dt": 0.5},
    {"stochastic_depth": 0.5, "stochastic_depth_form": "sde", "stochastic_depth_schedule": "constant", "dt": 0.5},
]
IDS = [" ".join(map(str, scheme.values())) for scheme in SCHEMES]


def randomised(model: nn.Module) -> nn.Module:
    """The learned weights too."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "gates" in name or ".rule." in name:
                parameter.normal_(0.0, 0.3)
    return model


@pytest.mark.parametrize("scheme", SCHEMES, ids=IDS)
def test_packed_is_padded(scheme, build, batch, tmp_path):
    """And both are what a folder gives back."""
    packed = randomised(build(num_hidden_layers=3, **scheme)).double()
    plain = build(num_hidden_layers=3).double()
    packed.save_pretrained(tmp_path)
    padded = MacaronBertModel.from_pretrained(tmp_path, padding_free=False, dtype=torch.float64).eval()
    for model in (packed, padded):
        out = model(**batch).last_hidden_state
        for row, length in enumerate(batch["attention_mask"].sum(-1).tolist()):
            alone = {name: value[row : row + 1, :length] for name, value in batch.items()}
            expected = packed(**alone).last_hidden_state
            torch.testing.assert_close(out[row, :length], expected[0], rtol=0, atol=1e-12)  # float64
    plain.load_state_dict(packed.state_dict(), strict=False)
    assert not torch.allclose(plain(**batch).last_hidden_state, out, atol=1e-3)  # the scheme acts, far above rounding


@pytest.mark.parametrize("scheme", SCHEMES, ids=IDS)
def test_training_with_checkpoints_gives_the_same_gradients(scheme, build, batch):
    """With dropout, whose masks are the same in all stages and drawn again in the second forward."""
    rates = {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.2, "activation_dropout": 0.2}
    model = randomised(build(MacaronBertForSequenceClassification, **rates, **scheme)).double().train()
    gradients = []
    for checkpointed in (False, True):
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(4)
        model.zero_grad()
        model(**batch, labels=torch.tensor([0, 1, 0])).loss.backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-9, atol=1e-12)  # float64


@pytest.mark.parametrize(
    "scheme", [{"depth_rule": "multistep"}, {"solver": "heun_learned"}, {"depth_rule": "rk2_learned"}], ids=str
)
def test_a_plain_model_goes_on(scheme, build, batch, tmp_path):
    plain = build(MacaronBertForSequenceClassification)
    plain.save_pretrained(tmp_path)
    model = MacaronBertForSequenceClassification.from_pretrained(tmp_path, **scheme).eval()
    own = [p for name, p in model.named_parameters() if "gates" in name or ".rule." in name]
    assert own and all((p == 0).all() for p in own)
    if "solver" not in scheme and scheme["depth_rule"] == "multistep":
        assert torch.equal(model(**batch).logits, plain(**batch).logits)
    else:
        heun = {name: value.removesuffix("_learned") for name, value in scheme.items()}
        expected = MacaronBertForSequenceClassification.from_pretrained(tmp_path, **heun).eval()
        torch.testing.assert_close(model(**batch).logits, expected(**batch).logits, rtol=0, atol=1e-6)  # float32
    randomised(model).save_pretrained(tmp_path / "trained")
    again = MacaronBertForSequenceClassification.from_pretrained(tmp_path / "trained").eval()
    assert torch.equal(again(**batch).logits, model(**batch).logits)


def test_a_folder_that_lost_what_its_rule_learned_is_refused(build, tmp_path):
    build(depth_rule="multistep", solver="heun_learned").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    for lost in (r"layers\.rule\.bias", r"layers\.0\.gates\.0\.bias"):
        kept = {name: tensor for name, tensor in tensors.items() if not re.match(lost, name)}
        save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ValueError, match=f"lacks {lost}"):
            MacaronBertModel.from_pretrained(tmp_path)


def test_a_solver_that_learned_goes_on_with_a_rule_and_the_other_way_round(build, batch, tmp_path):
    for options, more in (
        ({"solver": "heun_learned"}, {"depth_rule": "multistep"}),
        ({"depth_rule": "rk2_learned"}, {"solver": "heun_learned"}),
    ):
        before = randomised(build(**options))
        before.save_pretrained(tmp_path)
        after = MacaronBertModel.from_pretrained(tmp_path, **more).eval()
        assert all(torch.equal(after.state_dict()[name], tensor) for name, tensor in before.state_dict().items())
        begun = after.state_dict().keys() - before.state_dict().keys()
        assert begun and all((after.state_dict()[name] == 0).all() for name in begun)
        if "depth_rule" in more:
            assert torch.equal(after(**batch).last_hidden_state, before(**batch).last_hidden_state)


def test_the_original_start_of_k_survives_loading(build, tmp_path):
    build(num_hidden_layers=4).save_pretrained(tmp_path)
    model = MacaronBertModel.from_pretrained(tmp_path, depth_rule="multistep", multistep_init="lm_resnet")
    k = model.layers.rule.k
    assert len(set(k)) == 3 and all(-0.1 <= value <= 0.0 for value in k)


def test_the_trainer_leaves_k_out_of_weight_decay(build, tmp_path):
    model = build(MacaronBertForSequenceClassification, depth_rule="multistep")
    trainer = Trainer(model, TrainingArguments(str(tmp_path), weight_decay=0.1, report_to=[], use_cpu=True))
    decayed = trainer.get_decay_parameter_names(model)
    assert "macaron_bert.layers.0.flows.0.fc1.weight" in decayed
    assert "macaron_bert.layers.rule.bias" in dict(model.named_parameters()) and not [n for n in decayed if "rule" in n]


@pytest.mark.parametrize("padding_free", [True, False], ids=["packed", "padded"])
def test_sentences_are_dropped_one_by_one(padding_free, build):
    noise = {"stochastic_depth": 0.5, "stochastic_depth_schedule": "constant", "stochastic_depth_unit": "sentence"}
    model = build(num_hidden_layers=1, padding_free=padding_free, **noise)
    ids, lengths = torch.randint(1, 50, (40, 7)), torch.randint(3, 8, (40, 1))
    real = torch.arange(7) < lengths
    torch.manual_seed(6)
    found = model.train()(ids, real.long()).last_hidden_state
    embedded = model.embeddings(ids, None, None, torch.arange(7).unsqueeze(0))
    same = (found - model.final_norm(embedded)).abs().amax(-1) < 1e-6  # (B, T)
    dropped = (same | ~real).all(1)
    assert torch.equal(dropped, (same & real).any(1)) and 8 < int(dropped.sum()) < 32  # four standard deviations


@pytest.mark.parametrize("scheme", [{}, *SCHEMES], ids=["euler", *IDS])
def test_hidden_states_are_those_of_the_rule(scheme, build, batch):
    """x_0 … x_L as iteration over the layers gives them, in training with its noise too."""
    model = randomised(build(num_hidden_layers=3, **scheme)).double()
    ids = batch["input_ids"][:1]
    for training in (False, True):
        model.train(training)
        torch.manual_seed(1)
        states = [model.embeddings(ids, None, None, torch.arange(ids.size(1)).unsqueeze(0))]
        for layer in model.layers:
            states.append(layer(states[-1], LayerContext(Surroundings(), None, {})))
        states[-1] = states[-1] if model.final_norm is None else model.final_norm(states[-1])
        torch.manual_seed(1)
        found = model(ids, output_hidden_states=True)
        assert len(found.hidden_states) == 4 and found.hidden_states[-1] is found.last_hidden_state
        for state, expected in zip(found.hidden_states, states, strict=True):
            torch.testing.assert_close(state, expected, rtol=0, atol=1e-12)  # float64
        torch.manual_seed(1)
        chosen = model(ids, output_hidden_states=[1, -2]).hidden_states
        if hasattr(output_capturing, "selected_hidden_states"):  # since transformers 5.23, what is left out is None
            assert [state is None for state in chosen] == [True, False, False, True]
            assert torch.equal(chosen[1], found.hidden_states[1])


def test_what_means_nothing_is_refused(build, batch, tmp_path):
    for options, message in (
        ({"solver": "rk5"}, "solver='rk5' is unknown; choose one of euler"),
        ({"stochastic_depth": 1.0}, "is no drop rate in"),
        ({"depth_rule": "multistep", "normalize_before": False}, "depth_rule='multistep' needs the increment"),
        ({"multistep_init": 0.5}, "depth_rule='euler' has none"),
        ({"dt": 0.0}, "dt=0.0 is not a step"),
    ):
        with pytest.raises(ValueError, match=message):
            MacaronBertConfig(**options)
    assert export_for_hub(build(depth_rule="rk2", solver="heun"), tmp_path / "hub").is_dir()
