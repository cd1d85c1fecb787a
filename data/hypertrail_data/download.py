"""Get one file from the first mirror that has it. Nothing bears its final name before its sha256 has been verified."""

from __future__ import annotations

import fcntl
import hashlib
import os
import stat
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from .checks import reason
from .durable import FULL
from .errors import DataError, DiskFull
from .untrusted import open_regular

GZIP = b"\x1f\x8b"  # every file we fetch begins like this
BLOCK = 2**18  # bytes
TIMEOUT = (15, 60)  # seconds: to connect, and between two blocks


@dataclass(frozen=True)
class RemoteFile:
    """A published gzip file: its name, its sha256, its size, and the addresses of the folders it can be had from."""

    name: str
    sha256: str
    size: int
    mirrors: tuple[str, ...]


class _Refused(Exception):
    """One mirror could not give us the file, and why."""


def fetch(remote: RemoteFile, folder: Path, progress: bool = True) -> bytes:
    """The verified bytes of the file in ``folder``, downloaded if it is not there.

    The bytes themselves, not their path: what is opened again may have been replaced since it was verified.

    While a download is under way its bytes are in ``<name>.part``, which stays if the connection breaks, for the next call
    to go on from (HTTP Range). It is never read as data, and is removed if it turns out not to be the file. A second
    process waits for the first.

    Raises DataError with what each mirror said and where to put the file by hand, or naming what lies in the cache and is no
    regular file, or where the folder is somebody else's; DiskFull where there is no room.
    """
    path, part = folder / remote.name, folder / f"{remote.name}.part"
    if (content := verified(path, remote)) is not None:
        return content
    try:
        _refuse_foreign(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with open(_own_file(folder / f"{remote.name}.lock"), "rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if (content := verified(path, remote)) is not None:
                return content
            content = _from_mirrors(remote, part, progress)
            os.replace(part, path)
    except OSError as error:
        if error.errno in FULL:
            part.unlink(missing_ok=True)
            raise DiskFull(f"cannot write {path}: {error.strerror}; make room or set HYPERTRAIL_CACHE") from error
        raise DataError(f"cannot write {path}: {error.strerror}; set HYPERTRAIL_CACHE to a folder of yours") from error
    return content


def verified(path: Path, remote: RemoteFile) -> bytes | None:
    """The bytes of the file if they are what was published, else None. Raises DataError for a link, a pipe and the like."""
    try:
        with open(open_regular(path, follow_links=False), "rb") as file:
            content = file.read(remote.size + 1)
    except OSError:
        return None
    return content if hashlib.sha256(content).hexdigest() == remote.sha256 else None


def _refuse_foreign(folder: Path) -> None:
    """In a folder of somebody else, what we write could be exchanged, or be led elsewhere, at any moment."""
    there = next(place for place in (folder, *folder.absolute().parents) if os.path.lexists(place))
    owner = there.stat().st_uid
    if owner not in (os.getuid(), 0):
        raise DataError(
            f"{there} belongs to user {owner}, expected a folder of yours to write in; set HYPERTRAIL_CACHE to one"
        )


def _own_file(path: Path) -> int:
    """A file descriptor for reading and for appending to a file of ours, made if missing. What lies there is not emptied."""
    if path.is_symlink():
        raise _not_ours(path, "a symbolic link")
    # Without O_NOFOLLOW, a link made since would be followed; without O_NONBLOCK, opening a pipe could wait for ever.
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        fd = os.open(path, flags, 0o666)
    except IsADirectoryError as error:
        raise _not_ours(path, "a folder") from error
    status = os.fstat(fd)
    if stat.S_ISREG(status.st_mode) and status.st_nlink <= 1:  # some network file systems say 0
        return fd
    os.close(fd)
    raise _not_ours(path, "a pipe, a device or a second name of another file")


def _not_ours(path: Path, found: str) -> DataError:
    return DataError(f"{path} is {found}, expected a regular file of its own; remove it, or set HYPERTRAIL_CACHE")


def _from_mirrors(remote: RemoteFile, part: Path, progress: bool) -> bytes:
    """The verified bytes, which are also in ``part``."""
    said = []
    for mirror in remote.mirrors:
        url = mirror.rstrip("/") + "/" + remote.name
        while True:
            # A complete part: a kill came before the renaming.
            if (resuming := _size(part) > 0) and (content := verified(part, remote)) is not None:
                return content
            try:
                _resume(url, part, remote.size, progress)
            except _Refused as error:
                said.append(f"{url} {error}")
                break
            if (content := verified(part, remote)) is not None:
                return content
            part.unlink(missing_ok=True)
            if not resuming:  # else the part may have been another file's: once more, from its beginning
                said.append(f"{url} gave a file whose sha256 is not {remote.sha256[:12]}..")
                break
    raise DataError(
        f"cannot download {remote.name}: {'; '.join(said)}; place the file here: {part.with_name(remote.name)}"
    )


def _size(part: Path) -> int:
    """Bytes of the part; 0 where there is none. Raises DataError for a link, a pipe and the like."""
    if not os.path.lexists(part):
        return 0
    with open(_own_file(part), "rb") as file:
        return os.fstat(file.fileno()).st_size


def _resume(url: str, part: Path, size: int, progress: bool) -> None:
    """Append to ``part`` what it lacks. Raises _Refused, with ``part`` holding no more than came from the file.

    A mirror that gives more than ``size`` bytes is cut off.
    """
    try:
        import requests  # comes with pooch
        import urllib3
    except ImportError as error:
        raise _Refused("needs requests and pooch to be asked; install pooch") from error

    have = _size(part)
    if have >= size:  # and yet not the file
        part.unlink()
        have = 0
    # Bytes as they lie on the server: some label a .gz as an encoding, which would be undone on the way.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    done = total = 0
    try:
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as reply:
            if have and reply.status_code == 416:  # this mirror's file is shorter than the part
                part.unlink()
                return _resume(url, part, size, progress)
            if reply.status_code not in (200, 206):
                raise _Refused(f"answered HTTP {reply.status_code} {reason(reply.reason)}")
            if not reply.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
                have = 0  # this mirror begins at the beginning
            block = reply.raw.read(BLOCK, decode_content=False)
            if not have and not block.startswith(GZIP):
                what = "a web page" if block.lstrip()[:1] == b"<" else f"something that begins with {block[:8]!r}"
                raise _Refused(f"gave {what} in place of a gzip file")
            length = reply.headers.get("Content-Length", "")
            done, total = have, have + int(length) if length.isdecimal() and len(length) < 20 else 0
            meter = Meter(part.stem, total, progress)
            with open(_own_file(part), "ab") as file:
                file.truncate(have)
                while block:
                    done += len(block)
                    if done > size:
                        part.unlink()
                        raise _Refused(f"gave more than the {size} bytes of the file")
                    file.write(block)
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
