"""The options in a checkpoint are data: what would be run, looked up or resolved because of them is refused.

fairseq gives some of its options to `eval`, OmegaConf resolves `${name:…}`, and hydra reads the configuration file that
an option such as `bpe` names. On a command line these are the user's; out of a file they may only be plain values.
"""

import ast
import re
from argparse import Namespace
from collections.abc import Iterator, Mapping
from typing import Any

# What fairseq gives to `eval` anywhere; the tests compare this with its source.
EVALUATED = frozenset(
    {
        *("adam_betas", "adamax_betas", "lamb_betas", "adafactor_eps"),
        *("adaptive_input_cutoff", "adaptive_softmax_cutoff", "character_filters"),
        *("encoder_layers", "decoder_layers", "encoder_attention", "decoder_attention", "self_attention"),
        *("pretrained", "project_input", "gated_attention", "downsample"),
        *("conv_feature_layers", "conv_aggregator_layers", "feature_encoder_spec", "wer_args"),
        *("left_pad_source", "left_pad_target"),
        *("xformers_att_config", "encoder_xformers_att_config", "decoder_xformers_att_config"),
        *("pipeline_balance", "pipeline_encoder_balance", "pipeline_decoder_balance"),
        *("pipeline_devices", "pipeline_encoder_devices", "pipeline_decoder_devices"),
    }
)
# What hydra, or a registry of fairseq, looks up by name, and what becomes a part of file names.
NAMES = frozenset(
    {
        *("_name", "arch", "task", "criterion", "optimizer", "lr_scheduler", "tokenizer", "bpe", "scoring"),
        *("source_lang", "target_lang"),
    }
)

_NAME = re.compile(r"[\w@.+-]*")
_FIELD = re.compile(r"\$\{[\w.]+\}")  # another entry of the configuration; all else that OmegaConf resolves is code
_WORD = re.compile(r"[\w./+-]*")
_LONGEST = 10_000  # characters of an expression, and
_MOST = 1_000  # repetitions in one: fairseq's own have 20


def find_code(state: Mapping[str, Any]) -> str | None:
    """What in the options of a checkpoint is more than data, and the rule; None if nothing is.

    Args:
        state: the loaded file, with `args` (a namespace) or `cfg` (a dictionary), as fairseq writes them.
    """
    for entry, kind in (("args", Namespace), ("cfg", dict)):
        options = state.get(entry)
        if options is not None and not isinstance(options, kind):
            return f"its entry {entry!r} is a {type(options).__name__}, and only a {kind.__name__} holds options"
        for name, value in _options(options):
            if name in EVALUATED and not is_literal(value):
                return (
                    f"its option {name} is {_short(value)}, and fairseq evaluates what stands there: it may only be a "
                    f"number, or a list or tuple of numbers"
                )
            if name in NAMES and not _is_name(value):
                return f"its option {name} is {_short(value)}, and only a name may stand there"
            if isinstance(value, str) and "${" in _FIELD.sub("", value):
                return f"its option {name} is {_short(value)}, and only plain text may stand there"
    return None


def is_literal(value: Any) -> bool:
    """Whether `value` is a number, a list of such, or a text that evaluates to one, as `"(0.9, 0.98)"` does.

    Sums and repetitions of lists, `"[(512, 3)] * 20"`, are fairseq's way to write layers.
    """
    if isinstance(value, str):
        return _is_literal_text(value)
    try:
        return _is_plain(value)
    except RecursionError:
        return False


def _options(root: Any) -> Iterator[tuple[str, Any]]:
    """Every option, however deep, with its name; what stands in a list has the name of the list."""
    stack, seen = [("", root)], set()
    while stack:
        name, value = stack.pop()
        yield name, value
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Mapping):
            stack += [(key if isinstance(key, str) else "", child) for key, child in value.items()]
        elif isinstance(value, list | tuple | set | frozenset):
            stack += [(f"{name}[]", child) for child in value]
        stack += getattr(value, "__dict__", {}).items()  # a namespace, or what stands for an object of the original


def _is_name(value: Any) -> bool:
    """A name, nothing, or the options of what has one."""
    return (
        value is None
        or isinstance(value, Mapping | Namespace)
        or bool(isinstance(value, str) and _NAME.fullmatch(value))
    )


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(isinstance(child, str) or _is_plain(child) for child in value)
    if isinstance(value, dict):
        return all(isinstance(child, str) or _is_plain(child) for pair in value.items() for child in pair)
    return value is None or isinstance(value, int | float)


def _is_literal_text(text: str) -> bool:
    # hydra and OmegaConf rewrite what has a backslash or a dollar before fairseq evaluates it
    if len(text) > _LONGEST or "\\" in text or "$" in text:
        return False
    if not text.strip():
        return True
    try:
        return _is_literal_node(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False


def _is_literal_node(node: ast.expr, inside: bool = False) -> bool:
    match node:
        case ast.Constant(value=str(word)):
            return inside and _WORD.fullmatch(word) is not None
        case ast.Constant(value=value):
            return value is None or isinstance(value, int | float)
        case ast.Tuple(elts=parts) | ast.List(elts=parts):
            return all(_is_literal_node(part, inside=True) for part in parts)
        case ast.Dict(keys=keys, values=values):
            return all(part is not None and _is_literal_node(part, inside=True) for part in [*keys, *values])
        case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=ast.Constant(value=int() | float())):
            return True
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _is_literal_node(left) and _is_literal_node(right)
        case ast.BinOp(left=(ast.List() | ast.Tuple()) as left, op=ast.Mult(), right=ast.Constant(value=int(times))):
            return times <= _MOST and _is_literal_node(left)
    return False


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except Exception:  # of an object whose parts are missing
        text = f"a {type(value).__name__}"
    return text if len(text) <= 80 else text[:77] + "..."
