"""The encoder and its heads: what they compute, and that padding and the way of computing do not matter."""

from __future__ import annotations

import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import DataCollatorWithFlattening
from transformers.utils import output_capturing

from macaron.bert import (
    MacaronBertConfig,
    MacaronBertForMaskedLM,
    MacaronBertForMultipleChoice,
    MacaronBertForPreTraining,
    MacaronBertForQuestionAnswering,
    MacaronBertForSequenceClassification,
    MacaronBertForTokenClassification,
    MacaronBertModel,
)
from macaron.dynamics.splitting import STRANG
from macaron.hf.packing import Packing
from macaron.hf.positions import sinusoids

HEADS = [
    MacaronBertForMaskedLM,
    MacaronBertForPreTraining,
    MacaronBertForSequenceClassification,
    MacaronBertForTokenClassification,
    MacaronBertForQuestionAnswering,
]


def close(a: torch.Tensor, b: torch.Tensor, atol: float = 5e-6) -> None:
    """Of float32 and numbers of up to 4, summed in another order; a tenth of this is seen. `atol=0` is to the bit."""
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


# -- what is computed


def test_lie_is_an_ordinary_pre_norm_transformer(build, batch):
    """Against torch's own layer with the same weights."""
    model = build(splitting="lie", intermediate_size=48)
    x = model.embeddings(batch["input_ids"], None, batch["token_type_ids"], torch.arange(9).unsqueeze(0))
    padding = batch["attention_mask"] == 0
    with torch.no_grad():
        for layer in model.layers:
            other = nn.TransformerEncoderLayer(32, 4, 48, 0.0, "gelu", batch_first=True, norm_first=True)
            attention, ffn = layer.flows
            other.self_attn.in_proj_weight.copy_(attention.qkv_proj.weight)
            other.self_attn.in_proj_bias.copy_(attention.qkv_proj.bias)
            other.self_attn.out_proj.load_state_dict(attention.out_proj.state_dict())
            other.linear1.load_state_dict(ffn.fc1.state_dict())
            other.linear2.load_state_dict(ffn.fc2.state_dict())
            other.norm1.load_state_dict(layer.norms[0].state_dict())
            other.norm2.load_state_dict(layer.norms[1].state_dict())
            x = other(x, src_key_padding_mask=padding)
        x = model.final_norm(x)
    out = model(**batch).last_hidden_state
    close(out[~padding], x[~padding])


@pytest.mark.parametrize("normalize_before", [True, False])
def test_strang_is_two_ffns_around_attention(normalize_before, build):
    model = build(normalize_before=normalize_before, first_hidden_act="relu", num_hidden_layers=1)
    ids = torch.randint(1, 50, (2, 5))
    x = model.embeddings(ids, None, None, torch.arange(5).unsqueeze(0))
    layer = model.layers[0]
    first, attention, second = layer.flows

    def ffn(flow, act, z):
        return flow.fc2(act(flow.fc1(z)))

    def attend(z):
        q, k, v = attention.qkv_proj(z).view(2, 5, 3, 4, 8).permute(2, 0, 3, 1, 4)
        out = torch.softmax(q @ k.transpose(-1, -2) / 8**0.5, -1) @ v
        return attention.out_proj(out.transpose(1, 2).flatten(2))

    velocities = [lambda z: ffn(first, F.relu, z), attend, lambda z: ffn(second, F.gelu, z)]
    for substep, norm, velocity in zip(STRANG.substeps, layer.norms, velocities, strict=True):
        if normalize_before:
            x = x + substep.share * velocity(norm(x)[1])
        else:
            x = norm(x, velocity(x), substep.share)[1]
    close(model(ids).last_hidden_state, model.final_norm(x) if normalize_before else x)


@pytest.mark.parametrize("dim", [8, 9])
def test_sinusoids_are_in_halves(dim):
    table = sinusoids(2, 10, dim)
    for row, p in enumerate(range(2, 12)):
        phases = [p * 10000 ** (-i / 3) for i in range(4)]
        expected = [math.sin(a) for a in phases] + [math.cos(a) for a in phases] + [0.0] * (dim % 2)
        close(table[row], torch.tensor(expected))


def test_embeddings_add_scaled_words_positions_and_segments(build):
    model = build(position_embedding_type="sinusoidal", position_offset=2, scale_embeddings=True, segment_padding_idx=0)
    e = model.embeddings
    ids, segments = torch.tensor([[7, 8, 9]]), torch.tensor([[0, 0, 1]])
    expected = 32**0.5 * e.word_embeddings.weight[ids] + sinusoids(2, 3, 32)
    close(e(ids, None, None, torch.arange(3).unsqueeze(0)), expected)
    expected[0, 2] += e.token_type_embeddings.weight[1]
    close(e(ids, None, segments, torch.arange(3).unsqueeze(0)), expected)


