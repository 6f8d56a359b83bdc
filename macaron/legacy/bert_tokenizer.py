"""The original's BERT dictionary as a fast tokenizer.

Text stands as the original reads it: cleaned, tokenised, lowercased and split by BPE, with `@@` at the end of every
part but a word's last; with the BPE codes at hand, the tokenizer does the splitting. A symbol keeps its id:

    0 <Lua heritage>   1 <pad>   2 </s>   3 <unk>   4 <mask>   5 <cls>   6 … the lines of dict.txt
"""

import logging
from functools import partial
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from macaron.bert import MacaronBertBpeTokenizer
from macaron.checkpoint import CheckpointError
from macaron.text import PART_OF_A_WORD

logger = logging.getLogger(__name__)

SPECIAL_SYMBOLS = ("<Lua heritage>", "<pad>", "</s>", "<unk>", "<mask>", "<cls>")
_DIGITS = 18  # of a count, at most
_PAD, _EOS, _UNK, _MASK, _CLS = SPECIAL_SYMBOLS[1:]


def read_dictionary(path: str | Path) -> list[str]:
    """The symbols of a dictionary in the order of their ids, the special ones first.

    Args:
        path: `dict.txt`, a line `symbol count` for each symbol, split at the last space.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: a line of another form, or a symbol that occurs twice.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"dictionary {path} does not exist; give the dict.txt that lies in the data folder of the original's run"
        )
    symbols = dict.fromkeys(SPECIAL_SYMBOLS)
    counts = []
    try:
        with path.open(encoding="utf-8-sig", newline="\n") as lines:
            for number, line in enumerate(lines, start=1):
                symbol, space, count = line.rstrip("\r\n").rpartition(" ")
                if not space or not count.isdecimal() or len(count) > _DIGITS:
                    raise CheckpointError(
                        f"{path}, line {number}: {line.rstrip()!r} is not `symbol count`; give the dict.txt that the "
                        f"original's preprocessing wrote"
                    )
                if symbol in symbols:
                    raise CheckpointError(
                        f"{path}, line {number}: symbol {symbol!r} is there twice (the special symbols "
                        f"{', '.join(SPECIAL_SYMBOLS)} come first by themselves), so its id is ambiguous; remove the "
                        f"line if the original's run did not have it"
                    )
                symbols[symbol] = None
                counts.append(int(count))
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: not a text file in UTF-8 ({error.reason} at byte {error.start})") from error
    if counts != sorted(counts, reverse=True):
        logger.warning(
            "%s: its counts do not fall from line to line, as in every dictionary that the original's preprocessing "
            "wrote; if it was sorted anew, its symbols have the vectors of others: check that it is the file that the "
            "model was trained with",
            path,
        )
    return list(symbols)


def build_tokenizer(
    symbols: list[str], max_length: int, *, segments: bool = True, codes: str | Path | None = None
) -> PreTrainedTokenizerFast:
    """A tokenizer with these symbols: `<cls> A </s>` and `<cls> A </s> B </s>`, padded on the right.

    Token types are Hugging Face's, 0 up to the first `</s>` and 1 for B; the original says 1 and 0. Decoding joins
    the parts of a word again.

    Args:
        symbols: by id, as from `read_dictionary`.
        max_length: the most tokens that the model takes, `<cls>` and `</s>` included.
        segments: whether the model distinguishes them; otherwise no token types are given.
        codes: the file of BPE codes, for text whose words are whole.
    """
    ids = {symbol: i for i, symbol in enumerate(symbols)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=_UNK))
    # white space as str.split() sees it: \s and four separators of ASCII
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\x1c-\x1f]+"), behavior="removed")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{_CLS}:0 $A:0 {_EOS}:0",
        pair=f"{_CLS}:0 $A:0 {_EOS}:0 $B:1 {_EOS}:1",
        special_tokens=[(_CLS, ids[_CLS]), (_EOS, ids[_EOS])],
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(Regex(r"\z"), " "),  # a space after every symbol …
            decoders.Replace(PART_OF_A_WORD, ""),  # … but those that go on
            decoders.Fuse(),
            decoders.Strip(" ", 0, 1),
        ]
    )
    special = (_PAD, _EOS, _UNK, _MASK, _CLS)
    tokenizer.add_special_tokens([AddedToken(symbol, special=True, normalized=False) for symbol in special])
    kind = PreTrainedTokenizerFast if codes is None else partial(MacaronBertBpeTokenizer, codes_file=str(codes))
    return kind(
        tokenizer_object=tokenizer,
        pad_token=_PAD,
        sep_token=_EOS,
        unk_token=_UNK,
        mask_token=_MASK,
        cls_token=_CLS,
        padding_side="right",
        model_max_length=max_length,
        model_input_names=["input_ids", *(["token_type_ids"] if segments else []), "attention_mask"],
        clean_up_tokenization_spaces=False,
    )
