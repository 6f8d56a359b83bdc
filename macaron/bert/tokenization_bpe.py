"""A tokenizer for raw words of models whose vocabulary is that of subword-nmt's BPE, as the original's is."""

import io
import re
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

CODES_FILE = "bpe.codes"


class MacaronBertBpeTokenizer(PreTrainedTokenizerFast):
    """Splits words with subword-nmt (Sennrich et al. 2016, arXiv:1508.07909), then looks up the parts.

    The BPE model of `tokenizers` splits alike, but it needs an id for every product of a merge, where the original
    has `<unk>` for those that its dictionary lacks; and it would know the symbols by other names than `dict.txt`.
    Offsets refer to the text after splitting.

    Args:
        codes_file: merges as `subword-nmt learn-bpe` writes them, kept beside the tokenizer as `bpe.codes`.

    Raises:
        ValueError: codes of another format, or not in UTF-8.
        ImportError: subword-nmt is not installed.
    """

    vocab_files_names = {"tokenizer_file": "tokenizer.json", "codes_file": CODES_FILE}  # noqa: RUF012

    def __init__(self, *args: Any, codes_file: str, **kwargs: Any) -> None:
        try:
            from subword_nmt.apply_bpe import BPE  # type: ignore[import-untyped]
        except ModuleNotFoundError as error:
            raise ImportError(
                "a tokenizer with BPE codes splits words by subword-nmt, which is not there: pip install subword-nmt"
            ) from error
        super().__init__(*args, **kwargs)
        self.codes = _read(codes_file)
        for number, line in enumerate(self.codes.rstrip("\n").split("\n"), start=1):
            if not line.startswith("#version:") and len(line.strip("\r ").split(" ")) != 2:
                raise ValueError(
                    f"{codes_file}, line {number}: {line!r} is not a merge of two parts; give the codes that "
                    f"`subword-nmt learn-bpe` wrote"
                )
        self.bpe = BPE(io.StringIO(self.codes))
        self.special = re.compile("(" + "|".join(map(re.escape, self.all_special_tokens)) + ")")

    @classmethod
    def convert_to_native_format(cls, trust_remote_code: bool = False, **kwargs: Any) -> dict[str, Any]:
        """What `from_pretrained` gives the constructor: the file, which transformers would otherwise rebuild as BPE."""
        return kwargs

    def split_words(self, text: Any) -> Any:
        """A sentence, or any nesting of lists of them, with words split; special tokens stay."""
        if isinstance(text, (list, tuple)):
            return type(text)(self.split_words(part) for part in text)
        parts = self.special.split(" ".join(text.split()))
        return " ".join(part if i % 2 else self.bpe.segment(part) for i, part in enumerate(parts) if part)

    def _encode_plus(self, text: Any, text_pair: Any = None, **kwargs: Any) -> Any:
        pair = None if text_pair is None else self.split_words(text_pair)
        return super()._encode_plus(self.split_words(text), pair, **kwargs)

    def _save_pretrained(
        self,
        save_directory: Any,
        file_names: tuple[str, ...],
        legacy_format: bool | None = None,
        filename_prefix: str | None = None,
    ) -> tuple[str, ...]:
        file_names = super()._save_pretrained(save_directory, file_names, legacy_format, filename_prefix)
        codes = Path(save_directory) / (f"{filename_prefix}-{CODES_FILE}" if filename_prefix else CODES_FILE)
        codes.write_text(self.codes, encoding="utf-8", newline="\n")
        return (*file_names, str(codes))


def _read(codes_file: str | Path) -> str:
    """The text, without a byte order mark; only a line feed ends a line, and what a carriage return ends is no line."""
    try:
        with open(codes_file, encoding="utf-8-sig", newline="\n") as file:
            return file.read().rstrip("\r\n") + "\n"
    except UnicodeDecodeError as error:
        raise ValueError(f"{codes_file}: not a text file in UTF-8 ({error.reason} at byte {error.start})") from error