@pytest.mark.parametrize("macaron", [False, True])
@pytest.mark.parametrize("tied", [True, False])
def test_parameter_counts_of_the_original(golden, macaron, tied):
    name = "transformer_bert_base" + ("_macaron" if macaron else "")
    entries = json.loads((golden / "param_counts.json").read_text())
    entry = next(e for e in entries if e["arch"] == name and e["share_all_embeddings"] == tied)
    config = MacaronBertConfig(
        vocab_size=entry["vocab"],
        splitting="strang" if macaron else "lie",
        position_embedding_type="sinusoidal",
        norm_affine=False,
        mlm_bias=False,
        tie_word_embeddings=tied,
    )
    assert config.intermediate_size == entry["ffn_dim"]
    with torch.device("meta"):
        model = MacaronBertForPreTraining(config)
    assert model.num_parameters() == entry["total"]
    tables = 2 if not tied else 1
    assert model.num_parameters() - tables * entry["vocab"] * 768 == entry["without_token_embeddings"]


def test_initialisation(config):
    model = MacaronBertModel(config(hidden_size=64, segment_padding_idx=1, position_embedding_type="sinusoidal"))
    weight = model.layers[1].flows[1].qkv_proj.weight
    assert abs(weight.std().item() - 0.02) < 1e-3
    assert not model.embeddings.word_embeddings.weight[0].any()
    assert not model.embeddings.token_type_embeddings.weight[1].any()
    close(model.embeddings.sinusoids, sinusoids(0, 40, 64), atol=0)


# -- padding and positions


