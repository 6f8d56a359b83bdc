"""Macaron BERT for transformers: importing this package registers its models with the Auto classes."""

from macaron.bert.auto import AUTO_CLASSES, register
from macaron.bert.bracketing import to_strang
from macaron.bert.configuration_macaron_bert import MacaronBertConfig
from macaron.bert.deploy import load_int8
from macaron.bert.foreign import from_transformers
from macaron.bert.hub import export_for_hub
from macaron.bert.modeling_macaron_bert import (
    MacaronBertForMaskedLM,
    MacaronBertForMultipleChoice,
    MacaronBertForNextSentencePrediction,
    MacaronBertForPreTraining,
    MacaronBertForQuestionAnswering,
    MacaronBertForSequenceClassification,
    MacaronBertForTokenClassification,
    MacaronBertModel,
    MacaronBertPreTrainedModel,
)
from macaron.bert.tokenization_bpe import MacaronBertBpeTokenizer

register()

__all__ = [
    "AUTO_CLASSES",
    "MacaronBertBpeTokenizer",
    "MacaronBertConfig",
    "MacaronBertForMaskedLM",
    "MacaronBertForMultipleChoice",
    "MacaronBertForNextSentencePrediction",
    "MacaronBertForPreTraining",
    "MacaronBertForQuestionAnswering",
    "MacaronBertForSequenceClassification",
    "MacaronBertForTokenClassification",
    "MacaronBertModel",
    "MacaronBertPreTrainedModel",
    "export_for_hub",
    "from_transformers",
    "load_int8",
    "register",
    "to_strang",
]
