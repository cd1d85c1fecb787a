"""One segment: a small complete HDF5 file, written and checked as one piece of bytes."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np

from .errors import DataError, TrajectoryError
from .gathering import state_bytes
from .lock import one_line
from .manifest import Entry, way_out
from .outline import outline
from .rooms import Rooms
from .trajectory import Layout, Segment, check_layout, describe
from .unpacking import unpack
from .untrusted import open_regular


def pack(one: Segment) -> list[memoryview]:
    """The bytes of an HDF5 file that holds these states: parts in the file's order. The payload is not copied: its arrays must
    not change before the parts are written."""
    return outline(len(one), describe(one.states)[1]).fill(one.start, one.stop, one.states)


def load(folder: Path, entry: Entry, rooms: Rooms, layout: Layout | None = None) -> Segment:
    """Read one segment; its arrays are read-only views of the file's bytes. Memory: the segment, one of the
    rooms until its last array is gone.

    layout: what it is to hold, if that is known. A file that is then just as ``pack`` makes it need not be taken apart by HDF5.
    Raises TrajectoryError if the file cannot be read, if one bit of it is not as it was written, or if it is no segment of such
    states.
    """
    try:
        image = read(folder / entry.name, entry.bytes, rooms)
    except OSError as error:
        raise _damaged(folder, entry, f"cannot be read ({error.strerror})") from error
    except DataError as error:
        raise TrajectoryError(str(error), segment=entry.name, resume_step=entry.start) from error
    if len(image) != entry.bytes:
        raise _damaged(folder, entry, f"has no longer the size it had, {entry.bytes} bytes")
    digest = hashlib.sha256(image).hexdigest()
    if digest != entry.sha256:
        raise _damaged(folder, entry, f"has sha256 {digest[:12]}.., expected {entry.sha256[:12]}..")
    image.flags.writeable = False  # and so are all its views
    if layout and (found := _recognised(image, entry, layout)):
        return Segment(entry.start, entry.stop, found)
    try:
        start, stop, states = unpack(image)
        steps, kept = describe(states)
        check_layout(kept, layout or kept)
    except Exception as error:
        # Damaged bytes make h5py raise nearly everything: OSError, RuntimeError, KeyError, ValueError, TypeError, SystemError,
        # MemoryError, OverflowError. The bytes are those of the manifest's sha256, so it was written like that.
        raise _damaged(folder, entry, f"cannot be used ({one_line(str(error)) or type(error).__name__})") from error
    if (start, stop, steps) != (entry.start, entry.stop, entry.stop - entry.start):
        found_steps = f"the steps {start} .. {stop - 1} in arrays of {steps}"
        raise _damaged(folder, entry, f"holds {found_steps}, expected {entry.start} .. {entry.stop - 1}")
    return Segment(start, stop, states)


def read(path: Path, expected: int, rooms: Rooms) -> np.ndarray:
    """The bytes of a file, beginning at a page; none or some of them if there are not as many as expected. Raises OSError,
    and DataError for what is not a regular file."""
    with open(open_regular(path, follow_links=False), "rb", buffering=0) as file:
        if os.fstat(file.fileno()).st_size != expected:
            return np.empty(0, np.uint8)
        image = rooms.array(expected)
        done = 0
        while done < expected and (count := file.readinto(image[done:])):
            done += count
    return image[:done]


def _recognised(image: np.ndarray, entry: Entry, layout: Layout) -> dict[str, np.ndarray] | None:
    """The arrays of a file that is just as ``pack`` makes it; None for another one."""
    steps = entry.stop - entry.start
    if steps * max(1, state_bytes(layout)) > len(image):  # so it is none of ours, and its outline could be of any size
        return None
    try:
        drawn = outline(steps, layout)
    except Exception:  # the layout is that of another writer's file, and not one that ``outline`` can draw
        return None
    return drawn.find(image, entry.start, entry.stop)


def _damaged(folder: Path, entry: Entry, found: str) -> TrajectoryError:
    return TrajectoryError(
        f"{folder}: segment {entry.name} {found}; {way_out(entry.start)}", segment=entry.name, resume_step=entry.start
    )
