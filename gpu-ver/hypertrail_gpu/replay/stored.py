"""Stored states: on the device, in the host's memory or in HDF5 segments. Exact, for any task and any update."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from hypertrail.errors import UsageError
from hypertrail.task import Task
from hypertrail_data import StoredTrajectory
from hypertrail_data.errors import DataError

from ..batches import ahead, table
from ..inner import State
from ..keeper import Ends
from ..layout import Layout
from ..trail import Chunk, Pass, walk
from ..trees import from_stored, on_device, on_host, to_stored

Tree = Any


class States(Ends):
    """Every state from step `first` on. storage: 'memory' (on the device), 'host', or the folder of an HDF5 trajectory.

    Memory: one state for each of these steps; of a folder, one chunk and what waits to be written.
    """

    keeps_states = True

    def __init__(
        self,
        steps: int,
        storage: str | Path,
        first: int = 0,
        begun: int = 0,
        about: Mapping[str, Any] = {},
        store: type[StoredTrajectory] = StoredTrajectory,
    ) -> None:
        """begun: the steps whose states an earlier start has left in the folder. about: what the folder remembers of this
        training. The folder above must be there: one that was deleted meanwhile is not made again."""
        super().__init__(steps)
        self.first, self.storage = first, storage
        self.pieces: list[tuple[int, int, Tree]] = []
        self.folder: StoredTrajectory | None = None
        if isinstance(storage, Path):
            self.folder = (
                store.open(storage, "a", begun) if begun else store.create(storage, meta=dict(about), parents=False)
            )

    def cuts(self) -> list[int]:
        return sorted({0, self.first, self.steps})

    def wants(self, start: int) -> bool:
        return start >= self.first

    def after(self, start: int, stop: int, path: Tree, distances: np.ndarray, position: Any) -> None:
        if start < self.first:
            return
        if self.folder is not None:
            self.folder.append(start, {name: to_stored(leaf)[: stop - start] for name, leaf in path.items()})
        else:
            self.pieces.append((start, stop, jax.tree.map(on_host, path) if self.storage == "host" else path))

    @property
    def nbytes(self) -> int:
        if self.folder is not None:
            return self.folder.nbytes
        return sum(leaf.nbytes for _, _, path in self.pieces for leaf in jax.tree.leaves(path))

    def flush(self) -> None:
        if self.folder is not None:
            self.folder.flush()

    def finished(self) -> None:
        if self.folder is not None:
            self.folder.hand_over()

    def close(self) -> None:
        self.pieces.clear()
        if self.folder is not None:
            self.folder.close()

    def backwards(self, like: dict[str, Any], length: int) -> Iterator[tuple[int, int, Tree]]:
        """(start, stop, what was kept of the states before these steps, stacked and filled up to `length`), from the last to the
        first. like: what is kept of one state."""
        if self.folder is None:
            for start, stop, path in reversed(self.pieces):
                yield start, stop, jax.tree.map(on_device, path, like) if self.storage == "host" else path
            return
        names = sorted(like)
        for segment in self.folder.backwards():
            if sorted(segment.states) != names:
                raise DataError(f"{self.storage}: states of {sorted(segment.states)}, expected {names}; train again")
            for start in range(segment.start + (len(segment) - 1) // length * length, segment.start - 1, -length):
                stop = min(start + length, segment.stop)
                rows = slice(start - segment.start, stop - segment.start)
                loaded = {name: filled_up(np.asarray(segment.states[name][rows]), length) for name in names}
                yield start, stop, {name: from_stored(array, like[name]) for name, array in loaded.items()}


def stored_states(run: Pass, adjoint: tuple, first: int = 0) -> tuple[tuple, int]:
    """Back over the states that training kept, to step `first`."""
    trail, kept = run.trail, run.trail.kept
    if first < kept.first:
        raise UsageError(
            f"the states from step {first} on are needed, this training kept those from step {kept.first} on"
        )

    def chunks() -> Iterator[Chunk]:
        pieces = (one for one in kept.backwards(kept.layout.of(trail.start), trail.chunk) if one[1] > first)
        for start, stop, states in pieces:
            tables = [table(start, trail.chunk, trail.steps - 1)]
            for x, payload in ahead(trail.batches, tables):
                yield Chunk(x, payload, max(first - start, 0), stop - start, states)

    return walk(run, Stored(kept.layout), chunks(), adjoint)[0], first


@dataclass(frozen=True)
class Stored:
    """State i of a chunk, as far as it was kept."""

    layout: Layout

    def __call__(
        self, task: Task, position: Any, fixed: dict[str, Any], x: Tree, i: Any, hyper: Tree, batch: Tree
    ) -> tuple[Any, State]:
        return position, self.layout.state({name: a[i] for name, a in fixed.items()})


def filled_up(array: np.ndarray, length: int) -> np.ndarray:
    return np.pad(array, [(0, length - len(array))] + [(0, 0)] * (array.ndim - 1))
