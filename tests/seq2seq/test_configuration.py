"""The configuration: what is left open is filled in, and what makes no sense is refused with the reason."""

from __future__ import annotations

import pytest

from macaron.dynamics.splitting import SPLITTINGS, Splitting, register_splitting
from macaron.seq2seq import MacaronConfig


def test_what_is_left_open_is_filled_in():
    config = MacaronConfig()
    assert (config.d_model, config.decoder_d_model, config.encoder_ffn_dim, config.decoder_first_ffn_dim) == (
        *(512, 512, 1024, 1024),
    )
    assert MacaronConfig(splitting="lie").decoder_ffn_dim == 2048
    assert (config.source_vocab_size, config.encoder_final_norm) == (32_000, True)
    post = MacaronConfig(decoder_normalize_before=False, decoder_d_model=256, share_encoder_decoder_embeddings=False)
    assert (post.encoder_final_norm, post.decoder_final_norm, post.decoder_ffn_dim) == (True, False, 512)
    assert post.decoder_input_dim == post.decoder_output_dim == 256
    other_names = MacaronConfig(hidden_size=64, num_hidden_layers=3, num_attention_heads=4)
    assert (other_names.d_model, other_names.decoder_d_model, other_names.encoder_ffn_dim) == (64, 64, 128)
    assert (other_names.encoder_layers, other_names.encoder_attention_heads) == (3, 4)


@pytest.mark.parametrize(
    "options, layers",
    [
        ({}, 6),
        ({"decoder_layers": 8, "solver": "midpoint"}, 16),
        ({"splitting": "lie", "depth_rule": "multistep"}, 6),
        ({"solver": "rk4"}, 24),
        ({"depth_rule": "rk2"}, 12),
        ({"depth_rule": "rk4", "solver": "heun", "splitting": "attention/2 ffn attention/2"}, 6 * 4 * 2 * 2),
        ({"splitting": "attention cross_attention/2 ffn cross_attention/2"}, 12),
    ],
    ids=str,
)
def test_a_cache_has_a_place_for_each_evaluation(options, layers):
    config = MacaronConfig(**options, encoder_layers=2)
    of_decoder = config.get_text_config(decoder=True)
    assert config.cache_layers == of_decoder.num_hidden_layers == layers
    assert of_decoder.get_text_config(decoder=True).num_hidden_layers == layers
    assert config.get_text_config() is config
    assert config.num_hidden_layers == 2


@pytest.mark.parametrize(
    "options, message",
    [
        ({"splitting": "lei"}, "splitting='lei' is unknown"),
        ({"splitting": "ffn/2 ffn/2"}, "no substep follows 'attention'"),
        ({"splitting": "drift attention ffn"}, "flow 'drift' is unknown here"),
        ({"depth_rule": "multistep", "encoder_normalize_before": False}, "a post-norm layer"),
        ({"depth_rule": "rk2", "decoder_normalize_before": False}, "a post-norm layer"),
        ({"d_model": 30}, "d_model=30 does not divide into encoder_attention_heads=8"),
        ({"decoder_layers": 0}, "decoder_layers=0 must be at least 1"),
        ({"dropout": 1.0}, r"dropout=1.0 is not a probability in \[0, 1\)"),
        ({"layer_norm_eps": 0.0}, "layer_norm_eps=0.0 must be positive"),
        ({"pad_token_id": 40_000}, "pad_token_id=40000 is not in the vocabularies"),
        ({"source_vocab_size": 100}, "share_encoder_decoder_embeddings: the encoder's table is 100 × 512"),
        ({"decoder_input_dim": 64}, "tie_word_embeddings: the decoder's table has decoder_input_dim=64 columns"),
        ({"activation_function": "softplus"}, "softplus"),
        ({"position_offset": -1}, "position_offset=-1 is negative"),
        ({"d_model": 2, "encoder_attention_heads": 2}, "d_model=2 is too small for sinusoidal positions"),
    ],
)
def test_what_makes_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        MacaronConfig(**options)


def test_a_splitting_of_ones_own_is_written_out(tmp_path):
    register_splitting(Splitting.parse("attention/2 ffn attention/2", name="other_way"))
    try:
        MacaronConfig(splitting="other_way", solver="midpoint").save_pretrained(tmp_path)
    finally:
        del SPLITTINGS["other_way"]
    again = MacaronConfig.from_pretrained(tmp_path)
    assert (again.splitting, again.solver) == ("attention/2 ffn attention/2", "midpoint")
    assert again.to_dict() == MacaronConfig.from_dict(again.to_dict()).to_dict()


def test_of_another_kind():
    with pytest.raises(ValueError, match=r"a model of type 'bart', not 'macaron'; load it with"):
        MacaronConfig.from_dict({"model_type": "bart"})
