"""The threads that turn full buffers into segments on disk, while training goes on."""

from __future__ import annotations

import hashlib
import os
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from . import manifest, segment
from .durable import sync_folder, temporary, write_all
from .lock import Lock
from .manifest import Entry, file_name
from .trajectory import Segment

BEHIND = 16  # segments written and not yet durable: the system's memory, and open files


@dataclass(frozen=True, eq=False)
class Written:
    """A segment's file, whole and under its name, and the descriptor that it was written through."""

    lock: Lock
    entry: Entry
    fd: int

    def sync(self) -> None:
        """Return when the disk has the file and its name; closes it. Raises OSError and what ``Lock.check`` raises."""
        try:
            os.fsync(self.fd)
        finally:
            os.close(self.fd)
        with self.lock.writing():
            sync_folder(self.lock.folder)


def write_segment(lock: Lock, one: Segment) -> Written:
    """Write one segment; it counts only once it is synced and the manifest says so. Raises OSError and what ``Lock.check``
    raises."""
    parts = segment.pack(one)
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    path = lock.folder / file_name(one.start, one.stop)
    with lock.writing():
        fd = _place(path, parts)
    size = sum(part.nbytes for part in parts)
    return Written(lock, Entry(path.name, one.start, one.stop, size, digest.hexdigest()), fd)


def _place(path: Path, parts: list[memoryview]) -> int:
    """Write a file that appears at ``path`` once it is whole, and return its descriptor. Raises OSError."""
    temp = temporary(path)
    fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        write_all(fd, *parts)
        os.replace(temp, path)
    except BaseException:
        os.close(fd)
        with suppress(OSError):
            temp.unlink()
        raise
    return fd


class Writer:
    """Writes jobs in the order of submission and adds each to ``entries`` once it is durable.

    One thread writes files, as fast as the system takes them; another waits for the disk. ``room`` (bytes, set by the owner)
    bounds what is accepted but not yet written, and so our memory: ``reserve`` waits for it. After the first failure nothing
    more is written; ``failure`` says why, once all that was written before it is durable.
    """

    def __init__(self, lock: Lock | None, entries: list[Entry]) -> None:
        """lock: None for a trajectory that is open for reading, which submits nothing."""
        self.failure: BaseException | None = None
        self.told = False  # whether the failure has been raised
        self._lock = lock
        self._entries = entries
        self.room = 0
        self._in_flight = 0
        self._jobs: deque[Segment] = deque()
        self._busy = False
        self._written: deque[Written] = deque()  # in order; the first of them is being synced
        self._stopped: BaseException | None = None  # what ended the writing
        self._closing = False
        self._at_end: Callable[[], None] | None = None
        self._changed = threading.Condition()
        self._last: Segment | None = None
        # Daemons: a program that forgets close() still ends; what was not acknowledged is then lost.
        self._threads = [
            threading.Thread(target=run, name=f"trajectory {name}", daemon=True)
            for name, run in (("writer", self._write), ("syncer", self._sync))
        ]

    def reserve(self, nbytes: int) -> None:
        """Wait until ``nbytes`` more fit. More than fit in an empty room are let in alone."""
        with self._changed:
            self._changed.wait_for(
                lambda: self.failure or self._in_flight == 0 or self._in_flight + nbytes <= self.room
            )
            self._in_flight += nbytes

    def release(self, nbytes: int) -> None:
        """Give back what was reserved and came to nothing."""
        with self._changed:
            self._in_flight -= nbytes
            self._changed.notify_all()

    def submit(self, job: Segment) -> None:
        """Have it written; a job that an interrupted caller hands over again is taken once."""
        with self._changed:
            if not self.failure and job is not self._last:
                self._jobs.append(job)
                self._last = job
                self._changed.notify_all()
            self._start()

    def readable(self) -> list[Entry]:
        """The segments whose files can be read, durable or not, in order."""
        with self._changed:
            return self._entries + [one.entry for one in self._written]

    def drain(self) -> None:
        """Wait until all jobs are durable, or one has failed."""
        with self._changed:
            self._start()
            self._changed.wait_for(
                lambda: self.failure or not (self._jobs or self._busy or self._written or self._stopped)
            )

    def close(self, at_end: Callable[[], None]) -> None:
        """Write what was submitted, wait until it is durable, end the threads, and then call ``at_end``."""
        with self._changed:
            self._start()
            self._closing = True
            self._changed.notify_all()
            if threading.current_thread() in self._threads and self._threads[-1].is_alive():
                self._at_end = (
                    at_end  # an abandoned store, collected in one of its own threads: they cannot wait for themselves
                )
                return
        for thread in self._threads:
            if thread.is_alive():
                thread.join()
        at_end()

    def _start(self) -> None:
        """Start the threads that are wanted and not yet started, however an earlier caller was interrupted."""
        wanted = self._last is not None
        for thread in self._threads:
            if wanted and thread.ident is None:
                thread.start()

    def _write(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(self._may_write)
                if self.failure or not self._jobs:
                    return
                job = self._jobs.popleft()
                self._busy = True
            try:
                written = write_segment(self._lock, job)
            except BaseException as error:
                with self._changed:
                    self._stopped = error
                    self._busy = False
                    self._changed.notify_all()
                return
            with self._changed:
                self._written.append(written)
                self._in_flight -= job.nbytes
                self._busy = False
                if self.failure:
                    self._let_go()
                del job  # before waiting for the next one: it holds a segment's worth of memory
                self._changed.notify_all()

    def _may_write(self) -> bool:
        return bool(self.failure or (len(self._written) < BEHIND if self._jobs else self._closing))

    def _sync(self) -> None:
        try:
            self._sync_all()
        finally:
            if self._at_end:
                self._at_end()

    def _sync_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._written or self._stopped or self._idle_for_good())
                if not self._written:
                    self._fail(self._stopped)
                    return
                written = self._written[0]
            try:
                written.sync()
                manifest.append(self._lock, written.entry)
            except BaseException as error:
                with self._changed:
                    self._written.popleft()
                    self._fail(error)
                return
            with self._changed:
                self._entries.append(written.entry)
                self._written.popleft()
                self._changed.notify_all()

    def _idle_for_good(self) -> bool:
        return self._closing and not (self._jobs or self._busy)

    def _fail(self, error: BaseException | None) -> None:
        """Let nothing more be written or waited for, if there is an error. Called with the lock held."""
        self.failure = error
        if error:
            self._changed.notify_all()
            self._jobs.clear()
            self._let_go()

    def _let_go(self) -> None:
        while self._written:
            with suppress(OSError):
                os.close(self._written.popleft().fd)
