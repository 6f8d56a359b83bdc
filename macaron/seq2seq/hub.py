"""A folder for the hub that loads with `trust_remote_code=True` where this package is not installed."""

from macaron.hf.export import Family
from macaron.seq2seq.auto import AUTO_CLASSES
from macaron.seq2seq.configuration_macaron import MacaronConfig
from macaron.seq2seq.modeling_macaron import MacaronModel
from macaron.seq2seq.tokenization_macaron import SOURCE_VOCAB

FAMILY = Family("Macaron Net of encoder and decoder", MacaronConfig, MacaronModel, AUTO_CLASSES, (SOURCE_VOCAB,))
export_for_hub = FAMILY.export
"""Of a Macaron Net of encoder and decoder: see `macaron.hf.export.Family.export`."""

__all__ = ["export_for_hub"]
