"""Decoding step by step equals the full forward at every prefix, also after the beams were reordered."""

from __future__ import annotations

from argparse import Namespace

import pytest
import torch
from fairseq.sequence_generator import SequenceGenerator
from macaron.user_dir.models.macaron_lm import MacaronLanguageModel

from macaron import MacaronModel

SIZES = {
    "encoder_embed_dim": 16,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_embed_dim": 24,
    "decoder_layers": 2,
    "decoder_attention_heads": 2,
    "max_source_positions": 64,
    "max_target_positions": 64,
}
PRE = {"encoder_normalize_before": True, "decoder_normalize_before": True}
VARIANTS = {
    "strang": {"splitting": "strang"},
    "lie": {"splitting": "lie"},
    "post-norm": {"encoder_normalize_before": False, "decoder_normalize_before": False},
    "learned positions": {"decoder_learned_pos": True, "share_all_embeddings": True},
    "attention to both at once": {"no_cross_attention": True, "cross_self_attention": True},
    "other width of the decoder": {"decoder_embed_dim": 32},
    "dt": {"dt": 0.5},
    "backward_euler": {"solver": "backward_euler"},
    "midpoint": {"solver": "midpoint"},
    "heun": {**PRE, "solver": "heun", "splitting": "lie"},
    "heun_learned": {**PRE, "solver": "heun_learned"},
    "rk4": {**PRE, "solver": "rk4", "dt": 0.5},
    "midpoint, post-norm": {"solver": "midpoint", "encoder_normalize_before": False, "decoder_normalize_before": False},
    "midpoint, attention to both": {"solver": "midpoint", "no_cross_attention": True, "cross_self_attention": True},
    "heun, attention twice": {"solver": "heun", "splitting": "attention/2 ffn attention/2"},
    "multistep": {**PRE, "depth_rule": "multistep", "multistep_init": "lm_resnet"},
    "rk2": {**PRE, "depth_rule": "rk2"},
    "rk2_learned around midpoint": {**PRE, "depth_rule": "rk2_learned", "solver": "midpoint"},
    "rk4 across depth": {**PRE, "depth_rule": "rk4"},
    "stochastic depth": {**PRE, "stochastic_depth": 0.5, "depth_rule": "multistep"},
    "mean of the stochastic equation": {**PRE, "stochastic_depth": 0.5, "stochastic_depth_form": "sde"},
}
STEPS = 7
# Float32: products of one row and of many round otherwise. A fifth is seen; attention weights are below 1.
TOLERANCE = {"rtol": 0, "atol": 1e-5}
OF_WEIGHTS = {"rtol": 0, "atol": 1e-6}


def randomize(model: torch.nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS.keys())
def model(request, toy_task):
    # dropout rates that must not act outside training
    args = Namespace(**SIZES, dropout=0.3, attention_dropout=0.3, activation_dropout=0.3, **request.param)
    built = MacaronModel.build_model(args, toy_task()).eval()
    randomize(built)
    return built


@pytest.fixture
def memory(model):
    """The encoder's output for four sentences of different lengths, padded left."""
    source = torch.randint(4, 44, (4, 6))
    source[1, :3] = 1
    source[3, :1] = 1
    return model.encoder(source, (source != 1).sum(1))


def full(model, tokens, memory) -> torch.Tensor:
    return model.decoder(tokens, memory)[0]


@torch.no_grad()
def test_every_prefix(model, memory):
    tokens = torch.randint(4, 44, (4, STEPS))
    tokens[:, 0] = 2
    state: dict = {}
    for length in range(1, STEPS + 1):
        step, extra = model.decoder(tokens[:, :length], memory, incremental_state=state)
        whole, whole_extra = model.decoder(tokens[:, :length], memory)
        torch.testing.assert_close(step[:, -1], whole[:, -1], **TOLERANCE)
        assert [given["attn"][0] is None for given in (extra, whole_extra)] == [model.cfg.no_cross_attention] * 2
        if not model.cfg.no_cross_attention:
            torch.testing.assert_close(extra["attn"][0][:, -1], whole_extra["attn"][0][:, -1], **OF_WEIGHTS)


