"""A folder for the hub that loads with `trust_remote_code=True` where this package is not installed."""

from macaron.bert.auto import AUTO_CLASSES
from macaron.bert.configuration_macaron_bert import MacaronBertConfig
from macaron.bert.modeling_macaron_bert import MacaronBertModel
from macaron.hf.export import Family

FAMILY = Family("Macaron BERT", MacaronBertConfig, MacaronBertModel, AUTO_CLASSES, ("tokenizer.json", "vocab.txt"))
load = FAMILY.load
export_for_hub = FAMILY.export
"""Of a Macaron BERT: see `macaron.hf.export.Family.export`."""

__all__ = ["export_for_hub"]
