"""Compiled programs in a folder: one file for each, shared by any number of processes, never trusted blindly.

    store = ProgramStore(folder, limit=2**30)
    store.put(key, program)
    store.get(key)                # the same bytes; None where there is no such program, or where its file is damaged

What is loaded from here is machine code and will be run. A file is therefore used only if it belongs to us, if nobody else may
write to it, and if its checksum is right. A file appears whole or not at all, so processes need no lock. Nothing here raises
because of the folder: what goes wrong is said once, as a warning, and the program is compiled as if there were no store.
JAX's own store (0.10) writes files in place, keeps a damaged file forever, bounds its size only where `filelock` is installed,
and has no checksum where `zstandard` is installed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import tempfile
import time
import warnings
from pathlib import Path

SUFFIX, UNFINISHED = ".program", ".unfinished"
ABANDONED = 3600.0  # seconds after which nobody is writing a file any more
CHECKSUM_BYTES = hashlib.sha256().digest_size
OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH


class ProgramStore:
    """The programs in one folder. JAX asks it by `get` and `put`, as it asks its own LRUCache.

    limit: bytes that all files together may take; beyond it those go that were used least recently. None: no limit.
    """

    def __init__(self, folder: Path, limit: int | None = None) -> None:
        self.folder, self.limit = folder, limit
        self._path = folder  # JAX's name for it, which it writes into its log
        self._writes, self._warned = True, False

    def get(self, key: str) -> bytes | None:
        path = self.path_of(key)
        try:
            content = read_own(path)
        except FileNotFoundError:
            return None
        except OSError as problem:
            self._warn(f"{path} cannot be read ({problem.strerror})")
            return None
        program = checked(content)
        if program is None:
            self._warn(f"{path} was damaged and is made anew")
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # the time of its last use, by which `make_room` chooses
        return program

    def put(self, key: str, program: bytes) -> None:
        """Keep a program, unless there is one under this key, or it is larger than the limit."""
        path = self.path_of(key)
        if not self._writes or path.exists() or (self.limit is not None and len(program) > self.limit):
            return
        try:
            write_whole(path, hashlib.sha256(program).digest() + program)
        except OSError as problem:
            self._writes = False
            self._warn(f"{self.folder} cannot be written to ({problem.strerror}); nothing more is kept there")
            return
        if self.limit is not None:
            make_room(self.folder, self.limit)

    def path_of(self, key: str) -> Path:
        return self.folder / (hashlib.sha256(key.encode()).hexdigest() + SUFFIX)

    def _warn(self, problem: str) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(f"compilation cache: {problem}", stacklevel=2)


def why_unsafe(folder: Path) -> str:
    """Make the folder where it is missing; what speaks against running code from it, in words, or ''."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
    except OSError as problem:
        return f"{folder} cannot be made ({problem.strerror})"
    if found.st_uid != os.geteuid():
        return (
            f"{folder} belongs to user {found.st_uid}, not to us ({os.geteuid()}), and code that is run comes from it"
        )
    if found.st_mode & OTHERS_MAY_WRITE:
        mode = stat.S_IMODE(found.st_mode)
        return f"others may write to {folder} (mode {mode:o}, expected 700), and code that is run comes from it"
    return ""


def read_own(path: Path) -> bytes:
    """A file's content. PermissionError where it is not ours alone, OSError where it is a link or cannot be read."""
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
        found = os.fstat(file.fileno())
        if found.st_uid != os.geteuid() or found.st_mode & OTHERS_MAY_WRITE:
            raise PermissionError(0, "it is another user's, or others may write to it")
        return file.read()


def checked(content: bytes) -> bytes | None:
    """The program behind its checksum; None where they do not fit."""
    checksum, program = content[:CHECKSUM_BYTES], content[CHECKSUM_BYTES:]
    return program if hashlib.sha256(program).digest() == checksum else None


def write_whole(path: Path, content: bytes) -> None:
    """Under another name first, so that no reader sees a part of it; only we may read it."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=UNFINISHED)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def make_room(folder: Path, limit: int) -> None:
    """Remove what dead writers have left, and the programs that were used least recently until the rest takes `limit` bytes at
    most. Other processes may do the same at this moment."""
    programs, now = [], time.time()
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            with contextlib.suppress(OSError):
                found = entry.stat(follow_symlinks=False)
                if entry.name.endswith(SUFFIX):
                    programs.append((found.st_mtime_ns, found.st_size, entry.path))
                elif entry.name.endswith(UNFINISHED) and now - found.st_mtime > ABANDONED:
                    os.unlink(entry.path)
    total = sum(size for _, size, _ in programs)
    for _, size, path in sorted(programs):
        if total <= limit:
            return
        with contextlib.suppress(OSError):
            os.unlink(path)
        total -= size
