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

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax

from hypertrail.errors import UsageError
from hypertrail.keeping import Checkpoints, Keep, Last, Reversible
from hypertrail.methods import DrMAD, Exact, FloatReversed, Forward, Implicit, Method, Truncated
from hypertrail.task import Task

from ..beginning import Beginning
from ..inner import State
from ..keeper import Ends
from ..keeping import Temporary, room_for
from ..trail import Pass, Trail
from .checkpoints import Starts, recomputed_states
from .forward import forward_mode, refuse_many
from .implicit import implicit_gradient, refuse_no_whole_loss
from .line import line_states, refuse_line
from .reversed import Digits, digits_keeper, refuse_integers, undone_integers
from .stored import States, stored_states
from .undone import refuse_undo, undone_states

Tree = Any


def keeper(
    keep: Keep, task: Task, steps: int, hyper: Tree, s: State, begun: int = 0, about: Mapping[str, Any] = {}
) -> tuple[Task, Ends]:
    """(the task as it is trained, the keeper of its states) for what the caller named, see `hypertrail.keeping`.

    begun, about: for a Path, see `States`.
    """
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
    if keep == "auto":
        storage = room_for(steps * state_bytes(s))
        return task, States(steps, storage, store=Temporary)
    if keep in ("memory", "host") or isinstance(keep, Path):
        return task, States(steps, keep, begun=begun, about=about)
    raise UsageError(
        f"keep {keep!r}, expected 'ends', 'memory', 'host', 'auto', a Path, Checkpoints, Last or Reversible"
    )


def making(keep: Keep) -> Callable[..., tuple[Task, Ends]]:
    """`keeper` of what the caller named, as `trail.train` asks for it."""
    return partial(keeper, keep)


def state_bytes(s: State) -> int:
    """Bytes of one kept state."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(s))


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


def refuse_plan(task: Task, begun: Beginning, batch: Tree, steps: int, method: Method, keep: Keep) -> None:
    """Raise UsageError for a method that cannot go back over a training of this task, or not from what will be kept of it.
    Nothing is trained. begun, batch: arrays, or their shapes."""
    s, given = begun.state, begun.values
    if isinstance(keep, Reversible):
        refuse_integers(task, s)
    if isinstance(method, Exact | Truncated):
        needed = min(getattr(method, "steps", steps), steps)
        if keep == "ends" or (isinstance(keep, Last) and keep.steps < needed):
            raise UsageError(
                f"{method.name} needs {needed} states, keep={keep!r} leaves fewer; keep 'memory' or Checkpoints()"
            )
    if isinstance(method, FloatReversed):
        refuse_undo(task, s, given, batch, method.name)
    if isinstance(method, DrMAD):
        refuse_line(task, s, given, batch, method)
        if method.completion == "C6" and not isinstance(keep, Checkpoints):
            raise UsageError(f"{method.name} goes along lines between kept states; train with keep={Checkpoints()}")
    if isinstance(method, Implicit):
        refuse_no_whole_loss(task, method)
    if isinstance(method, Forward):
        refuse_many(begun.hyper, method)


def way(trail: Trail, method: Method) -> Callable[[Pass, tuple], tuple[tuple, int]]:
    """way(pass, adjoint) → (the adjoint where the method ends, the step there)."""
    if type(method) not in WAYS:
        raise UsageError(
            f"method {method!r}, expected one of {', '.join(one.__name__ for one in WAYS)}, or a name for parse_method"
        )
    return partial(WAYS[type(method)], method=method)
