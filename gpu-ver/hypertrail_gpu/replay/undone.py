"""Steps undone in floating point, from the last state alone. POOR on long runs: each step back multiplies the error by 1/γ."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import numpy as np

from hypertrail.errors import UsageError
from hypertrail.mantissa import arrival, refuse_arrival
from hypertrail.methods import FloatReversed
from hypertrail.task import Task

from ..inner import State, elementary_loss
from ..layout import carried_read
from ..trail import Pass, chunks_back, walk
from ..trees import named, on_host

Tree = Any


def undone_states(run: Pass, adjoint: tuple, method: FloatReversed) -> tuple[tuple, int]:
    """All T steps undone. VerificationFailure where that does not arrive at w_0."""
    adjoint, s = undo(run, adjoint, 0, method.name)
    if not method.beyond:
        refuse_wrong_arrival(run, s, method.name)
    return adjoint, 0


def undo(run: Pass, adjoint: tuple, first: int, name: str) -> tuple[tuple, State]:
    """The steps T − 1 … first undone → (the adjoint there, the state that it arrived at)."""
    trail = run.trail
    refuse_undo(trail.task, trail.start, trail.values, trail.batches.like(), name)
    return walk(run, at_undone, chunks_back(run, first, run.trail.steps), adjoint, run.trail.end, replays=False)


def refuse_undo(task: Task, s: State, given: Tree, batch: Tree, name: str) -> None:
    """UsageError for an update that cannot undo a step, and where a reverse step reads what the loss hands on, which nothing can
    undo. (Running averages that training does not read are no obstacle.)"""
    if getattr(task.update, "undo", None) is None:
        raise UsageError(
            f"{name} undoes steps, which the update {type(task.update).__name__} does not offer (update.undo); use Exact(), or "
            "updates.Momentum(rate, momentum, 'damped')"
        )
    carried = carried_read(task, s, given, batch) if named(s.carried) else []
    if carried:
        raise UsageError(
            f"{name} undoes steps, and the state of the task ({', '.join(carried)}) cannot be undone; use Exact()"
        )


def at_undone(task: Task, s: State, fixed: Any, x: Tree, i: Any, hyper: Tree, batch: Tree) -> tuple[State, State]:
    """The state from which one step led to s."""

    def gradient(w: Tree) -> Tree:
        return jax.grad(partial(elementary_loss, task), has_aux=True)(w, s.carried, hyper, batch, x["t"])[0]

    s = State(*task.update.undo(s.w, s.v, gradient, hyper, x["t_update"]), s.carried)
    return s, s


def refuse_wrong_arrival(run: Pass, s: State, name: str) -> None:
    """VerificationFailure where the undone steps did not lead back to (w_0, 0)."""
    start, end = run.trail.start, run.trail.end
    w, v, w0, wT, vT = (
        {k: on_host(one) for k, one in named(tree).items()} for tree in (s.w, s.v, start.w, end.w, end.v)
    )
    precision = np.dtype(next(iter(w0.values())).dtype).name
    refuse_arrival(name, arrival(w, v, w0, wT, vT), precision, "use exact, or take fewer steps")
