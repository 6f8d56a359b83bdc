"""Raw text to raw text as a pipeline of transformers, whose own for translation version 5 has removed.

import macaron.seq2seq.pipeline
translate = transformers.pipeline("macaron-translation", model=folder)
translate(["Guten Morgen!", "Gute Nacht."], batch_size=2)
"""

from typing import Any

from transformers import AutoModelForSeq2SeqLM
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.pipelines.base import Pipeline

from macaron.text import is_blank

TASK = "macaron-translation"


class TranslationPipeline(Pipeline):
    """A sentence, or any number of them, → `{"translation_text": …}` for each.

    Options of `generate()` go to the constructor or to a call. A sentence without anything to be seen stays empty, as
    in `macaron translate`.
    """

    _load_processor = _load_image_processor = _load_feature_extractor = False
    _load_tokenizer = True
    _pipeline_calls_generate = True

    def _sanitize_parameters(self, **options: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        return {}, options, {}

    def preprocess(self, text: Any) -> Any:
        if not isinstance(text, str):
            raise TypeError(f"a sentence must be a string, not {text!r}")
        return self.tokenizer("" if is_blank(text) else text, return_tensors="pt")

    def _forward(self, inputs: Any, **options: Any) -> dict[str, Any]:
        return {"found": self.model.generate(**inputs, **options), "source": inputs["input_ids"]}

    def postprocess(self, output: Any) -> dict[str, str]:
        nothing = {self.tokenizer.pad_token_id, self.tokenizer.eos_token_id}
        seen = not nothing.issuperset(output["source"].flatten().tolist())
        text = self.tokenizer.decode(output["found"][0], skip_special_tokens=True) if seen else ""
        return {"translation_text": text}


if TASK not in PIPELINE_REGISTRY.supported_tasks:
    PIPELINE_REGISTRY.register_pipeline(TASK, TranslationPipeline, pt_model=AutoModelForSeq2SeqLM)

__all__ = ["TASK", "TranslationPipeline"]
