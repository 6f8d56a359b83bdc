"""The model itself: steps with a cache against whole passes, masks, records, tables, and what is loaded."""

from __future__ import annotations

import contextlib
import copy
import io
import pickle
from typing import Any

import pytest
import torch
from transformers import DynamicCache, EncoderDecoderCache, StaticCache

from macaron.dynamics.rules import RULES, register_rule
from macaron.seq2seq import MacaronConfig, MacaronForConditionalGeneration, MacaronModel
from macaron.seq2seq.modeling_macaron import CACHE, EndsAtLength

SCHEMES: list[dict[str, Any]] = [
    {},
    {"splitting": "lie", "encoder_normalize_before": False, "decoder_normalize_before": False},
    {"depth_rule": "multistep", "multistep_init": 0.3},
    {"solver": "rk4", "dt": 0.5},
    {"depth_rule": "rk2_learned", "solver": "heun_learned", "splitting": "attention/2 ffn attention/2"},
    {"splitting": "attention cross_attention/2 ffn cross_attention/2", "layernorm_embedding": True},
    {
        **{"share_encoder_decoder_embeddings": False, "source_vocab_size": 30, "tie_word_embeddings": False},
        **{"decoder_d_model": 16, "decoder_input_dim": 24, "decoder_output_dim": 20, "scale_embedding": False},
        **{"encoder_position_embedding_type": "learned", "decoder_position_embedding_type": "none"},
    },
]


def build(**options: Any) -> MacaronForConditionalGeneration:
    sizes = {"vocab_size": 50, "d_model": 32, "encoder_layers": 2, "decoder_layers": 3, "max_position_embeddings": 40}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
    model = MacaronForConditionalGeneration(MacaronConfig(**{**sizes, **heads, "dropout": 0.0, **options})).eval()
    with torch.no_grad():  # norms, biases, k and gates too
        for parameter in model.parameters():
            if parameter.dim() < 2:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def batch() -> dict[str, torch.Tensor]:
    """Sentences of 7, 5 and 4 tokens, the last one padded on the left."""
    ids = torch.randint(4, 30, (3, 7))
    mask = torch.ones_like(ids)
    mask[1, 5:] = mask[2, :3] = 0
    return {"input_ids": ids.masked_fill(mask == 0, 1), "attention_mask": mask}


LONG = {"max_new_tokens": 8, "min_new_tokens": 8}


@pytest.mark.parametrize("options", SCHEMES, ids=str)
def test_steps_with_a_cache_are_those_of_a_whole_pass(options):
    model, given = build(**options), batch()
    found = model.generate(**given, **LONG, return_dict_in_generate=True, output_logits=True)
    whole = model(**given, decoder_input_ids=found.sequences[:, :-1], use_cache=False).logits
    torch.testing.assert_close(torch.stack(found.logits, 1), whole, rtol=0, atol=1e-5)
    for search in ({"num_beams": 3}, {"num_beams": 2, "do_sample": True}, {"do_sample": True, "top_k": 5}):
        runs = []
        for use_cache in (True, False):
            torch.manual_seed(0)
            runs.append(model.generate(**given, **LONG, **search, use_cache=use_cache))
        assert torch.equal(*runs), search
    alone = [
        model(given["input_ids"][:1], decoder_input_ids=found.sequences[:1, :-1]).logits,
        model(given["input_ids"][1:2, :5], decoder_input_ids=found.sequences[1:2, :-1]).logits,
        model(given["input_ids"][2:, 3:], decoder_input_ids=found.sequences[2:, :-1]).logits,
    ]
    torch.testing.assert_close(torch.cat(alone), whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"depth_rule": "rk2", "solver": "heun"}], ids=str)
def test_assisted_decoding_is_greedy_decoding(options):
    model, assistant = build(**options), build(decoder_layers=1)
    given = {k: v[:1] for k, v in batch().items()}
    greedy = model.generate(**given, max_new_tokens=12)
    assert torch.equal(model.generate(**given, max_new_tokens=12, assistant_model=assistant), greedy)
    if CACHE == "cache":  # older versions of transformers take the </s> that a target begins with for its end
        assert torch.equal(model.generate(**given, max_new_tokens=12, prompt_lookup_num_tokens=3), greedy)


