"""Memory for segments, used again when nobody looks at the last one any more."""

from __future__ import annotations

import mmap
import weakref

import numpy as np

KEPT = 4  # free rooms: what a walk has in use and loads, and what is gathered and being written
SPARE = 64 << 10  # bytes


class Rooms:
    """Hands out arrays of bytes that begin at a page. When the last view of one is gone its room is free for the next.

    Fresh memory is not free: for every 4 kB the system stops the program, finds a page and fills it with zeros, which
    takes longer than reading a cached file into it. And blocks that one thread makes and another lets go of, of many sizes,
    leave holes in the C library's heap that the next ones do not fit into: it grew with every gigabyte.
    """

    def __init__(self) -> None:
        self._free: list[mmap.mmap] = []

    def array(self, size: int) -> np.ndarray:
        """(size,) uint8, writeable, of any content."""
        room = None
        while self._free and room is None:
            room = self._free.pop()  # of a list, so that two threads cannot get the same
            if not size <= len(room) <= 4 * size + SPARE:
                room = None  # segments have had another size: let it go
        # More than is asked for: the arrays alone and the file around them differ by some kB, and untouched pages cost nothing.
        room = room or mmap.mmap(-1, size + SPARE)
        whole = np.frombuffer(room, np.uint8)  # the base of all its views, as what it looks at is not an array
        weakref.finalize(whole, self._back, room).atexit = False
        return whole[:size]

    def _back(self, room: mmap.mmap) -> None:
        if len(self._free) < KEPT:
            self._free.append(room)

    def clear(self) -> None:
        self._free.clear()
