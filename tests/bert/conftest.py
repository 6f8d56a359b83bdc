"""A tiny Macaron BERT and batches for it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from macaron.bert import MacaronBertConfig, MacaronBertModel

TINY = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.fixture
def config():
    """`config(**overrides)`: a tiny configuration, without dropout unless it is asked for."""

    def make(**overrides: Any) -> MacaronBertConfig:
        rates = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        return MacaronBertConfig(**{**TINY, "max_position_embeddings": 40, **rates, **overrides})

    return make


@pytest.fixture
def build(config):
    """`build(Model, **overrides)`: a model in evaluation mode whose parameters are all random, norms and biases too."""

    def make(model: type[nn.Module] = MacaronBertModel, **overrides: Any) -> Any:
        made = model(config(**overrides)).eval()
        with torch.no_grad():
            for module in made.modules():
                if isinstance(module, nn.LayerNorm) and module.elementwise_affine:
                    module.weight.normal_(1.0, 0.2)
                    module.bias.normal_(0.0, 0.2)
                elif isinstance(module, nn.Linear) and module.bias is not None:
                    module.bias.normal_(0.0, 0.1)
        return made

    return make


@pytest.fixture
def batch() -> dict[str, Tensor]:
    """Three pairs of sentences, of 9, 6 and 4 tokens, padded on the right."""
    ids = torch.randint(1, TINY["vocab_size"], (3, 9))
    real = torch.arange(9) < torch.tensor([[9], [6], [4]])
    segments = (torch.arange(9) >= 3) & real
    return {
        "input_ids": ids.masked_fill(~real, 0),
        "attention_mask": real.long(),
        "token_type_ids": segments.long(),
    }
