"""The manifest: one line per segment, in order. A state exists once its segment's line is on disk."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path

from .durable import write_all, write_file
from .errors import DataError, TrajectoryError
from .lock import Lock
from .sealed import seal, unseal
from .untrusted import read_regular

NAME = "manifest.jsonl"
LARGEST = 256 * 2**20  # bytes: more than a million segments
LONGEST_LINE = 512  # bytes; with the largest numbers a line has less than 300
LARGEST_NUMBER = 2**63 - 1  # what HDF5 keeps as start and stop


@dataclass(frozen=True)
class Entry:
    """One segment: its file, the steps start .. stop - 1, and the size and sha256 of the file."""

    name: str
    start: int
    stop: int
    bytes: int
    sha256: str


def file_name(start: int, stop: int) -> str:
    return f"segment-{start:012d}-{stop:012d}.h5"


def read(folder: Path) -> tuple[list[Entry], int, TrajectoryError | None]:
    """Entries up to the first damage or hole, the length in bytes of their lines, and the damage, if any.

    What follows the last line break is a line that a dying writer did not finish: it was never acknowledged, and is
    ignored. Only where something follows its closing brace has the line break itself been damaged.
    """
    try:
        raw = read_regular(folder / NAME, LARGEST, follow_links=False)
    except OSError as error:
        return [], 0, _damage(folder, [], f"{NAME} cannot be read ({error.strerror})")
    except DataError as error:
        return [], 0, TrajectoryError(str(error))
    entries: list[Entry] = []
    length = 0
    for number, line in enumerate(BytesIO(raw), start=1):
        if not line.endswith(b"\n") and b"}" not in line[:-1]:
            break
        try:
            entry = _entry(line)
        except ValueError:
            return entries, length, _damage(folder, entries, f"line {number} of {NAME} is damaged")
        if entries and entry.start != entries[-1].stop:
            gap = f"{entry.name} starts at step {entry.start}, expected step {entries[-1].stop}"
            return entries, length, _damage(folder, entries, gap, entry)
        entries.append(entry)
        length += len(line)
    return entries, length, check_files(folder, entries)


def _entry(line: bytes) -> Entry:
    """The entry of one line. Raises ValueError for a line that ``append`` cannot have written, be its check sum right or not."""
    if len(line) > LONGEST_LINE:
        raise ValueError("it is too long")
    try:
        entry = Entry(**unseal(line))
    except TypeError as error:
        raise ValueError("its keys are others than those of an entry") from error
    if any(type(number) is not int for number in (entry.start, entry.stop, entry.bytes)):  # True is an int as well
        raise ValueError("start, stop and bytes are to be integers")
    if not (0 <= entry.start < entry.stop <= LARGEST_NUMBER and 1 <= entry.bytes <= LARGEST_NUMBER):
        raise ValueError("start, stop or bytes is out of range")
    if not (isinstance(entry.sha256, str) and re.fullmatch("[0-9a-f]{64}", entry.sha256)):
        raise ValueError("sha256 is to be 64 hexadecimal digits")
    if entry.name != file_name(entry.start, entry.stop):  # a path would lead out of the folder
        raise ValueError("the name is not that of its steps")
    return entry


def check_files(folder: Path, entries: list[Entry]) -> TrajectoryError | None:
    """Are the segments there, and of the right size? Their contents are checked when they are loaded."""
    for i, entry in enumerate(entries):
        try:
            size = (folder / entry.name).lstat().st_size
        except OSError as error:
            return _damage(folder, entries[:i], f"segment {entry.name} cannot be read ({error.strerror})", entry)
        if size != entry.bytes:
            found = f"segment {entry.name} has {size} bytes, expected {entry.bytes}"
            return _damage(folder, entries[:i], found, entry)
    return None


def way_out(step: int) -> str:
    return f'the states below step {step} are intact: resume from there with StoredTrajectory.open(folder, "a", until={step})'


def _damage(folder: Path, intact: list[Entry], found: str, entry: Entry | None = None) -> TrajectoryError:
    step = intact[-1].stop if intact else entry.start if entry else 0
    return TrajectoryError(
        f"{folder}: {found}; {way_out(step)}", segment=entry.name if entry else None, resume_step=step
    )


def append(lock: Lock, entry: Entry) -> None:
    """Add one line, durably. Raises OSError, with the line taken back as far as the disk lets us; what ``Lock.check`` raises;
    TrajectoryError for a manifest that ``read`` would find too large."""
    line = seal(asdict(entry))
    with lock.writing(), _opened(lock, os.O_APPEND) as fd:
        before = os.fstat(fd).st_size
        if before + len(line) > LARGEST:
            raise TrajectoryError(
                f"{lock.folder / NAME} has no room for another segment (it may have {LARGEST} bytes); train again with a "
                "larger segment_bytes"
            )
        try:
            write_all(fd, line)
            os.fsync(fd)
        except OSError:
            with suppress(OSError):
                os.ftruncate(fd, before)
                os.fsync(fd)
            raise


def replace(lock: Lock, entries: Iterable[Entry]) -> None:
    """Put a new manifest in the place of the old one, at once and durably. Raises OSError and what ``Lock.check`` raises."""
    with lock.writing():
        write_file(lock.folder / NAME, b"".join(seal(asdict(entry)) for entry in entries))


def cut(lock: Lock, length: int) -> None:
    """Cut off what follows the first ``length`` bytes, a torn line. Raises OSError and what ``Lock.check`` raises."""
    with lock.writing(), _opened(lock) as fd:
        os.ftruncate(fd, length)
        os.fsync(fd)


@contextmanager
def _opened(lock: Lock, flags: int = 0) -> Iterator[int]:
    fd = os.open(lock.folder / NAME, os.O_WRONLY | os.O_NOFOLLOW | flags)
    try:
        yield fd
    finally:
        os.close(fd)
