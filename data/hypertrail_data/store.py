"""The trajectory on disk: immutable HDF5 segments and a manifest. See data/README.md for the format, byte by byte."""

from __future__ import annotations

import os
import warnings
import weakref
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from operator import index
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from . import manifest, segment
from .durable import storage_error, storing, write_file
from .errors import DataError, DiskFull, TrajectoryError
from .folder import FORMAT, HEADER, LARGEST_HEADER, VERSION, check_names, occupied, read_header, sweep
from .gathering import Gathered, state_bytes
from .lock import Lock, take_lock
from .manifest import Entry
from .rooms import Rooms
from .sealed import seal, unseal
from .trajectory import Array, Layout, Segment, State, check_cut, check_layout, check_start, check_step, describe
from .writer import Writer, write_segment

# Smaller ones cost time (a file, three fsyncs and a line each), larger ones memory: some of them are held at a time.
SEGMENT_BYTES = 8 * 2**20
IN_FLIGHT = 2  # segments accepted and not yet written
KEPT = 2  # segments that stay in memory as they were appended: the first that a walk backwards asks for


@dataclass(frozen=True)
class Report:
    """What ``verify`` found intact: segments, steps, and bytes of segment files."""

    segments: int
    steps: int
    bytes: int


class StoredTrajectory:
    """A Trajectory kept in a folder. Make one with ``create`` or ``open``; close it, or use it as a context manager.

    Blocks given to ``append`` are gathered into segments of at most ``segment_bytes``, which a thread writes and another syncs;
    a block that fits into a segment is not cut in two. A segment's states are *acknowledged* once its line of the manifest is
    on disk: a kill, a full disk or a power cut loses none of them. ``append`` waits while two segments' worth of bytes are not
    yet written, or while the disk is sixteen behind. What is handed over can be walked through backwards at once, the
    latest segments from memory, the others from their files, synced or not.
    A block is copied once; its owner may go on writing into it.

    Reading verifies the sha256 of every segment file it loads. What is read back is read-only. Only one process may write; any
    number may read.

    Raises DiskFull when there is no room (what was acknowledged stays readable; run again to go on), else
    TrajectoryError; where one segment is to blame, the error names it and the step to resume from.
    """

    def __init__(self, folder: Path, header: dict[str, Any], entries: list[Entry], lock: Lock | None) -> None:
        """Use ``create`` or ``open``."""
        self.folder = folder
        self.meta: dict[str, Any] = header["meta"]
        self.segment_bytes: int = header["segment_bytes"]
        self._entries = entries  # durable segments; the writer adds to it
        self._gathered: Gathered | None = None
        self._first = entries[0].start if entries else 0
        self._handed = entries[-1].stop if entries else 0  # the stop of what was handed over
        self._layout: Layout | None = None
        self._loaded: OrderedDict[str, Segment] = OrderedDict()
        self._latest: list[Segment] = []  # in rising order; all that is handed over and not written is among them
        self._rooms = Rooms()
        self._lock = lock
        self._closed = False
        self._writer = Writer(lock, entries)
        self._abandoned = weakref.finalize(self, _abandon, folder, self._writer, lock)

    # Making and opening

    @classmethod
    def create(
        cls,
        folder: str | os.PathLike[str],
        segment_bytes: int = SEGMENT_BYTES,
        meta: dict[str, Any] | None = None,
        *,
        parents: bool = True,
    ) -> Self:
        """Start an empty trajectory in ``folder``, which is made if need be and must not hold one yet.

        ``meta`` is a dict of anything JSON can hold; it comes back as ``self.meta``. ``parents``: whether the folders above
        are made too; with False, a folder above that is missing is a TrajectoryError.
        """
        segment_bytes = index(segment_bytes)
        if segment_bytes < 1:
            raise ValueError(f"segment_bytes is {segment_bytes}; expected at least 1")
        if not isinstance(meta, dict | None):
            raise TypeError(f"meta is of type {type(meta).__name__}; expected a dict or None")
        folder = Path(folder)
        header = seal({"format": FORMAT, "version": VERSION, "segment_bytes": segment_bytes, "meta": meta or {}})
        record = unseal(header)  # here, so that what cannot be read again raises before anything is written
        if len(header) > LARGEST_HEADER:
            raise ValueError(f"meta makes a header of {len(header)} bytes; expected at most {LARGEST_HEADER}")
        with storing(folder, "put that right or choose another folder"):
            try:
                folder.mkdir(parents=parents, exist_ok=True)
            except FileNotFoundError as error:
                raise TrajectoryError(
                    f"the folder {folder.parent} is gone or was never there; make it, or choose another folder"
                ) from error
            check_names(folder)
            lock = take_lock(folder)
            try:
                if occupied(folder):
                    raise TrajectoryError(
                        f"{folder} already holds a trajectory; open it with mode='a' to go on, or choose another folder"
                    )
                manifest.replace(lock, [])
                # Last: from here on the folder is a trajectory, and a missing manifest means damage.
                with lock.writing():
                    write_file(folder / HEADER, header)
            except BaseException:
                lock.release()
                raise
        return cls(folder, record, [], lock)

    @classmethod
    def open(cls, folder: str | os.PathLike[str], mode: Literal["r", "a"] = "r", until: int | None = None) -> Self:
        """Open a trajectory to read it (``"r"``), or to read and append (``"a"``).

        For appending, what a dying writer left behind is removed: a torn last line, temporary files, segments that the
        manifest does not list. ``until`` (with ``"a"`` only) keeps the states below that step and drops the rest, damaged
        or not; it is the way out that errors name.

        Raises TrajectoryError for a damaged header or manifest, a hole, a segment that is missing or has the wrong size, a
        link or a pipe in the place of a file, a second writer.
        """
        if mode not in ("r", "a"):
            raise ValueError(f"mode is {mode!r}; expected 'r' or 'a'")
        if until is not None and mode != "a":
            raise ValueError(f"until={until} drops states and needs mode='a'; found mode={mode!r}")
        folder = Path(folder)
        header = read_header(folder)
        check_names(folder)
        if mode == "r":
            entries, _, damage = manifest.read(folder)
            if damage:
                raise damage
            return cls(folder, header, entries, None)

        with storing(folder, "put that right, then open it again"):
            lock = take_lock(folder)
            try:
                entries, length, damage = manifest.read(folder)
                if damage:
                    if until is None or damage.resume_step is None or until > damage.resume_step:
                        raise damage
                    entries = [entry for entry in entries if entry.start < until]
                    manifest.replace(lock, entries)
                else:
                    manifest.cut(lock, length)
                sweep(lock, entries)
            except BaseException:
                lock.release()
                raise
        trajectory = cls(folder, header, entries, lock)
        if until is not None and until < trajectory.stop:
            try:
                trajectory.truncate(max(until, trajectory.start))
            except BaseException:
                trajectory.close()
                raise
        return trajectory

    # What it holds

    @property
    def start(self) -> int:
        return self._first

    @property
    def stop(self) -> int:
        """One past the last step appended; after a failure to write, one past the last step acknowledged."""
        if self._writer.failure:
            return self.acknowledged
        return self._gathered.stop if self._gathered else self._handed

    @property
    def acknowledged(self) -> int:
        """The states below this step are on disk, whatever happens to this process."""
        return self._entries[-1].stop if self._entries else self._first

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def nbytes(self) -> int:
        """Bytes of array payload; what is on disk is a little more."""
        layout = self._known_layout()
        return len(self) * state_bytes(layout) if layout else 0

    def segments(self) -> list[tuple[int, int]]:
        self._settle()
        return [(entry.start, entry.stop) for entry in self._entries]

    # Writing

    def append(self, start: int, states: Mapping[str, Array]) -> None:
        """Add a block of states; returns once it is in memory, without waiting for the disk unless too much is under way."""
        self._check_writable()
        self._raise_failure()
        start = index(start)  # a NumPy integer is no JSON
        steps, layout = describe(states)
        check_start(start, self.stop if len(self) else None)
        if len(self):
            check_layout(layout, self._known_layout() or {})
        else:
            self._layout = layout
            self._first = self._handed = start
        arrays = {name: np.asarray(states[name]) for name in layout}
        one = state_bytes(layout)
        self._writer.room = IN_FLIGHT * max(self.segment_bytes, one)
        capacity = max(1, self.segment_bytes // max(one, 1))
        if self._gathered and self._gathered.left < steps <= capacity:
            self._hand_over()
        done = 0
        while done < steps:
            if self._gathered and not self._gathered.left:
                self._hand_over()
            take = min(steps - done, self._gathered.left if self._gathered else capacity)
            self._writer.reserve(take * one)
            self._raise_failure()
            try:
                self._gathered = self._gathered or Gathered(self._handed, capacity, layout, self._rooms)
                self._gathered.take(arrays, done, take)
            except BaseException:
                self._writer.release(take * one)
                raise
            done += take
        if self._gathered and not self._gathered.left:
            self._hand_over()

    def hand_over(self) -> None:
        """Let what is gathered be written, even if it makes a short segment; returns without waiting for the disk."""
        self._check_writable()
        self._hand_over()

    def flush(self) -> None:
        """``hand_over``, and wait until all of it is acknowledged."""
        self.hand_over()
        self._writer.drain()
        self._raise_failure()

    def truncate(self, step: int) -> None:
        """Keep the states below ``step``; a segment that straddles it is written anew.

        The new manifest takes the place of the old one in one rename: a crash leaves the trajectory as it was or as it
        shall be. Files that are no longer listed are removed afterwards (or swept when it is next opened).
        """
        self.flush()
        step = index(step)
        check_cut(step, self.start, self.stop)
        lock = self._lock
        assert lock is not None  # flush has asked
        kept = [entry for entry in self._entries if entry.start < step]
        with storing(self.folder, "put that right, then truncate again; nothing was lost"):
            if kept and kept[-1].stop > step:
                last = self._load(kept.pop())
                states = {name: array[: step - last.start] for name, array in last.states.items()}
                anew = write_segment(lock, Segment(last.start, step, states))
                anew.sync()
                kept.append(anew.entry)
            manifest.replace(lock, kept)
            self._entries[:] = kept
            self._handed = step
            self._loaded.clear()
            self._latest.clear()
            sweep(lock, kept)
        if not kept:  # as new: any start, any layout
            self._layout = None
            self._first = self._handed = 0

    # Reading

    def read(self, step: int) -> State:
        """The state of one step. Costs one segment to load, unless it is one of the last two that were read."""
        self._check_open()
        if step >= self.acknowledged:
            self._settle()
        check_step(step, self.start, self.stop)
        entry = self._entries[bisect_right(self._entries, step, key=lambda e: e.start) - 1]
        loaded = self._loaded.pop(entry.name, None) or self._load(entry)
        self._loaded[entry.name] = loaded
        if len(self._loaded) > 2:
            self._loaded.popitem(last=False)
        return {name: array[step - loaded.start] for name, array in loaded.states.items()}

    def forwards(self) -> Iterator[Segment]:
        """All segments, first to last; see ``backwards`` for the memory. Flushes first."""
        self._settle()
        return self._walk(list(self._entries))

    def backwards(self) -> Iterator[Segment]:
        """All segments, last to first. While one is in use the next is loaded: two segments in memory. The latest ones come from
        memory, while the writer goes on with them; a disk that then fails is told of after the first segment of all."""
        self._check_open()
        if self._lock is None or self._writer.failure:
            self._settle()
            return self._walk(self._entries[::-1])
        self._hand_over()
        latest = self._latest[::-1]
        readable = self._writer.readable()[::-1]
        if self._writer.failure:  # just now: what is not acknowledged is gone
            self._settle()
            return self._walk(self._entries[::-1])
        before = latest[-1].start if latest else self.stop
        return self._unsettled([entry for entry in readable if entry.start < before], latest)

    def _unsettled(self, entries: list[Entry], latest: Sequence[Segment]) -> Iterator[Segment]:
        """Walk through what the disk may not have yet. When all of it has been handed out it has, or this raises."""
        yield from self._walk(entries, latest)
        self._writer.drain()
        self._raise_failure()

    def _walk(self, entries: list[Entry], latest: Sequence[Segment] = ()) -> Iterator[Segment]:
        with ThreadPoolExecutor(1, thread_name_prefix="trajectory reader") as reader:
            ahead = reader.submit(self._load, entries[0]) if entries else None
            yield from latest
            for entry in entries[1:]:
                assert ahead is not None
                current = ahead.result()
                ahead = reader.submit(self._load, entry)
                yield current
                del current
            if ahead:
                current = ahead.result()
                del ahead
                yield current

    def verify(self) -> Report:
        """Load every segment. Raises TrajectoryError at the first damage."""
        self._settle()
        steps = sum(len(part) for part in self._walk(list(self._entries)))
        return Report(len(self._entries), steps, sum(entry.bytes for entry in self._entries))

    def export(self, path: str | os.PathLike[str]) -> None:
        """Write one ordinary HDF5 file: data sets (T, ...), ``step`` int64 (T,), and the meta data as an attribute.

        Raises DiskFull or TrajectoryError, and then leaves no file behind.
        """
        from .export import export

        export(self, Path(path))

    # Ending

    def close(self) -> None:
        """Flush, and let others write. Raises what went wrong in writing, if no call has raised it yet."""
        if self._closed:
            return
        self._hand_over()
        self._closed = True
        self._loaded.clear()
        self._latest.clear()
        self._abandoned.detach()

        def unlock() -> None:
            if self._lock is not None:
                self._lock.release()

        self._writer.close(unlock)
        self._rooms.close()
        if not self._writer.told:
            self._raise_failure()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None:
            self.close()
            return
        try:
            self.close()
        except (DataError, DiskFull) as second:  # do not hide the first
            error.add_note(f"on closing the trajectory: {second}")

    # Inside

    def _hand_over(self) -> None:
        """Interrupted anywhere, it may be called again."""
        if self._gathered and not self._writer.failure:
            job = self._gathered.segment()
            self._writer.submit(job)
            if job not in self._latest:
                self._latest.append(job)
            self._handed = job.stop
        self._gathered = None
        written = self._writer.readable()
        while written and len(self._latest) > KEPT and self._latest[0].stop <= written[-1].stop:
            self._latest.pop(0)

    def _known_layout(self) -> Layout | None:
        if self._layout is None and self._entries:
            self._load(self._entries[0])
        return self._layout

    def _load(self, entry: Entry) -> Segment:
        try:
            loaded = segment.load(self.folder, entry, self._rooms, self._layout)
        except TrajectoryError:
            if self._lock is not None:
                self._lock.check()  # a folder that has gone is not a damaged one
            raise
        self._layout = self._layout or describe(loaded.states)[1]
        return loaded

    def _settle(self) -> None:
        """Before reading: flush. After a failure that has been raised, go on with what was acknowledged."""
        self._check_open()
        if self._lock is not None and not (self._writer.failure and self._writer.told):
            self.flush()

    def _check_open(self) -> None:
        if self._closed:
            raise TrajectoryError(f"this trajectory is closed; open {self.folder} again")

    def _check_writable(self) -> None:
        self._check_open()
        if self._lock is None:
            raise TrajectoryError(f"{self.folder} is open for reading; open it with mode='a' to write")

    def _raise_failure(self) -> None:
        if error := self._writer.failure:
            self._writer.told = True
            way_out = f"the states below step {self.acknowledged} are safe: put that right and resume from there"
            raise storage_error(error, self.folder, way_out) from error


def _abandon(folder: Path, writer: Writer, lock: Lock | None) -> None:
    """Nobody has called ``close``: what was handed over is written all the same, and a failure is said."""

    def say() -> None:
        if lock is not None:
            lock.release()
        if writer.failure and not writer.told:
            error = storage_error(writer.failure, folder, "close a trajectory to be told in time")
            warnings.warn(str(error), RuntimeWarning, stacklevel=2)

    writer.close(say)
