"""The decoder alone, as a language model: FFN½ – causal self-attention – FFN½ with `strang`."""

import ast
from argparse import ArgumentParser, Namespace
from typing import Any, ClassVar

from fairseq import options
from fairseq.models import FairseqLanguageModel
from fairseq.models.transformer import Embedding, TransformerConfig
from fairseq.models.transformer_lm import DEFAULT_MAX_TARGET_POSITIONS, base_lm_architecture
from fairseq.modules import AdaptiveInput, CharacterTokenEmbedder
from torch import nn

from .. import hub
from ..architectures import LANGUAGE_MODELS, Architecture
from ..config import MacaronLMConfig, add_args, complete, record
from ..scripting import KeptByScripting
from ..training import check_task_data
from ..weights import ParticleWeights
from .macaron import MacaronDecoder, register


def _embedding(args: Namespace, dictionary: Any) -> nn.Module:
    if args.character_embeddings:
        return CharacterTokenEmbedder(
            dictionary,
            ast.literal_eval(args.character_filters),
            args.character_embedding_dim,
            args.decoder_embed_dim,
            args.char_embedder_highway_layers,
        )
    if args.adaptive_input:
        return AdaptiveInput(
            len(dictionary),
            dictionary.pad(),
            args.decoder_input_dim,
            args.adaptive_input_factor,
            args.decoder_embed_dim,
            options.eval_str_list(args.adaptive_input_cutoff, type=int),
            args.quant_noise_pq,
            args.quant_noise_pq_block_size,
        )
    return Embedding(len(dictionary), args.decoder_input_dim, dictionary.pad())


def _check_tied(args: Namespace) -> None:
    """Tied adaptive weights need an input table that is cut like the output."""
    pairs = (
        ("adaptive_input_factor", "adaptive_softmax_factor"),
        ("adaptive_input_cutoff", "adaptive_softmax_cutoff"),
        ("decoder_input_dim", "decoder_output_dim"),
    )
    if not args.adaptive_input:
        raise ValueError("--tie-adaptive-weights needs --adaptive-input")
    for a, b in pairs:
        if getattr(args, a) != getattr(args, b):
            raise ValueError(
                f"--tie-adaptive-weights needs --{a.replace('_', '-')} ({getattr(args, a)}) equal to "
                f"--{b.replace('_', '-')} ({getattr(args, b)})"
            )


class MacaronLanguageModel(ParticleWeights, KeptByScripting, FairseqLanguageModel):
    """A causal language model on particle layers, with the options of fairseq's `transformer_lm`."""

    architecture: ClassVar[Architecture] = LANGUAGE_MODELS["macaron_lm"]
    config: ClassVar[type] = MacaronLMConfig

    @classmethod
    def hub_models(cls) -> dict[str, str]:
        return {}

    @classmethod
    def from_pretrained(
        cls, model_name_or_path: Any, checkpoint_file: str = "model.pt", data_name_or_path: Any = ".", **kwargs: Any
    ) -> hub.HubModel:
        """As fairseq's, of folders on this machine: nothing is downloaded or unpacked.

        Raises:
            ValueError: a wrong place; says what was expected and what was found.
        """
        return hub.open_checkpoints(
            MacaronLanguageModel, model_name_or_path, checkpoint_file, data_name_or_path, **kwargs
        )

    @classmethod
    def add_args(cls, parser: ArgumentParser) -> None:
        """Add the model's options to a command line."""
        add_args(parser, cls.config())

    @classmethod
    def build_model(cls, cfg: Any, task: Any) -> "MacaronLanguageModel":
        """Build a model from a dataclass, a hydra config or a (partial) namespace.

        Raises:
            ValueError: an unknown splitting, or options that do not fit each other.
        """
        check_task_data(task)
        args = complete(cfg, cls.config(), cls.architecture)
        base_lm_architecture(args)
        if args.max_target_positions is None:
            args.max_target_positions = getattr(args, "tokens_per_sample", None) or DEFAULT_MAX_TARGET_POSITIONS
        if args.tie_adaptive_weights:
            _check_tied(args)
        embed_tokens = _embedding(args, task.source_dictionary)
        decoder = MacaronDecoder(
            TransformerConfig.from_namespace(args), task.target_dictionary, embed_tokens, no_encoder_attn=True
        )
        model = cls(decoder)
        model.args = args
        record(args, cfg, cls.config())
        return model


MODELS = register(LANGUAGE_MODELS, MacaronLanguageModel, MacaronLMConfig)
