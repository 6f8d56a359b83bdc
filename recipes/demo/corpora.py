"""Where the sentences come from: the grammar, or Multi30k from a local copy or from its repository."""

from __future__ import annotations

import gzip
import hashlib
import lzma
import shutil
import urllib.error
import urllib.request
import zlib
from pathlib import Path

from recipes.common.errors import RecipeError
from recipes.common.provenance import PROJECT_ROOT

SPLITS = ("train", "valid", "test")
LANGUAGES = ("de", "en")

# Multi30k task 1 (Elliott et al. 2016, arXiv:1605.00459), raw text; sha256 of the uncompressed files.
MULTI30K_URL = (
    "https://raw.githubusercontent.com/multi30k/dataset/a3d2e0d26b56f3846f66a952536ffed4e401d05a/data/task1/raw"
)
MULTI30K_NAMES = {"train": "train", "valid": "val", "test": "test_2016_flickr"}
MULTI30K_SHA256 = {
    "train.de": "2c2b73fd2b548fbcde3a875e0a78d6ee94d498bfdee6bd3eae3945779e9ddf72",
    "train.en": "460a15fbd157e34a7a9957ee388c1ca247fe47af3ef25fb50442af6c274e0fc6",
    "val.de": "660e09eb7e1da2f856ea13ee5ad3cf6d36b3d5b0b733c857e94c5747a3dfc660",
    "val.en": "1f2a23d992769b5b3d209b0a10dd0b77c08cceb1f20dfb97ed0aafa49d107227",
    "test_2016_flickr.de": "4be6b5b3236b79c25475c6bb829800a7ce559e9ba7a1f6c2394fe4d40be46d16",
    "test_2016_flickr.en": "399a4382932c1aadd3ceb9bef1008d388a64c76d4ae4e9d4728c6f4301cac182",
}
MULTI30K_LOCAL = PROJECT_ROOT.parent / "shared" / "data" / "multi30k"
MAX_DOWNLOAD_BYTES = 8 * 2**20
SUFFIXES = ("", ".xz", ".gz")


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
            f"{split}.{language}": read_verified(source, f"{MULTI30K_NAMES[split]}.{language}")
            for split in SPLITS
            for language in LANGUAGES
        }
        if train_size:
            lines = {name: text[:train_size] if name.startswith("train") else text for name, text in lines.items()}
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in lines.items():
        (folder / name).write_text("\n".join(text) + "\n", encoding="utf-8")
    return [folder / f"{split}.{language}" for split in SPLITS for language in LANGUAGES]


def multi30k_folder(data_dir: Path | None, download: Path, base_url: str = MULTI30K_URL) -> Path:
    """The folder asked for, or the local copy, or a fresh download."""
    if data_dir is not None:
        if not data_dir.is_dir():
            raise RecipeError(
                f"--data-dir {data_dir}: no such folder; it must hold {', '.join(MULTI30K_SHA256)} "
                f"(plain, .xz or .gz). Correct the path, or leave the option out to download them"
            )
        return data_dir
    if MULTI30K_LOCAL.is_dir():
        return MULTI30K_LOCAL
    download.mkdir(parents=True, exist_ok=True)
    for name in MULTI30K_SHA256:
        fetch(name, download, base_url)
    return download


def read_verified(folder: Path, name: str) -> list[str]:
    """The lines of `name`, unpacked when compressed, after its sha256 has been checked."""
    path = next((folder / (name + suffix) for suffix in SUFFIXES if (folder / (name + suffix)).is_file()), None)
    if path is None:
        raise RecipeError(
            f"{folder}: {name} is missing (looked for {', '.join(name + suffix for suffix in SUFFIXES)}); "
            f"put the file there, or give another folder with --data-dir"
        )
    opener = {".xz": lzma.open, ".gz": gzip.open}.get(path.suffix, open)
    try:
        with opener(path, "rb") as file:
            content = file.read()
    except (EOFError, OSError, lzma.LZMAError, zlib.error) as error:
        raise RecipeError(
            f"{path}: cannot be unpacked ({error}); the file is truncated or corrupt. Fetch it again"
        ) from error
    verify(content, name, path)
    return content.decode("utf-8").removesuffix("\n").split("\n")


def verify(content: bytes, name: str, where: Path | str) -> None:
    digest = hashlib.sha256(content).hexdigest()
    if digest != MULTI30K_SHA256[name]:
        raise RecipeError(
            f"{where}: sha256 of the uncompressed {name} is {digest} but must be {MULTI30K_SHA256[name]}; "
            f"the file is corrupt or another version. Fetch it again"
        )


def fetch(name: str, folder: Path, base_url: str) -> Path:
    """Download `name`.gz, check it, and only then give it its name; a file already there is kept."""
    target = folder / f"{name}.gz"
    if target.is_file():
        return target
    url = f"{base_url}/{name}.gz"
    print(f"download  {url}")
    try:
        with urllib.request.urlopen(url, timeout=60) as response:
            packed = response.read(MAX_DOWNLOAD_BYTES)
        content = gzip.decompress(packed)
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise RecipeError(
            f"{url}: download failed ({error}); check the network and run the same command again "
            f"(files already here are kept), or put the files into a folder and name it with --data-dir"
        ) from error
    except (EOFError, OSError, zlib.error) as error:
        raise RecipeError(
            f"{url}: the download cannot be unpacked ({error}); it is truncated or not a .gz file. "
            f"Run the same command again, or give a folder with --data-dir"
        ) from error
    verify(content, name, url)
    partial = target.with_suffix(".part")
    partial.write_bytes(packed)
    shutil.move(partial, target)
    return target
