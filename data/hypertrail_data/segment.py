"""One segment: a small complete HDF5 file, built and read in memory, written and checked as one piece of bytes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from .errors import TrajectoryError
from .manifest import Entry, way_out
from .trajectory import Layout, Segment

LIBVER = ("v110", "v110")  # readable by every HDF5 since 1.10
CHUNK_LIMIT = 2**32 - 1  # bytes; HDF5 has no larger chunks
CHECK_SUM = 4  # bytes that fletcher32 puts behind each chunk


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


def load(folder: Path, entry: Entry, thorough: bool = False, room: bytearray | None = None) -> Segment:
    """Read one segment; arrays are read-only. Memory: twice the segment while loading, once afterwards.

    thorough: let HDF5 read it, and compute every chunk's own check sum as well (three times the time).
    room: where the file is read to, grown if need be; who loads many segments keeps it, so that memory does not fragment.
    Raises TrajectoryError if the file cannot be read, or one bit of it is not as it was written.
    """
    path = folder / entry.name
    room = bytearray() if room is None else room
    try:
        image = read_into(room, path)
    except OSError as error:
        raise _damaged(folder, entry, f"cannot be read ({error.strerror})") from error
    found = hashlib.sha256(image).hexdigest()
    if found != entry.sha256:
        raise _damaged(folder, entry, f"has sha256 {found[:12]}.., expected {entry.sha256[:12]}..")
    try:
        start, stop, states = unpack(path, None if thorough else np.frombuffer(image, np.uint8))
    except (OSError, KeyError, RuntimeError, ValueError) as error:
        raise _damaged(folder, entry, f"is not readable HDF5 ({error})") from error
    if (start, stop) != (entry.start, entry.stop):
        raise _damaged(
            folder, entry, f"holds the steps {start} .. {stop - 1}, expected {entry.start} .. {entry.stop - 1}"
        )
    return Segment(start, stop, states)


def read_into(room: bytearray, path: Path) -> memoryview:
    """The whole file, in `room`. Raises OSError."""
    with open(path, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        if len(room) < size:
            room.extend(bytes(size - len(room)))
        view, done = memoryview(room)[:size], 0
        while done < size and (count := file.readinto(view[done:])):
            done += count
    return view[:done]


def unpack(path: Path, image: np.ndarray | None) -> tuple[int, int, dict[str, np.ndarray]]:
    """start, stop and the arrays of a file made by ``pack``; image: its bytes, already vouched for."""
    states: dict[str, np.ndarray] = {}

    def visit(name: str, item: h5py.Dataset | h5py.Group) -> None:
        if isinstance(item, h5py.Dataset):
            states[name] = item[...] if image is None else read(item, image)
            states[name].flags.writeable = False

    with h5py.File(path, "r", locking=False) as file:  # nobody changes a segment
        file.visititems(visit)
        return int(file.attrs["start"]), int(file.attrs["stop"]), {name: states[name] for name in sorted(states)}


def read(dataset: h5py.Dataset, image: np.ndarray) -> np.ndarray:
    """All of a data set. One chunk per step, as ``create_dataset`` makes them, is copied out of the image directly.

    sha256 has just vouched for every bit, so HDF5 need not compute the chunks' check sums once more.
    """
    row = int(np.prod(dataset.shape[1:], dtype=np.int64)) * dataset.dtype.itemsize
    if dataset.chunks != (1, *dataset.shape[1:]):
        return dataset[...]
    array = np.empty(dataset.shape, dataset.dtype)
    rows = array.reshape(len(array), -1).view(np.uint8)
    seen = 0

    def copy(chunk: Any) -> None:
        nonlocal seen
        seen += chunk.filter_mask == 0 and chunk.size == row + CHECK_SUM
        rows[chunk.chunk_offset[0]] = image[chunk.byte_offset : chunk.byte_offset + row]

    dataset.id.chunk_iter(copy)
    if seen != len(array):
        raise ValueError(f"{dataset.name} has {seen} of {len(array)} chunks as they were written")
    return array


def _damaged(folder: Path, entry: Entry, found: str) -> TrajectoryError:
    return TrajectoryError(
        f"{folder}: segment {entry.name} {found}; {way_out(entry.start)}", segment=entry.name, resume_step=entry.start
    )
