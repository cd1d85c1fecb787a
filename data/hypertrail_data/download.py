"""Get one file from the first mirror that has it. Nothing bears its final name before its sha256 has been verified."""

from __future__ import annotations

import fcntl
import hashlib
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from .durable import FULL
from .errors import DataError, DiskFull

GZIP = b"\x1f\x8b"  # every file we fetch begins like this
BLOCK = 2**18  # bytes
TIMEOUT = (15, 60)  # seconds: to connect, and between two blocks


@dataclass(frozen=True)
class RemoteFile:
    """A published gzip file: its name, its sha256, and the addresses of the folders it can be had from."""

    name: str
    sha256: str
    mirrors: tuple[str, ...]


class _Refused(Exception):
    """One mirror could not give us the file, and why."""


def fetch(remote: RemoteFile, folder: Path, progress: bool = True) -> Path:
    """The path of the verified file in ``folder``, downloaded if it is not there.

    While a download is under way its bytes are in ``<name>.part``, which stays if the connection breaks, for the next call
    to go on from (HTTP Range). It is never read as data, and is removed if it turns out not to be the file. A second
    process waits for the first.

    Raises DataError with what each mirror said and where to put the file by hand, DiskFull where there is no room.
    """
    path, part = folder / remote.name, folder / f"{remote.name}.part"
    if is_verified(path, remote.sha256):
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / f"{remote.name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if is_verified(path, remote.sha256):
                return path
            _from_mirrors(remote, path, part, progress)
    except OSError as error:
        if error.errno in FULL:
            part.unlink(missing_ok=True)
            raise DiskFull(f"cannot write {path}: {error.strerror}; make room or set HYPERTRAIL_CACHE") from error
        raise DataError(f"cannot write {path}: {error.strerror}; set HYPERTRAIL_CACHE to a folder of yours") from error
    return path


def is_verified(path: Path, sha256: str) -> bool:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == sha256
    except OSError:
        return False


def _from_mirrors(remote: RemoteFile, path: Path, part: Path, progress: bool) -> None:
    said = []
    for mirror in remote.mirrors:
        url = mirror.rstrip("/") + "/" + remote.name
        while True:
            resuming = part.exists()
            if resuming and is_verified(part, remote.sha256):  # complete; a kill came before the renaming
                return os.replace(part, path)
            try:
                _resume(url, part, progress)
            except _Refused as error:
                said.append(f"{url} {error}")
                break
            if is_verified(part, remote.sha256):
                return os.replace(part, path)
            part.unlink(missing_ok=True)
            if not resuming:  # else the part may have been another file's: once more, from its beginning
                said.append(f"{url} gave a file whose sha256 is not {remote.sha256[:12]}..")
                break
    raise DataError(f"cannot download {remote.name}: {'; '.join(said)}; place the file here: {path}")


def _resume(url: str, part: Path, progress: bool) -> None:
    """Append to ``part`` what it lacks. Raises _Refused, with ``part`` holding no more than came from the file."""
    try:
        import requests  # comes with pooch
        import urllib3
    except ImportError as error:
        raise _Refused("needs requests and pooch to be asked; install pooch") from error

    have = part.stat().st_size if part.exists() else 0
    # Bytes as they lie on the server: some label a .gz as an encoding, which would be undone on the way.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    done = total = 0
    try:
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as reply:
            if have and reply.status_code == 416:  # the part is as long as the file, and yet not the file
                part.unlink()
                return _resume(url, part, progress)
            if reply.status_code not in (200, 206):
                raise _Refused(f"answered HTTP {reply.status_code} {reply.reason}")
            if not reply.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
                have = 0  # this mirror begins at the beginning
            block = reply.raw.read(BLOCK, decode_content=False)
            if not have and not block.startswith(GZIP):
                what = "a web page" if block.lstrip()[:1] == b"<" else f"something that begins with {block[:8]!r}"
                raise _Refused(f"gave {what} in place of a gzip file")
            done, total = have, have + int(reply.headers.get("Content-Length", 0))
            meter = Meter(part.stem, total, progress)
            with open(part, "ab" if have else "wb") as file:
                while block:
                    file.write(block)
                    done += len(block)
                    meter.show(done)
                    block = reply.raw.read(BLOCK, decode_content=False)
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        if done:
            raise _Refused(f"broke off after {done} of {total} bytes (run again to go on from there)") from error
        timed_out = isinstance(error, (requests.Timeout, urllib3.exceptions.TimeoutError))
        raise _Refused("gave no answer in time" if timed_out else "cannot be reached") from error


class Meter:
    """Progress of a download on stderr: a plain line every five seconds, and one at the end."""

    def __init__(self, name: str, total: int, visible: bool) -> None:
        self._name, self._total, self._visible = name, total, visible
        self._next = time.monotonic() + 5

    def show(self, done: int) -> None:
        """``done`` of ``total`` bytes are here; a total of 0 means that the server did not say."""
        if self._visible and (done == self._total or time.monotonic() >= self._next):
            self._next = time.monotonic() + 5
            share = f" of {self._total / 1e6:.1f} MB ({done / self._total:.0%})" if self._total else " MB"
            print(f"{self._name}: {done / 1e6:.1f}{share}", file=sys.stderr, flush=True)
