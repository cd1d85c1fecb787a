"""Writing into the folder of a run: whole files or none, never through a link, and never into a folder that is no longer ours.

Every function here first asks `lock.check_held` whether the folder that this process holds is still where it was.
"""

from __future__ import annotations

import datetime
import json
import os
import stat
import uuid
from pathlib import Path
from typing import Any

from hypertrail_data import DataError
from hypertrail_data.sealed import check_sum

from . import lock


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write to a temporary name beside `path`, fsync, rename: a reader (or a crash) sees the old file or the new one.

    A link at `path` is replaced, not followed. Raises OSError, and FolderLost where the folder of the run is gone.
    """
    lock.check_held(path)
    if path.is_dir() and not path.is_symlink():
        raise DataError(f"{path} is a folder, and a file is to be written there; remove it")
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        with open(fd, "wb") as f:
            f.write(content.encode(errors="backslashreplace") if isinstance(content, str) else content)
            f.flush()
            os.fsync(f.fileno())
        lock.check_held(path)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def append(path: Path, line: bytes) -> None:
    """Add a line to a file; it is on the disk when this returns. `line` ends with a line break.

    Raises OSError, DataError where `path` is a link or no regular file, and FolderLost where the folder of the run is gone.
    """
    lock.check_held(path)
    if path.is_symlink():
        raise DataError(f"{path} is a symbolic link, expected a regular file; remove it")
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with open(os.open(path, flags, 0o666), "ab") as f:
        if not stat.S_ISREG(os.fstat(f.fileno()).st_mode):
            raise DataError(f"{path} is not a regular file; remove it")
        f.write(line)
        f.flush()
        os.fsync(f.fileno())


def log_line(text: str) -> bytes:
    """A line of log.txt, with the time in front. What cannot be printed is written as an escape."""
    time = f"{datetime.datetime.now().astimezone():%Y-%m-%d %H:%M:%S%z}"
    return f"{time} {text}\n".encode(errors="backslashreplace")


def dump(record: dict[str, Any]) -> str:
    """A record as a file that people read."""
    return json.dumps(record, indent=2, default=str) + "\n"


def dump_sealed(record: dict[str, Any]) -> str:
    """The same with a check sum as its last entry: `reading.sealed_object` believes nothing else."""
    plain = json.loads(json.dumps(record, default=str))
    return dump({**plain, "check": check_sum(plain)})


def make_folder(path: Path) -> None:
    """Make a folder inside that of a run. A run's own folder that was deleted meanwhile is not made again."""
    lock.check_held(path)
    path.mkdir(exist_ok=True)


def mend(path: Path) -> None:
    """End a torn last line, so that the next one begins a line."""
    if path.is_file() and (text := path.read_bytes()) and not text.endswith(b"\n"):
        append(path, b"\n")


def left_over(path: Path) -> bool:
    """Whether this is a file that a writer had not yet given its name (`write_atomic`)."""
    return path.name.startswith(".") and path.suffix == ".tmp"


def sweep(folder: Path) -> None:
    """Remove what a dying writer left in the folder of a run and in the folders in it."""
    lock.check_held(folder)
    for place in (folder, *(one for one in folder.iterdir() if one.is_dir() and not one.is_symlink())):
        for one in place.glob(".*.tmp"):
            one.unlink(missing_ok=True)
