"""Reading what somebody else may have written: regular files alone, no more bytes than expected, JSON of the expected form.

A folder that a user was given, or that an accident has changed, may hold a pipe that never ends, a link to another file, a number
where a word is expected, or brackets nested a million deep. These three functions answer all of it with a DataError of one line.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from .errors import DataError

LARGEST_JSON = 64 * 2**20  # bytes


def open_regular(path: Path, follow_links: bool = True) -> int:
    """A file descriptor for reading ``path``, which is a regular file. The caller closes it.

    follow_links: whether ``path`` itself may be a symbolic link. A link in the middle of the path is always followed.

    Raises OSError where the system refuses, DataError for a folder, a pipe, a device, a socket or (unless followed) a link.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK  # without O_NONBLOCK, opening a pipe waits for a writer
    if not follow_links:
        if path.is_symlink():
            raise DataError(f"{path} is a symbolic link, expected a regular file; put the file itself there")
        flags |= os.O_NOFOLLOW
    fd = os.open(path, flags)
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    raise DataError(f"{path} is not a regular file; remove it, or put a regular file there")


def read_regular(path: Path, at_most: int, follow_links: bool = True) -> bytes:
    """The bytes of a regular file of no more than ``at_most`` bytes. Raises what ``open_regular`` raises, and DataError."""
    fd = open_regular(path, follow_links)
    with open(fd, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        content = file.read(min(size, at_most) + 1)  # one byte more: it may grow meanwhile
    if len(content) > at_most:
        raise DataError(
            f"{path} has more than {at_most} bytes, which is more than belongs there; put the original there"
        )
    return content


def json_object(raw: bytes, path: Path) -> dict[str, Any]:
    """The JSON object that ``raw``, read from ``path``, holds. DataError for anything else."""
    try:
        found = json.loads(raw)
    except (
        ValueError,
        RecursionError,
    ) as error:  # ValueError: also bytes that are not UTF-8, and numbers of 5,000 digits
        reason = "it is nested too deep" if isinstance(error, RecursionError) else error
        raise DataError(f"{path} is damaged ({reason}); put the original there") from error
    if not isinstance(found, dict):
        raise DataError(f"{path} is damaged: expected an object in JSON; put the original there")
    return found