@torch.no_grad()
@pytest.mark.parametrize("options", [{"decoder_layers": 7}, {"solver": "heun"}], ids=str)
def test_caches_of_transformers(options):
    model, given = build(**options), batch()
    config, decoded = model.config, torch.randint(4, 50, (3, 6))
    whole = model(**given, decoder_input_ids=decoded).logits
    kept = EncoderDecoderCache(DynamicCache(config=config), DynamicCache(config=config))
    static = EncoderDecoderCache(
        StaticCache(config=config, max_cache_len=8), StaticCache(config=config, max_cache_len=7)
    )
    for cache in (kept, EncoderDecoderCache(DynamicCache(), DynamicCache()), DynamicCache(), static):
        parts = [
            model(**given, decoder_input_ids=part, cache=cache, use_cache=True).logits
            for part in (decoded[:, :3], decoded[:, 3:5], decoded[:, 5:])
        ]
        torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=1e-5)
        assert int(cache.get_seq_length()) == 6
    assert len(kept) == config.cache_layers
    assert kept.cross_attention_cache.get_seq_length() == 7
    new = pytest.warns(FutureWarning, match="`past_key_values` is deprecated")
    with new if CACHE == "cache" else contextlib.nullcontext():
        again = model(**given, decoder_input_ids=decoded[:, :1], past_key_values=copy.deepcopy(kept), use_cache=True)
    assert again[CACHE].get_seq_length() == 7
    generated = model.generate(**given, **LONG, return_dict_in_generate=True)
    assert len(generated[CACHE].self_attention_cache) == config.cache_layers
    static_found = model.generate(**given, **LONG, cache_implementation="static", disable_compile=True)
    assert torch.equal(static_found, generated.sequences)


def test_a_rule_of_ones_own_that_evaluates_more_often_than_it_says():
    register_rule("twice", lambda depth: lambda step: step.layer(step.layer(step.x)))
    try:
        model, given = build(depth_rule="twice"), {**batch(), "decoder_input_ids": torch.full((3, 1), 2)}
        assert model(**given, use_cache=False).logits.shape == (3, 1, 50)
        with pytest.raises(ValueError, match="evaluates a layer 2 times, and the cache has a place for 1"):
            model(**given)
    finally:
        del RULES["twice"]


def test_records_and_pickling():
    model, given = build(depth_rule="multistep"), {**batch(), "decoder_input_ids": torch.randint(4, 50, (3, 5))}
    model.set_attn_implementation("eager")
    out = model(**given, output_hidden_states=True, output_attentions=True)
    assert len(out.encoder_hidden_states) == 3 and len(out.decoder_hidden_states) == 4
    assert [a.shape for a in out.decoder_attentions] == [(3, 4, 5, 5)] * 3
    assert [a.shape for a in out.cross_attentions] == [(3, 4, 5, 7)] * 3
    assert [a.shape for a in out.encoder_attentions] == [(3, 4, 7, 7)] * 2
    seen = torch.stack(out.cross_attentions)
    torch.testing.assert_close(seen.sum(-1), torch.ones(3, 3, 4, 5))
    assert not seen[:, 1, ..., 5:].any() and not seen[:, 2, ..., :3].any()
    layer = model.model.decoder.layers[0]
    assert layer.flows[1].is_causal and not layer.flows[2].is_causal
    again = pickle.loads(pickle.dumps(model))
    torch.testing.assert_close(again(**given).logits, out.logits)
    model.set_attn_implementation("sdpa")
    torch.testing.assert_close(model(**given).logits, out.logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradients_with_checkpoints(reentrant):
    model = build(depth_rule="rk2").train()
    given = {**batch(), "labels": torch.randint(4, 50, (3, 5))}
    model(**given).loss.backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    model(**given).loss.backward()
    for parameter, grad in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, grad)


def test_labels_are_read_shifted_and_padding_counts_not():
    model, given = build(), batch()
    labels = torch.tensor([[5, 6, 7, 2], [8, 9, 2, -100], [4, 2, -100, -100]])
    read = torch.tensor([[2, 5, 6, 7], [2, 8, 9, 2], [2, 4, 2, 1]])
    assert torch.equal(model.prepare_decoder_input_ids_from_labels(labels), read)
    out = model(**given, labels=labels)
    logits = model(**given, decoder_input_ids=read).logits
    expected = -logits.log_softmax(-1)[labels >= 0].gather(1, labels[labels >= 0].unsqueeze(1)).mean()
    torch.testing.assert_close(out.loss, expected)
    torch.testing.assert_close(model(**given, labels=labels, num_items_in_batch=18).loss, expected * 9 / 18)
    assert CACHE not in out


