"""The named architectures: one table each for translation and language modelling.

`ffn` is the width of each of the two half-step FFNs of the Strang scheme. With `--splitting lie` the one FFN gets
their sum, which is the Transformer of equal parameters; `--encoder-ffn-embed-dim` sets a width explicitly.
"""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Architecture:
    """Defaults of one `--arch`.

    Args:
        ffn: width of each half-step FFN.
        defaults: other options, by the name of their configuration field.
        original: follows the original implementation where it departs from ours: the decoder's first FFN is as
            wide as the encoder's.
    """

    ffn: int
    defaults: dict[str, Any] = field(default_factory=dict)
    original: bool = False


def _sizes(dim: int, heads: int, layers: int = 6, *, pre_norm: bool = True, **others: Any) -> dict[str, Any]:
    return {
        "encoder_embed_dim": dim,
        "encoder_attention_heads": heads,
        "encoder_layers": layers,
        "encoder_normalize_before": pre_norm,
        "decoder_attention_heads": heads,
        "decoder_layers": layers,
        "decoder_normalize_before": pre_norm,
        **others,
    }


_LIE = {"splitting": "lie"}
_V2 = {"attention_dropout": 0.1, "activation_dropout": 0.1}

TRANSLATION = {
    "macaron": Architecture(1024, _sizes(512, 8)),
    "macaron_base": Architecture(1024, _sizes(512, 8)),
    "macaron_big": Architecture(2048, _sizes(1024, 16, dropout=0.3)),
    "macaron_iwslt_de_en": Architecture(512, _sizes(512, 4)),
    "macaron_multi30k_de_en": Architecture(128, _sizes(128, 4, 2)),
    "macaron_tiny": Architecture(64, _sizes(64, 2, 2)),
    # the original's own names, for its released checkpoints
    "transformer_iwslt_de_en_macaron": Architecture(512, _sizes(512, 4, pre_norm=False), True),
    "transformer_iwslt_de_en_macaron_v2": Architecture(512, _sizes(512, 4, **_V2), True),
    "transformer_wmt_en_de_macaron": Architecture(1024, _sizes(512, 8, pre_norm=False), True),
    "transformer_wmt_en_de_macaron_v2": Architecture(1024, _sizes(512, 8, **_V2), True),
    "transformer_wmt_en_de_big_t2t_macaron": Architecture(2048, _sizes(1024, 16, dropout=0.3, **_V2), True),
    # its baselines that fairseq does not know
    "transformer_iwslt_de_en_v2": Architecture(512, _sizes(512, 4, **_V2, **_LIE), True),
    "transformer_wmt_en_de_v2": Architecture(1024, _sizes(512, 8, **_V2, **_LIE), True),
}


def _lm_sizes(dim: int, heads: int, layers: int, **others: Any) -> dict[str, Any]:
    return {
        "decoder_embed_dim": dim,
        "decoder_attention_heads": heads,
        "decoder_layers": layers,
        "decoder_normalize_before": True,
        **others,
    }


_ADAPTIVE = {
    "adaptive_input": True,
    "tie_adaptive_weights": True,
    "tie_adaptive_proj": True,
    "adaptive_input_cutoff": "20000,60000",
    "adaptive_softmax_cutoff": "20000,60000",
    "adaptive_softmax_dropout": 0.2,
    "dropout": 0.3,
    **_V2,
}

LANGUAGE_MODELS = {
    "macaron_lm": Architecture(1024, _lm_sizes(512, 8, 6)),
    "macaron_lm_base": Architecture(1024, _lm_sizes(512, 8, 6)),
    "macaron_lm_big": Architecture(2048, _lm_sizes(1024, 16, 12)),
    "macaron_lm_gpt2_small": Architecture(1536, _lm_sizes(768, 12, 12, activation_fn="gelu", attention_dropout=0.1)),
    "macaron_lm_wiki103": Architecture(2048, _lm_sizes(1024, 8, 16, **_ADAPTIVE)),
    "macaron_lm_tiny": Architecture(64, _lm_sizes(64, 2, 2)),
}
