"""Memory for segments, used again when nobody looks at the last one any more."""

from __future__ import annotations

import mmap
import weakref

import numpy as np

KEPT = 4  # free rooms: what a walk has in use and loads, and what is gathered and being written
SPARE = 64 << 10  # bytes
PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS  # a forked child has its own


class Rooms:
    """Hands out arrays of bytes that begin at a page. When the last view of one is gone its room is free for the next.

    Fresh memory is not free: for every 4 kB the system stops the program, finds a page and fills it with zeros, which
    takes longer than reading a cached file into it. And blocks that one thread makes and another lets go of, of many sizes,
    leave holes in the C library's heap that the next ones do not fit into: it grew with every gigabyte.
    """

    def __init__(self) -> None:
        self._free: list[mmap.mmap] = []
        self._closed = False

    def array(self, size: int) -> np.ndarray:
        """(size,) uint8, writeable, of any content. Raises MemoryError."""
        room = self._room(size)
        whole = np.frombuffer(room, np.uint8)  # the base of all its views, as what it looks at is not an array
        weakref.finalize(whole, self._back, room).atexit = False
        return whole[:size]

    def close(self) -> None:
        """Let go of the free rooms now, and of the others when they are."""
        self._closed = True
        self._free.clear()

    def _room(self, size: int) -> mmap.mmap:
        while True:
            try:
                room = self._free.pop()  # two threads ask
            except IndexError:
                break
            if size <= len(room) <= 4 * size + SPARE:  # else segments have had another size: let it go
                return room
        # More than is asked for: the arrays alone and the file around them differ by some kB, and untouched pages cost nothing.
        try:
            return mmap.mmap(-1, size + SPARE, flags=PRIVATE)
        except (OSError, OverflowError) as error:
            raise MemoryError(f"no memory for a segment of {size} bytes; choose a smaller segment_bytes") from error

    def _back(self, room: mmap.mmap) -> None:
        if len(self._free) < KEPT and not self._closed:
            self._free.append(room)
