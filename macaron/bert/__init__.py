"""Macaron BERT for transformers: importing this package registers its models with the Auto classes."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForPreTraining,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertTokenizer,
)

from macaron.bert.configuration_macaron_bert import MacaronBertConfig
from macaron.bert.modeling_macaron_bert import (
    MacaronBertForMaskedLM,
    MacaronBertForMultipleChoice,
    MacaronBertForPreTraining,
    MacaronBertForQuestionAnswering,
    MacaronBertForSequenceClassification,
    MacaronBertForTokenClassification,
    MacaronBertModel,
    MacaronBertPreTrainedModel,
)

AUTO_CLASSES = {
    AutoModel: MacaronBertModel,
    AutoModelForPreTraining: MacaronBertForPreTraining,
    AutoModelForMaskedLM: MacaronBertForMaskedLM,
    AutoModelForSequenceClassification: MacaronBertForSequenceClassification,
    AutoModelForTokenClassification: MacaronBertForTokenClassification,
    AutoModelForQuestionAnswering: MacaronBertForQuestionAnswering,
    AutoModelForMultipleChoice: MacaronBertForMultipleChoice,
}

AutoConfig.register(MacaronBertConfig.model_type, MacaronBertConfig, exist_ok=True)
AutoTokenizer.register(MacaronBertConfig, tokenizer_class=BertTokenizer, exist_ok=True)
for _auto, _model in AUTO_CLASSES.items():
    _auto.register(MacaronBertConfig, _model, exist_ok=True)

__all__ = [
    "AUTO_CLASSES",
    "MacaronBertConfig",
    "MacaronBertForMaskedLM",
    "MacaronBertForMultipleChoice",
    "MacaronBertForPreTraining",
    "MacaronBertForQuestionAnswering",
    "MacaronBertForSequenceClassification",
    "MacaronBertForTokenClassification",
    "MacaronBertModel",
    "MacaronBertPreTrainedModel",
]
