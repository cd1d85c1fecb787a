"""Blocks of states, of whatever length, become segments."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .outline import ALIGNED
from .rooms import Rooms
from .trajectory import Array, Layout, Segment


class Gathered:
    """A segment in the making: room for ``capacity`` states from step ``start`` on, filled from the front."""

    def __init__(self, start: int, capacity: int, layout: Layout, rooms: Rooms) -> None:
        self.start = self.stop = start
        self._capacity = capacity
        self._segment: Segment | None = None
        sizes = {name: capacity * state_bytes({name: one}) for name, one in layout.items()}
        whole = rooms.array(sum(size + -size % ALIGNED for size in sizes.values()))
        self._arrays: dict[str, np.ndarray] = {}
        offset = 0
        for name, (shape, dtype) in layout.items():
            size = sizes[name]
            self._arrays[name] = whole[offset : offset + size].view(dtype).reshape(capacity, *shape)
            offset += size + -size % ALIGNED

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def left(self) -> int:
        return 0 if self._segment else self._capacity - len(self)

    def take(self, states: Mapping[str, Array], first: int, count: int) -> None:
        """Copy the states ``first`` .. ``first + count - 1`` of a block."""
        for name, array in self._arrays.items():
            array[len(self) : len(self) + count] = states[name][first : first + count]
        self.stop += count

    def segment(self) -> Segment:
        """What has been gathered, read-only; nothing more can be added. Always the same object."""
        if self._segment is None:
            states = {name: array[: len(self)] for name, array in self._arrays.items()}
            for array in states.values():
                array.flags.writeable = False
            self._segment = Segment(self.start, self.stop, states)
        return self._segment


def state_bytes(layout: Layout) -> int:
    return sum(int(np.prod(shape, dtype=np.int64)) * dtype.itemsize for shape, dtype in layout.values())
