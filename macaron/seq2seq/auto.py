"""Which Auto class of transformers stands for which model."""

from transformers import AutoConfig, AutoModel, AutoModelForSeq2SeqLM, AutoTokenizer

from macaron.seq2seq.configuration_macaron import MacaronConfig
from macaron.seq2seq.modeling_macaron import MacaronForConditionalGeneration, MacaronModel
from macaron.seq2seq.tokenization_macaron import MacaronTokenizer

AUTO_CLASSES = {AutoModel: MacaronModel, AutoModelForSeq2SeqLM: MacaronForConditionalGeneration}


def register() -> None:
    """Make the Auto classes know Macaron Net; again changes nothing."""
    AutoConfig.register(MacaronConfig.model_type, MacaronConfig, exist_ok=True)
    AutoTokenizer.register(MacaronConfig, tokenizer_class=MacaronTokenizer, exist_ok=True)
    for auto, model in AUTO_CLASSES.items():
        auto.register(MacaronConfig, model, exist_ok=True)
