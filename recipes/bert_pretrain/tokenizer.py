"""The tokenizer: a fast WordPiece that is BERT's in everything but its vocabulary."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from ..common.errors import RecipeError

ALPHABET = 1000  # characters that get a piece, the most frequent ones; BERT's own trainer has the same


def train(batches: Callable[[], Iterable[list[str]]], vocab_size: int, lowercase: bool, max_length: int) -> Any:
    """A `BertTokenizer` (the fast one), the same for the same text.

    Specials are [PAD] 0, [UNK] 1, [CLS] 2, [SEP] 3, [MASK] 4; a pair is [CLS] A [SEP] B [SEP] with segments 0, 1.
    The library numbers continuing characters (##a) in the order of a hash table, which differs from run to run and
    decides between equally frequent pieces. So they are counted first and given in order.

    Args:
        batches: called for each of the two readings of the text, gives batches of documents.
        vocab_size: word pieces, special ones included.
        lowercase: lower case without accents.
        max_length: what the tokenizer truncates to when asked.

    Raises:
        RecipeError: a text too small for the vocabulary.
    """
    from transformers import BertTokenizer

    empty = BertTokenizer(do_lower_case=lowercase, model_max_length=max_length)
    alphabet = characters(empty, batches(), min(ALPHABET, vocab_size // 2))
    trained = empty.train_new_from_iterator(
        ([line for document in batch for line in document.split("\n")] for batch in batches()),
        vocab_size,
        new_special_tokens=["##" + character for character in alphabet if continues(empty, character)],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    if len(trained) != vocab_size:
        raise RecipeError(
            f"vocab_size is {vocab_size} but the text gives {len(trained)} pieces ({len(alphabet)} characters among "
            f"them); choose a --vocab-size of {len(trained)}, or give more text"
        )
    # Built anew, since to `trained` the continuing characters are special.
    return BertTokenizer(vocab=trained.get_vocab(), do_lower_case=lowercase, model_max_length=max_length)


def characters(tokenizer: Any, batches: Iterable[list[str]], most: int) -> list[str]:
    """The most frequent characters of the normalised text, the first one first."""
    normalizer = tokenizer.backend_tokenizer.normalizer
    counts: Counter[str] = Counter()
    for batch in batches:
        for document in batch:
            counts.update(normalizer.normalize_str(document))
    kept = [character for character in counts if not character.isspace()]
    return sorted(kept, key=lambda character: (-counts[character], character))[:most]


def continues(tokenizer: Any, character: str) -> bool:
    """Whether BERT's rules leave the character inside a word: they isolate punctuation and Chinese characters."""
    backend = tokenizer.backend_tokenizer
    return len(backend.pre_tokenizer.pre_tokenize_str(backend.normalizer.normalize_str("a" + character))) == 1
