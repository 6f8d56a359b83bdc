"""Downloads from servers on this machine, and every way in which a transfer can go wrong."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import tarfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from recipes.common import download
from recipes.common.download import Remote, fetch
from recipes.common.errors import RecipeError

CONTENT = bytes(range(256)) * 4096  # 1 MiB
SUM = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Server:
    """A server that misbehaves as it is told, and remembers what it was asked."""

    content: bytes = CONTENT
    ranges: bool = True
    version: str | None = '"1"'
    length: bool = True
    break_at: list[int] = field(default_factory=list)  # bytes after which the next connections end
    status: list[int] = field(default_factory=list)  # errors that the next requests get
    headers: dict[str, str] = field(default_factory=dict)  # instead of those that are right
    redirect: str = ""  # where every request is sent
    drip: float = 0.0  # seconds between bytes
    asked: list[str | None] = field(default_factory=list)  # Range of each request
    url: str = ""

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        wanted = request.headers.get("Range")
        self.asked.append(wanted)
        if self.status:
            request.send_error(self.status.pop(0))
            return
        if self.redirect:
            request.send_response(302)
            request.send_header("Location", self.redirect)
            request.end_headers()
            return
        same = request.headers.get("If-Range") in (None, self.version)
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and self.ranges and same else 0
        if start >= len(self.content):
            request.send_error(416)
            return
        request.send_response(206 if start else 200)
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(self.content) - 1}/{len(self.content)}")
        for name, value in self.headers.items():
            request.send_header(name, value)
        if self.length and "Content-Length" not in self.headers:
            request.send_header("Content-Length", str(len(self.content) - start))
        if self.version and "ETag" not in self.headers:
            request.send_header("ETag", self.version)
        request.end_headers()
        stop = self.break_at.pop(0) if self.break_at else len(self.content)
        if not self.drip:
            request.wfile.write(self.content[start : start + stop])
        for byte in self.content[start : start + stop] if self.drip else b"":
            try:
                request.wfile.write(bytes([byte]))
            except OSError:  # nobody listens any more
                return
            time.sleep(self.drip)


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Server]]:
    """Two mirrors."""
    monkeypatch.setattr(download, "PAUSE", 0.0)
    running = []
    for server in (Server(), Server()):

        class Handler(BaseHTTPRequestHandler):
            mirror = server

            def do_GET(self) -> None:
                self.mirror.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        server.url = f"http://127.0.0.1:{http.server_port}/a.tgz"
        running.append((server, http, thread))
    yield [server for server, _, _ in running]
    for _, http, thread in running:
        http.shutdown()
        thread.join()
        http.server_close()


@pytest.fixture
def server(servers: list[Server]) -> Server:
    return servers[0]


def remote(*servers: Server, sha256: str | None = SUM, limit: int = 2**21) -> Remote:
    return Remote("a.tgz", tuple(server.url for server in servers), sha256=sha256, limit=limit)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_fetched_once(server: Server, tmp_path: Path) -> None:
    path = fetch(remote(server), tmp_path / "new")
    assert path.read_bytes() == CONTENT
    assert fetch(remote(server), tmp_path / "new") == path
    assert server.asked == [None]
    assert files(tmp_path / "new") == ["a.tgz"]


def test_a_broken_transfer_goes_on_where_it_stopped(server: Server, tmp_path: Path) -> None:
    server.break_at = [300_000, 400_000]
    assert fetch(remote(server), tmp_path).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=300000-", "bytes=700000-"]


def test_the_next_process_goes_on_too(server: Server, tmp_path: Path) -> None:
    with pytest.raises(download.TransferError), pytest.MonkeyPatch.context() as patch:
        patch.setattr(download, "TRIES", 1)
        server.break_at = [300_000, 0]
        download.transfer(server.url, tmp_path / "a.tgz.part", 2**21)
    assert files(tmp_path) == ["a.tgz.part", "a.tgz.part.json"]
    assert fetch(remote(server), tmp_path).read_bytes() == CONTENT
    assert server.asked[-1] == "bytes=300000-"


def test_a_whole_part_is_not_asked_for_again(server: Server, tmp_path: Path) -> None:
    download.transfer(server.url, tmp_path / "a.tgz.part", 2**21)
    assert fetch(remote(server), tmp_path).read_bytes() == CONTENT
    assert server.asked == [None]


def test_a_server_that_ignores_ranges_starts_again(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    server.break_at = [300_000]
    assert fetch(remote(server), tmp_path).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=300000-"]


def test_a_file_that_changed_meanwhile_starts_again(server: Server, tmp_path: Path) -> None:
    part = tmp_path / "a.tgz.part"
    part.write_bytes(b"of an older version")
    (tmp_path / "a.tgz.part.json").write_text(json.dumps({"url": server.url, "version": '"0"', "total": 2**20}))
    assert fetch(remote(server), tmp_path).read_bytes() == CONTENT
    assert server.asked == ["bytes=19-"]


@pytest.mark.parametrize("length", [19, len(CONTENT), len(CONTENT) + 5], ids=["shorter", "equal", "longer"])
def test_a_wrong_beginning_is_found_by_its_sum_and_thrown_away(server: Server, tmp_path: Path, length: int) -> None:
    server.version = None
    (tmp_path / "a.tgz.part").write_bytes(b"x" * length)
    (tmp_path / "a.tgz.part.json").write_text(json.dumps({"url": server.url, "version": None, "total": None}))
    assert fetch(remote(server), tmp_path).read_bytes() == CONTENT
    assert files(tmp_path) == ["a.tgz"]


def test_without_a_version_mirrors_are_not_mixed(servers: list[Server], tmp_path: Path) -> None:
    for server in servers:
        server.version = None
    servers[0].break_at = [300_000] + [0] * 10
    servers[1].content = CONTENT[::-1]
    path = fetch(remote(*servers, sha256=None), tmp_path, trust_first_download=True)
    assert path.read_bytes() == CONTENT[::-1]
    assert servers[1].asked == [None]


def test_the_second_mirror_goes_on_with_the_same_version(servers: list[Server], tmp_path: Path) -> None:
    servers[0].break_at = [300_000] + [0] * 10
    assert fetch(remote(*servers), tmp_path).read_bytes() == CONTENT
    assert servers[1].asked == ["bytes=300000-"]


@pytest.mark.parametrize("status", [404, 403])
def test_the_second_mirror_is_tried_at_once(servers: list[Server], tmp_path: Path, status: int) -> None:
    servers[0].status = [status]
    assert fetch(remote(*servers), tmp_path).read_bytes() == CONTENT
    assert len(servers[0].asked) == 1


def test_a_busy_server_is_asked_again(server: Server, tmp_path: Path) -> None:
    server.status = [503, 500]
    assert fetch(remote(server), tmp_path).read_bytes() == CONTENT


def test_a_wrong_file_of_one_mirror_is_had_from_the_next(servers: list[Server], tmp_path: Path) -> None:
    servers[0].content = CONTENT[:-1] + b"x"
    assert fetch(remote(*servers), tmp_path).read_bytes() == CONTENT


def test_a_wrong_checksum_leaves_nothing(server: Server, tmp_path: Path) -> None:
    server.content = b"something else"
    with pytest.raises(RecipeError, match=rf"{server.url}: sha256 is [0-9a-f]{{64}} but must be {SUM}"):
        fetch(remote(server), tmp_path)
    assert files(tmp_path) == []


def test_a_changed_file_is_named_and_kept(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.tgz").write_bytes(b"mine")
    with pytest.raises(RecipeError, match=r"a\.tgz: sha256 is .* Delete it if it is there"):
        fetch(remote(server), tmp_path)
    assert (tmp_path / "a.tgz").read_bytes() == b"mine"
    assert server.asked == []


@pytest.mark.parametrize("stated", [True, False], ids=["stated", "silent"])
def test_more_than_the_limit_is_not_taken(server: Server, tmp_path: Path, stated: bool) -> None:
    server.length = stated
    with pytest.raises(RecipeError, match="more than the 1,000"):
        fetch(remote(server, limit=1_000), tmp_path)
    assert files(tmp_path) == []


def test_no_network(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"download failed .*refused.*check the network.*--data-dir"):
        fetch(Remote("a.tgz", ("http://127.0.0.1:9/a.tgz", "http://127.0.0.1:9/b.tgz"), SUM), tmp_path)
    assert files(tmp_path) == []


def test_every_mirror_that_failed_is_named(servers: list[Server], tmp_path: Path) -> None:
    servers[0].status = [404]
    servers[1].content = b"something else"
    with pytest.raises(RecipeError) as caught:
        fetch(remote(*servers), tmp_path)
    assert all(server.url in str(caught.value) for server in servers)


class TestWithoutAStatedSum:
    def test_the_user_must_decide(self, server: Server, tmp_path: Path) -> None:
        with pytest.raises(RecipeError, match=r"states no checksum.*--sha256 a\.tgz=HEX.*--trust-first-download"):
            fetch(remote(server, sha256=None), tmp_path)
        assert server.asked == []

    def test_a_given_sum_is_demanded_and_recorded(self, server: Server, tmp_path: Path) -> None:
        with pytest.raises(RecipeError, match="but must be 0000"):
            fetch(remote(server, sha256=None), tmp_path, sha256="0" * 64)
        fetch(remote(server, sha256=None), tmp_path, sha256=SUM.upper())
        fetch(remote(server, sha256=None), tmp_path)
        assert json.loads((tmp_path / "downloads.json").read_text()) == {"a.tgz": SUM}

    def test_a_trusted_sum_is_demanded_from_then_on(self, server: Server, tmp_path: Path) -> None:
        fetch(remote(server, sha256=None), tmp_path, trust_first_download=True).unlink()
        server.content = b"something else"
        with pytest.raises(RecipeError, match=f"but must be {SUM}"):
            fetch(remote(server, sha256=None), tmp_path, trust_first_download=True)
        assert files(tmp_path) == ["downloads.json"]

    def test_a_sum_that_is_none(self, server: Server, tmp_path: Path) -> None:
        with pytest.raises(RecipeError, match="64 hexadecimal digits"):
            fetch(remote(server, sha256=None), tmp_path, sha256="abc")

    def test_a_page_in_the_place_of_the_file_is_not_recorded(self, server: Server, tmp_path: Path) -> None:
        """As a hotel's network sends it, with status 200."""
        server.content = b"\n<!DOCTYPE html><html><body>Please sign in</body></html>"
        with pytest.raises(RecipeError, match=r"/a\.tgz: is not a\.tgz, it is an HTML or XML page; .*again later"):
            fetch(remote(server, sha256=None), tmp_path, trust_first_download=True)
        assert files(tmp_path) == []
        server.content = CONTENT
        fetch(remote(server, sha256=None), tmp_path, trust_first_download=True)
        assert json.loads((tmp_path / "downloads.json").read_text()) == {"a.tgz": SUM}

    @pytest.mark.parametrize("damage", ["text", "empty", "cut", "another"])
    def test_an_archive_is_read_before_it_is_trusted(self, server: Server, tmp_path: Path, damage: str) -> None:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
            info = tarfile.TarInfo("x/train.de")
            info.size = 2000
            tar.addfile(info, io.BytesIO(CONTENT))
        right = buffer.getvalue()
        server.content = {"text": b"404: not here", "empty": gzip.compress(b""), "cut": right[:-20]}.get(damage, right)
        server.length = False  # so that nothing tells how long it should be
        wanted = Remote("a.tgz", (server.url,), members=("test.*" if damage == "another" else "train.*",))
        with pytest.raises(RecipeError, match=rf"{server.url}: .*(cannot be unpacked|no file that matches)"):
            fetch(wanted, tmp_path, trust_first_download=True)
        assert files(tmp_path) == []
        server.content = right
        if damage != "another":
            assert fetch(wanted, tmp_path, trust_first_download=True).read_bytes() == right

    def test_a_wrong_sum_that_was_recorded_is_undone_by_what_the_message_says(
        self, server: Server, tmp_path: Path
    ) -> None:
        (tmp_path / "downloads.json").write_text(json.dumps({"a.tgz": "0" * 64, "b.tgz": "1" * 64}))
        with pytest.raises(RecipeError, match=r"recorded in .*downloads\.json at an earlier download") as caught:
            fetch(remote(server, sha256=None), tmp_path, trust_first_download=True)
        name, _, value = re.search(r"--sha256 (\S+)", str(caught.value))[1].partition("=")
        assert (name, value) == ("a.tgz", SUM)
        fetch(remote(server, sha256=None), tmp_path, sha256=value)
        fetch(remote(server, sha256=None), tmp_path)
        assert json.loads((tmp_path / "downloads.json").read_text()) == {"a.tgz": SUM, "b.tgz": "1" * 64}

    def test_no_sum_of_a_page_is_offered(self, server: Server, tmp_path: Path) -> None:
        (tmp_path / "downloads.json").write_text(json.dumps({"a.tgz": SUM}))
        server.content = b"<html>busy</html>"
        with pytest.raises(RecipeError, match=r"must be .*; it is an HTML or XML page\. Delete") as caught:
            fetch(remote(server, sha256=None), tmp_path)
        assert "--sha256" not in str(caught.value)

    @pytest.mark.parametrize("content", ["[]", '"x"', "null", '{"a.tgz": 5}', "{"])
    def test_a_record_of_another_shape(self, server: Server, tmp_path: Path, content: str) -> None:
        (tmp_path / "downloads.json").write_text(content)
        with pytest.raises(RecipeError, match=r"downloads\.json: holds no checksums; delete it"):
            fetch(remote(server, sha256=None), tmp_path)


