"""A BERT of attention and FFN read as a BERT of Macaron layers: `macaron.bracketing` for models."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from macaron.bert.configuration_macaron_bert import MacaronBertConfig
from macaron.bert.modeling_macaron_bert import MacaronBertPreTrainedModel
from macaron.bracketing import Widths, rebracket
from macaron.dynamics.splitting import LIE, STRANG


def check_lie(config: Any) -> None:
    """
    Raises:
        ValueError: a configuration whose layers are not bracketed anew.
    """
    if not isinstance(config, MacaronBertConfig):
        raise ValueError(
            f"a model of type {getattr(config, 'model_type', None)!r} is no Macaron BERT; make one of it with "
            f"macaron.bert.from_transformers, or `macaron convert`"
        )
    if config.get_splitting().portable != LIE.portable:
        raise ValueError(
            f"splitting={config.splitting!r}: only a BERT of attention and FFN, lie, is bracketed anew, as the FFNs of "
            f"others stand elsewhere already"
        )
    taken = {"solver": "euler", "depth_rule": "euler", "horizon": "none", "norm_affine": True}
    for name, value in taken.items():
        if getattr(config, name) != value:
            raise ValueError(
                f"{name}={getattr(config, name)!r}: layers are bracketed anew with {name}={value!r} only, as published "
                f"encoders have it"
            )
    if not config.normalize_before and (config.embedding_size is not None or not config.embedding_norm):
        why = (
            f"embedding_size={config.embedding_size} puts a linear layer" if config.embedding_norm else "no norm stands"
        )
        raise ValueError(
            f"{why} ahead of the first layer, and a post-norm layer that begins with half a step has to take over the "
            f"gain and offset of a norm there; such a teacher (a small ELECTRA) does not fit"
        )


def to_strang(
    model: MacaronBertPreTrainedModel, widths: Widths | None = None, order: Sequence[Tensor] | None = None
) -> MacaronBertPreTrainedModel:
    """A model of Strang layers that begins near one of Lie layers; which stays as it is.

    Heads, pooler and tables of embeddings are the same. With all neurons behind the attention, `Widths(n, F)`, it is
    the same function; see `macaron.bracketing`.

    Args:
        model: of splitting "lie", whatever its head; a published one by `macaron.bert.from_transformers`.
        widths: of the two FFNs of a layer; None is half of the neurons each.
        order: for each layer its neurons, those first that shall stand behind the attention; None is by their weights.

    Raises:
        ValueError: another kind of model, or widths that do not fit.
    """
    check_lie(model.config)
    config: Any = copy.deepcopy(model.config)
    widths = (widths or Widths.halves(config.intermediate_size)).check(config.intermediate_size)
    config.splitting = STRANG.portable
    config.first_intermediate_size, config.intermediate_size = widths
    config.first_hidden_act = config.hidden_act
    base = f"{model.base_model_prefix}." if hasattr(model, model.base_model_prefix) else ""
    norm_before = None if config.normalize_before else f"{base}embeddings.norm."
    tensors = rebracket(model.state_dict(), f"{base}layers.", widths, order=order, norm_before=norm_before)
    with torch.random.fork_rng(devices=[]):
        made = type(model)(config)
    made.load_state_dict({name: tensor.detach().clone() for name, tensor in tensors.items()}, assign=True)
    made.tie_weights()
    return made.train(model.training)


__all__ = ["check_lie", "to_strang"]
