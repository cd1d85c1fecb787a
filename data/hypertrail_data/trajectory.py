"""The states of one training run, in the order of their steps: the interface, its rules, and the form kept in memory."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from operator import index
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np

from .errors import TrajectoryError

Array = Any  # numpy.ndarray, or a device array with .shape, .dtype, .nbytes and indexing
State = dict[str, Array]
Layout = dict[str, tuple[tuple[int, ...], np.dtype]]  # name -> shape and dtype of ONE state's array

DTYPES = tuple(np.dtype(name) for name in ("float32", "float64", "int32", "int64"))


@dataclass(frozen=True, eq=False)
class Segment:
    """The states of the steps start .. stop - 1; every array is stacked along axis 0: (stop - start, ...)."""

    start: int
    stop: int
    states: dict[str, Array]

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def nbytes(self) -> int:
        return sum(int(array.nbytes) for array in self.states.values())


@runtime_checkable
class Trajectory(Protocol):
    """What a provider may ask of a trajectory, wherever it is kept.

    A state is a dict from names ("w/block1.conv3/W") to arrays, the same names, shapes and dtypes (float32, float64,
    int32, int64, kept exactly) at every step. Names come back sorted. Arrays that come back are not to be written into.
    Misuse (a wrong ``start``, a changed layout, a step outside start .. stop - 1, use after ``close``) raises
    TrajectoryError.
    """

    @property
    def start(self) -> int:
        """The first step; 0 while empty."""
        ...

    @property
    def stop(self) -> int:
        """One past the last step; equal to ``start`` while empty."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of array payload."""
        ...

    def __len__(self) -> int: ...

    def append(self, start: int, states: Mapping[str, Array]) -> None:
        """Add the k states start .. start + k - 1, arrays stacked along axis 0. ``start`` must be ``self.stop``, except
        for the first block, which sets ``self.start``."""
        ...

    def hand_over(self) -> None:
        """Nothing more is coming for now: let everything appended be made safe, without waiting for it."""
        ...

    def flush(self) -> None:
        """Return when everything appended is as safe as this form makes it."""
        ...

    def read(self, step: int) -> State:
        """The state of one step, without the stacking axis."""
        ...

    def truncate(self, step: int) -> None:
        """Keep the states with a step below ``step``, which lies in start .. stop."""
        ...

    def segments(self) -> list[tuple[int, int]]:
        """The (start, stop) of the pieces that ``forwards`` and ``backwards`` yield, in the order of ``forwards``."""
        ...

    def forwards(self) -> Iterator[Segment]:
        """All segments, first to last."""
        ...

    def backwards(self) -> Iterator[Segment]:
        """All segments, last to first; inside a segment the steps still ascend."""
        ...

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None: ...


class MemoryTrajectory:
    """A Trajectory that keeps the very blocks it is given: no copy, no conversion, device arrays stay on their device.

    The blocks are the segments. Do not write into an array after appending it.
    """

    def __init__(self) -> None:
        self._blocks: list[Segment] = []
        self._closed = False

    @property
    def start(self) -> int:
        return self._blocks[0].start if self._blocks else 0

    @property
    def stop(self) -> int:
        return self._blocks[-1].stop if self._blocks else 0

    @property
    def nbytes(self) -> int:
        return sum(block.nbytes for block in self._blocks)

    def __len__(self) -> int:
        return self.stop - self.start

    def append(self, start: int, states: Mapping[str, Array]) -> None:
        self._check_open()
        start = index(start)
        steps, layout = describe(states)
        check_start(start, self.stop if self._blocks else None)
        if self._blocks:
            check_layout(layout, describe(self._blocks[0].states)[1])
        self._blocks.append(Segment(start, start + steps, {name: states[name] for name in sorted(states)}))

    def hand_over(self) -> None:
        self._check_open()

    def flush(self) -> None:
        self._check_open()

    def read(self, step: int) -> State:
        self._check_open()
        check_step(step, self.start, self.stop)
        block = self._blocks[bisect_right(self._blocks, step, key=lambda b: b.start) - 1]
        return {name: array[step - block.start] for name, array in block.states.items()}

    def truncate(self, step: int) -> None:
        self._check_open()
        step = index(step)
        check_cut(step, self.start, self.stop)
        kept = [block for block in self._blocks if block.start < step]
        if kept and kept[-1].stop > step:
            last = kept.pop()
            kept.append(Segment(last.start, step, {n: a[: step - last.start] for n, a in last.states.items()}))
        self._blocks = kept

    def segments(self) -> list[tuple[int, int]]:
        self._check_open()
        return [(block.start, block.stop) for block in self._blocks]

    def forwards(self) -> Iterator[Segment]:
        self._check_open()
        return iter(tuple(self._blocks))

    def backwards(self) -> Iterator[Segment]:
        self._check_open()
        return reversed(tuple(self._blocks))

    def close(self) -> None:
        """Let go of the arrays."""
        self._blocks, self._closed = [], True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise TrajectoryError("this trajectory is closed; read it before close(), or make a new one")


