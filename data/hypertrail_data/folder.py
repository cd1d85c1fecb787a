"""The folder of a stored trajectory: its header, its lock, and what dying writers leave in it."""

from __future__ import annotations

import fcntl
import os
import re
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

from . import manifest
from .errors import TrajectoryError
from .manifest import Entry
from .sealed import unseal

HEADER, LOCK = "trajectory.json", "lock"
FORMAT, VERSION = "hypertrail-trajectory", 1
LEFTOVER = re.compile(r"segment-\d+-\d+\.h5|(segment-\d+-\d+\.h5|manifest\.jsonl|trajectory\.json)\.[0-9a-f]{32}\.tmp")


def read_header(folder: Path) -> dict[str, Any]:
    path = folder / HEADER
    try:
        header = unseal(path.read_bytes())
    except FileNotFoundError as error:
        raise TrajectoryError(f"{folder} holds no trajectory ({HEADER} is missing); make one with create()") from error
    except OSError as error:
        raise TrajectoryError(f"{path} cannot be read ({error.strerror})") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise TrajectoryError(
            f"{path} is damaged; the segments beside it are ordinary HDF5 files: copy them, and train again"
        ) from error
    if header["format"] != FORMAT or header["version"] != VERSION:
        found = f"{header['format']} version {header['version']}"
        raise TrajectoryError(f"{path} says {found}; this release reads {FORMAT} version {VERSION}")
    return header


def occupied(folder: Path) -> bool:
    """Has somebody begun a trajectory here? An empty manifest alone is what a kill in ``create`` leaves behind."""
    if (folder / HEADER).exists() or any(folder.glob("segment-*.h5")):
        return True
    with suppress(FileNotFoundError):
        return (folder / manifest.NAME).stat().st_size > 0
    return False


def take_lock(folder: Path) -> int:
    """Take the folder for writing; the system lets go of it when this process ends, however it ends."""
    fd = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        owner = os.read(fd, 200).decode(errors="replace").strip() or "another process"
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
    return fd


def sweep(folder: Path, entries: list[Entry]) -> None:
    listed = {entry.name for entry in entries}
    for path in folder.iterdir():
        if LEFTOVER.fullmatch(path.name) and path.name not in listed:
            with suppress(OSError):  # what stays is harmless: nothing but the manifest says what is read
                path.unlink()
