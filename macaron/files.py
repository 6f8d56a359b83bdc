"""Files as bytes."""

import hashlib
from pathlib import Path


def digest(path: Path) -> str:
    """sha256 of a file (hashlib.file_digest once Python 3.10 is not supported any more)."""
    sha256 = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            sha256.update(block)
    return sha256.hexdigest()
