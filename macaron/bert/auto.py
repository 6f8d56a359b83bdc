"""Which Auto class of transformers stands for which model."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForNextSentencePrediction,
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
    MacaronBertForNextSentencePrediction,
    MacaronBertForPreTraining,
    MacaronBertForQuestionAnswering,
    MacaronBertForSequenceClassification,
    MacaronBertForTokenClassification,
    MacaronBertModel,
)
from macaron.bert.tokenization_bpe import MacaronBertBpeTokenizer

AUTO_CLASSES = {
    AutoModel: MacaronBertModel,
    AutoModelForPreTraining: MacaronBertForPreTraining,
    AutoModelForMaskedLM: MacaronBertForMaskedLM,
    AutoModelForNextSentencePrediction: MacaronBertForNextSentencePrediction,
    AutoModelForSequenceClassification: MacaronBertForSequenceClassification,
    AutoModelForTokenClassification: MacaronBertForTokenClassification,
    AutoModelForQuestionAnswering: MacaronBertForQuestionAnswering,
    AutoModelForMultipleChoice: MacaronBertForMultipleChoice,
}


def register() -> None:
    """Make the Auto classes know Macaron BERT; again changes nothing."""
    AutoConfig.register(MacaronBertConfig.model_type, MacaronBertConfig, exist_ok=True)
    # the second is for folders whose tokenizer names it, such as originals converted with their BPE codes
    AutoTokenizer.register(
        MacaronBertConfig,
        tokenizer_class=BertTokenizer,
        fast_tokenizer_class=MacaronBertBpeTokenizer,
        exist_ok=True,
    )
    for auto, model in AUTO_CLASSES.items():
        auto.register(MacaronBertConfig, model, exist_ok=True)
