"""Files from the network: checked by sha256, several mirrors, resumed where a transfer broke off."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Remote:
    """A file to download.

    Attributes:
        name: what it is called here.
        urls: mirrors, tried in turn.
        sha256: of the file; None when its publisher gives none, which makes the user decide.
        limit: bytes; a server that sends more is not believed.
        members: of an archive, the files to unpack, as patterns for their base names.
    """

    name: str
    urls: tuple[str, ...]
    sha256: str | None = None
    limit: int = 2**30
    members: tuple[str, ...] = ()


def fetch(remote: Remote, folder, *, sha256=None, trust_first_download=False):
    raise NotImplementedError
