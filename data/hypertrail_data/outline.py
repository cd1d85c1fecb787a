"""A segment's HDF5 file without its payload: what HDF5 writes around the arrays, and where they belong.

All segments of a trajectory but the last have the same outline, up to the two numbers start and stop: it is drawn once, by
HDF5 itself.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import h5py
import numpy as np
from h5py import h5d, h5p

from .trajectory import Layout

# The oldest forms there are: every HDF5 reads them, and their headers have no check sums, so start and stop can be exchanged.
LIBVER = ("earliest", "v110")
ALIGNED = 64  # bytes: arrays that begin at multiples of it can be used by JAX on a CPU as they lie, without a copy
# Drawn in place of the two numbers, and found again: eight bytes that no name holds, as UTF-8 has none from F8 to FF.
START, STOP = 0x7FFE_FDFC_FBFA_F9F8, 0x7FFE_FDFC_FBFA_F8F9


@dataclass(frozen=True)
class Place:
    """An array of the file: its bytes are offset .. offset + nbytes - 1."""

    name: str
    offset: int
    nbytes: int
    shape: tuple[int, ...]
    dtype: np.dtype


@dataclass(frozen=True)
class Outline:
    """gaps: the bytes before each place and after the last, with START and STOP in the places of two numbers."""

    places: tuple[Place, ...]  # in the file's order; those without elements have no bytes and no gap
    gaps: tuple[bytes, ...]

    def around(self, start: int, stop: int) -> list[bytes]:
        """The gaps of the file that holds the steps start .. stop - 1."""
        numbers = [(number(drawn), number(one)) for drawn, one in ((START, start), (STOP, stop))]
        gaps = list(self.gaps)
        for old, new in numbers:
            gaps = [gap.replace(old, new) if old in gap else gap for gap in gaps]
        return gaps

    def fill(self, start: int, stop: int, arrays: Mapping[str, np.ndarray]) -> list[memoryview]:
        """The bytes of the whole file in order, as parts; the arrays are parts themselves and not copied."""
        parts: list[memoryview] = []
        filled = [place for place in self.places if place.nbytes]
        first, *others = self.around(start, stop)
        parts.append(memoryview(first))
        for place, gap in zip(filled, others, strict=True):
            parts += memoryview(np.ascontiguousarray(arrays[place.name])).cast("B"), memoryview(gap)
        return parts

    def find(self, image: np.ndarray, start: int, stop: int) -> dict[str, np.ndarray] | None:
        """The arrays of a file, views of its bytes; None if it is not, but for the arrays, exactly what ``fill`` makes."""
        filled = [place for place in self.places if place.nbytes]
        at = 0
        for gap, place in zip(self.around(start, stop), [*filled, None], strict=True):
            if image[at : at + len(gap)].tobytes() != gap:
                return None
            at += len(gap) + (place.nbytes if place else 0)
        if at != len(image):
            return None
        return {
            one.name: image[one.offset : one.offset + one.nbytes].view(one.dtype).reshape(one.shape)
            for one in sorted(self.places, key=lambda one: one.name)
        }


def number(value: int) -> bytes:
    return np.int64(value).tobytes()


def outline(steps: int, layout: Layout) -> Outline:
    """The outline of a file of so many steps. Contiguous data sets without check sums: the manifest's sha256 vouches for all."""
    return _outline(steps, tuple((name, *one) for name, one in layout.items()))


@lru_cache(maxsize=32)
def _outline(steps: int, arrays: tuple[tuple[str, tuple[int, ...], np.dtype], ...]) -> Outline:
    paper = Paper()
    room = h5p.create(h5p.DATASET_CREATE)
    room.set_alloc_time(h5d.ALLOC_TIME_EARLY)
    room.set_fill_time(h5d.FILL_TIME_NEVER)
    places = []
    with h5py.File(paper, "w", libver=LIBVER, alignment_threshold=1, alignment_interval=ALIGNED) as file:
        file.attrs["start"], file.attrs["stop"] = START, STOP
        for name, shape, dtype in arrays:
            dataset = file.create_dataset(name, (steps, *shape), dtype, dcpl=room)
            offset = dataset.id.get_offset() or 0  # None: no elements
            places.append(Place(name, offset, dataset.nbytes, dataset.shape, dataset.dtype))
    places.sort(key=lambda place: place.offset)
    return Outline(tuple(places), tuple(paper.gaps([place for place in places if place.nbytes])))


class Paper:
    """The file object that HDF5 draws on. The arrays are given room and never written, so this is some kilobytes."""

    def __init__(self) -> None:
        self.size = 0
        self._written: list[tuple[int, bytes]] = []  # (offset, bytes) in the order of writing
        self._at = 0

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, self.size)[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def write(self, data: Any) -> int:
        data = bytes(data)
        self._written.append((self._at, data))
        self._at += len(data)
        self.size = max(self.size, self._at)
        return len(data)

    def truncate(self, size: int) -> int:
        self.size = size
        return size

    def read(self, size: int) -> bytes:
        raise OSError("HDF5 reads what it has just written; this file object was made for writing alone")

    def flush(self) -> None:
        """Nothing waits."""

    def gaps(self, places: list[Place]) -> list[bytes]:
        """What lies before each place and after the last; 0 where nothing was written. Raises RuntimeError if it is not what
        ``Outline`` takes it for."""
        starts = [0, *(place.offset + place.nbytes for place in places)]
        stops = [*(place.offset for place in places), max(starts[-1], self.size)]
        gaps = [bytearray(stop - start) for start, stop in zip(starts, stops, strict=True)]
        for offset, data in self._written:
            i = bisect_right(starts, offset) - 1
            if offset + len(data) > stops[i]:
                raise RuntimeError(f"HDF5 {h5py.version.hdf5_version} has written into the room of an array")
            gaps[i][offset - starts[i] : offset - starts[i] + len(data)] = data
        for drawn in (START, STOP):
            if (count := sum(gap.count(number(drawn)) for gap in gaps)) != 1:
                raise RuntimeError(
                    f"HDF5 {h5py.version.hdf5_version} has written an attribute {count} times, expected once"
                )
        return [bytes(gap) for gap in gaps]