def test_tables_are_one_or_two():
    shared = build()
    tables = shared.model.encoder.embed_tokens.weight, shared.model.decoder.embed_tokens.weight
    assert tables[0] is tables[1] is shared.lm_head.weight
    shared.resize_token_embeddings(60)
    assert (shared.config.vocab_size, shared.config.source_vocab_size) == (60, 60)
    assert shared.model.decoder.embed_tokens.weight is shared.lm_head.weight
    assert shared(**batch(), decoder_input_ids=torch.full((3, 1), 59)).logits.shape == (3, 1, 60)
    apart = build(share_encoder_decoder_embeddings=False, source_vocab_size=30)
    assert apart.model.decoder.embed_tokens.weight is apart.lm_head.weight
    assert apart.model.encoder.embed_tokens.weight.shape == (30, 32)
    with pytest.raises(ValueError, match="source and target have vocabularies of their own"):
        apart.resize_token_embeddings(60)


def test_a_new_model_begins_as_fairseqs():
    torch.manual_seed(1)
    model = MacaronForConditionalGeneration(
        MacaronConfig(vocab_size=500, d_model=64, encoder_layers=1, decoder_layers=1)
    )
    table = model.model.encoder.embed_tokens.weight
    assert abs(table.std().item() * 8 - 1) < 0.05 and not table[1].any()
    flow, ffn = model.model.decoder.layers[0].flows[2], model.model.encoder.layers[0].flows[0]
    for weight, bound in [
        (flow.q_proj.weight, (6 / 128) ** 0.5 * 0.5**0.5),
        (flow.kv_proj.weight, (6 / 128) ** 0.5 * 0.5**0.5),
        (ffn.fc1.weight, (6 / (64 + 128)) ** 0.5),
    ]:
        assert weight.abs().max().item() == pytest.approx(bound, rel=0.02)


def test_what_is_too_long_or_missing():
    model = build(max_position_embeddings=10, decoder_max_position_embeddings=6)
    with pytest.raises(ValueError, match="11 tokens are more than the encoder's max_position_embeddings=10"):
        model(torch.full((1, 11), 5), decoder_input_ids=torch.tensor([[2]]))
    source = torch.full((1, 4), 5)
    with pytest.raises(ValueError, match="7 tokens are more than the decoder's decoder_max_position_embeddings=6"):
        model.generate(source, max_new_tokens=9, min_new_tokens=9)
    with pytest.raises(ValueError, match="decoder: pass exactly one of token ids and embeds"):
        model(source)
    with pytest.raises(ValueError, match="pass encoder_hidden_states"):
        model.model.decoder(source)
    assert model.generate(source, max_new_tokens=6, min_new_tokens=6).shape == (1, 7)


def test_what_is_loaded_is_whole(tmp_path):
    model, given = build(depth_rule="multistep"), {**batch(), "decoder_input_ids": torch.full((3, 2), 2)}
    model.save_pretrained(tmp_path)
    again = MacaronForConditionalGeneration.from_pretrained(tmp_path)
    torch.testing.assert_close(again(**given).logits, model(**given).logits)
    body = MacaronModel.from_pretrained(tmp_path)
    torch.testing.assert_close(body(**given).last_hidden_state, model.model(**given).last_hidden_state)
    state = model.state_dict()
    state.pop("model.decoder.layers.1.flows.0.fc1.weight")
    model.save_pretrained(tmp_path / "lost", state_dict=state)
    with pytest.raises(ValueError, match=r"does not fit .* lacks model.decoder.layers.1.flows.0.fc1.weight"):
        MacaronForConditionalGeneration.from_pretrained(tmp_path / "lost")
    model.config.dt = 0.25
    model.config.encoder_layers = 1
    model.config.save_pretrained(tmp_path)
    with pytest.raises((ValueError, RuntimeError), match="does not fit"):
        MacaronForConditionalGeneration.from_pretrained(tmp_path)
    model.save_pretrained(tmp_path / "cut")
    for name, bytes_, message in [
        ("generation_config.json", 20, r"generation_config\.json' is not a valid JSON"),
        ("model.safetensors", 9000, r"cut: its weights cannot be read .*; copy or download it again"),
    ]:
        content = (tmp_path / "cut" / name).read_bytes()
        (tmp_path / "cut" / name).write_bytes(content[:bytes_])
        with pytest.raises((OSError, ValueError), match=message):
            MacaronForConditionalGeneration.from_pretrained(tmp_path / "cut")
        (tmp_path / "cut" / name).write_bytes(content)
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)  # no buffers of positions in it
    assert not [name for name in torch.load(io.BytesIO(buffer.getvalue())) if "sinusoids" in name]


def test_the_end_at_the_greatest_length_keeps_its_score():
    scores = torch.tensor([[-1.0, -2.0, -3.0]])
    end = EndsAtLength(4, torch.tensor([2]))
    assert torch.equal(end(torch.zeros(1, 2).long(), scores), scores)
    assert end(torch.zeros(1, 3).long(), scores).tolist() == [[-torch.inf, -torch.inf, -3.0]]
