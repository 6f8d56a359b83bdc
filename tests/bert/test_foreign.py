"""Encoders of transformers become Macaron BERT: every family and head, from a model and from files."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForMaskedLM, PreTrainedModel
from transformers.activations import ACT2FN

from macaron.bert import (
    MacaronBertConfig,
    MacaronBertForMaskedLM,
    MacaronBertForNextSentencePrediction,
    MacaronBertModel,
    from_transformers,
)
from macaron.bert.foreign import _ACTIVATIONS, FAMILIES, to_macaron_names
from macaron.ops.act_dropout import act_dropout

CASES = [(kind, rest) for kind, family in FAMILIES.items() for rest in family.heads]
# Families that share another's tables are tried with two heads, and with all of them among the slow tests.
SHARED, FEW = ("xlm-roberta", "camembert", "data2vec-text", "ernie"), ("ForMaskedLM", "ForSequenceClassification")
MAIN = [(kind, rest) for kind, rest in CASES if kind not in SHARED or rest in FEW]
IDS = [FAMILIES[kind].stem + rest for kind, rest in CASES]
EXACT = {"atol": 1e-12, "rtol": 1e-12}  # float64, sums in another order: measured to 1e-14, of numbers of up to 15
CLOSE = {"atol": 1e-6, "rtol": 1e-6}  # losses and what follows from them are of float32: measured to 4e-7 of 4
T = 9


def theirs(kind: str, rest: str, seed: int = 0, **fixed: Any) -> PreTrainedModel:
    """A model of transformers of a random configuration, with random parameters throughout, in float64."""
    draw, stem = random.Random(f"{kind} {rest} {seed}"), FAMILIES[kind].stem
    heads = draw.choice([1, 2, 4])
    fields = {
        "vocab_size": draw.randint(30, 60),
        "hidden_size": heads * draw.choice([4, 6, 10]),
        "num_hidden_layers": draw.randint(1, 3),
        "num_attention_heads": heads,
        "activation" if kind == "distilbert" else "hidden_act": draw.choice(["gelu", "relu", "gelu_new", "silu"]),
        "hidden_dim" if kind == "distilbert" else "intermediate_size": draw.randint(5, 40),
        "max_position_embeddings": draw.randint(T + 6, 30),
        "pad_token_id": draw.choice([1, 3]) if FAMILIES[kind].after_padding else 0,
        "tie_word_embeddings": draw.random() < 0.6,
    }
    if kind != "distilbert":
        fields |= {"layer_norm_eps": draw.choice([1e-12, 1e-5, 1e-3]), "type_vocab_size": draw.randint(1, 3)}
    if kind == "electra":
        fields["embedding_size"] = draw.choice([fields["hidden_size"], 8])
        fields["summary_activation"] = draw.choice(["gelu", "tanh", ""])
    if rest in ("ForSequenceClassification", "ForTokenClassification"):
        fields["num_labels"] = 3
    fields |= fixed
    torch.manual_seed(seed)
    model = getattr(transformers, stem + rest)(getattr(transformers, f"{stem}Config")(**fields)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.1, 0.3)
    return model


def batch_of(model: PreTrainedModel, rest: str) -> tuple[dict[str, Tensor], Tensor]:
    """Inputs with labels, three sentences padded on the right, and where the real tokens are."""
    config, labels = model.config, {}
    shape = (3, 2, T) if rest == "ForMultipleChoice" else (3, T)
    real = torch.arange(T) < torch.tensor([T, T - 4, T - 2]).view(3, *[1] * (len(shape) - 1))
    real = real.expand(shape)
    if rest == "ForQuestionAnswering":  # theirs gives logits to padding, which are not ours
        real = torch.ones_like(real)
    ids = torch.randint(4, config.vocab_size, shape).masked_fill(~real, config.pad_token_id)
    inputs = {"input_ids": ids, "attention_mask": real.long()}
    if getattr(config, "type_vocab_size", 0):
        inputs["token_type_ids"] = torch.randint(config.type_vocab_size, shape)
    words = torch.where(real & (torch.rand(shape) < 0.5), ids, -100)
    words[..., 0] = ids[..., 0]
    if rest == "ForMaskedLM":
        labels = {"labels": words}
    elif rest == "ForPreTraining" and config.model_type != "electra":
        labels = {"labels": words, "next_sentence_label": torch.tensor([0, 1, 1])}
    elif rest == "ForTokenClassification":
        labels = {"labels": torch.where(real, torch.randint(3, shape), -100)}
    elif rest == "ForQuestionAnswering":
        labels = {"start_positions": torch.tensor([0, 2, 1]), "end_positions": torch.tensor([3, 2, 4])}
    elif (rest != "Model" and config.model_type != "electra") or rest not in ("Model", "ForPreTraining"):
        labels = {"labels": torch.tensor([0, 1, 1])}
    return {**inputs, **labels}, real


def to_the_left(batch: dict[str, Tensor], real: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """The same sentences with their padding before them."""
    order = real.long().sort(dim=-1, stable=True).indices  # padding first, and both in their order
    names = ("input_ids", "attention_mask", "token_type_ids")
    return {name: batch[name].gather(-1, order) for name in names if name in batch}, real.gather(-1, order)


def outputs_of(found: Any, real: Tensor, kind: str) -> dict[str, Any]:
    """Outputs by our names, those of tokens at real ones alone, and logits of pairs as differences."""
    result: dict[str, Any] = {}
    for name, value in found.items():
        if name in ("loss", "attentions"):
            continue
        if name == "hidden_states":
            result[name] = [state[real.flatten(0, -2)] for state in value]
            continue
        if name == "seq_relationship_logits" and value.dim() == 2:
            value = value[:, 0] - value[:, 1]
        if name == "logits" and kind == "pairs":
            value = value[:, 0] - value[:, 1]
        if value.dim() > 1 and value.shape[: real.dim()] == real.shape:
            value = value[real]
        result[name] = value
    return result


def run(model: PreTrainedModel, batch: dict[str, Tensor], **options: Any) -> Any:
    return model(**batch, output_hidden_states=True, **options)


def encoder_of(model: PreTrainedModel) -> PreTrainedModel:
    return getattr(model, model.base_model_prefix)


def compare(kind: str, rest: str, seed: int) -> None:
    model = theirs(kind, rest, seed)
    made = from_transformers(model)
    batch, real = batch_of(model, rest)
    ours_batch = dict(batch)
    if rest == "ForPreTraining" and kind == "electra":  # its head has no counterpart
        model = encoder_of(model)
    elif rest == "ForPreTraining":
        ours_batch["next_sentence_label"] = 1 - batch["next_sentence_label"]  # the other label order
    what = "pairs" if rest == "ForNextSentencePrediction" else rest
    expected, found = run(model, batch), run(made, ours_batch)

    wanted, got = outputs_of(expected, real, what), outputs_of(found, real, what)
    assert wanted.keys() == got.keys() and ("hidden_states" in got)
    torch.testing.assert_close(got, wanted, **EXACT)
    left, left_real = to_the_left(batch, real)
    torch.testing.assert_close(outputs_of(run(made, left), left_real, what), wanted, **EXACT)

    if "loss" in expected:
        torch.testing.assert_close(found.loss, expected.loss, check_dtype=False, **CLOSE)
        expected.loss.backward()
        found.loss.backward()
    else:
        direction = torch.randn_like(expected.last_hidden_state)
        (expected.last_hidden_state * direction)[real].sum().backward()
        (found.last_hidden_state * direction)[real].sum().backward()
    compare_gradients(kind, rest, model, made)


def compare_gradients(kind: str, rest: str, model: PreTrainedModel, made: PreTrainedModel) -> None:
    family = FAMILIES[kind]
    of = {name: p.grad for name, p in model.named_parameters(remove_duplicate=False)}
    there = {name: torch.zeros_like(model.get_parameter(name)) if g is None else g for name, g in of.items()}
    head = family.heads["Model" if type(model).__name__.endswith("Model") else rest]
    prefix = "" if type(model).__name__.endswith("Model") else f"{model.base_model_prefix}."
    wanted, left = to_macaron_names(there, model.config, head, family, prefix)
    assert not left
    for name, tensor in wanted.items():
        if name.startswith("nsp_head"):
            wanted[name] = tensor / 2  # of a difference: that of one logit is minus that of the other
    checked = 0
    for name, parameter in made.named_parameters(remove_duplicate=False):
        grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        scale = wanted[name].abs().max().clamp(min=1.0)
        torch.testing.assert_close(grad / scale, wanted[name] / scale, **CLOSE, msg=lambda m, n=name: f"{n}: {m}")
        checked += int(grad.abs().max() > 0)
    assert checked >= 16  # a layer has 12, and its surroundings some more


@pytest.mark.parametrize(("kind", "rest"), MAIN, ids=[FAMILIES[kind].stem + rest for kind, rest in MAIN])
def test_equal_outputs_hidden_states_losses_and_gradients(kind: str, rest: str) -> None:
    compare(kind, rest, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("kind", "rest"), CASES, ids=IDS)
def test_more_configurations(kind: str, rest: str, seed: int) -> None:
    compare(kind, rest, seed)


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert"])
def test_their_own_batch_that_is_padded_on_the_left(kind: str) -> None:
    model = theirs(kind, "Model")
    batch, real = to_the_left(*batch_of(model, "Model"))
    positions = {} if kind == "roberta" else {"position_ids": (real.long().cumsum(-1) - 1).clamp(min=0)}
    wanted = outputs_of(run(model, {**batch, **positions}), real, "Model")
    got = outputs_of(run(from_transformers(model), batch), real, "Model")
    wanted.pop("pooler_output", None), got.pop("pooler_output", None)  # theirs is that of padding
    torch.testing.assert_close(got, wanted, **EXACT)


@pytest.mark.parametrize("kind", FAMILIES)
def test_attention_weights_and_embeddings_given(kind: str) -> None:
    model = theirs(kind, "Model", attn_implementation="eager")
    made = from_transformers(model)
    embeds = torch.randn(2, T, made.get_input_embeddings().embedding_dim, dtype=torch.double)
    wanted = model(inputs_embeds=embeds, output_attentions=True)
    got = made(inputs_embeds=embeds, output_attentions=True)
    torch.testing.assert_close(got.last_hidden_state, wanted.last_hidden_state, **EXACT)
    torch.testing.assert_close(got.attentions, wanted.attentions, **EXACT)
    assert len(got.attentions) == model.config.num_hidden_layers


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "electra"])
def test_what_a_file_has_apart_is_not_tied(kind: str, tmp_path: Any) -> None:
    """As in transformers, which warns of a file that has other rows in the decoder than its configuration says."""
    model = theirs(kind, "ForMaskedLM", tie_word_embeddings=True)
    decoder = model.get_output_embeddings()
    decoder.weight = nn.Parameter(torch.randn_like(decoder.weight))
    made = from_transformers(model)
    made.save_pretrained(tmp_path)
    again = AutoModelForMaskedLM.from_pretrained(tmp_path, dtype=torch.double).eval()
    ids = torch.randint(4, 30, (2, T))
    for ours in (made, again):
        assert ours.config.tie_word_embeddings is False
        torch.testing.assert_close(ours(ids).logits, model(ids).logits, **EXACT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_copy_in_its_own_type_and_mode(dtype: torch.dtype) -> None:
    model = theirs("bert", "ForMaskedLM", tie_word_embeddings=True).to(dtype).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    made = from_transformers(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert made.training and {p.dtype for p in made.parameters()} == {dtype}
    assert made.mlm_head.decoder.weight is made.get_input_embeddings().weight
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())


def test_labels_and_problem_type_come_along() -> None:
    names = {0: "bad", 1: "good", 2: "odd"}
    labels = {"id2label": names, "label2id": {name: i for i, name in names.items()}}
    model = theirs("roberta", "ForSequenceClassification", problem_type="multi_label_classification", **labels)
    made = from_transformers(model)
    assert made.config.id2label == names and made.config.label2id == {"bad": 0, "good": 1, "odd": 2}
    assert made.config.problem_type == "multi_label_classification" and made.config.num_labels == 3
    batch, _ = batch_of(model, "Model")
    labels = torch.tensor([[0.0, 1, 1], [1, 0, 0], [1, 1, 1]], dtype=torch.double)
    loss = made(**batch, labels=labels).loss
    torch.testing.assert_close(loss.double(), model(**batch, labels=labels).loss, **CLOSE)


def test_activations_are_those_of_transformers() -> None:
    x = torch.linspace(-6, 6, 1001)
    for theirs_name, ours_name in _ACTIVATIONS.items():
        expected = x if theirs_name == "" else ACT2FN[theirs_name](x)
        # float32: other formulas, of numbers of up to 6, whose ε is 5e-7
        torch.testing.assert_close(act_dropout(x, activation=ours_name), expected, atol=2e-6, rtol=0)


def test_the_discriminator_of_electra_is_left_out_aloud(caplog: pytest.LogCaptureFixture) -> None:
    transformers.utils.logging.enable_propagation()
    try:
        assert type(from_transformers(theirs("electra", "ForPreTraining"))) is MacaronBertModel
    finally:
        transformers.utils.logging.disable_propagation()
    assert "ElectraForPreTraining: discriminator_predictions is left out" in caplog.text


@pytest.mark.parametrize(
    ("kind", "rest", "change", "message"),
    [
        (
            "bert",
            "Model",
            {"is_decoder": True},
            r"bert: is_decoder=True makes it a decoder, and Macaron BERT is",
        ),
        ("bert", "Model", {"is_decoder": True, "add_cross_attention": True}, r"is_decoder=True makes it a decoder"),
        ("bert", "Model", {"position_embedding_type": "relative_key"}, r"'relative_key' puts relative positions into"),
        ("bert", "Model", {"hidden_act": "mish"}, r"this bert does not become .*'mish' is unknown; choose one of relu"),
        ("ernie", "Model", {"use_task_id": True}, r"use_task_id=True has no counterpart, as Macaron BERT embeds no ta"),
        ("electra", "ForMultipleChoice", {"summary_type": "mean"}, r"summary_type='mean' has no counterpart"),
        ("electra", "ForMultipleChoice", {"summary_use_proj": False}, r"summary_use_proj=False has no counterpart"),
        ("bert", "ForQuestionAnswering", {"num_labels": 3}, r"num_labels=3 has no counterpart, as an answer has a be"),
    ],
    ids=str,
)
def test_refused_configurations(kind: str, rest: str, change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_transformers(theirs(kind, rest, **change))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("MPNet", r"type 'mpnet' does not become a Macaron BERT: its attention adds a bias learned for each relative"),
        ("Albert", r"type 'albert' .* all its layers are one; taken are models of transformers of the types bert,"),
        ("GPT2", r"type 'gpt2' does not become a Macaron BERT: Macaron BERT has no counterpart of it"),
    ],
)
def test_refused_families(name: str, message: str) -> None:
    sizes = {"vocab_size": 40, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    with pytest.raises(ValueError, match=message):
        from_transformers(getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**sizes)))


def test_refused_models() -> None:
    class Own(transformers.BertModel):
        pass

    model = theirs("bert", "Model")
    with pytest.raises(ValueError, match=r"Own is a class of .*test_foreign, and what it computes stands there"):
        from_transformers(Own(model.config))
    with pytest.raises(ValueError, match=r"BertLMHeadModel has no counterpart among the heads .* BertForMaskedLM"):
        from_transformers(transformers.BertLMHeadModel(model.config))
    with pytest.raises(ValueError, match=r"takes a model of transformers, not a Linear"):
        from_transformers(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"'macaron_bert' does not become a Macaron BERT: it is one already"):
        from_transformers(from_transformers(model))
    model.extra = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"BertModel has extra.bias, extra.weight, for which there is no place"):
        from_transformers(model)
    del model.extra, model.encoder.layer[0].attention.self.key
    with pytest.raises(ValueError, match=r"BertModel gives nothing for layers.0.flows.0.qkv_proj.bias, .* and has "):
        from_transformers(model)
    with pytest.raises(ValueError, match=r"embeddings.word_embeddings.weight is on the meta device; load it with"):
        from_transformers(theirs("bert", "Model").to("meta"))


def test_pairs_follow_transformers_labels_and_logits() -> None:
    made = from_transformers(theirs("bert", "ForPreTraining"))
    pairs = MacaronBertForNextSentencePrediction(made.config).double().eval()
    pairs.load_state_dict(made.state_dict(), strict=False)
    ids = torch.randint(4, 30, (2, T))
    one, two = made(ids).seq_relationship_logits, pairs(ids, labels=torch.tensor([0, 1]))
    assert two.logits.shape == (2, 2)
    torch.testing.assert_close(two.logits[:, 0] - two.logits[:, 1], one)
    known = made(ids, next_sentence_label=torch.tensor([1, 0])).loss  # the other order
    torch.testing.assert_close(two.loss, known)


def test_a_foreign_folder_says_which_command_to_use(tmp_path: Any) -> None:
    theirs("bert", "Model").save_pretrained(tmp_path)
    command = r"model of type 'bert', not 'macaron_bert'.* macaron convert NAME_OR_FOLDER --output DIR"
    with pytest.raises(ValueError, match=command):
        MacaronBertModel.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"model_type='bert'; to make a Macaron BERT .* macaron convert NAME_OR_FOL"):
        MacaronBertModel.from_pretrained(tmp_path, config=transformers.BertConfig())


def test_narrow_embeddings_are_an_option_of_ours_too(tmp_path: Any) -> None:
    config = MacaronBertConfig(
        vocab_size=40, hidden_size=32, embedding_size=8, num_hidden_layers=1, num_attention_heads=4
    )
    model = MacaronBertForMaskedLM(config).eval()
    assert model.macaron_bert.embeddings.projection.weight.shape == (32, 8)
    assert model.mlm_head.decoder.weight is model.get_input_embeddings().weight
    model.save_pretrained(tmp_path)
    ids = torch.randint(1, 40, (2, 5))
    torch.testing.assert_close(AutoModelForMaskedLM.from_pretrained(tmp_path)(ids).logits, model(ids).logits)
    assert MacaronBertConfig(hidden_size=768, embedding_size=768).embedding_size is None
    with pytest.raises(ValueError, match=r"embedding_size=0 must be at least 1"):
        MacaronBertConfig(embedding_size=0)
    assert json.loads((tmp_path / "config.json").read_text())["embedding_size"] == 8
    assert AutoModel.from_pretrained(tmp_path).config.embedding_size == 8