# The rules, one function each, shared by both forms.


def describe(states: Mapping[str, Array]) -> tuple[int, Layout]:
    """How many steps a block holds, and the layout of one state. Raises TrajectoryError for a block that breaks the rules."""
    if not states:
        raise TrajectoryError("a block without arrays was appended; expected at least one named array")
    _check_names(states)
    layout: Layout = {}
    lengths: dict[int, str] = {}
    for name in sorted(states):
        shape, dtype = tuple(states[name].shape), np.dtype(states[name].dtype)
        if dtype not in DTYPES:
            kept = ", ".join(map(str, DTYPES))
            raise TrajectoryError(f"{name!r} has dtype {dtype}; a trajectory keeps {kept}: convert it before appending")
        if not shape or shape[0] == 0:
            raise TrajectoryError(f"{name!r} has shape {shape}; expected (k, ...), with k >= 1 states along axis 0")
        lengths.setdefault(shape[0], name)
        layout[name] = (shape[1:], dtype)
    if len(lengths) > 1:
        found = ", ".join(f"{name!r} has {k}" for k, name in lengths.items())
        raise TrajectoryError(f"the arrays of one block hold different numbers of states ({found}); expected the same")
    return next(iter(lengths)), layout


def _check_names(states: Mapping[str, Array]) -> None:
    for name in states:
        parts = name.split("/")
        if "" in parts or "." in parts or ".." in parts or "\0" in name:
            raise TrajectoryError(
                f"{name!r} cannot name an array; expected parts joined by '/', none empty, '.' or '..'"
            )
        if name == "step":
            raise TrajectoryError(
                "'step' cannot name an array: an exported file keeps the steps there; use another name"
            )
        for i in range(1, len(parts)):
            if (group := "/".join(parts[:i])) in states:
                raise TrajectoryError(f"{group!r} and {name!r} cannot both be arrays: one would have to hold the other")


def check_start(start: int, stop: int | None) -> None:
    """``stop`` is None for an empty trajectory, which takes any start >= 0."""
    if stop is not None and start != stop:
        raise TrajectoryError(
            f"a block starting at step {start} was appended; expected step {stop}, where the trajectory ends"
        )
    if start < 0:
        raise TrajectoryError(f"a block starting at step {start} was appended; expected a step >= 0")


def check_layout(found: Layout, expected: Layout) -> None:
    if found == expected:
        return
    for name in sorted({*found, *expected}):
        if found.get(name) != expected.get(name):
            raise TrajectoryError(
                f"{name!r} is {_spell(found.get(name))} in this block; expected {_spell(expected.get(name))} as in the "
                "blocks before: names, shapes and dtypes stay the same along a trajectory"
            )


def _spell(kind: tuple[tuple[int, ...], np.dtype] | None) -> str:
    return "absent" if kind is None else f"{kind[1]} {kind[0]}"


def check_step(step: int, start: int, stop: int) -> None:
    if start == stop:
        raise TrajectoryError(f"step {step} was asked of an empty trajectory; append states first")
    if not start <= step < stop:
        raise TrajectoryError(f"step {step} was asked for; this trajectory holds {start} .. {stop - 1}")


def check_cut(step: int, start: int, stop: int) -> None:
    if not start <= step <= stop:
        raise TrajectoryError(f"cannot truncate at step {step}; expected {start} .. {stop}")
