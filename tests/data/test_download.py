"""Mirrors that fail in every way, on a server of our own."""

import gzip
import hashlib
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from hypertrail_data import DataError, DiskFull
from hypertrail_data import download as download_module
from hypertrail_data.download import RemoteFile, fetch

CONTENT = gzip.compress(np.random.default_rng(0).bytes(600_000), 0, mtime=0)
OTHER = gzip.compress(b"another file" * 1000, mtime=0)
PAGE = b"<!DOCTYPE html><html>Please sign in</html>"
NAME = "data.gz"
SHA = hashlib.sha256(CONTENT).hexdigest()


class Mirror(BaseHTTPRequestHandler):
    """The first part of the address says how it behaves."""

    def do_GET(self):
        behaviour = self.path.split("/")[1]
        asked = self.headers.get("Range", "")
        self.server.asked.append((behaviour, asked))
        body, start = {"page": PAGE, "other": OTHER, "empty": b"", "long": CONTENT + b"more"}.get(behaviour, CONTENT), 0
        if behaviour == "rude":
            self.send_response(500, "\x1b[31mNo")
            self.end_headers()
            return
        if behaviour == "missing":
            self.send_error(404)
            return
        if asked and behaviour in ("good", "breaks"):
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            if start >= len(body):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        else:
            self.send_response(200)
        if behaviour == "vague":
            self.send_header("Content-Length", "many")
        elif behaviour != "endless":
            self.send_header("Content-Length", str(len(body) - start))
        if behaviour == "labelled":  # as some servers do with every .gz; undoing it would change the file
            self.send_header("Content-Encoding", "gzip")
        self.end_headers()
        self.wfile.write(body[start : start + 300_000] if behaviour == "breaks" else body[start:])
        while behaviour == "endless":  # until nobody listens any more
            try:
                self.wfile.write(bytes(2**16))
            except OSError:
                return

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Mirror) as running:
        running.asked = []
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def mirrors(server, monkeypatch):
    """Turns behaviours into a RemoteFile."""
    monkeypatch.setenv("NO_PROXY", "*")
    server.asked.clear()
    address = f"http://127.0.0.1:{server.server_port}"
    return lambda *behaviours: RemoteFile(
        NAME, SHA, len(CONTENT), tuple(f"{address}/{behaviour}" for behaviour in behaviours)
    )


def files(folder):
    """What is there, apart from the empty lock file."""
    return sorted(path.name for path in folder.iterdir() if not (path.suffix == ".lock" and not path.stat().st_size))


def test_good(tmp_path, mirrors, server, capsys):
    path = tmp_path / "new" / "cache" / NAME
    assert fetch(mirrors("good"), path.parent) == CONTENT
    assert path.read_bytes() == CONTENT
    assert files(path.parent) == [NAME]
    assert capsys.readouterr().err == "data.gz: 0.6 of 0.6 MB (100%)\n"
    fetch(mirrors("good"), path.parent)
    assert len(server.asked) == 1  # it was there


def test_quiet(tmp_path, mirrors, capsys):
    fetch(mirrors("good"), tmp_path, progress=False)
    assert capsys.readouterr() == ("", "")


def test_mirrors_in_turn(tmp_path, mirrors, server):
    content = fetch(mirrors("missing", "page", "other", "empty", "labelled", "good"), tmp_path)
    assert content == (tmp_path / NAME).read_bytes() == CONTENT
    assert [behaviour for behaviour, _ in server.asked] == ["missing", "page", "other", "empty", "labelled"]


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        ("missing", "answered HTTP 404 Not Found"),
        ("rude", "answered HTTP 500 [31mNo"),
        ("page", "gave a web page in place of a gzip file"),
        ("empty", "gave something that begins with b'' in place of a gzip file"),
        ("long", f"gave more than the {len(CONTENT)} bytes of the file"),
        ("endless", f"gave more than the {len(CONTENT)} bytes of the file"),
        ("other", f"gave a file whose sha256 is not {SHA[:12]}"),
    ],
)
def test_nothing_stays_of_what_is_not_the_file(tmp_path, mirrors, behaviour, message):
    with pytest.raises(DataError) as caught:
        fetch(mirrors(behaviour), tmp_path)
    assert message in str(caught.value)
    assert f"/{behaviour}/data.gz" in str(caught.value)
    assert f"place the file here: {tmp_path / NAME}" in str(caught.value)
    assert files(tmp_path) == []


def test_a_broken_connection_is_resumed(tmp_path, mirrors, server):
    with pytest.raises(DataError, match=f"broke off after 300000 of {len(CONTENT)} bytes"):
        fetch(mirrors("breaks"), tmp_path)
    assert files(tmp_path) == [f"{NAME}.part"]
    assert fetch(mirrors("good"), tmp_path) == (tmp_path / NAME).read_bytes() == CONTENT
    assert server.asked == [("breaks", ""), ("good", "bytes=300000-")]
    assert files(tmp_path) == [NAME]


def test_a_mirror_that_cannot_resume_begins_at_the_beginning(tmp_path, mirrors):
    (tmp_path / f"{NAME}.part").write_bytes(CONTENT[:1000])
    assert fetch(mirrors("norange"), tmp_path) == (tmp_path / NAME).read_bytes() == CONTENT
    assert files(tmp_path) == [NAME]


