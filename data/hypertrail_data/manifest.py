"""The manifest: one line per segment, in order. A state exists once its segment's line is on disk."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from .durable import write_all, write_file
from .errors import TrajectoryError
from .sealed import seal, unseal

NAME = "manifest.jsonl"


@dataclass(frozen=True)
class Entry:
    """One segment: its file, the steps start .. stop - 1, and the size and sha256 of the file."""

    name: str
    start: int
    stop: int
    bytes: int
    sha256: str


def read(folder: Path) -> tuple[list[Entry], int, TrajectoryError | None]:
    """Entries up to the first damage or hole, the length in bytes of their lines, and the damage, if any.

    What follows the last line break is a line that a dying writer did not finish: it was never acknowledged, and is
    ignored. Only where something follows its closing brace has the line break itself been damaged.
    """
    try:
        raw = (folder / NAME).read_bytes()
    except OSError as error:
        return [], 0, _damage(folder, [], f"{NAME} cannot be read ({error.strerror})")
    *lines, rest = raw.split(b"\n")
    if b"}" in rest[:-1]:
        lines.append(rest)
    entries: list[Entry] = []
    length = 0
    for number, line in enumerate(lines, start=1):
        try:
            entry = Entry(**unseal(line + b"\n"))
        except (ValueError, TypeError, KeyError, AttributeError):
            return entries, length, _damage(folder, entries, f"line {number} of {NAME} is damaged")
        if entries and entry.start != entries[-1].stop:
            gap = f"{entry.name} starts at step {entry.start}, expected step {entries[-1].stop}"
            return entries, length, _damage(folder, entries, gap, entry)
        entries.append(entry)
        length += len(line) + 1
    return entries, length, check_files(folder, entries)


def check_files(folder: Path, entries: list[Entry]) -> TrajectoryError | None:
    """Are the segments there, and of the right size? Their contents are checked when they are loaded."""
    for i, entry in enumerate(entries):
        try:
            size = (folder / entry.name).stat().st_size
        except OSError as error:
            return _damage(folder, entries[:i], f"segment {entry.name} cannot be read ({error.strerror})", entry)
        if size != entry.bytes:
            found = f"segment {entry.name} has {size} bytes, expected {entry.bytes}"
            return _damage(folder, entries[:i], found, entry)
    return None


def way_out(step: int) -> str:
    return f"the states below step {step} are intact: resume from there with mode='a', until={step}"


def _damage(folder: Path, intact: list[Entry], found: str, entry: Entry | None = None) -> TrajectoryError:
    step = intact[-1].stop if intact else entry.start if entry else 0
    return TrajectoryError(
        f"{folder}: {found}; {way_out(step)}", segment=entry.name if entry else None, resume_step=step
    )


def append(folder: Path, entry: Entry) -> None:
    """Add one line, durably. Raises OSError, with the line taken back as far as the disk lets us."""
    fd = os.open(folder / NAME, os.O_WRONLY | os.O_APPEND)
    try:
        before = os.fstat(fd).st_size
        try:
            write_all(fd, seal(asdict(entry)))
            os.fsync(fd)
        except OSError:
            with suppress(OSError):
                os.ftruncate(fd, before)
                os.fsync(fd)
            raise
    finally:
        os.close(fd)


def replace(folder: Path, entries: Iterable[Entry]) -> None:
    """Put a new manifest in the place of the old one, at once and durably. Raises OSError."""
    write_file(folder / NAME, b"".join(seal(asdict(entry)) for entry in entries))


def cut(folder: Path, length: int) -> None:
    """Cut off what follows the first ``length`` bytes, a torn line. Raises OSError."""
    fd = os.open(folder / NAME, os.O_WRONLY)
    try:
        os.ftruncate(fd, length)
        os.fsync(fd)
    finally:
        os.close(fd)
