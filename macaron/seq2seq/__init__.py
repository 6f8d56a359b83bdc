"""Macaron Net of encoder and decoder for transformers: importing this package registers its models with the Auto
classes."""

from macaron.seq2seq.auto import AUTO_CLASSES, register
from macaron.seq2seq.configuration_macaron import MacaronConfig
from macaron.seq2seq.hub import export_for_hub
from macaron.seq2seq.modeling_macaron import MacaronForConditionalGeneration, MacaronModel, MacaronPreTrainedModel
from macaron.seq2seq.tokenization_macaron import MacaronTokenizer

register()

__all__ = [
    "AUTO_CLASSES",
    "MacaronConfig",
    "MacaronForConditionalGeneration",
    "MacaronModel",
    "MacaronPreTrainedModel",
    "MacaronTokenizer",
    "export_for_hub",
    "register",
]