@torch.no_grad()
def test_the_future_does_not_act_on_the_past(model, memory):
    tokens = torch.randint(4, 44, (4, STEPS))
    changed = tokens.clone()
    changed[:, 4:] = torch.randint(4, 44, (4, STEPS - 4))
    a, b = full(model, tokens, memory), full(model, changed, memory)
    torch.testing.assert_close(a[:, :4], b[:, :4], **TOLERANCE)
    assert not torch.allclose(a[:, 4:], b[:, 4:], atol=1e-3)  # a hundred times what may differ


@torch.no_grad()
def test_after_every_reordering(model, memory):
    tokens = torch.full((4, 1), 2)
    state: dict = {}
    for _ in range(STEPS):
        step = model.decoder(tokens, memory, incremental_state=state)[0]
        torch.testing.assert_close(step[:, -1], full(model, tokens, memory)[:, -1], **TOLERANCE)
        # beams die, are doubled and change places
        order = torch.randint(0, 4, (4,))
        model.decoder.reorder_incremental_state_scripting(state, order)
        memory = model.encoder.reorder_encoder_out(memory, order)
        tokens = torch.cat([tokens[order], torch.randint(4, 44, (4, 1))], dim=1)


@torch.no_grad()
def test_after_the_batch_has_shrunk(model, memory):
    tokens = torch.full((4, 1), 2)
    state: dict = {}
    for order in ([0, 1, 3], [2, 0], [1]):
        model.decoder(tokens, memory, incremental_state=state)
        chosen = torch.tensor(order)
        model.decoder.reorder_incremental_state_scripting(state, chosen)
        memory = model.encoder.reorder_encoder_out(memory, chosen)
        tokens = torch.cat([tokens[chosen], torch.randint(4, 44, (len(order), 1))], dim=1)
    step = model.decoder(tokens, memory, incremental_state=state)[0]
    torch.testing.assert_close(step[:, -1], full(model, tokens, memory)[:, -1], **TOLERANCE)


class _NoCache(MacaronModel):
    """The same model, which computes every step from scratch."""

    def has_incremental_state(self) -> bool:
        return False


@torch.no_grad()
def test_beam_search_with_and_without_cache(model, toy_task):
    dictionary = toy_task().target_dictionary
    source = torch.randint(4, 44, (3, 6))
    source[0, :2] = 1
    sample = {"net_input": {"src_tokens": source, "src_lengths": (source != 1).sum(1)}}
    found = []
    for kind in (type(model), _NoCache):
        model.__class__ = kind
        model.has_incremental = kind is not _NoCache
        generator = SequenceGenerator([model], dictionary, beam_size=3, max_len_b=10, len_penalty=0.6)
        generator.model.has_incremental = kind is not _NoCache
        found.append(generator.forward(sample))
    for cached, recomputed in zip(*found, strict=True):
        for a, b in zip(cached, recomputed, strict=True):
            assert a["tokens"].tolist() == b["tokens"].tolist()
            torch.testing.assert_close(a["positional_scores"], b["positional_scores"], **TOLERANCE)


@pytest.mark.parametrize("splitting", ["strang", "lie"])
@torch.no_grad()
def test_language_model(splitting, toy_task):
    sizes = {"decoder_embed_dim": 16, "decoder_ffn_embed_dim": 24, "decoder_layers": 2, "max_target_positions": 64}
    args = Namespace(splitting=splitting, decoder_attention_heads=2, **sizes)
    lm = MacaronLanguageModel.build_model(args, toy_task()).eval()
    randomize(lm)
    tokens = torch.randint(4, 44, (4, 1))
    state: dict = {}
    for _ in range(STEPS):
        step = lm.decoder(tokens, incremental_state=state)[0]
        torch.testing.assert_close(step[:, -1], lm(tokens)[0][:, -1], **TOLERANCE)
        order = torch.randint(0, 4, (4,))
        lm.decoder.reorder_incremental_state_scripting(state, order)
        tokens = torch.cat([tokens[order], torch.randint(4, 44, (4, 1))], dim=1)
