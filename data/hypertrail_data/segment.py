"""One segment: a small complete HDF5 file, built and read in memory, written and checked as one piece of bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np

from .errors import TrajectoryError
from .manifest import Entry, way_out
from .trajectory import Layout, Segment

LIBVER = ("v110", "v110")  # readable by every HDF5 since 1.10
CHUNK_LIMIT = 2**32 - 1  # bytes; HDF5 has no larger chunks


def file_name(start: int, stop: int) -> str:
    return f"segment-{start:012d}-{stop:012d}.h5"


def pack(start: int, stop: int, layout: Layout, pieces: Sequence[dict[str, np.ndarray]]) -> bytes:
    """The image of an HDF5 file that holds the steps start .. stop - 1, given in ``pieces`` stacked along axis 0.

    The payload is copied twice: into HDF5's memory, and out of it as an image.
    """
    payload = sum(array.nbytes for piece in pieces for array in piece.values())
    # One allocation for the payload, with room for the chunk index: growing by small steps costs 8 times as much.
    with h5py.File.in_memory(block_size=payload + payload // 16 + 2**16, libver=LIBVER) as file:
        file.attrs["start"], file.attrs["stop"] = start, stop
        for name, (shape, dtype) in layout.items():
            dataset = create_dataset(file, name, stop - start, shape, dtype)
            row = 0
            for piece in pieces:
                dataset[row : row + len(piece[name])] = piece[name]
                row += len(piece[name])
        file.flush()
        return file.id.get_file_image()


def create_dataset(file: h5py.File, name: str, steps: int, shape: tuple[int, ...], dtype: np.dtype) -> h5py.Dataset:
    """An empty data set (steps, *shape): one chunk per step, each with its own check sum."""
    if 0 in shape:  # nothing to cut in chunks
        return file.create_dataset(name, (steps, *shape), dtype)
    return file.create_dataset(name, (steps, *shape), dtype, chunks=chunk_shape(shape, dtype), fletcher32=True)


def chunk_shape(shape: tuple[int, ...], dtype: np.dtype) -> tuple[int, ...]:
    """(1, *shape), with leading axes halved only as far as HDF5's limit asks for it."""
    chunk = list(shape)
    axis = 0
    while np.prod(chunk, dtype=np.int64) * dtype.itemsize > CHUNK_LIMIT:
        if chunk[axis] == 1:
            axis += 1
        chunk[axis] = -(-chunk[axis] // 2)
    return (1, *chunk)


def load(folder: Path, entry: Entry) -> Segment:
    """Read one segment; arrays are read-only. Memory: three times the segment while loading, once afterwards.

    Raises TrajectoryError if the file cannot be read, or one bit of it is not as it was written.
    """
    try:
        image = (folder / entry.name).read_bytes()
    except OSError as error:
        raise _damaged(folder, entry, f"cannot be read ({error.strerror})") from error
    found = hashlib.sha256(image).hexdigest()
    if found != entry.sha256:
        raise _damaged(folder, entry, f"has sha256 {found[:12]}.., expected {entry.sha256[:12]}..")
    try:
        start, stop, states = unpack(image)
    except (OSError, KeyError, RuntimeError, ValueError) as error:
        raise _damaged(folder, entry, f"is not readable HDF5 ({error})") from error
    if (start, stop) != (entry.start, entry.stop):
        raise _damaged(
            folder, entry, f"holds the steps {start} .. {stop - 1}, expected {entry.start} .. {entry.stop - 1}"
        )
    return Segment(start, stop, states)


def unpack(image: bytes) -> tuple[int, int, dict[str, np.ndarray]]:
    """start, stop and the arrays of a file image made by ``pack``."""
    states: dict[str, np.ndarray] = {}

    def visit(name: str, item: h5py.Dataset | h5py.Group) -> None:
        if isinstance(item, h5py.Dataset):
            states[name] = item[...]
            states[name].flags.writeable = False

    with h5py.File.in_memory(image) as file:
        file.visititems(visit)
        return int(file.attrs["start"]), int(file.attrs["stop"]), {name: states[name] for name in sorted(states)}


def _damaged(folder: Path, entry: Entry, found: str) -> TrajectoryError:
    return TrajectoryError(
        f"{folder}: segment {entry.name} {found}; {way_out(entry.start)}", segment=entry.name, resume_step=entry.start
    )
