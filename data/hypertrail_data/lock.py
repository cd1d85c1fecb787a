"""The lock of a trajectory's folder: one process writes, and only into the folder that it has locked."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from .errors import TrajectoryError

LOCK = "lock"


@dataclass(frozen=True, eq=False)
class Lock:
    """The folder as it was named when it was locked, and the descriptor of its lock file."""

    folder: Path
    fd: int

    def check(self) -> None:
        """Raise TrajectoryError unless the file that we hold still lies in the folder. Costs two calls of the system.

        Every write names its file by a path. Without this check, a writer whose folder was renamed would go on in
        whatever lies at the old path.
        """
        held = os.fstat(self.fd)
        try:
            there = os.stat(self.folder / LOCK, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError) as error:
            if not self.folder.is_dir():
                raise TrajectoryError(
                    f"the folder {self.folder} is gone; put it back and open it again, or train again in another folder"
                ) from error
        else:
            if (there.st_dev, there.st_ino) == (held.st_dev, held.st_ino):
                return
        raise TrajectoryError(
            f"the folder {self.folder} was moved or replaced while it was being written; nothing more is written: go on "
            'with StoredTrajectory.open(folder, "a"), folder being where it lies now'
        )

    @contextmanager
    def writing(self) -> Iterator[None]:
        """``check`` before a write, and after one that has failed: the folder may have gone in the middle of it."""
        self.check()
        try:
            yield
        except OSError:
            self.check()
            raise

    def release(self) -> None:
        os.close(self.fd)


def take_lock(folder: Path) -> Lock:
    """Take the folder for writing; the system lets go of it when this process ends, however it ends."""
    path = folder / LOCK
    # O_NOFOLLOW: a link would let us write into its target. O_NONBLOCK: a pipe would keep us waiting.
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise TrajectoryError(f"{path} is not a regular file; remove it, then open the trajectory again")
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        owner = one_line(os.read(fd, 200).decode(errors="replace")) or "another process"
        os.close(fd)
        raise TrajectoryError(
            f"{folder} is being written by {owner}; wait for it to end, or use another folder"
        ) from error
    except BaseException:
        os.close(fd)
        raise
    with suppress(OSError):  # a courtesy to whoever is refused; a full disk is no reason to fail here
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    return Lock(folder, fd)


def one_line(words: str) -> str:
    """At most 300 letters that can be printed, of words that come from a file: they may be anything."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in words[:300]).split())