class TestServersThatMisbehave:
    @pytest.mark.parametrize("length", ["abc", "-5", "1e6", "", "5, 5", "9" * 40, "0x10", "٣"])
    def test_a_length_that_is_none(self, server: Server, tmp_path: Path, length: str) -> None:
        server.headers = {"Content-Length": length.encode().decode("latin-1")}
        assert fetch(remote(server), tmp_path).read_bytes() == CONTENT

    @pytest.mark.parametrize("length", [5, len(CONTENT) + 5])
    def test_a_wrong_length(self, servers: list[Server], tmp_path: Path, length: int) -> None:
        servers[0].headers = {"Content-Length": str(length)}
        assert fetch(remote(*servers), tmp_path).read_bytes() == CONTENT

    @pytest.mark.parametrize("total", ["abc", "5", "*"])
    def test_a_wrong_range(self, servers: list[Server], tmp_path: Path, total: str) -> None:
        servers[0].break_at = [300_000]
        servers[0].headers = {"Content-Range": f"bytes 300000-1048575/{total}"}
        assert fetch(remote(*servers), tmp_path).read_bytes() == CONTENT

    def test_a_version_that_cannot_be_sent_back(self, server: Server, tmp_path: Path) -> None:
        server.headers = {"ETag": '"\x01\xff"'}
        server.break_at = [300_000]
        assert fetch(remote(server), tmp_path).read_bytes() == CONTENT
        assert server.asked == [None, "bytes=300000-"]  # from the same address, which is as good

    @pytest.mark.parametrize(
        "place",
        [
            "file:///etc/passwd",
            "ftp://127.0.0.1/a",
            "data:,x",
            "gopher://x/",
            "http://a..b/",
            "http://[::1",
            "http://x:y/",
        ],
    )
    def test_redirects_lead_to_the_web_only(self, server: Server, tmp_path: Path, place: str) -> None:
        server.redirect = place
        with pytest.raises(RecipeError, match=rf"{server.url}: download failed \("):
            fetch(remote(server, sha256=None), tmp_path, trust_first_download=True)
        assert files(tmp_path) == []

    def test_redirects_do_not_lead_out_of_https(self) -> None:
        asked = download.urllib.request.Request("https://a.example/x")
        redirects = download.WebOnly()
        assert redirects.redirect_request(asked, None, 302, "", {}, "https://b.example/x").full_url
        with pytest.raises(download.TransferError, match=r"sends to http://b\.example/x, which is not as safe"):
            redirects.redirect_request(asked, None, 302, "", {}, "http://b.example/x")

    def test_what_a_server_says_stays_on_one_line(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def transfer(*_: object) -> None:
            raise download.TransferError("Found\n\x1b[2Jgone\r")

        monkeypatch.setattr(download, "transfer", transfer)
        with pytest.raises(RecipeError, match=r"download failed \(Found \[2Jgone\); "):
            fetch(Remote("file", ("http://x/file",), SUM), tmp_path)

    def test_redirects_in_a_circle(self, server: Server, tmp_path: Path) -> None:
        server.redirect = server.url
        with pytest.raises(RecipeError, match=r"download failed .*redirect"):
            fetch(remote(server), tmp_path)

    def test_who_sends_byte_by_byte_is_left(
        self, servers: list[Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(download, "SLOW", 0.5)  # enough for the other mirror on a busy machine
        servers[0].drip = 0.01
        servers[0].version = None
        assert fetch(remote(*servers), tmp_path).read_bytes() == CONTENT
        assert len(servers[0].asked) == download.TRIES

    def test_who_breaks_off_at_every_byte_is_left(self, servers: list[Server], tmp_path: Path) -> None:
        servers[0].break_at = [100] * 1000
        assert fetch(remote(*servers), tmp_path).read_bytes() == CONTENT
        assert len(servers[0].asked) == download.TRIES

    @pytest.mark.parametrize("state", ["", "[]", '{"url": 5, "version": [], "total": "x"}', "\x00"])
    def test_a_damaged_state_begins_anew(self, server: Server, tmp_path: Path, state: str) -> None:
        (tmp_path / "a.tgz.part").write_bytes(CONTENT[:1000])
        (tmp_path / "a.tgz.part.json").write_text(state)
        assert fetch(remote(server), tmp_path).read_bytes() == CONTENT
        assert server.asked == [None]

    def test_a_folder_in_the_way(self, server: Server, tmp_path: Path) -> None:
        (tmp_path / "a.tgz").mkdir()
        with pytest.raises(RecipeError, match=r"a\.tgz: is in the way of the download"):
            fetch(remote(server), tmp_path)
