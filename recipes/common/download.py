"""Files from the network: checked by sha256, from several mirrors, resumed where a transfer broke off.

A file gets its name when it is whole and its sum is right; until then it is `<name>.part`, with what the server
said about it in `<name>.part.json`. Sums that no publisher states are asked of the user, or recorded at the first
download when the user says so, in `downloads.json`, and demanded from then on.

(pooch checks sums and unpacks, but has no mirrors, does not go on with a broken transfer, and sets no limits.)
"""

from __future__ import annotations

import http.client
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from . import archive
from .errors import RecipeError
from .textfile import page
from .workspace import digest, read_json, write_json

TIMEOUT = 60  # seconds without a byte
TRIES = 4  # transfers in a row that bring nothing new, before the next mirror
PAUSE = 0.5  # seconds before the first repetition, twice as many before the next
RECORD = "downloads.json"
BLOCK = 2**18
PROGRESS = 2**16  # bytes that a transfer must bring to count, and …
SLOW = 600  # … in so many seconds: who sends one at a time would never come to an end

ELSEWHERE = (
    "check the network and run the same command again (what is here already is kept), or put the files into a folder "
    "and name it with --data-dir"
)

Check = Callable[[Path], None]


@dataclass(frozen=True)
class Remote:
    """A file to download.

    Attributes:
        name: what it is called here.
        urls: mirrors, tried in turn.
        sha256: of the file; None when its publisher gives none, which leaves it to the user.
        limit: bytes; a server that sends more is not believed.
        members: of an archive, the files to unpack, as patterns for their base names.
    """

    name: str
    urls: tuple[str, ...]
    sha256: str | None = None
    limit: int = 2**30
    members: tuple[str, ...] = ()


class TransferError(Exception):
    """This mirror does not give the file."""


class TooLargeError(TransferError):
    """What it gives cannot be the file."""


