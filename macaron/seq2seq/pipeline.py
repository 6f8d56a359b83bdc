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
    """A sentence, or any number of them, → `{"translation_text": …}` for each; a list of these for each where
    `num_return_sequences` asks for several.

    Options of `generate()` go to the constructor or to a call, and `truncation=True`, which cuts off what is longer
    than the model takes. A sentence without anything to be seen stays empty, as in `macaron translate`.
    """

    _load_processor = _load_image_processor = _load_feature_extractor = False
    _load_tokenizer = True
    _pipeline_calls_generate = True

    def __call__(self, inputs: Any, **options: Any) -> Any:
        return [] if inputs == [] else super().__call__(inputs, **options)

    def _sanitize_parameters(
        self, truncation: Any = None, **options: Any
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        return {} if truncation is None else {"truncation": truncation}, options, {}

    def preprocess(self, text: Any, **options: Any) -> Any:
        if not isinstance(text, str):
            raise TypeError(f"a sentence must be a string, not {text!r}")
        return self.tokenizer("" if is_blank(text) else text, return_tensors="pt", **options)

    def _forward(self, inputs: Any, **options: Any) -> dict[str, Any]:
        source, found = inputs["input_ids"], self.model.generate(**inputs, **options)
        found = getattr(found, "sequences", found)
        return {"found": found.view(len(source), -1, found.size(1)), "source": source}

    def postprocess(self, output: Any) -> Any:
        nothing = {self.tokenizer.pad_token_id, self.tokenizer.eos_token_id}
        seen = not nothing.issuperset(output["source"].flatten().tolist())
        texts = self.tokenizer.batch_decode(output["found"][0], skip_special_tokens=True)
        rows = [{"translation_text": text if seen else ""} for text in texts]
        return rows if len(rows) > 1 else rows[0]


if TASK not in PIPELINE_REGISTRY.supported_tasks:
    PIPELINE_REGISTRY.register_pipeline(TASK, TranslationPipeline, pt_model=AutoModelForSeq2SeqLM)

__all__ = ["TASK", "TranslationPipeline"]
