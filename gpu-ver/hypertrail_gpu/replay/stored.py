"""Stored states: on the device, in the host's memory or in HDF5 segments. Exact, for any task and any update."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hypertrail.errors import UsageError
from hypertrail.task import Task
from hypertrail_data import StoredTrajectory
from hypertrail_data.errors import DataError

from ..batches import ahead, table
from ..inner import State
from ..trail import Chunk, Ends, Pass, walk
from ..trees import named, on_device, on_host

Tree = Any


class States(Ends):
    """Every state from step `first` on. place: 'memory' (on the device), 'host', or the folder of an HDF5 trajectory.

    Memory: one state for each of these steps; of a folder, one chunk and what waits to be written.
    """

    def __init__(self, steps: int, place: str | Path, first: int = 0) -> None:
        super().__init__(steps)
        self.first, self.place = first, place
        self.pieces: list[tuple[int, int, Tree]] = []
        self.folder = StoredTrajectory.create(place, parents=False) if isinstance(place, Path) else None

    def cuts(self) -> list[int]:
        return sorted({0, self.first, self.steps})

    def wants(self, start: int) -> bool:
        return start >= self.first

    def after(self, start: int, stop: int, path: Tree, distances: np.ndarray, place: Any) -> None:
        if start < self.first:
            return
        if self.folder is not None:
            self.folder.append(start, {name: leaf[: stop - start] for name, leaf in stored(path).items()})
        else:
            self.pieces.append((start, stop, jax.tree.map(on_host, path) if self.place == "host" else path))

    def finished(self) -> None:
        if self.folder is not None:
            self.folder.hand_over()

    def close(self) -> None:
        if self.folder is not None:
            self.folder.close()

    def backwards(self, like: State, length: int) -> Iterator[tuple[int, int, Tree]]:
        """(start, stop, the states before these steps, stacked and filled up to `length`), from the last to the first."""
        if self.folder is None:
            for start, stop, path in reversed(self.pieces):
                yield start, stop, jax.tree.map(on_device, path, like) if self.place == "host" else path
            return
        names = list(stored(like))
        for segment in self.folder.backwards():
            if sorted(segment.states) != sorted(names):
                raise DataError(
                    f"{self.place}: states of {sorted(segment.states)}, expected {sorted(names)}; train again"
                )
            for start in range(segment.start + (len(segment) - 1) // length * length, segment.start - 1, -length):
                stop = min(start + length, segment.stop)
                rows = slice(start - segment.start, stop - segment.start)
                leaves = [filled_up(np.asarray(segment.states[name][rows]), length) for name in names]
                loaded = jax.tree.unflatten(jax.tree.structure(like), leaves)
                yield start, stop, jax.tree.map(from_stored, loaded, like)


def stored_states(run: Pass, adjoint: tuple, first: int = 0) -> tuple[tuple, int]:
    """Back over the states that training kept, to step `first`."""
    trail, kept = run.trail, run.trail.kept
    if first < kept.first:
        raise UsageError(
            f"the states from step {first} on are needed, this training kept those from step {kept.first} on"
        )

    def chunks() -> Iterator[Chunk]:
        pieces = (one for one in kept.backwards(trail.start, trail.chunk) if one[1] > first)
        for start, stop, states in pieces:
            tables = [table(start, trail.chunk, trail.steps - 1)]
            for x, payload in ahead(trail.batches, tables):
                yield Chunk(x, payload, max(first - start, 0), stop - start, states)

    return walk(run, at_stored, chunks(), adjoint)[0], first


def at_stored(task: Task, place: Any, fixed: State, x: Tree, i: Any, hyper: Tree, batch: Tree) -> tuple[Any, State]:
    """State i of the chunk."""
    return place, jax.tree.map(lambda a: a[i], fixed)


# -- the names and dtypes of an HDF5 trajectory: float32, float64, int32 and int64 alone ---------------------------------------


def stored(state: Tree) -> dict[str, np.ndarray]:
    """{name: array} of a State, single or stacked, in dtypes that the store has. Every value is kept exactly."""
    return {f"{i:04d}{safe(name)}": to_stored(leaf) for i, (name, leaf) in enumerate(named(state).items())}


def safe(name: str) -> str:
    """The path of a leaf with letters, digits, '.', '_' and '-' alone."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "." for c in name)


def to_stored(leaf: Any) -> np.ndarray:
    """bfloat16 and float16 as float32, small integers and booleans as int32, unsigned ones by their bits."""
    array = on_host(leaf)
    if array.dtype in (np.float32, np.float64, np.int32, np.int64):
        return array
    if array.dtype in (np.uint32, np.uint64):
        return array.view(f"int{8 * array.dtype.itemsize}")
    return array.astype(np.float32 if jnp.issubdtype(array.dtype, jnp.floating) else np.int32)


def from_stored(array: np.ndarray, like: Any) -> Any:
    """Undoes `to_stored` and puts the array on the device."""
    target = on_host(like).dtype
    array = array.view(target) if target in (np.uint32, np.uint64) else array.astype(target, copy=False)
    return on_device(array, like)


def filled_up(array: np.ndarray, length: int) -> np.ndarray:
    return np.pad(array, [(0, length - len(array))] + [(0, 0)] * (array.ndim - 1))
