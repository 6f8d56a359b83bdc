"""transformers' own tests of generation, and its common ones, on our model, from outside.

They are in a checkout of transformers, of the version that is installed, and take some 15 minutes; from its folder:

    python -m pytest -c /dev/null --noconftest MACARON/tests/seq2seq/transformers_own.py

(`-k "StrangTest and generate"` for a part of them; it takes `pip install parameterized`.) They are not collected with
the others. What fails there for a reason of its own:

* test_training_gradient_checkpointing*, of MacaronModel: models without a loss are left out by a list of transformers'
  own models.
* the checks of a cache's shape, for HeunTest: they take it that every layer of a cache for cross-attention is filled,
  and a solver of several stages fills one a layer (`macaron.seq2seq.context.Places`).
"""

import unittest
from typing import Any

import torch
from tests.generation.test_utils import GenerationTesterMixin  # of the checkout
from tests.test_modeling_common import ModelTesterMixin

from macaron.seq2seq import MacaronConfig, MacaronForConditionalGeneration, MacaronModel


class Tester:
    """What the mixins ask for: a configuration, a batch, and its sizes."""

    batch_size, seq_length, encoder_seq_length, decoder_seq_length = 13, 7, 7, 7
    num_hidden_layers, num_attention_heads, hidden_size, is_training = 2, 4, 16, True

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options

    def get_config(self) -> MacaronConfig:
        sizes = {"vocab_size": 99, "d_model": 16, "encoder_ffn_dim": 4, "decoder_ffn_dim": 4}
        stacks = {"encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
        rates = {"dropout": 0.1, "attention_dropout": 0.1, "max_position_embeddings": 50}
        return MacaronConfig(**{**sizes, **stacks, **rates, **self.options})

    def prepare_config_and_inputs_for_common(self) -> tuple[MacaronConfig, dict[str, torch.Tensor]]:
        source, target = torch.randint(3, 99, (2, self.batch_size, self.seq_length))
        source[:, -1] = 2
        masks = {"attention_mask": source.ne(1), "decoder_attention_mask": target.ne(1)}
        return self.get_config(), {"input_ids": source, "decoder_input_ids": target, **masks}

    prepare_config_and_inputs = prepare_config_and_inputs_for_common


class Own(ModelTesterMixin, GenerationTesterMixin):
    all_model_classes = (MacaronModel, MacaronForConditionalGeneration)
    is_encoder_decoder = True
    options: dict[str, Any] = {}  # noqa: RUF012

    def setUp(self) -> None:
        torch.manual_seed(0)
        self.model_tester = Tester(self.options)

    def _prepare_for_class(self, inputs: Any, model: Any, return_labels: bool = False) -> Any:
        made = super()._prepare_for_class(inputs, model, return_labels)
        if return_labels and model is MacaronForConditionalGeneration:
            made["labels"] = torch.zeros((13, 7), dtype=torch.long)
        return made


class StrangTest(Own, unittest.TestCase):
    pass


class LieTest(Own, unittest.TestCase):
    """Post-norm, two tables, an output projection of its own."""

    options = {  # noqa: RUF012
        **{"splitting": "lie", "encoder_normalize_before": False, "decoder_normalize_before": False},
        **{"share_encoder_decoder_embeddings": False, "source_vocab_size": 99, "tie_word_embeddings": False},
    }


class HeunTest(Own, unittest.TestCase):
    options = {"solver": "heun"}  # noqa: RUF012
