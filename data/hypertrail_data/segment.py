"""One segment: a small complete HDF5 file, built and read in memory, written and checked as one piece of bytes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np

from .errors import TrajectoryError
from .manifest import Entry, way_out
from .trajectory import Layout, Segment

LIBVER = ("v110", "v110")  # readable by every HDF5 since 1.10
ALIGNED = 64  # bytes: arrays that begin at multiples of it can be used by JAX on a CPU as they lie, without a copy


def file_name(start: int, stop: int) -> str:
    return f"segment-{start:012d}-{stop:012d}.h5"


def pack(start: int, stop: int, layout: Layout, pieces: Sequence[dict[str, np.ndarray]]) -> bytes:
    """The image of an HDF5 file that holds the steps start .. stop - 1, given in ``pieces`` stacked along axis 0.

    Contiguous data sets without check sums: the manifest's sha256 vouches for the whole file, and a quarter of the time does.
    The payload is copied twice: into HDF5's memory, and out of it as an image.
    """
    payload = sum(array.nbytes for piece in pieces for array in piece.values())
    # One allocation for the payload and what HDF5 adds: growing by small steps costs 8 times as much.
    block = payload + 2**16 + ALIGNED * len(layout)
    aligned = {"alignment_threshold": 1, "alignment_interval": ALIGNED}
    with h5py.File.in_memory(block_size=block, libver=LIBVER, **aligned) as file:
        file.attrs["start"], file.attrs["stop"] = start, stop
        for name, (shape, dtype) in layout.items():
            dataset = file.create_dataset(name, (stop - start, *shape), dtype)
            row = 0
            for piece in pieces:
                dataset[row : row + len(piece[name])] = piece[name]
                row += len(piece[name])
        file.flush()
        return file.id.get_file_image()


def load(folder: Path, entry: Entry) -> Segment:
    """Read one segment; its arrays are read-only views of the file's bytes. Memory: the segment.

    Raises TrajectoryError if the file cannot be read, or one bit of it is not as it was written.
    """
    path = folder / entry.name
    try:
        image = read(path)
    except OSError as error:
        raise _damaged(folder, entry, f"cannot be read ({error.strerror})") from error
    found = hashlib.sha256(image).hexdigest()
    if found != entry.sha256:
        raise _damaged(folder, entry, f"has sha256 {found[:12]}.., expected {entry.sha256[:12]}..")
    try:
        start, stop, states = unpack(path, image)
    except (OSError, KeyError, RuntimeError, ValueError) as error:
        raise _damaged(folder, entry, f"is not readable HDF5 ({error})") from error
    if (start, stop) != (entry.start, entry.stop):
        raise _damaged(
            folder, entry, f"holds the steps {start} .. {stop - 1}, expected {entry.start} .. {entry.stop - 1}"
        )
    return Segment(start, stop, states)


def read(path: Path) -> np.ndarray:
    """The bytes of a file, beginning at a multiple of ALIGNED. Raises OSError."""
    with open(path, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        room = np.empty(size + ALIGNED, np.uint8)
        image = room[-room.ctypes.data % ALIGNED :][:size]
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
