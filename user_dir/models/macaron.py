"""Macaron Net for translation: fairseq's Transformer with particle layers in place of its own."""

import sys
from argparse import ArgumentParser
from pathlib import Path
from typing import Any, ClassVar

import torch
from fairseq.distributed import fsdp_wrap
from fairseq.models import ARCH_CONFIG_REGISTRY, register_model
from fairseq.models.transformer import (
    TransformerConfig,
    TransformerDecoderBase,
    TransformerEncoderBase,
    TransformerModelBase,
)
from fairseq.models.transformer.transformer_legacy import base_architecture
from fairseq.modules.checkpoint_activations import checkpoint_wrapper
from torch import Tensor, nn

from macaron.dynamics.depth import Arguments, Depth
from macaron.dynamics.scheme import Scheme

from .. import hub
from ..architectures import TRANSLATION, Architecture
from ..config import MacaronConfig, add_args, complete, config_for, record
from ..criterions import reads_attention
from ..layers import LaterState, MacaronDecoderLayer, MacaronEncoderLayer
from ..rules import log_rule, spared
from ..scripting import KeptByScripting
from ..training import check_task_data, prepare_training
from ..weights import ParticleWeights


def wrap_layer(layer: nn.Module, cfg: TransformerConfig) -> nn.Module:
    """Activation checkpointing and FSDP, as fairseq does for its own layers."""
    if cfg.checkpoint_activations:
        layer = checkpoint_wrapper(layer, offload_to_cpu=cfg.offload_activations)
    return fsdp_wrap(layer, min_num_params=0 if cfg.checkpoint_activations else cfg.min_params_to_wrap)


def _drop_final_norm(module: nn.Module, state_dict: dict[str, Tensor], name: str) -> None:
    """Checkpoints below version 2 come from pre-norm models without a norm after the last layer."""
    version = state_dict.get(f"{name}.version")
    has_norm = f"{name}.layer_norm.weight" in state_dict
    if (version is None or version.item() < 2) and not has_norm:
        module.layer_norm = None
    if version is None:
        state_dict[f"{name}.version"] = module.version.clone()


def _depth(cfg: TransformerConfig, side: Any, layers: nn.ModuleList) -> dict[str, Any]:
    """The arguments of `Depth` for the layers of one side."""
    scheme, depth = Scheme.of(cfg).check_increments(side.normalize_before), len(layers)
    rule = spared(scheme.rule(depth, side.embed_dim))
    return {"layers": layers, "rule": rule, "noise": scheme.noise(depth), "batch_dim": 1}


