"""Checkpoints: a few states are kept, and each stretch between two of them is trained once more when it is needed. Exact."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from hypertrail.methods import MEASURED_STEPS

from ..batches import Inputs, ahead, table
from ..inner import State, program
from ..keeper import Ends, advance_state
from ..trail import Chunk, Pass, forward, walk
from .stored import Stored

Tree = Any


class Starts(Ends):
    """The states before the steps `at`, rising from 0, and the distances of the first steps after each.

    Memory: these states, and in the reverse pass those of one stretch. Cost: one more forward run.
    """

    keeps_states = True

    def __init__(self, steps: int, at: list[int]) -> None:
        super().__init__(steps)
        self.at = at
        self.states: list[State] = []
        self.distances = [np.zeros(min(b - a, MEASURED_STEPS)) for a, b in self.stretches()]

    @property
    def nbytes(self) -> int:
        return sum(leaf.nbytes for s in self.states for leaf in jax.tree.leaves(s))

    def close(self) -> None:
        self.states.clear()

    def stretches(self) -> list[tuple[int, int]]:
        """(start, stop) of each."""
        return list(zip(self.at, [*self.at[1:], self.steps], strict=True))

    def cuts(self) -> list[int]:
        return [*self.at, self.steps]

    def before(self, start: int, position: State) -> tuple[State, tuple[tuple[int, Tree], ...]]:
        if start in self.at:
            self.states.append(position)
        return position, ((self.at[len(self.states) - 1], self.states[-1].w),)

    def after(self, start: int, stop: int, path: Tree, distances: np.ndarray, position: Any) -> None:
        j = int(np.searchsorted(self.at, start, side="right")) - 1
        measured = self.distances[j][start - self.at[j] :][: stop - start]
        measured[:] = distances[: len(measured), 0]


def recomputed_states(run: Pass, adjoint: tuple, first: int = 0) -> tuple[tuple, int]:
    """Back over the true states, each stretch trained once more from its checkpoint, down to step `first`."""
    return walk(run, Stored(run.trail.kept.layout), recomputed(run, first), adjoint)[0], first


def recomputed(run: Pass, first: int) -> Iterator[Chunk]:
    trail, kept = run.trail, run.trail.kept
    again = program(trail.task, forward, trail.batches.pick, advance_state, kept.layout)
    for (start, stop), s in zip(reversed(kept.stretches()), reversed(kept.states), strict=True):
        if stop <= first:
            return
        spans = [(a, min(a + trail.chunk, stop)) for a in range(start, stop, trail.chunk)]
        tables = [table(a, trail.chunk, trail.steps - 1) for a, _ in spans]
        found = []
        for (a, b), (x, payload) in zip(spans, ahead(trail.batches, tables), strict=True):
            origins = ((np.int32(-MEASURED_STEPS), s.w),)  # nothing is measured
            run.recomputed += b - a
            inputs = Inputs(trail.values, payload, x, np.int32(0), np.int32(b - a))
            s, path, _ = again(s, origins, inputs)
            found.append(Chunk(x, payload, max(first - a, 0), b - a, path))
        yield from reversed([chunk for chunk in found if chunk.hi > chunk.lo])
