"""Where the reverse pass has its states from: one file for each answer, and the tables that find it.

stored        every state is kept: on the device, in the host's memory, in HDF5        exact, any update
checkpoints   a few states are kept, the others are computed again                      exact, any update
reversed      integers, undone to the bit                                               exact, damped momentum
undone        undone in floating point                                                  POOR on long runs
line          DrMAD: a straight line (C0 … C4), after a tail (C5), between states (C6)   approximate
forward       no way back: tangents beside the training                                 exact, few hyperparameters
implicit      no way back: the condition of a minimum                                   right at a minimum alone
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from hypertrail.errors import UsageError
from hypertrail.keeping import Checkpoints, Keep, Last, Reversible
from hypertrail.methods import DrMAD, Exact, FloatReversed, Forward, Implicit, Method, Truncated
from hypertrail.task import Task

from ..inner import State
from ..trail import Ends, Pass, Trail
from .checkpoints import Starts, recomputed_states
from .forward import forward_mode
from .implicit import implicit_gradient
from .line import line_states
from .reversed import Digits, digits_keeper, undone_integers
from .stored import States, stored_states
from .undone import undone_states

Tree = Any


def keeper(keep: Keep, task: Task, steps: int, hyper: Tree, s: State) -> tuple[Task, Ends]:
    """(the task as it is trained, the keeper of its states) for what the caller named, see `hypertrail.keeping`."""
    if isinstance(keep, Reversible):
        if keep.unbounded:
            raise UsageError("the unbounded buffer is the reference engine's; use Reversible()")
        return digits_keeper(task, steps, hyper, s)
    if isinstance(keep, Checkpoints):
        return task, Starts(steps, keep.at(steps))
    if isinstance(keep, Last):
        return task, States(steps, "memory", max(steps - keep.steps, 0))
    if keep == "ends":
        return task, Ends(steps)
    if keep in ("memory", "host") or isinstance(keep, Path):
        return task, States(steps, keep)
    raise UsageError(f"keep {keep!r}, expected 'ends', 'memory', 'host', a Path, Checkpoints, Last or Reversible")


# What was kept, and how the true states come back from it.
REPLAYS: dict[type[Ends], Callable[..., tuple[tuple, int]]] = {
    States: stored_states,
    Starts: recomputed_states,
    Digits: undone_integers,
}


def true_states(run: Pass, adjoint: tuple, first: int, name: str) -> tuple[tuple, int]:
    """Back over the states of the run itself, to step `first`, by what training kept."""
    replay = REPLAYS.get(type(run.trail.kept))
    if replay is None:
        raise UsageError(
            f"{name} needs the states of the run, this training kept its ends alone; train with keep='memory'"
        )
    return replay(run, adjoint, first)


def exact(run: Pass, adjoint: tuple, method: Exact) -> tuple[tuple, int]:
    return true_states(run, adjoint, 0, method.name)


def truncated(run: Pass, adjoint: tuple, method: Truncated) -> tuple[tuple, int]:
    return true_states(run, adjoint, max(run.trail.steps - method.steps, 0), method.name)


WAYS: dict[type[Method], Callable[..., tuple[tuple, int]]] = {
    Exact: exact,
    Truncated: truncated,
    FloatReversed: undone_states,
    DrMAD: line_states,
    Forward: forward_mode,
    Implicit: implicit_gradient,
}


def way(trail: Trail, method: Method) -> Callable[[Pass, tuple], tuple[tuple, int]]:
    """way(pass, adjoint) → (the adjoint where the method ends, the step there)."""
    if type(method) not in WAYS:
        raise UsageError(
            f"method {method!r}, expected one of {', '.join(one.__name__ for one in WAYS)}, or a name for parse_method"
        )
    return partial(WAYS[type(method)], method=method)