@pytest.mark.parametrize(
    "part", [b"\x1f\x8b" + b"x" * 1000, OTHER, CONTENT + b"too much", b""], ids=["junk", "other", "long", "empty"]
)
def test_a_part_of_something_else_is_given_up(tmp_path, mirrors, part):
    (tmp_path / f"{NAME}.part").write_bytes(part)
    assert fetch(mirrors("good"), tmp_path) == (tmp_path / NAME).read_bytes() == CONTENT
    assert files(tmp_path) == [NAME]


def test_a_complete_part_needs_no_mirror(tmp_path, mirrors, server):
    (tmp_path / f"{NAME}.part").write_bytes(CONTENT)
    assert fetch(mirrors("missing"), tmp_path) == (tmp_path / NAME).read_bytes() == CONTENT
    assert server.asked == []


def test_a_web_page_does_not_cost_what_was_already_here(tmp_path, mirrors):
    (tmp_path / f"{NAME}.part").write_bytes(CONTENT[:1000])
    with pytest.raises(DataError, match="web page"):
        fetch(mirrors("page"), tmp_path)
    assert (tmp_path / f"{NAME}.part").read_bytes() == CONTENT[:1000]


def test_a_damaged_file_in_the_cache_is_replaced(tmp_path, mirrors):
    (tmp_path / NAME).write_bytes(CONTENT[:-1])
    assert fetch(mirrors("good"), tmp_path) == (tmp_path / NAME).read_bytes() == CONTENT


def test_no_network_names_every_mirror(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    with ThreadingHTTPServer(("127.0.0.1", 0), Mirror) as closed:
        port = closed.server_port
    urls = tuple(f"http://127.0.0.1:{port}/{name}" for name in ("one", "two/"))
    with pytest.raises(DataError) as caught:
        fetch(RemoteFile(NAME, SHA, len(CONTENT), urls), tmp_path)
    for url in urls:
        assert f"{url.rstrip('/')}/data.gz cannot be reached" in str(caught.value)
    assert str(caught.value).endswith(f"place the file here: {tmp_path / NAME}")
    assert files(tmp_path) == []


def test_no_room(tmp_path, mirrors, monkeypatch):
    class Full:
        def __init__(self, *_):
            pass

        def show(self, _):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(download_module, "Meter", Full)
    with pytest.raises(DiskFull, match="No space left on device; make room or set HYPERTRAIL_CACHE"):
        fetch(mirrors("good"), tmp_path)
    assert files(tmp_path) == []


def test_a_cache_that_cannot_be_made(tmp_path, mirrors):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="set HYPERTRAIL_CACHE to a folder of yours"):
        fetch(mirrors("good"), tmp_path / "file" / "cache")


def test_two_at_once_download_once(tmp_path, mirrors, server):
    threads = [threading.Thread(target=fetch, args=(mirrors("good"), tmp_path, False)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.asked) == 1
    assert (tmp_path / NAME).read_bytes() == CONTENT


@pytest.fixture
def victim(tmp_path):
    """A file of the reader's that nothing in the cache may change."""
    path = tmp_path / "victim"
    path.write_bytes(b"precious")
    yield path
    assert path.read_bytes() == b"precious"


@pytest.mark.parametrize("ending", [".lock", ".part", ""])
@pytest.mark.parametrize("kind", ["link", "dangling link", "pipe", "folder", "hard link"])
def test_what_is_no_file_of_its_own_is_refused_by_name(tmp_path, mirrors, victim, ending, kind):
    folder = tmp_path / "cache"
    folder.mkdir()
    path = folder / f"{NAME}{ending}"
    if kind == "link":
        path.symlink_to(victim)
    elif kind == "dangling link":
        path.symlink_to(tmp_path / "made")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif ending:
        os.link(victim, path)
    else:
        pytest.skip("the final file is only read, and replaced by renaming")
    with pytest.raises(DataError, match=f"^{path} is ") as caught:
        fetch(mirrors("good"), folder)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "made").exists()


def test_a_lock_that_holds_something_is_not_emptied(tmp_path, mirrors):
    (tmp_path / f"{NAME}.lock").write_bytes(b"notes of mine")
    assert fetch(mirrors("good"), tmp_path) == CONTENT
    assert (tmp_path / f"{NAME}.lock").read_bytes() == b"notes of mine"


@pytest.mark.parametrize("inside", [".", "mnist"])
def test_a_cache_of_somebody_else(tmp_path, mirrors, monkeypatch, inside):
    folder = tmp_path / "theirs"
    folder.mkdir()
    if os.getuid():
        monkeypatch.setattr(os, "getuid", lambda: 54321)
    else:
        os.chown(folder, 54321, -1)
    with pytest.raises(DataError, match=rf"{folder} belongs to user \d+, expected a folder of yours.*HYPERTRAIL_CACHE"):
        fetch(mirrors("good"), folder / inside)
    assert list(folder.iterdir()) == []
    (folder / NAME).write_bytes(CONTENT)  # what is verified may be read, whoever put it there
    assert fetch(mirrors("missing"), folder) == CONTENT


def test_a_mirror_that_does_not_say_how_much_it_gives(tmp_path, mirrors, capsys):
    assert fetch(mirrors("vague"), tmp_path) == CONTENT
    assert "%" not in capsys.readouterr().err


def test_a_part_as_long_as_the_file_asks_for_no_more(tmp_path, mirrors, server):
    (tmp_path / f"{NAME}.part").write_bytes(CONTENT[:-1] + b"?")
    assert fetch(mirrors("good"), tmp_path) == CONTENT
    assert server.asked == [("good", "")]