class MacaronEncoder(KeptByScripting, TransformerEncoderBase):
    """fairseq's Transformer encoder on `MacaronEncoderLayer`s."""

    def __init__(self, cfg: TransformerConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(cfg, *args, **kwargs)
        self.layers = Depth(**_depth(cfg, cfg.encoder, self.layers), layerdrop=self.encoder_layerdrop)

    def set_num_updates(self, num_updates: int) -> None:
        log_rule("enc", self.layers.rule)

    def build_encoder_layer(self, cfg: TransformerConfig) -> nn.Module:
        return wrap_layer(MacaronEncoderLayer(cfg), cfg)

    def upgrade_state_dict_named(self, state_dict: dict[str, Tensor], name: str) -> dict[str, Tensor]:
        _drop_final_norm(self, state_dict, name)
        return state_dict


class DecoderDepth(Depth):
    """Layers that keep keys and values of earlier steps, of each evaluation their own."""

    def again(self, times: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        if len(args) > 2:
            return (*args[:2], LaterState.of(args[2], times), *args[3:]), kwargs
        if "incremental_state" in kwargs:
            kwargs = {**kwargs, "incremental_state": LaterState.of(kwargs["incremental_state"], times)}
        return args, kwargs


class MacaronDecoder(KeptByScripting, TransformerDecoderBase):
    """fairseq's Transformer decoder on `MacaronDecoderLayer`s."""

    def __init__(self, cfg: TransformerConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(cfg, *args, **kwargs)
        depth = _depth(cfg, cfg.decoder, self.layers)
        self.layers = DecoderDepth(**depth, layerdrop=self.decoder_layerdrop, others=(None, None))
        self.weights_in_training = True  # whether anything in training may read the attention weights

    def set_num_updates(self, num_updates: int) -> None:
        log_rule("dec", self.layers.rule)

    def build_decoder_layer(self, cfg: TransformerConfig, no_encoder_attn: bool = False) -> nn.Module:
        return wrap_layer(MacaronDecoderLayer(cfg, no_encoder_attn), cfg)

    def buffered_future_mask(self, tensor: Tensor) -> Tensor:
        # the layers read an empty mask as "causal", which torch's kernels know without a matrix
        return torch.empty(0, device=tensor.device)

    def extract_features(
        self,
        prev_output_tokens: Tensor,
        encoder_out: dict[str, list[Tensor]] | None,
        incremental_state: dict[str, dict[str, Tensor | None]] | None = None,
        full_context_alignment: bool = False,
        alignment_layer: int | None = None,
        alignment_heads: int | None = None,
    ) -> tuple[Tensor, dict[str, list[Tensor | None]]]:
        """As fairseq's, but in training no layer computes attention weights that nothing reads."""
        if alignment_layer is None and self.training and not self.weights_in_training:
            alignment_layer = -1  # no layer
        return self.extract_features_scriptable(
            prev_output_tokens,
            encoder_out,
            incremental_state,
            full_context_alignment,
            alignment_layer,
            alignment_heads,
        )

    def upgrade_state_dict_named(self, state_dict: dict[str, Tensor], name: str) -> dict[str, Tensor]:
        projection = f"{name}.output_projection.weight"
        if projection not in state_dict and self.share_input_output_embed and self.adaptive_softmax is None:
            state_dict[projection] = state_dict[f"{name}.embed_tokens.weight"]
        _drop_final_norm(self, state_dict, name)
        return state_dict


class MacaronModel(ParticleWeights, KeptByScripting, TransformerModelBase):
    """Macaron Net (Lu et al. 2019, arXiv:1906.02762) for sequence-to-sequence tasks.

    Each layer is one step of an operator splitting (`--splitting`): with `strang` FFN½ – attention – FFN½, with
    `lie` the Transformer itself. Whatever fairseq does with `transformer` works here: the embeddings, the loops over
    layers and the decoding are its own. Checkpoints of the original implementation, and weights of fairseq's
    Transformer into `lie`, load by name.
    """

    architecture: ClassVar[Architecture] = TRANSLATION["macaron"]
    config: ClassVar[type] = MacaronConfig

    @classmethod
    def hub_models(cls) -> dict[str, str]:
        return {}

    @classmethod
    def from_pretrained(
        cls, model_name_or_path: Any, checkpoint_file: str = "model.pt", data_name_or_path: Any = ".", **kwargs: Any
    ) -> hub.HubModel:
        """As fairseq's, of folders on this machine: nothing is downloaded or unpacked.

        A folder made by `recipes.translation.release` is a model that translates raw text.

        >>> MacaronModel.from_pretrained("release").translate("Guten Morgen!")

        Raises:
            ValueError: a wrong place, or a released folder that is not whole; says what was expected.
        """
        if hub.is_release(model_name_or_path, data_name_or_path):
            return hub.open_release(MacaronModel, Path(model_name_or_path), checkpoint_file, **kwargs)
        return hub.open_checkpoints(MacaronModel, model_name_or_path, checkpoint_file, data_name_or_path, **kwargs)

    @classmethod
    def add_args(cls, parser: ArgumentParser) -> None:
        """Add the model's options to a command line."""
        add_args(parser, cls.config())

    @classmethod
    def build_model(cls, cfg: Any, task: Any) -> "MacaronModel":
        """Build a model from a dataclass, a hydra config or a (partial) namespace.

        Raises:
            ValueError: an unknown splitting, or sizes or vocabularies that do not fit each other.
        """
        check_task_data(task)
        args = complete(cfg, cls.config(), cls.architecture)
        base_architecture(args)
        if args.share_all_embeddings:
            args.share_decoder_input_output_embed = True
        model = super().build_model(TransformerConfig.from_namespace(args), task)
        model.args = args
        model.decoder.weights_in_training = reads_attention(cfg, task)
        record(args, cfg, cls.config())
        return model

    @classmethod
    def build_encoder(cls, cfg: TransformerConfig, src_dict: Any, embed_tokens: nn.Module) -> MacaronEncoder:
        return MacaronEncoder(cfg, src_dict, embed_tokens)

    @classmethod
    def build_decoder(cls, cfg: TransformerConfig, tgt_dict: Any, embed_tokens: nn.Module) -> MacaronDecoder:
        return MacaronDecoder(cfg, tgt_dict, embed_tokens, no_encoder_attn=cfg.no_cross_attention)


def register(models: dict[str, Architecture], model: type, config: type) -> dict[str, type]:
    """Register each architecture as a model of its own, so that `--arch` and hydra's `_name` mean the same.

    The classes become attributes of the module of `model`, where pickle looks for them.
    """
    registered = {}
    home = model.__module__
    for name, architecture in models.items():
        dataclass = config_for(name, architecture, config)
        words = "".join(word.capitalize() for word in name.split("_"))
        attributes = {"architecture": architecture, "config": dataclass, "__module__": home}
        registered[name] = register_model(name, dataclass=dataclass)(type(words, (model,), attributes))
        setattr(sys.modules[home], words, registered[name])
        # fairseq calls this at the end of parsing, for every command that builds a model anew
        ARCH_CONFIG_REGISTRY[name] = prepare_training
    return registered


MODELS = register(TRANSLATION, MacaronModel, MacaronConfig)
