"""What a training keeps of its states: nothing but its ends. The other ways of keeping extend this (folder replay)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from hypertrail.task import Task

from .inner import State, step
from .layout import Layout

Array = Any
Tree = Any

LOWER = "lower the learning rate or its bounds"


class Ends:
    """keep='ends': nothing is kept but where training began and ended. Other ways of keeping extend this (replay)."""

    quantity, hint = "elementary loss", LOWER  # what is said of a loss that is not finite
    layout: Layout | None = None  # which arrays of a state are kept; set before the first step where `keeps_states`
    keeps_states = False

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def precision(self) -> AbstractContextManager[Any]:
        """JAX's x64 mode while the steps are computed: that of the caller."""
        return nullcontext()

    def cuts(self) -> list[int]:
        """The steps at which a chunk must end, besides the length of chunks: where something is kept. Rising from 0 to T."""
        return [0, self.steps]

    def enter(self, task: Task, s: State, hyper: Tree) -> Any:
        """The position of training, which `advance` moves: here a State."""
        return s

    def leave(self, position: Any) -> State:
        """The State of a position."""
        return position

    @property
    def advance(self) -> Callable[..., tuple[Any, Array, Tree]]:
        """One step: (task, position, hyper, batch, t) → (the position after it, L, the weights after it)."""
        return advance_state

    def wants(self, start: int) -> bool:
        """Whether the states of the chunk that begins here are kept."""
        return False

    def before(self, start: int, position: Any) -> tuple[Any, tuple[tuple[int, Tree], ...]]:
        """See the position before a chunk → (the position to go on from, further (a, w_a) from which distances are measured)."""
        return position, ()

    def after(self, start: int, stop: int, path: Tree, distances: np.ndarray, position: Any) -> None:
        """Take the states of a finished chunk (stacked, garbage beyond `stop`), its further distances, and the position after
        it."""

    def finished(self) -> None:
        """Nothing more is coming."""

    @property
    def nbytes(self) -> int:
        """Bytes of what is kept."""
        return 0

    def flush(self) -> None:
        """Return when what was taken is as safe as it can be made."""

    def close(self) -> None:
        """Let go of the states; what is durable stays."""


def advance_state(task: Task, s: State, hyper: Tree, batch: Tree, t: Array) -> tuple[State, Array, Tree]:
    s, loss = step(task, s, hyper, batch, t, t)
    return s, loss, s.w
