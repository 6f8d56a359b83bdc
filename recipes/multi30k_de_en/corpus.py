"""Multi30k task 1 (Elliott et al. 2016, arXiv:1605.00459): image captions, raw text, in three fixed splits."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from ..common.download import Remote, fetch
from ..common.errors import RecipeError
from ..common.textfile import SUFFIXES, UNPACKING, packed, unpacked
from ..translation.data.corpus import Corpus, Input, Rules

NAMES = {"train": "train", "valid": "val", "test": "test_2016_flickr"}
URL = "https://raw.githubusercontent.com/multi30k/dataset/a3d2e0d26b56f3846f66a952536ffed4e401d05a/data/task1/raw"
MAX_BYTES = 8 * 2**20  # of a file, packed or not

# Of the uncompressed files.
SHA256 = {
    "train.de": "2c2b73fd2b548fbcde3a875e0a78d6ee94d498bfdee6bd3eae3945779e9ddf72",
    "train.en": "460a15fbd157e34a7a9957ee388c1ca247fe47af3ef25fb50442af6c274e0fc6",
    "val.de": "660e09eb7e1da2f856ea13ee5ad3cf6d36b3d5b0b733c857e94c5747a3dfc660",
    "val.en": "1f2a23d992769b5b3d209b0a10dd0b77c08cceb1f20dfb97ed0aafa49d107227",
    "test_2016_flickr.de": "4be6b5b3236b79c25475c6bb829800a7ce559e9ba7a1f6c2394fe4d40be46d16",
    "test_2016_flickr.en": "399a4382932c1aadd3ceb9bef1008d388a64c76d4ae4e9d4728c6f4301cac182",
}


@dataclass(frozen=True)
class Multi30k(Corpus):
    def download(self, folder: Path, sha256: dict[str, str] | None = None, trust: bool = False) -> None:
        for name in SHA256:
            fetch_file(name, folder)

    def find(self, folder: Path) -> Input | None:
        splits = self.splits(folder, NAMES)
        if splits is None:
            return None
        for name in SHA256:
            read_verified(folder, name)
        return Input("Multi30k task 1", (splits["train"],), (splits["valid"],), (splits["test"],))

    def looked_for(self) -> str:
        return f"{', '.join(SHA256)} (plain, .xz or .gz)"


CORPUS = Multi30k("Multi30k De-En", "de", "en", Rules())


def fetch_file(name: str, folder: Path, base_url: str = URL) -> Path:
    """Download `name`.gz; what is in it must be right."""
    remote = Remote(f"{name}.gz", (f"{base_url}/{name}.gz",), limit=MAX_BYTES)

    def check(path: Path) -> None:
        try:
            verify(content_of(path), name, path)
        except UNPACKING as error:
            raise RecipeError(
                f"{path}: the download cannot be unpacked ({error}); it is truncated or not a .gz file. Delete it"
            ) from error

    return fetch(remote, folder, check=check)


def read_verified(folder: Path, name: str) -> list[str]:
    """The lines of `name`, unpacked when compressed, after its sha256 has been checked."""
    path = packed(folder / name)
    if path is None:
        raise RecipeError(
            f"{folder}: {name} is missing (looked for {', '.join(name + suffix for suffix in SUFFIXES)}); "
            f"put the file there, or give another folder with --data-dir"
        )
    try:
        content = content_of(path)
    except UNPACKING as error:
        raise RecipeError(
            f"{path}: cannot be unpacked ({error}); the file is truncated or corrupt. Fetch it again"
        ) from error
    verify(content, name, path)
    return content.decode("utf-8").removesuffix("\n").split("\n")


def content_of(path: Path) -> bytes:
    with unpacked(path) as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise RecipeError(f"{path}: more than {MAX_BYTES:,} bytes when unpacked; it is no file of Multi30k")
    return content


def verify(content: bytes, name: str, where: Path) -> None:
    digest = hashlib.sha256(content).hexdigest()
    if digest != SHA256[name]:
        raise RecipeError(
            f"{where}: sha256 of the uncompressed {name} is {digest} but must be {SHA256[name]}; "
            f"the file is corrupt or another version. Fetch it again"
        )
