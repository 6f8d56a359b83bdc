"""Options of the models: flat dataclasses, so that command-line flags and hydra keys are the same names."""

import argparse
from argparse import Namespace
from collections.abc import Iterable
from dataclasses import MISSING, field, fields, make_dataclass
from enum import Enum
from typing import Any, Optional

from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.dataclass.utils import gen_parser_from_dataclass
from fairseq.models.transformer import TransformerConfig
from fairseq.models.transformer.transformer_config import DecoderConfig, EncDecBaseConfig, QuantNoiseConfig
from fairseq.models.transformer_lm import TransformerLanguageModelConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from macaron.dynamics.noise import FORMS, SCHEDULES, UNITS
from macaron.dynamics.rules import RULES
from macaron.dynamics.scheme import OPTIONS, Scheme
from macaron.dynamics.solvers import SOLVERS
from macaron.dynamics.splitting import CROSS_ATTENTION, FFN, SELF_ATTENTION, SPLITTINGS
from macaron.particles.flows import FLOWS

from .architectures import Architecture
from .pruning import SIDES, kept_layers


def choices(name: str, values: Iterable[str]) -> type[Enum]:
    """fairseq's type of an option that takes one of `values`, as an attribute of this module, where pickle looks."""
    made = ChoiceEnum(list(values))
    made.__name__ = made.__qualname__ = name
    made.__module__ = __name__
    known = globals().setdefault(name, made)
    assert list(map(str, known)) == list(map(str, made)), f"two options called {name} take different values"
    return known


_GROUPS = {"encoder": EncDecBaseConfig, "decoder": DecoderConfig, "quant_noise": QuantNoiseConfig}

Fields = dict[str, tuple[Any, Any]]  # name → (type, dataclasses.field)


# What fairseq leaves without a help text.
_MISSING_HELP = {
    "adaptive_input": "use adaptive input embeddings",
    "relu_dropout": "former name of --activation-dropout, used where that is 0",
}


def _camel_case(name: str) -> str:
    return "".join(word.capitalize() for word in name.split("_"))


def _option(type_: Any, default: Any, help_: str | None = None) -> tuple[Any, Any]:
    return type_, field(default=default, metadata={"help": help_})


def _copied(dataclass: type[FairseqDataclass], prefix: str = "") -> Fields:
    """The fields of one of fairseq's dataclasses, with their help texts."""
    copied = {}
    for f in fields(dataclass):
        if f.name.startswith("_") or f.type in _GROUPS.values():
            continue
        default = f.default if f.default is not MISSING else None
        metadata = {"help": _MISSING_HELP.get(f.name), **f.metadata}
        type_ = f.type
        if isinstance(type_, type) and issubclass(type_, Enum):
            type_ = choices(_camel_case(f.name) + "Choice", [str(choice) for choice in type_])
        copied[prefix + f.name] = (type_, field(default=default, metadata=metadata))
    return copied


def _ffn_options(side: str) -> Fields:
    return {
        f"{side}_ffn_embed_dim": _option(
            Optional[int],
            None,
            f"width of the {side}'s FFN; default: the architecture's width for each half step of strang, and its "
            "double for the one FFN of lie, so that both have equal parameters",
        ),
        f"{side}_first_ffn_embed_dim": _option(
            Optional[int],
            None,
            f"width of the FFN before attention in the {side}, for splittings with two (default: "
            f"--{side}-ffn-embed-dim)",
        ),
    }


_LAYERS: Fields = {
    "splitting": _option(
        str,
        "strang",
        "operator splitting of a layer: strang = FFN half step, attention, FFN half step (Macaron Net); "
        "lie = attention, FFN (the Transformer); or the flows in order, each with its divisor: "
        "'attention/2 ffn attention/2'",
    ),
    "solver": _option(
        str,
        "euler",
        "how each flow of a layer is followed; of several stages, which share its parameters and its dropout masks, "
        "all but euler",
    ),
    "depth_rule": _option(
        str,
        "euler",
        "how the next state follows from the last ones along depth: multistep remembers the one before by weights "
        "that are learned (LM-ResNet), rk2, rk2_learned and rk4 evaluate each layer several times (ODE Transformer)",
    ),
    "dt": _option(float, 1.0, "time step of a layer, which scales all that it adds"),
    "multistep_init": _option(
        str, "0", "where the weights k of --depth-rule multistep begin: a number in (-1, 1], or lm_resnet: in (-0.1, 0]"
    ),
    "stochastic_depth": _option(
        float,
        0.0,
        "drop rate of the last layer in training, in [0, 1); those of the others: --stochastic-depth-schedule",
    ),
    "stochastic_depth_schedule": _option(
        str,
        "lm_resnet",
        "drop rate of layer n = 0 ... L-1, as a part of the last one's: lm_resnet n/(L-1), torch (n+1)/L, constant 1",
    ),
    "stochastic_depth_form": _option(
        str,
        "scaled",
        "scaled: survivors are divided by their probability, and evaluation is the plain model; sde: the noise of a "
        "stochastic differential equation, its mean in evaluation; unscaled: survivors as they are, and in evaluation "
        "each layer times its probability",
    ),
    "stochastic_depth_unit": _option(str, "batch", "what a layer is dropped for: the batch, or each sentence"),
    "compile": _option(
        bool,
        False,
        "compile the layers for training (torch.compile), once for all lengths; the first updates take longer",
    ),
}


