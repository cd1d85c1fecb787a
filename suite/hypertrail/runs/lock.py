"""One writer per folder: a lock that says who holds it, and that is known to be stale when its holder is gone.

The system's own lock (flock) is asked first; the kernel lets go of it when its process ends, however it ends. On some network
file systems it is not there, or does not reach the other hosts. So what the file says counts as well:

    {"process": 4711, "host": "node07", "started": "2026-11-21T15:30:02+00:00", "ticks": 812345, "place": "<boot>/<namespace>"}

    written at this place (boot of a machine, process namespace)   stale if no process has that number, or only one that was
                                                                   started at another tick
    written at another place                                       stale if the file was not touched for STILL seconds: a
                                                                   living writer touches it every BEAT seconds
    empty                                                          free: the last writer let go in good order

    anything else                                                  stale: no writer of ours left it

A writer at another place that is suspended (SIGSTOP) for longer than STILL looks gone where flock does not reach.

A folder can be moved or deleted while its writer is at work, and another run can begin at the old path. So whoever writes asks
`check_held` first, which compares the lock that is held with the file that lies at its path now.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import json
import os
import socket
import stat
import threading
import time
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path

from hypertrail_data import DataError
from hypertrail_data.untrusted import open_regular, read_regular

from ..errors import FolderLost, UsageError

BEAT = 10.0
STILL = 3 * BEAT
SETTLE = 1.0  # without flock: how long to wait whether somebody else wrote at the same moment
LARGEST = 4096  # bytes of a lock file
WITHOUT = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)  # this file system has no flock


@dataclass(frozen=True)
class Holder:
    """Who writes. started: of the process, ISO; ticks: the same in clock ticks after boot, to the digit; 0: not known."""

    process: int
    host: str
    started: str
    ticks: int
    place: str

    @property
    def key(self) -> tuple[int, int, str]:
        """What no other process has."""
        return self.process, self.ticks, self.place

    def __str__(self) -> str:
        return f"process {self.process} on {self.host} (started {self.started})"


_held: list[Lock] = []  # every lock of this process


class Lock:
    """Held from here to `release`. took_over: the holder that was found gone, if there was one."""

    def __init__(self, path: Path) -> None:
        """UsageError, naming the holder, where somebody holds it; OSError where the file cannot be written; DataError where it
        is a link or no regular file."""
        self.path, self.took_over = path, None
        self.folder = Path(os.path.abspath(path.parent))
        self._fd = opened(path)
        try:
            alone = self._flock()
            there = read(path)
            mine = me()
            if (
                there is not None and there.key != mine.key
            ):  # what we wrote ourselves: flock has just said that it is free
                if living(there) or (there.place != mine.place and touched(path)):
                    raise taken(path, there)
                self.took_over = there
            self._write(json.dumps(asdict(mine)) + "\n")
            if not alone:
                time.sleep(SETTLE)
                winner = read(path)
                if winner is None or winner.key != mine.key:
                    raise taken(path, winner)
        except BaseException:
            os.close(self._fd)
            raise
        _held.append(self)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lock", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Let go. The file stays, empty: removing it would let two writers hold two locks."""
        if self._ended.is_set():
            return
        self._ended.set()
        self._thread.join()
        _held.remove(self)
        with contextlib.suppress(OSError):
            self._write("")
        os.close(self._fd)

    def check(self) -> None:
        """Raise FolderLost unless the file at our path is still the one that we hold. Costs two calls of stat."""
        mine = os.fstat(self._fd)
        try:
            there = os.stat(self.folder / self.path.name, follow_symlinks=False)
        except OSError:
            what = "was deleted" if mine.st_nlink == 0 else "was moved away"
            raise FolderLost(
                f"{self.folder} {what} while it was being written; nothing was written after that. "
                f"{'Begin again' if mine.st_nlink == 0 else 'Put it back and go on'} with the same command"
            ) from None
        if (there.st_dev, there.st_ino) != (mine.st_dev, mine.st_ino):
            raise FolderLost(
                f"another folder lies at {self.folder}, where this one was while it was being written; nothing was "
                "written after that. Go on with the same command and --run-dir where the folder lies now"
            )

    def _flock(self) -> bool:
        """Whether the system gave its lock; False where it has none."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as problem:
            if problem.errno in WITHOUT:
                return False
            raise taken(self.path, read(self.path)) from problem
        return True

    def _write(self, text: str) -> None:
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, text.encode(), 0)
        os.fsync(self._fd)

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            with contextlib.suppress(OSError):
                os.utime(self._fd)


def check_held(path: Path) -> None:
    """Raise FolderLost where `path` lies in a folder that this process holds, and that folder was moved, replaced or deleted."""
    absolute = Path(os.path.abspath(path))
    for held in _held:
        if absolute.is_relative_to(held.folder):
            held.check()


def opened(path: Path) -> int:
    """A file descriptor of the lock file, which is made if need be. Nothing in it is changed."""
    if path.is_symlink():
        raise DataError(f"{path} is a symbolic link, expected a regular file; remove it")
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    raise DataError(f"{path} is not a regular file; remove it")


def taken(path: Path, holder: Holder | None) -> UsageError:
    return UsageError(
        f"{path.parent} is being written by {holder or 'another process'}; wait for it or name another --run-dir"
    )


def writer(path: Path) -> Holder | None:
    """Who writes to the folder of this lock, as far as can be told without taking it; None: nobody."""
    there = read(path)
    with contextlib.suppress(OSError, DataError):  # let go meanwhile, and the folder with it
        if there is None or living(there) or (there.place != me().place and age(path) < STILL):
            return there
    return None


def read(path: Path) -> Holder | None:
    """What the file says; None where it says nothing, or nothing that a writer of ours can have written."""
    try:
        record = json.loads(read_regular(path, LARGEST, follow_links=False))
    except (OSError, DataError, ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or {key: type(value) for key, value in record.items()} != TYPES:
        return None
    possible = 0 < record["process"] < 2**31 and record["ticks"] >= 0
    return Holder(**record) if possible else None


TYPES = {"process": int, "host": str, "started": str, "ticks": int, "place": str}


def me() -> Holder:
    return holder_of(os.getpid())


def holder_of(process: int) -> Holder:
    """The record of a living process of this place."""
    ticks = birth(process) or 0
    up = time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else 0.0
    began = time.time() - up + ticks / os.sysconf("SC_CLK_TCK") if ticks else time.time()
    started = datetime.datetime.fromtimestamp(round(began), datetime.UTC).isoformat()
    return Holder(process, socket.gethostname(), started, ticks, place())


def place() -> str:
    """Where process numbers mean the same: one boot of one machine, one namespace (container)."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        return socket.gethostname()


