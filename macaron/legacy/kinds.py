"""What a checkpoint of the original holds, told from the names of its parameters."""

from collections.abc import Mapping

from macaron.names import is_foreign

# The original's own names for translation models; the Transformer under any other name is fairseq's.
TRANSLATION = frozenset(
    {
        *("transformer_iwslt_de_en_macaron", "transformer_iwslt_de_en_macaron_v2", "transformer_iwslt_de_en_v2"),
        *("transformer_wmt_en_de_macaron", "transformer_wmt_en_de_macaron_v2", "transformer_wmt_en_de_v2"),
        "transformer_wmt_en_de_big_t2t_macaron",
    }
)
_HEADS = ("classifier.", "mid_layer.", "embed_out")


def is_translation(model: Mapping[str, object]) -> bool:
    """Whether it has a decoder under the original's names, or those of fairseq's Transformer."""
    return is_foreign(model) and any(name.startswith("decoder.layers.") for name in model)


def is_bert(model: Mapping[str, object]) -> bool:
    """Whether it is an encoder of the original with heads of BERT or of a classifier, and no decoder."""
    return is_foreign(model) and not is_translation(model) and any(name.startswith(_HEADS) for name in model)