def _translation_fields() -> Fields:
    result: Fields = {}
    for name, option in _copied(TransformerConfig).items():
        result[name] = option
    for group, dataclass in _GROUPS.items():
        result.update(_copied(dataclass, prefix=f"{group}_"))
    for side in ("encoder", "decoder"):
        # fairseq prunes by a string such as "0,2"
        help_ = "which layers to *keep* when pruning, as a comma-separated list"
        result[f"{side}_layers_to_keep"] = _option(Optional[str], None, help_)
        result.update(_ffn_options(side))
        del result[f"{side}_xformers_att_config"]
    same = " (default: --encoder-embed-dim)"
    result["decoder_embed_dim"] = _option(Optional[int], None, "decoder embedding dimension" + same)
    same = " (default: --decoder-embed-dim)"
    result["decoder_input_dim"] = _option(Optional[int], None, "decoder input dimension" + same)
    result["decoder_output_dim"] = _option(
        Optional[int], None, "decoder output dimension, reached by an extra linear layer if it differs" + same
    )
    result.update(_LAYERS)
    return result


def _lm_fields() -> Fields:
    result = _copied(TransformerLanguageModelConfig)
    for name in ("scale_fc", "scale_attn", "scale_heads", "scale_resids", "decoder_xformers_att_config"):
        del result[name]  # NormFormer and xFormers change fairseq's own layer
    result.update(_ffn_options("decoder"))
    for name in ("decoder_input_dim", "decoder_output_dim"):
        words = name.replace("_", " ").replace("dim", "dimension")
        result[name] = _option(Optional[int], None, f"{words} (default: --decoder-embed-dim)")
    result.update(_LAYERS)
    return result


def _make(class_name: str, options: Fields, base: type, doc: str) -> type[FairseqDataclass]:
    made = make_dataclass(
        class_name, [(name, type_, default) for name, (type_, default) in options.items()], bases=(base,)
    )
    made.__doc__ = doc
    made.__module__ = __name__
    globals()[class_name] = made  # where pickle looks for it
    return made


MacaronConfig = _make("MacaronConfig", _translation_fields(), FairseqDataclass, "Options of the encoder–decoder model.")
MacaronLMConfig = _make("MacaronLMConfig", _lm_fields(), FairseqDataclass, "Options of the language model.")


def config_for(name: str, architecture: Architecture, base: type[FairseqDataclass]) -> type[FairseqDataclass]:
    """The sub-class of `base` whose defaults are those of one named architecture."""
    known = {f.name: f for f in fields(base)}
    options = {}
    for option, value in architecture.defaults.items():
        old = known[option]
        options[option] = (old.type, field(default=value, metadata=dict(old.metadata)))
    return _make(f"{_camel_case(name)}ArchConfig", options, base, f"Options of --arch {name}.")


def add_args(parser: argparse.ArgumentParser, config: FairseqDataclass) -> None:
    """Declare the options of a model on a command line, without defaults, which its configuration holds.

    An option that is on by default gets `--no-…`; fairseq alone would let the flag itself switch it off.
    """
    for f in fields(config):
        if f.type is bool and getattr(config, f.name) is True:
            parser.add_argument(
                "--" + f.name.replace("_", "-"),
                action=argparse.BooleanOptionalAction,
                default=argparse.SUPPRESS,
                help=f.metadata.get("help"),
            )
    for name, known in _KNOWN.items():
        type_, option = _LAYERS[name]
        listed = f" (registered: {', '.join(known)})" if known else ""
        parser.add_argument(
            "--" + name.replace("_", "-"),
            type=_reader(name, type_),
            default=argparse.SUPPRESS,
            metavar="NAME" if known else "X",
            help=f"{option.metadata['help']}{listed}",
        )
    gen_parser_from_dataclass(parser, config, delete_default=True)  # leaves those that are there


_KNOWN: dict[str, Iterable[str]] = {
    "splitting": SPLITTINGS,
    "solver": SOLVERS,
    "depth_rule": RULES,
    "dt": (),
    "multistep_init": (),
    "stochastic_depth": (),
    "stochastic_depth_schedule": SCHEDULES,
    "stochastic_depth_form": FORMS,
    "stochastic_depth_unit": UNITS,
}
assert tuple(sorted(_KNOWN)) == tuple(sorted(OPTIONS))

