"""Which Auto class of transformers stands for which model."""

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


def register() -> None:
    """Make the Auto classes know Macaron BERT; again changes nothing."""
    AutoConfig.register(MacaronBertConfig.model_type, MacaronBertConfig, exist_ok=True)
    AutoTokenizer.register(MacaronBertConfig, tokenizer_class=BertTokenizer, exist_ok=True)
    for auto, model in AUTO_CLASSES.items():
        auto.register(MacaronBertConfig, model, exist_ok=True)