def fetch(
    remote: Remote,
    folder: Path,
    *,
    sha256: str | None = None,
    trust_first_download: bool = False,
    check: Check | None = None,
) -> Path:
    """The file in `folder`, downloaded unless it is there.

    Args:
        sha256: the sum to demand when `remote` has none.
        trust_first_download: take what comes, and record its sum for the next time.
        check: raises a RecipeError unless the complete file is right; takes the place of the sum.

    Raises:
        RecipeError: no mirror gives the right file, or nothing says what the right file is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / remote.name
    check = check or sum_check(remote, folder, sha256, trust_first_download)
    if target.exists() and not target.is_file():
        raise RecipeError(f"{target}: is in the way of the download, and is no file; move it elsewhere")
    if target.is_file():
        check(target)
        return target
    problems = []
    for url in remote.urls:
        print(f"download  {url}")
        part = folder / f"{remote.name}.part"
        resumed = part.exists()
        try:
            transfer(url, part, remote.limit)
            try:
                check(part)
            except RecipeError:
                drop(part)
                if not resumed:
                    raise
                transfer(url, part, remote.limit)  # its beginning may have been of another version or mirror
                check(part)
        except TransferError as error:
            said = "".join(c if c.isprintable() else " " for c in str(error))  # what came of a server may be anything
            problems.append(f"{url}: download failed ({' '.join(said.split())})")
        except RecipeError as error:
            drop(part)
            problems.append(str(error).replace(str(part), url))
        else:
            part.replace(target)
            drop(part)
            return target
    raise RecipeError(f"{'; '.join(problems)}; {ELSEWHERE}")


def sum_check(remote: Remote, folder: Path, given: str | None, trust: bool) -> Check:
    """What the file must be, by the sum in the recipe, from the user, or of the first download."""
    if given is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", given):
        raise RecipeError(f"--sha256 {given}: a sha256 has 64 hexadecimal digits; correct it")
    record = folder / RECORD
    recorded = recorded_sums(record).get(remote.name)
    expected = remote.sha256 or (given and given.lower()) or recorded
    if expected is None and not trust:
        raise RecipeError(
            f"{remote.name}: its publisher states no checksum. Give one that you trust with --sha256 "
            f"{remote.name}=HEX; or --trust-first-download takes what comes, records its checksum in {record} and "
            f"demands it from then on; or put the file into a folder and name that with --data-dir"
        )

    def check(path: Path) -> None:
        actual = digest(path)
        if expected is None:
            check_kind(remote, path)
        elif actual != expected:
            kind = page(path)
            remedy = "Delete it if it is there, and fetch it again"
            if expected == recorded and not kind:  # which may be the wrong one
                remedy += (
                    f". The sum was recorded in {record} at an earlier download; if that one was wrong, "
                    f"--sha256 {remote.name}={actual} demands this one from now on"
                )
            kind = kind or "the file is corrupt or another version"
            raise RecipeError(f"{path}: sha256 is {actual} but must be {expected}; {kind}. {remedy}")
        if remote.sha256 is None and recorded != actual:
            write_json(record, {**recorded_sums(record), remote.name: actual})

    return check


def recorded_sums(record: Path) -> dict[str, str]:
    wrong = f"{record}: holds no checksums; delete it, and state them anew"
    try:
        sums = read_json(record) if record.exists() else {}
    except RecipeError as error:
        raise RecipeError(wrong) from error
    if not all(isinstance(value, str) for value in sums.values()):
        raise RecipeError(wrong)
    return dict(sums)


def check_kind(remote: Remote, path: Path) -> None:
    """What nobody stated the sum of must at least be of the right kind, and whole, before it is trusted for good."""
    if problem := page(path) or ("" if path.stat().st_size else "it is empty"):
        raise RecipeError(f"{path}: is not {remote.name}, {problem}; look at it in a browser, or try again later")
    if remote.members:
        archive.check(path, remote.members)


def drop(part: Path) -> None:
    part.unlink(missing_ok=True)
    beside(part).unlink(missing_ok=True)


def beside(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def state(part: Path) -> dict[str, Any]:
    """Of an unfinished transfer: url, version, total; nothing when that cannot be read."""
    try:
        content = read_json(beside(part))
    except (OSError, RecipeError):
        return {}
    kinds = {"url": str, "version": str, "total": int}
    return {k: v for k, v in content.items() if isinstance(v, kinds.get(k, ()))} if isinstance(content, dict) else {}


def transfer(url: str, part: Path, limit: int) -> None:
    """Complete `part` from `url`, going on from what is there, and again after each break that brought something."""
    if part.exists() and state(part).get("total") == part.stat().st_size:
        return  # it was whole, but the process ended before it got its name
    fruitless = 0
    most = size(part)
    while fruitless < TRIES:
        problem = "the connection broke off"
        try:
            if receive(url, part, limit):
                return
        except TooLargeError:
            drop(part)
            raise
        except urllib.error.HTTPError as error:
            if error.code == 416:  # nothing lies beyond what is here, so it is no beginning of this file
                drop(part)
            elif error.code < 500:
                raise TransferError(error) from error
            problem = str(error)
        except urllib.error.URLError as error:  # nobody there
            raise TransferError(error) from error
        except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: hosts and headers that are none
            problem = str(error) or problem
        fruitless = 0 if size(part) >= most + PROGRESS else fruitless + 1
        most = max(most, size(part))
        if fruitless < TRIES:
            time.sleep(PAUSE * 2**fruitless)
    raise TransferError(problem)


def size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


class WebOnly(urllib.request.HTTPRedirectHandler):
    """A server sends nobody to ftp, nor from https to what everybody on the way can change."""

    def redirect_request(self, request: Any, *arguments: Any) -> Any:
        new = super().redirect_request(request, *arguments)
        if new and (new.type not in ("http", "https") or (request.type, new.type) == ("https", "http")):
            raise TransferError(f"{request.full_url} sends to {new.full_url}, which is not as safe")
        return new


def receive(url: str, part: Path, limit: int) -> bool:
    """One request; whether the file is whole now."""
    version, begun_at = state(part).get("version"), state(part).get("url")
    # Without a version the beginning of one mirror's file is not gone on with from another's.
    have = size(part) if version or begun_at == url else 0
    request = urllib.request.Request(url, headers={"User-Agent": "macaron-net"})
    if have:
        request.add_header("Range", f"bytes={have}-")
        if version:
            request.add_header("If-Range", version)
    with urllib.request.build_opener(WebOnly).open(request, timeout=TIMEOUT) as response:
        start, total = extent(response, have)
        if (total or 0) > limit:
            raise TooLargeError(f"{total:,} bytes are offered, more than the {limit:,} that this file can have")
        write_json(beside(part), {"url": url, "version": version_of(response), "total": total})
        with (
            part.open("r+b" if start else "wb") as file,
            tqdm(total=total, initial=start, desc=part.stem, unit="B", unit_scale=True, unit_divisor=1024) as bar,
        ):
            file.seek(start)
            counted, since = start, time.monotonic()
            for block in iter(lambda: response.read1(BLOCK), b""):
                if file.tell() + len(block) > limit:
                    raise TooLargeError(f"more than the {limit:,} bytes that this file can have were sent")
                file.write(block)
                bar.update(len(block))
                if file.tell() >= counted + PROGRESS:
                    counted, since = file.tell(), time.monotonic()
                elif time.monotonic() > since + SLOW:
                    raise TimeoutError(f"less than {PROGRESS:,} bytes in {SLOW:,} seconds")
            file.truncate()
            return total is None or file.tell() == total


def extent(response: Any, have: int) -> tuple[int, int | None]:
    """(where the content that comes belongs, size of the whole file); a server may ignore the request for a range."""
    match = re.fullmatch(r"bytes ([0-9]{1,18})-[0-9]+/([0-9]{1,18}|\*)", response.headers.get("Content-Range", ""))
    if response.status == 206:
        if not match or int(match[1]) != have:
            raise TransferError(f"bytes from {have} were asked for, {response.headers.get('Content-Range')} came")
        return have, None if match[2] == "*" else int(match[2])
    length = response.headers.get("Content-Length", "").strip()
    return 0, int(length) if re.fullmatch(r"[0-9]{1,18}", length) else None


def version_of(response: Any) -> str | None:
    """What If-Range can ask for: a strong entity tag, or the date; what could not be sent back is none."""
    tag = response.headers.get("ETag")
    version = tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified")
    return version if version and version.isascii() and version.isprintable() else None
