"""The folder of a stored trajectory: its header, its own names, and what dying writers leave in it."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from . import manifest
from .errors import DataError, TrajectoryError
from .lock import LOCK, Lock, one_line
from .manifest import LARGEST_NUMBER, Entry
from .sealed import unseal
from .untrusted import read_regular

HEADER = "trajectory.json"
FORMAT, VERSION = "hypertrail-trajectory", 1
LARGEST_HEADER = 16 * 2**20  # bytes
LEFTOVER = re.compile(r"segment-\d+-\d+\.h5|(segment-\d+-\d+\.h5|manifest\.jsonl|trajectory\.json)\.[0-9a-f]{32}\.tmp")


def read_header(folder: Path) -> dict[str, Any]:
    path = folder / HEADER
    try:
        header = unseal(read_regular(path, LARGEST_HEADER, follow_links=False))
        kind, version = header.get("format"), header.get("version")
        if not (isinstance(kind, str) and type(version) is int):
            raise ValueError("it names no format and version")
    except FileNotFoundError as error:
        raise TrajectoryError(f"{folder} holds no trajectory ({HEADER} is missing); make one with create()") from error
    except OSError as error:
        raise TrajectoryError(
            f"{path} cannot be read ({error.strerror}); put that right, then open it again"
        ) from error
    except DataError as error:
        raise TrajectoryError(str(error)) from error
    except ValueError as error:
        raise _damaged(path) from error
    if (kind, version) != (FORMAT, VERSION):
        found = f"{one_line(kind)[:80]} version {str(version)[:80]}"
        raise TrajectoryError(
            f"{path} says {found}; this release reads {FORMAT} version {VERSION}: use the release that wrote it"
        )
    size = header.get("segment_bytes")
    if not (type(size) is int and 1 <= size <= LARGEST_NUMBER and isinstance(header.get("meta"), dict)):
        raise _damaged(path)
    return header


def _damaged(path: Path) -> TrajectoryError:
    return TrajectoryError(
        f"{path} is damaged; the segments beside it are ordinary HDF5 files: copy them, and train again"
    )


def check_names(folder: Path) -> None:
    """Raise TrajectoryError where a link, a pipe or a folder has a name that belongs to a file of the trajectory."""
    try:
        with os.scandir(folder) as items:
            strange = [item for item in items if _own(item.name) and not item.is_file(follow_symlinks=False)]
    except OSError as error:
        raise TrajectoryError(f"{folder} cannot be read ({error.strerror}); put that right, then try again") from error
    for item in strange:
        kind = "a symbolic link" if item.is_symlink() else "not a regular file"
        raise TrajectoryError(f"{item.path} is {kind}; remove it, or put the file itself there")


def _own(name: str) -> bool:
    return name in (LOCK, HEADER, manifest.NAME) or LEFTOVER.fullmatch(name) is not None


def occupied(folder: Path) -> bool:
    """Has somebody begun a trajectory here? An empty manifest alone is what a kill in ``create`` leaves behind."""
    if (folder / HEADER).exists() or any(folder.glob("segment-*.h5")):
        return True
    with suppress(FileNotFoundError):
        return (folder / manifest.NAME).stat().st_size > 0
    return False


def sweep(lock: Lock, entries: list[Entry]) -> None:
    """Remove what dying writers left. A link is removed itself; what it points to stays as it is."""
    listed = {entry.name for entry in entries}
    lock.check()
    for path in lock.folder.iterdir():
        if LEFTOVER.fullmatch(path.name) and path.name not in listed:
            with suppress(OSError):  # what stays is harmless: nothing but the manifest says what is read
                path.unlink()
