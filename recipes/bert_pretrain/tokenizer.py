"""The tokenizer: a fast WordPiece that is BERT's in everything but its vocabulary."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from recipes.common.errors import RecipeError

ALPHABET = 1000  # single characters that get a piece, the most frequent ones; BERT's own trainer has the same


def train(batches: Iterator[list[str]], vocab_size: int, lowercase: bool, max_length: int) -> Any:
    """A `BertTokenizer` (the fast one) trained on batches of documents.

    Specials are [PAD] 0, [UNK] 1, [CLS] 2, [SEP] 3, [MASK] 4; a pair is [CLS] A [SEP] B [SEP] with segments 0, 1.

    Raises:
        RecipeError: a text too small for the vocabulary.
    """
    from transformers import BertTokenizer

    empty = BertTokenizer(do_lower_case=lowercase, model_max_length=max_length)
    paragraphs = ([line for document in batch for line in document.split("\n")] for batch in batches)
    trained = empty.train_new_from_iterator(
        paragraphs, vocab_size, limit_alphabet=min(ALPHABET, vocab_size // 2), show_progress=False
    )
    if len(trained) != vocab_size:
        raise RecipeError(
            f"vocab_size is {vocab_size} but the text gives {len(trained)} pieces that occur; "
            f"choose a --vocab-size of at most {len(trained)}, or give more text"
        )
    # The class that reads it again: every option of BERT's normaliser is in the saved files.
    return BertTokenizer(vocab=trained.get_vocab(), do_lower_case=lowercase, model_max_length=max_length)


@contextlib.contextmanager
def quiet_forks() -> Iterator[None]:
    """Its threads and forked data workers do not mix; without this it warns about it in each worker."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before