# Beside what else a value may stand, so that it can be looked at by itself.
_COMPANY = {
    "multistep_init": {"depth_rule": "multistep"},
    **{f"stochastic_depth_{what}": {"stochastic_depth": 0.5} for what in ("schedule", "form", "unit")},
}


def _reader(name: str, type_: type) -> Any:
    """What argparse makes of the text of an option of the scheme: its value, in the form that checkpoints keep."""

    def read(given: str) -> Any:
        try:
            value = type_(given)
            scheme = _checked(Scheme.of(Namespace(**{**_COMPANY.get(name, {}), name: value})))
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
        return scheme.splitting.portable if name == "splitting" else value

    return read


def _checked(scheme: Scheme) -> Scheme:
    """Cross-attention need not be named: it follows self-attention where there is a memory."""
    return scheme.check_flows((FFN, SELF_ATTENTION, CROSS_ATTENTION, *FLOWS), needed=(FFN, SELF_ATTENTION))


def complete(args: Any, config: FairseqDataclass, architecture: Architecture) -> Namespace:
    """All options as a namespace, whatever they came in: missing ones from `config`, dependent ones filled in.

    Raises:
        ValueError: an unknown splitting, or sizes that do not fit each other.
    """
    if isinstance(args, DictConfig):
        given = OmegaConf.to_container(args, resolve=True, enum_to_str=True)
    elif isinstance(args, Namespace):
        given = vars(args)
    else:
        given = {f.name: getattr(args, f.name) for f in fields(args)}
    names = {f.name for f in fields(config)}
    ns = Namespace(**{name: getattr(config, name) for name in names})
    for name, value in given.items():
        # None stands for "not given" in namespaces; interpolations are resolved by hydra alone
        if value is not None or name not in names:
            setattr(ns, name, value)
    for name, value in vars(ns).items():
        if isinstance(value, str) and value.startswith("${"):
            setattr(ns, name, None)
    scheme = _checked(Scheme.of(ns))
    ns.splitting = scheme.splitting.portable
    for side in SIDES:
        if hasattr(ns, f"{side}_normalize_before"):
            scheme.check_increments(getattr(ns, f"{side}_normalize_before"))
    _fill_widths(ns, scheme.ffn_width(2 * architecture.ffn), architecture.original)
    for side in SIDES:
        if kept := kept_layers(ns, side):
            setattr(ns, f"{side}_layers", len(kept))
    return ns


def record(args: Namespace, cfg: Any, config: FairseqDataclass) -> None:
    """Write what was settled into the configuration that checkpoints save, so that they load whatever defaults become.

    fairseq hands a model a merged copy of it. Pruning is done once, so it is left out.
    """
    if not isinstance(cfg, DictConfig):
        return
    whole = cfg._get_parent()
    saved = whole.get("model") if isinstance(whole, DictConfig) else None
    for node in (cfg, saved):
        if not isinstance(node, DictConfig) or node.get("_name") != cfg.get("_name"):
            continue
        with open_dict(node):
            for f in fields(config):
                value = None if f.name.endswith("_layers_to_keep") else getattr(args, f.name)
                if not f.name.startswith("_") and node.get(f.name) != value:
                    node[f.name] = value


def _fill_widths(ns: Namespace, width: int, original: bool) -> None:
    sides: list[str] = [side for side in ("encoder", "decoder") if hasattr(ns, f"{side}_ffn_embed_dim")]
    if ns.decoder_embed_dim is None:
        ns.decoder_embed_dim = ns.encoder_embed_dim
    for side in sides:
        if getattr(ns, f"{side}_ffn_embed_dim") is None:
            setattr(ns, f"{side}_ffn_embed_dim", width)
            if side == "decoder" and "encoder" in sides:
                ns.decoder_ffn_embed_dim = ns.encoder_ffn_embed_dim
        first = f"{side}_first_ffn_embed_dim"
        if getattr(ns, first) is None:
            by_original = "encoder" if original else side
            setattr(ns, first, getattr(ns, f"{by_original}_ffn_embed_dim"))
        for option in (f"{side}_ffn_embed_dim", first):
            _positive(option, getattr(ns, option))
        dim, heads = getattr(ns, f"{side}_embed_dim"), getattr(ns, f"{side}_attention_heads")
        _positive(f"{side}_embed_dim", dim)
        _positive(f"{side}_attention_heads", heads)
        if dim % heads:
            raise ValueError(
                f"--{side}-embed-dim {dim} does not divide into --{side}-attention-heads {heads}; choose a width "
                f"that is a multiple of the number of heads"
            )
    for name in ("decoder_input_dim", "decoder_output_dim"):
        if getattr(ns, name) is None:
            setattr(ns, name, ns.decoder_embed_dim)


def _positive(option: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"--{option.replace('_', '-')} {value} must be a positive number")
