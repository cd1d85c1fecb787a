"""Files that are either wholly there or not there at all, and the errors of a disk that cannot take them."""

from __future__ import annotations

import errno
import os
import uuid
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path

from .errors import DiskFull, TrajectoryError

MOST_PARTS, MOST_BYTES = 1024, 2**30  # that writev takes at once, on Linux and macOS
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # disk, quota, file size limit


def write_all(fd: int, *parts: bytes | memoryview) -> None:
    """os.writev may stop short (signals, a limit near by): go on until all is written or it raises OSError."""
    waiting = deque(memoryview(part).cast("B") for part in parts)
    while waiting:
        several, size = [], 0
        for part in islice(waiting, MOST_PARTS):
            several.append(part[: MOST_BYTES - size])
            size += len(several[-1])
        done = os.writev(fd, several)
        while waiting and done >= len(waiting[0]):
            done -= len(waiting.popleft())
        if done:
            waiting[0] = waiting[0][done:]


def sync_folder(folder: Path) -> None:
    """Make renames in ``folder`` survive a power cut."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def temporary(path: Path) -> Path:
    """A name beside ``path`` that nobody else uses."""
    return path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")


@contextmanager
def appearing(path: Path) -> Iterator[int]:
    """Give a new file to write into, its descriptor; afterwards fsync it and rename it to ``path``, or remove it if anything
    failed."""
    temp = temporary(path)
    fd = os.open(temp, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        try:
            yield fd
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(temp, path)
        sync_folder(path.parent)
    except BaseException:
        with suppress(OSError):
            temp.unlink()
        raise


def write_file(path: Path, data: bytes | memoryview) -> None:
    """Replace ``path`` by ``data``, durably; a crash at any moment leaves the old file or the new one. Raises OSError."""
    with appearing(path) as fd:
        write_all(fd, data)


def storage_error(error: BaseException, path: Path, way_out: str) -> Exception:
    """The DiskFull or TrajectoryError to raise from ``error``. A TrajectoryError names its own way out."""
    if isinstance(error, TrajectoryError):
        return TrajectoryError(str(error))
    reason = (getattr(error, "strerror", None) or str(error) or type(error).__name__).lower()
    if isinstance(error, OSError) and error.errno in FULL:
        return DiskFull(f"cannot write in {path}: {reason}; {way_out}")
    return TrajectoryError(f"cannot write in {path}: {reason}; {way_out}")


@contextmanager
def storing(path: Path, way_out: str) -> Iterator[None]:
    """Turn an OSError into DiskFull or TrajectoryError."""
    try:
        yield
    except OSError as error:
        raise storage_error(error, path, way_out) from error
