"""Which validation batches a move looks at."""

from __future__ import annotations

import numpy as np

from hypertrail.online import Online
from hypertrail.task import Task
from hypertrail_data.streams import generator


def looks(method: Online) -> int:
    """How many moves of a block look at validation batches."""
    return getattr(method, "move_count", 1) if hasattr(method, "validation_batches") else 0


def looked_at(method: Online, found: int) -> int:
    """M: how many of the `found` validation batches each of them looks at."""
    return min(getattr(method, "validation_batches", 0) or found, found) if looks(method) else 0


def numbers_of(task: Task, method: Online, found: int, block: int) -> dict[str, np.ndarray]:
    """The table of the validation batches that a block reads: M for each move, or all of them once, for all its moves."""
    moves, M = looks(method), looked_at(method, found)
    numbers = [np.arange(M)] if found == M else [drawn(task.seed, block * moves + i, M, found) for i in range(moves)]
    t = np.concatenate(numbers).astype(np.int32) if M else np.zeros(0, np.int32)
    return {"t": t, "t_update": t}


def drawn(seed: int, move: int, M: int, found: int) -> np.ndarray:
    """M of `found` batches without repetition: a pure function of (seed, the number of the move in the run)."""
    return generator(seed, "hyper", move).choice(found, size=M, replace=False)


def of_moves(method: Online, M: int, at: np.ndarray) -> np.ndarray:
    """(moves, M): where in the payload the batches of each move stand."""
    return np.broadcast_to(at.reshape(-1, M), (looks(method), M)) if M else at