def living(holder: Holder) -> bool:
    """Whether that very process runs at this place."""
    if holder.place != place():
        return False
    try:
        os.kill(holder.process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's, but there
        pass
    ticks = birth(holder.process)
    return ticks != 0 and (ticks is None or holder.ticks in (0, ticks))


def birth(process: int) -> int | None:
    """The clock tick after boot at which a process was started; 0: it has ended (a zombie); None: the system does not say."""
    try:
        words = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return 0 if words[0] in "ZX" else int(words[19])


def age(path: Path) -> float:
    """Seconds since the file was touched, by the clock of its own file system."""
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(beside, "x"):
            return beside.stat().st_mtime - modified(path) / 1e9
    except OSError:
        return time.time() - modified(path) / 1e9
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)


def touched(path: Path) -> bool:
    """Whether somebody touches the file: looked at for up to STILL seconds, at once where it is older than that."""
    before, end = modified(path), time.monotonic() + STILL
    if age(path) > STILL:
        return False
    while time.monotonic() < end:
        time.sleep(STILL / 30)
        if modified(path) != before:
            return True
    return False


def modified(path: Path) -> int:
    """st_mtime_ns, asked of an opened file: a network file system then asks its server."""
    fd = open_regular(path, follow_links=False)
    try:
        return os.fstat(fd).st_mtime_ns
    finally:
        os.close(fd)
