"""Where the sentences come from: the grammar, or Multi30k from a local copy or from its repository."""

from __future__ import annotations

from pathlib import Path

from recipes.common.errors import RecipeError
from recipes.common.provenance import PROJECT_ROOT
from recipes.multi30k_de_en import corpus as multi30k

SPLITS = ("train", "valid", "test")
LANGUAGES = ("de", "en")
MULTI30K_LOCAL = PROJECT_ROOT.parent / "shared" / "data" / "multi30k"


def write_corpus(corpus: str, folder: Path, *, train_size: int, seed: int, data_dir: Path | None) -> list[Path]:
    """Write {train,valid,test}.{de,en}, one sentence a line, and return the six paths."""
    if corpus == "grammar":
        from recipes.demo.sampling import splits

        lines = {
            f"{split}.{language}": [pair[index] for pair in pairs]
            for split, pairs in splits(seed, train=train_size).items()
            for index, language in enumerate(LANGUAGES)
        }
    else:
        source = multi30k_folder(data_dir, folder / "download")
        lines = {
            f"{split}.{language}": multi30k.read_verified(source, f"{multi30k.NAMES[split]}.{language}")
            for split in SPLITS
            for language in LANGUAGES
        }
        if train_size:
            lines = {name: text[:train_size] if name.startswith("train") else text for name, text in lines.items()}
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in lines.items():
        (folder / name).write_text("\n".join(text) + "\n", encoding="utf-8")
    return [folder / f"{split}.{language}" for split in SPLITS for language in LANGUAGES]


def multi30k_folder(data_dir: Path | None, download: Path, base_url: str = multi30k.URL) -> Path:
    """The folder asked for, or the local copy, or a fresh download."""
    if data_dir is not None:
        if not data_dir.is_dir():
            raise RecipeError(
                f"--data-dir {data_dir}: no such folder; it must hold {multi30k.CORPUS.looked_for()}. "
                f"Correct the path, or leave the option out to download them"
            )
        return data_dir
    if MULTI30K_LOCAL.is_dir():
        return MULTI30K_LOCAL
    for name in multi30k.SHA256:
        multi30k.fetch_file(name, download, base_url)
    return download
