"""The thread that turns full buffers into segments on disk, while training goes on."""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import manifest, segment
from .durable import write_file
from .manifest import Entry
from .trajectory import Layout


@dataclass(frozen=True, eq=False)
class Job:
    start: int
    stop: int
    layout: Layout
    pieces: list[dict[str, np.ndarray]]
    nbytes: int


def write_segment(folder: Path, job: Job) -> Entry:
    """Put one segment on disk under its name; it counts only once the manifest says so. Raises OSError."""
    image = segment.pack(job.start, job.stop, job.layout, job.pieces)
    name = segment.file_name(job.start, job.stop)
    write_file(folder / name, image)
    return Entry(name, job.start, job.stop, len(image), hashlib.sha256(image).hexdigest())


class Writer:
    """Writes jobs in the order of submission and adds each to ``entries`` once it is durable.

    ``room`` (bytes, set by the owner) bounds what is accepted but not yet durable: ``reserve`` waits for it. After
    the first failure nothing more is written, and ``failure`` says why.
    """

    def __init__(self, folder: Path, entries: list[Entry]) -> None:
        self.failure: BaseException | None = None
        self.told = False  # whether the failure has been raised
        self._folder = folder
        self._entries = entries
        self.room = 0
        self._in_flight = 0
        self._jobs: deque[Job] = deque()
        self._busy = False
        self._closing = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def reserve(self, nbytes: int) -> None:
        """Wait until ``nbytes`` more fit. More than fit in an empty room are let in alone."""
        with self._changed:
            self._changed.wait_for(
                lambda: self.failure or self._in_flight == 0 or self._in_flight + nbytes <= self.room
            )
            self._in_flight += nbytes

    def submit(self, job: Job) -> None:
        with self._changed:
            if self.failure:
                return
            self._jobs.append(job)
            self._changed.notify_all()
            if self._thread is None:
                # A daemon: a program that forgets close() still ends; what was not acknowledged is then lost.
                self._thread = threading.Thread(target=self._run, name="trajectory writer", daemon=True)
                self._thread.start()

    def drain(self) -> None:
        """Wait until all jobs are durable, or one has failed."""
        with self._changed:
            self._changed.wait_for(lambda: self.failure or not (self._jobs or self._busy))

    def close(self) -> None:
        """Write what was submitted, then end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs or self._closing)
                if not self._jobs:
                    return
                job = self._jobs.popleft()
                self._busy = True
            try:
                entry = write_segment(self._folder, job)
                manifest.append(self._folder, entry)
            except BaseException as error:
                with self._changed:
                    self.failure = error
                    self._busy = False
                    self._jobs.clear()
                    self._changed.notify_all()
                return
            with self._changed:
                self._entries.append(entry)
                self._in_flight -= job.nbytes
                self._busy = False
                del job  # before waiting for the next one: it holds a segment's worth of memory
                self._changed.notify_all()