@pytest.mark.parametrize("padding_free", [True, False])
@pytest.mark.parametrize("positions", ["learned", "sinusoidal"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(side, positions, padding_free, build, batch):
    model = build(position_embedding_type=positions, padding_free=padding_free)
    alone = [
        model(batch["input_ids"][i : i + 1, :n], token_type_ids=batch["token_type_ids"][i : i + 1, :n])
        for i, n in enumerate((9, 6, 4))
    ]
    if side == "left":
        batch = {
            name: torch.stack([row.roll(9 - n) for row, n in zip(t, (9, 6, 4), strict=True)])
            for name, t in batch.items()
        }
    out = model(**batch).last_hidden_state
    for i, n in enumerate((9, 6, 4)):
        close(out[i, 9 - n :] if side == "left" else out[i, :n], alone[i].last_hidden_state[0])
        assert not (out[i, : 9 - n] if side == "left" else out[i, n:]).any()


@pytest.mark.parametrize("head", [MacaronBertForSequenceClassification, MacaronBertForPreTraining])
@pytest.mark.parametrize("use_pooler", [False, True])
def test_the_first_real_token_stands_for_the_sentence(head, use_pooler, build, batch):
    model = build(head, use_pooler=use_pooler)
    name = "logits" if head is MacaronBertForSequenceClassification else "seq_relationship_logits"
    right = model(**batch)[name]
    shifted = {k: torch.stack([r.roll(9 - n) for r, n in zip(t, (9, 6, 4), strict=True)]) for k, t in batch.items()}
    close(model(**shifted)[name], right)


# Flex attention is compiled, which takes a CPU minutes.
FLEX = pytest.param("flex_attention", marks=pytest.mark.slow)


@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager", FLEX])
@pytest.mark.parametrize("marks", ["position_ids", "cu_seq_lens_q"])
def test_sentences_in_one_row_do_not_see_each_other(marks, attn_implementation, build):
    model = build()
    model.set_attn_implementation(attn_implementation)
    ids = torch.randint(1, 50, (1, 9))
    with torch.no_grad():  # flex attention has no gradient on a CPU
        alone = torch.cat([model(part).last_hidden_state for part in ids.split([4, 2, 3], dim=1)], 1)
        if marks == "position_ids":
            row = {"position_ids": torch.tensor([[0, 1, 2, 3, 0, 1, 0, 1, 2]])}
        else:
            row = {"cu_seq_lens_q": torch.tensor([0, 4, 6, 9], dtype=torch.int32), "max_length_q": 4}
        close(model(ids, **row).last_hidden_state, alone)
        close(model(ids, **row, output_hidden_states=True).last_hidden_state, alone)


def test_gradients_without_padding_are_those_with_it(build, batch):
    grads = {}
    for padding_free in (True, False):
        torch.manual_seed(0)
        model = build(MacaronBertForMaskedLM, padding_free=padding_free)
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        model(**batch, labels=labels).loss.backward()
        grads[padding_free] = [p.grad for p in model.parameters()]
    for a, b in zip(grads[True], grads[False], strict=True):
        close(a, b)


def test_a_padded_batch_runs_packed_and_only_where_it_can(build, batch, monkeypatch):
    model = build()
    packed = []
    monkeypatch.setattr(Packing, "pack", lambda self, x, pack=Packing.pack: packed.append(1) or pack(self, x))

    def runs_packed(**kwargs):
        packed.clear()
        model(**{**batch, **kwargs})
        return bool(packed)

    assert runs_packed()
    assert runs_packed(input_ids=None, inputs_embeds=torch.randn(3, 9, 32))
    assert not runs_packed(attention_mask=torch.ones(3, 9))
    assert not runs_packed(attention_mask=None)
    assert not runs_packed(attention_mask=torch.ones(3, 1, 9, 9, dtype=torch.bool))
    assert not runs_packed(output_hidden_states=True)
    assert not runs_packed(output_attentions=True)
    model.config.padding_free = False
    assert not runs_packed()
    model.config.padding_free = True
    model.set_attn_implementation("eager")
    assert not runs_packed()


def test_a_sentence_of_padding_alone(build, batch):
    model = build(MacaronBertForSequenceClassification)
    expected = model(**batch).logits
    batch["attention_mask"][1] = 0
    out = model(**batch, labels=torch.tensor([0, 1, 1]))
    close(out.logits[[0, 2]], expected[[0, 2]])
    assert torch.isfinite(out.logits).all()
    out.loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_sentences_that_are_too_long(build):
    with pytest.raises(ValueError, match="sentences of 41 tokens are longer than max_position_embeddings=40; truncate"):
        build()(torch.ones(1, 41, dtype=torch.long))


def test_exactly_one_of_ids_and_embeddings(build, batch):
    model = build()
    for wrong in ({}, {"input_ids": batch["input_ids"], "inputs_embeds": torch.zeros(3, 9, 32)}):
        with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
            model(**wrong)


# -- ways of computing


@pytest.mark.parametrize("attn_implementation", ["eager", FLEX])
@pytest.mark.parametrize("head", HEADS)
def test_attention_implementations_agree(head, attn_implementation, build, batch):
    model = build(head)
    outputs = []
    for name in ("sdpa", attn_implementation):
        model.set_attn_implementation(name)
        assert model.config._attn_implementation == name
        with torch.no_grad():
            outputs.append(model(**batch).to_tuple())
    for a, b in zip(*outputs, strict=True):
        close(a, b)


def test_attention_implementation_from_the_configuration(config, batch):
    torch.manual_seed(0)
    a = MacaronBertModel._from_config(config(), attn_implementation="eager").eval()
    assert a.config._attn_implementation == "eager"
    b = MacaronBertModel(config()).eval()
    b.load_state_dict(a.state_dict())
    assert b.config._attn_implementation == "sdpa"
    close(a(**batch).last_hidden_state, b(**batch).last_hidden_state)


@pytest.mark.gpu
def test_flash_attention_agrees(build, batch):
    pytest.importorskip("flash_attn")
    model = build(hidden_size=64).to("cuda", torch.bfloat16)
    batch = {name: t.cuda() for name, t in batch.items()}
    sdpa = model(**batch).last_hidden_state
    model.set_attn_implementation("flash_attention_2")
    bf16 = 0.05  # four times what bfloat16's eight bits round of numbers of up to 3
    close(model(**batch).last_hidden_state, sdpa, atol=bf16)
    ids, places = torch.randint(1, 50, (1, 9), device="cuda"), torch.tensor([[0, 1, 2, 3, 0, 1, 0, 1, 2]]).cuda()
    flash = model(ids, position_ids=places).last_hidden_state
    model.set_attn_implementation("sdpa")
    close(flash, model(ids, position_ids=places).last_hidden_state, atol=bf16)


@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
def test_hidden_states_and_attentions(attn_implementation, build, batch):
    model = build(MacaronBertForTokenClassification)
    plain = model(**batch)
    assert plain.hidden_states is None and plain.attentions is None
    model.set_attn_implementation(attn_implementation)
    out = model(**batch, output_hidden_states=True, output_attentions=True)
    close(out.logits, plain.logits)
    assert [tuple(h.shape) for h in out.hidden_states] == [(3, 9, 32)] * 3
    assert [tuple(a.shape) for a in out.attentions] == [(3, 4, 9, 9)] * 2
    close(model.classifier(out.hidden_states[-1]), out.logits)
    real = batch["attention_mask"].bool()
    sums = out.attentions[1].sum(-1).transpose(1, 2)[real]
    close(sums, torch.ones_like(sums))
    assert not out.attentions[1].transpose(1, 3)[~real].any()  # padding is not seen
    if hasattr(output_capturing, "selected_hidden_states"):  # since transformers 5.23, what is left out is None
        assert len(model(**batch, output_hidden_states=[0]).hidden_states) == 3


def test_tuples_instead_of_dictionaries(build, batch):
    model = build(MacaronBertForMaskedLM)
    loss, logits = model(**batch, labels=batch["input_ids"], return_dict=False)
    assert loss.shape == () and logits.shape == (3, 9, 50)


def test_inputs_embeds(build, batch):
    model = build(MacaronBertForMaskedLM, scale_embeddings=True)
    embeds = model.get_input_embeddings()(batch["input_ids"])
    ids = batch.pop("input_ids")
    close(model(inputs_embeds=embeds, **batch).logits, model(input_ids=ids, **batch).logits)


def test_resize_token_embeddings(build, batch):
    model = build(MacaronBertForMaskedLM)
    before = model(**batch).logits
    model.resize_token_embeddings(61)
    after = model(**batch).logits
    assert after.shape == (3, 9, 61) and model.config.vocab_size == 61
    close(after[..., :50], before)
    assert model.mlm_head.decoder.weight is model.get_input_embeddings().weight
    model.resize_token_embeddings(50)
    close(model(**batch).logits, before)
    model(**batch, labels=batch["input_ids"]).loss.backward()


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_replays_dropout(use_reentrant, build, batch):
    grads = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        rates = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.2, "activation_dropout": 0.2}
        model = build(MacaronBertForSequenceClassification, **rates).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        calls = []
        model.macaron_bert.layers[0].flows[0].fc1.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        torch.manual_seed(1)
        model(**batch, labels=torch.tensor([0, 1, 1])).loss.backward()
        assert len(calls) == 1 + checkpointing
        grads.append([p.grad for p in model.parameters()])
    for a, b in zip(*grads, strict=True):
        close(a, b, atol=1e-7)  # the same operations; where gradients meet, they may do so in another order


def test_dropout_of_the_whole_model_is_seeded(build, batch):
    model = build(hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.3).train()
    outs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        outs.append(model(**batch).last_hidden_state)
    close(outs[0], outs[1], atol=0)
    assert not torch.allclose(outs[0], outs[2])


def test_half_precision(build, batch):
    model = build(MacaronBertForMaskedLM, position_embedding_type="sinusoidal")
    full = model(**batch).logits
    half = model.to(torch.bfloat16)(**batch, labels=batch["input_ids"])
    assert half.logits.dtype == torch.bfloat16 and half.loss.dtype == torch.float32
    close(half.logits.float(), full, atol=0.03)  # bfloat16 has eight bits: 2e-3 of 0.5, in each of a dozen products


# -- heads


def test_masked_lm_loss(build, batch):
    model = build(MacaronBertForMaskedLM)
    labels = batch["input_ids"].masked_fill(torch.rand(3, 9) < 0.5, -100)
    out = model(**batch, labels=labels)
    close(out.loss, F.cross_entropy(out.logits.flatten(0, 1), labels.flatten()))


@pytest.mark.parametrize("head", [MacaronBertForMaskedLM, MacaronBertForPreTraining])
@pytest.mark.parametrize("mlm_bias", [True, False])
def test_sparse_prediction_is_the_same_loss_at_the_labels_alone(head, mlm_bias, build, batch):
    model = build(head, mlm_bias=mlm_bias)
    name = "logits" if head is MacaronBertForMaskedLM else "prediction_logits"
    labels = batch["input_ids"].masked_fill(torch.rand(3, 9) < 0.5, -100)
    dense = model(**batch, labels=labels)
    dense.loss.backward()
    grads = [p.grad for p in model.parameters()]
    model.config.sparse_prediction = True
    sparse = model(**batch, labels=labels)
    close(sparse.loss, dense.loss)
    close(sparse[name], dense[name][labels != -100])
    close(model(**batch)[name], dense[name])
    model.zero_grad()
    trained = model.train()(**batch, labels=labels)
    assert getattr(trained, name) is None
    close(trained.loss, dense.loss)
    trained.loss.backward()
    for p, grad in zip(model.parameters(), grads, strict=True):
        if grad is not None:
            close(p.grad, grad)


def test_pre_training_loss_is_the_sum_of_two_means(build, batch):
    model = build(MacaronBertForPreTraining)
    labels = batch["input_ids"].masked_fill(torch.rand(3, 9) < 0.5, -100)
    following = torch.tensor([1, 0, 1])
    out = model(**batch, labels=labels, next_sentence_label=following)
    words = F.cross_entropy(out.prediction_logits.flatten(0, 1), labels.flatten())
    pairs = F.binary_cross_entropy_with_logits(out.seq_relationship_logits, following.float())
    assert out.seq_relationship_logits.shape == (3,)
    close(out.loss, words + pairs)
    close(model(**batch, labels=labels).loss, words)
    close(model(**batch, next_sentence_label=following).loss, pairs)


@pytest.mark.parametrize(
    ("problem_type", "num_labels", "labels", "expected"),
    [
        (None, 1, torch.tensor([0.5, -1.0, 2.0]), lambda z, y: F.mse_loss(z.squeeze(-1), y)),
        (None, 3, torch.tensor([0, 2, 1]), F.cross_entropy),
        (None, 3, torch.eye(3), F.binary_cross_entropy_with_logits),
        ("regression", 3, torch.randn(3, 3), F.mse_loss),
        (
            "multi_label_classification",
            1,
            torch.tensor([0, 1, 1]),
            lambda z, y: F.binary_cross_entropy_with_logits(z.squeeze(-1), y.float()),
        ),
    ],
    ids=["regression", "single label", "several labels", "several values", "one logit"],
)
def test_sequence_classification_losses(problem_type, num_labels, labels, expected, build, batch):
    model = build(MacaronBertForSequenceClassification, num_labels=num_labels, problem_type=problem_type)
    out = model(**batch, labels=labels)
    assert out.logits.shape == (3, num_labels)
    close(out.loss, expected(out.logits, labels))


def test_token_classification_loss(build, batch):
    model = build(MacaronBertForTokenClassification, num_labels=5)
    labels = torch.randint(0, 5, (3, 9)).masked_fill(batch["attention_mask"] == 0, -100)
    out = model(**batch, labels=labels)
    assert out.logits.shape == (3, 9, 5)
    close(out.loss, F.cross_entropy(out.logits.flatten(0, 1), labels.flatten()))


def test_question_answering_loss(build, batch):
    model = build(MacaronBertForQuestionAnswering)
    start, end = torch.tensor([2, 0, 1]), torch.tensor([4, 0, 3])
    out = model(**batch, start_positions=start, end_positions=end)
    loss = F.cross_entropy(out.start_logits, start) + F.cross_entropy(out.end_logits, end)
    close(out.loss, loss / 2)
    # an answer that lies outside counts as an example without a loss
    one = model(**batch, start_positions=torch.tensor([2, 9, 99]), end_positions=torch.tensor([4, -1, 9])).loss
    alone = F.cross_entropy(out.start_logits[:1], start[:1]) + F.cross_entropy(out.end_logits[:1], end[:1])
    close(one, alone / 2 / 3)


def test_multiple_choice_loss(build, batch):
    model = build(MacaronBertForMultipleChoice)
    choices = {name: torch.stack([t, t.roll(1, 0)], 1) for name, t in batch.items()}
    labels = torch.tensor([0, 1, 1])
    out = model(**choices, labels=labels)
    assert out.logits.shape == (3, 2)
    close(out.logits[:, 1], out.logits[:, 0].roll(1))
    close(out.loss, F.cross_entropy(out.logits, labels))


def test_without_segments(build, batch):
    model = build(type_vocab_size=0)
    with_segments = model(**batch).last_hidden_state
    del batch["token_type_ids"]
    close(model(**batch).last_hidden_state, with_segments, atol=0)


@pytest.mark.parametrize("return_flash_attn_kwargs", [True, False])
def test_the_flattening_collator_of_transformers(return_flash_attn_kwargs, build):
    model = build(MacaronBertForMaskedLM)
    sentences = [torch.randint(1, 50, (n,)).tolist() for n in (4, 2, 3)]
    collate = DataCollatorWithFlattening(return_flash_attn_kwargs=return_flash_attn_kwargs)
    row = collate([{"input_ids": ids, "labels": ids} for ids in sentences])
    alone = torch.cat([model(torch.tensor([ids])).logits for ids in sentences], 1)
    close(model(**row).logits, alone)
