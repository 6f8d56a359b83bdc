"""Raw text to the numbers of fairseq's dictionaries, and back, for a model of two languages."""

import hashlib
import json
import shutil
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizer

from macaron.text import RELEASED_NAMES, Pieces, TextSettings, Words

SOURCE_VOCAB, TARGET_VOCAB = "source_vocab.json", "target_vocab.json"
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")  # fairseq's first symbols, in its order
_KEPT = ("words", "pieces")  # what is built of files, and not pickled
_AGAIN = "copy the tokenizer's folder again, or convert the model anew"


class MacaronTokenizer(PreTrainedTokenizer):
    """Words by Moses, where the model's text settings say so, pieces by its sub-word model, numbers by its dictionary.

    As fairseq's hub and `macaron translate` do it: the same numbers, and from numbers the same text. Source and target
    may have dictionaries of their own: `tokenizer(text)` is of the source, `tokenizer(text_target=…)` of the target,
    and numbers are read back as the target's, unless `decode` is told `use_source_tokenizer=True`.

    What stands in a text is text: `</s>` in it ends nothing.

    Args:
        source_vocab_file: a JSON list of the source's symbols in the order of their numbers; target_vocab_file: of the
            target's, None is the same.
        codes_file: of subword-nmt; sentencepiece_file: a model of it; the one that `text` asks for.
        text: the fields of `macaron.text.TextSettings`; None takes text that has been split into pieces already.
        checksum: of vocabularies and sub-word model, as `tokenizer_config.json` keeps it.

    Raises:
        ValueError: a vocabulary that does not begin with fairseq's special symbols, settings that make no sense, a
            file that is missing, or files that are not those that were saved.
    """

    vocab_files_names = {  # noqa: RUF012
        "source_vocab_file": SOURCE_VOCAB,
        "target_vocab_file": TARGET_VOCAB,
        "codes_file": RELEASED_NAMES["subword_nmt"],
        "sentencepiece_file": RELEASED_NAMES["sentencepiece"],
    }
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012

    def __init__(
        self,
        source_vocab_file: str | None = None,
        target_vocab_file: str | None = None,
        codes_file: str | None = None,
        sentencepiece_file: str | None = None,
        text: dict[str, Any] | None = None,
        checksum: str | None = None,
        **kwargs: Any,
    ) -> None:
        if source_vocab_file is None:
            raise ValueError(f"{SOURCE_VOCAB} is missing; {_AGAIN}")
        self.symbols = (_read(source_vocab_file), _read(target_vocab_file or source_vocab_file))
        self.numbers = tuple({symbol: i for i, symbol in enumerate(symbols)} for symbols in self.symbols)
        self.separate = target_vocab_file is not None
        self.settings = None if text is None else TextSettings.of(text)
        self.subword_file = codes_file or sentencepiece_file
        if self.settings is not None:
            given = {"subword_nmt": codes_file, "sentencepiece": sentencepiece_file}[self.settings.subword]
            if given is None or not Path(given).is_file():
                raise ValueError(
                    f"the text settings ask for {self.settings.subword}, but {self.settings.released_name} is missing; "
                    f"{_AGAIN}"
                )
            self.subword_file = given
        found = self._checksum()
        if checksum not in (None, found):
            raise ValueError(
                f"the files of the tokenizer beside {source_vocab_file} are not those that were saved with it; {_AGAIN}"
                f" (if they were changed on purpose, take `checksum` out of tokenizer_config.json)"
            )
        self.side = 0
        special = dict(zip(("bos_token", "pad_token", "eos_token", "unk_token"), SPECIAL, strict=True))
        super().__init__(
            **{**special, "split_special_tokens": True, "special_tokens_pattern": "eos", **kwargs, "text": text},
            checksum=found,
        )

    def _checksum(self) -> str:
        """Of all that decides about numbers; short codes split words in silence where a part of them is gone."""
        digest = hashlib.sha256(
            "\n".join("\0".join(symbols) for symbols in self.symbols).encode("utf-8", "surrogatepass")
        )
        if self.subword_file is not None:
            digest.update(Path(self.subword_file).read_bytes())
        return digest.hexdigest()

    @cached_property
    def words(self) -> tuple[Words, Words] | None:
        """Of the source and the target."""
        s = self.settings
        return None if s is None else (Words(s, s.source), Words(s, s.target))

    @cached_property
    def pieces(self) -> Pieces | None:
        return None if self.settings is None else Pieces(self.settings, Path(str(self.subword_file)))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in _KEPT}

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        """The pieces of a sentence: of a source as of a test set, of a target as in training.

        Raises:
            ValueError: it is no Unicode.
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(f"{text!r} is no valid Unicode ({error.reason}); decode it anew") from error
        if self.words is None or self.pieces is None:
            return text.split()
        words = self.words[1].training(text) if self.side else self.words[0].encode(text)
        return self.pieces.encode(words).split()

    def _convert_token_to_id(self, token: str) -> int:
        return self.numbers[self.side].get(token, self.numbers[self.side][SPECIAL[-1]])

    def _convert_id_to_token(self, index: int) -> str:
        symbols = self.symbols[1]
        return symbols[index] if 0 <= index < len(symbols) else SPECIAL[-1]

    def convert_tokens_to_string(self, tokens: list[str], side: int = 1) -> str:
        """Pieces to text; of the target, or with `side=0` of the source."""
        pieces = " ".join(tokens)
        if self.words is None or self.pieces is None:
            return pieces
        return self.words[side].decode(self.pieces.decode(pieces))

    def _decode(
        self,
        token_ids: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        use_source_tokenizer: bool = False,
        **kwargs: Any,
    ) -> str:
        """As fairseq shows a hypothesis: `<unk>` stays, the other special symbols go with `skip_special_tokens`."""
        numbers = token_ids.tolist() if hasattr(token_ids, "tolist") else token_ids
        side = 0 if use_source_tokenizer else 1
        symbols = self.symbols[side]
        tokens = [
            symbols[i] if 0 <= i < len(symbols) else SPECIAL[-1]
            for i in ([numbers] if isinstance(numbers, int) else numbers)
        ]
        if skip_special_tokens:
            tokens = [token for token in tokens if token not in SPECIAL[:-1]]
        return self.convert_tokens_to_string(tokens, side)

    def _switch_to_input_mode(self) -> None:
        self.side = 0

    def _switch_to_target_mode(self) -> None:
        self.side = 1

    @property
    def vocab_size(self) -> int:
        """Of the source."""
        return len(self.symbols[0])

    def get_vocab(self) -> dict[str, int]:
        """Symbol → number, of the source."""
        return {**self.numbers[0], **self._added_tokens_encoder}

    def get_target_vocab(self) -> dict[str, int]:
        """Symbol → number, of the target."""
        return dict(self.numbers[1])

    def save_vocabulary(self, save_directory: Any, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Write the vocabularies and the sub-word model."""
        folder, prefix = Path(save_directory), f"{filename_prefix}-" if filename_prefix else ""
        written = []
        for name, symbols in zip((SOURCE_VOCAB, TARGET_VOCAB), self.symbols[: 1 + self.separate], strict=False):
            path = folder / f"{prefix}{name}"
            path.write_text(json.dumps(symbols, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")
            written.append(str(path))
        if self.settings is not None:
            path = folder / f"{prefix}{self.settings.released_name}"
            if not (path.exists() and path.samefile(str(self.subword_file))):
                shutil.copyfile(str(self.subword_file), path)
            written.append(str(path))
        return tuple(written)


def _read(path: str) -> list[str]:
    try:
        symbols = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: no JSON ({error}); {_AGAIN}") from error
    if not isinstance(symbols, list) or not all(isinstance(symbol, str) for symbol in symbols):
        raise ValueError(f"{path}: not a list of symbols; {_AGAIN}")
    if tuple(symbols[: len(SPECIAL)]) != SPECIAL:
        raise ValueError(f"{path}: does not begin with {' '.join(SPECIAL)}, as fairseq's dictionaries do; {_AGAIN}")
    return symbols


__all__ = ["MacaronTokenizer"]
