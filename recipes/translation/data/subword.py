"""The joint sub-word model: learned on both sides of the training set, or given."""

from __future__ import annotations

import io
import itertools
from collections import Counter
from pathlib import Path

from ...common.errors import RecipeError
from ...common.textfile import lines
from ..text import Pieces, TextSettings
from .files import whole
from .parallel import chunks, in_order
from .sentences import count_words


def learn(text: list[Path], model: Path, settings: TextSettings, workers: int, soft: bool = False) -> int:
    """Write `model`; how many merges or pieces it has.

    Args:
        soft: fewer pieces of sentencepiece than the settings say will do; BPE makes as many merges as there are.
    """
    if settings.subword == "sentencepiece":
        return learn_sentencepiece(text, model, settings.units, soft)
    from subword_nmt.learn_bpe import learn_bpe

    sentences = itertools.chain.from_iterable(map(lines, text))
    counts: Counter[str] = Counter()
    for some in in_order(count_words, chunks(sentences), workers):
        counts.update(some)
    del counts[""]
    words = io.StringIO("".join(f"{word} {count}\n" for word, count in sorted(counts.items())))
    with whole(model) as (codes,):
        learn_bpe(words, codes, settings.units, is_dict=True)
    return count_units(model)


def learn_sentencepiece(text: list[Path], model: Path, units: int, soft: bool) -> int:
    import sentencepiece

    trained = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            input=[str(path) for path in text],
            model_writer=trained,
            model_type="bpe",
            vocab_size=units,
            character_coverage=1.0,
            minloglevel=2,
            hard_vocab_limit=not soft,
        )
    except RuntimeError as error:
        raise RecipeError(
            f"units {units} does not suit the corpus: sentencepiece says {str(error).splitlines()[0]!r}; "
            f"choose another number of pieces"
        ) from error
    partial = model.with_name(model.name + ".part")
    partial.write_bytes(trained.getvalue())
    partial.replace(model)
    return int(sentencepiece.SentencePieceProcessor(model_proto=trained.getvalue()).get_piece_size())


def take(given: Path, model: Path, settings: TextSettings) -> int:
    """Copy a sub-word model of others; how many merges or pieces it has."""
    if not given.is_file():
        raise RecipeError(
            f"--bpe-codes {given}: no such file; correct the path, or leave the option out to learn codes"
        )
    if settings.subword == "sentencepiece":
        model.write_bytes(given.read_bytes())
    else:
        with whole(model) as (codes,):
            codes.writelines(line + "\n" for line in lines(given))
    try:
        Pieces(settings, model).encode("a")
    except (RecipeError, RuntimeError, OSError) as error:
        model.unlink(missing_ok=True)
        reason = str(error).replace(str(model), str(given))
        raise RecipeError(f"--bpe-codes {given}: not taken as a model of {settings.subword} ({reason})") from error
    return settings.units if settings.subword == "sentencepiece" else count_units(model)


def count_units(codes: Path) -> int:
    return sum(not line.startswith("#version") for line in lines(codes))
