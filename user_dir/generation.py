"""Options of the beam search, from a caller or from a released folder: the names that fairseq has, and their types."""

import math
from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from enum import Enum
from typing import Any, Union, get_args, get_origin, get_type_hints

from fairseq.dataclass.configs import GenerationConfig

TYPES = {f.name: get_type_hints(GenerationConfig)[f.name] for f in fields(GenerationConfig) if f.name != "_name"}

# Whole numbers and numbers that fairseq itself does not check: the smallest that make sense.
_LEAST = {"beam": 1, "nbest": 1, "max_len_a": 0, "max_len_b": 0, "min_len": 0, "no_repeat_ngram_size": 0}

# What fairseq's command does with data or models of its own; from Python it would do nothing, or fail.
_DEFAULTS = {f.name: f.default for f in fields(GenerationConfig)}
_OF_THE_COMMAND = ("constraints", "prefix_size", "score_reference", "replace_unk", "lm_path", "retain_dropout",
                   "retain_dropout_modules", "decoding_format")  # fmt: skip

ONE_WORD = "no word twice, not even a comma, is no rule that fairseq has; give 2 or more, or 0 for none"


def check(options: Mapping[str, Any], where: str) -> None:
    """
    Args:
        options: of the generation, by fairseq's names.
        where: how the message begins.

    Raises:
        ValueError: a name that does not exist, or a value of another type or out of its range.
    """
    for name, value in options.items():
        if name not in TYPES:
            near = get_close_matches(str(name), TYPES, 1)
            guess = f"did you mean {near[0]}? " if near else ""
            raise ValueError(f"{where}: no option {name!r}; {guess}There are {', '.join(sorted(TYPES))}")
        if wanted := _wrong(TYPES[name], value):
            raise ValueError(f"{where}: {name} {value!r} must be {wanted}")
        if name in _LEAST and value < _LEAST[name]:
            raise ValueError(f"{where}: {name} {value} must be at least {_LEAST[name]}")
        if name in _OF_THE_COMMAND and value != _DEFAULTS[name]:
            raise ValueError(f"{where}: {name} {value!r} is known to fairseq-generate alone; leave it out")
        if name == "sampling_topp" and value != _DEFAULTS[name] and not 0 < value <= 1:
            raise ValueError(f"{where}: sampling_topp {value} must be a probability above 0, or -1 for all words")
        if name == "sampling_topk" and value != _DEFAULTS[name] and value < 1:
            raise ValueError(f"{where}: sampling_topk {value} must be at least 1, or -1 for all words")
        if name == "no_repeat_ngram_size" and value == 1:
            raise ValueError(f"{where}: no_repeat_ngram_size 1: {ONE_WORD}")
        if name == "temperature" and value <= 0:
            raise ValueError(f"{where}: temperature {value} must be positive")


def _wrong(kind: Any, value: Any) -> str:
    """What the value should have been; "" if it is that."""
    if kind is Any:
        return ""
    if get_origin(kind) is Union:
        (kind,) = (one for one in get_args(kind) if one is not type(None))
        return "" if value is None or not (wanted := _wrong(kind, value)) else f"None or {wanted}"
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if issubclass(kind, Enum):
        return "" if value in [one.value for one in kind] else f"one of {', '.join(str(one.value) for one in kind)}"
    if kind is float:
        return "" if number and math.isfinite(value) else "a finite number"
    if kind is int:
        return "" if number and isinstance(value, int) else "a whole number"
    return "" if isinstance(value, kind) else {bool: "True or False", str: "a string"}[kind]
