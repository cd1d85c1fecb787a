"""One segment: a small complete HDF5 file, written and checked as one piece of bytes."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import h5py
import numpy as np

from .errors import TrajectoryError
from .manifest import Entry, way_out
from .outline import outline
from .rooms import Rooms
from .trajectory import Layout, Segment, describe


def file_name(start: int, stop: int) -> str:
    return f"segment-{start:012d}-{stop:012d}.h5"


def pack(one: Segment) -> list[memoryview]:
    """The bytes of an HDF5 file that holds these states: parts in the file's order. The payload is not copied: its arrays must
    not change before the parts are written."""
    return outline(len(one), describe(one.states)[1]).fill(one.start, one.stop, one.states)


def load(folder: Path, entry: Entry, rooms: Rooms, layout: Layout | None = None) -> Segment:
    """Read one segment; its arrays are read-only views of the file's bytes. Memory: the segment, one of the
    rooms until its last array is gone.

    layout: what it is likely to hold. A file that is then just as ``pack`` makes it need not be taken apart by HDF5.
    Raises TrajectoryError if the file cannot be read, or one bit of it is not as it was written.
    """
    path = folder / entry.name
    try:
        image = read(path, rooms)
    except OSError as error:
        raise _damaged(folder, entry, f"cannot be read ({error.strerror})") from error
    digest = hashlib.sha256(image).hexdigest()
    if digest != entry.sha256:
        raise _damaged(folder, entry, f"has sha256 {digest[:12]}.., expected {entry.sha256[:12]}..")
    image.flags.writeable = False  # and so are all its views
    if layout and (found := outline(entry.stop - entry.start, layout).find(image, entry.start, entry.stop)):
        return Segment(entry.start, entry.stop, found)
    try:
        start, stop, states = unpack(path, image)
    except (OSError, KeyError, RuntimeError, ValueError) as error:
        raise _damaged(folder, entry, f"is not readable HDF5 ({error})") from error
    if (start, stop) != (entry.start, entry.stop):
        raise _damaged(
            folder, entry, f"holds the steps {start} .. {stop - 1}, expected {entry.start} .. {entry.stop - 1}"
        )
    return Segment(start, stop, states)


def read(path: Path, rooms: Rooms) -> np.ndarray:
    """The bytes of a file, beginning at a page. Raises OSError."""
    with open(path, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        image = rooms.array(size)
        done = 0
        while done < size and (count := file.readinto(image[done:])):
            done += count
    return image[:done]


def unpack(path: Path, image: np.ndarray) -> tuple[int, int, dict[str, np.ndarray]]:
    """start, stop and the arrays of a file made by ``pack``; image: its bytes, which HDF5 tells us our way about in."""
    states: dict[str, np.ndarray] = {}

    def visit(name: str, item: h5py.Dataset | h5py.Group) -> None:
        if isinstance(item, h5py.Dataset):
            offset = item.id.get_offset()  # None: chunked, as another writer may make it, or without elements
            states[name] = (
                item[...] if offset is None else image[offset:][: item.nbytes].view(item.dtype).reshape(item.shape)
            )
            states[name].flags.writeable = False

    with h5py.File(path, "r", locking=False) as file:  # nobody changes a segment
        file.visititems(visit)
        return int(file.attrs["start"]), int(file.attrs["stop"]), {name: states[name] for name in sorted(states)}


def _damaged(folder: Path, entry: Entry, found: str) -> TrajectoryError:
    return TrajectoryError(
        f"{folder}: segment {entry.name} {found}; {way_out(entry.start)}", segment=entry.name, resume_step=entry.start
    )
