"""The reverse pass: from ∇f(w_T) back to w_0, collecting the hypergradient. One kernel, any provider."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hypertrail.engines import Progress
from hypertrail.errors import NumericalFailure, UsageError, VerificationFailure
from hypertrail.methods import LineStep
from hypertrail.records import Training

from .compiled import Compiled
from .providers import Line, Recomputed, Stored

Tree = Any
ADJOINT = "adjoint of the weights (‖dw‖)"
DIVERGED = "the reverse pass diverged; lower the learning rate, or take fewer steps"
LINE_SPAN = 250  # line steps between two looks at the adjoint


def reverse_states(
    programs: Compiled,
    adjoint: Tree,
    provider: Stored | Recomputed,
    training: Training,
    values: Tree,
    first: int,
    progress: Progress | None,
) -> tuple[Tree, np.ndarray]:
    """Backward over the true states, chunk by chunk: the mirror image of the loop in training.train.

    Where it goes all the way, it ends by asserting that it has arrived at the w_0 of this very run.
    """
    T = programs.problem.steps
    norms = np.empty(T)
    waiting: Any = None

    def look(start: int, stop: int, some: Any) -> None:
        norms[start:stop] = some
        finite(norms, start, stop)
        if progress:
            progress(T - start, T - first)

    for start, stop, states in provider.backwards(first):
        if programs.keeps_velocity and not any(name.startswith("v/") for name in states):
            raise UsageError(
                "the trajectory holds no velocities, which learning rate and momentum need; "
                "train again with these hyperparameters declared"
            )
        xs = programs.steps(start, stop)
        adjoint, some = programs.reverse_chunk(adjoint, states, values, programs.train_data, xs)
        # The device is now busy with this chunk; meanwhile the one before is looked at and the next one is read.
        if waiting is not None:
            look(*waiting)
        waiting = start, stop, some
    look(*waiting)
    if first == 0 and (start or any(np.any(states["w/" + name][0] != one) for name, one in training.initial.items())):
        raise VerificationFailure(
            f"the trajectory leads back to step {start}, but not to the w_0 of this run; train again"
        )
    return adjoint, norms[first:]


def undo(
    programs: Compiled, adjoint: Tree, training: Training, values: Tree, first: int, progress: Progress | None
) -> tuple[Tree, Tree, np.ndarray]:
    """Backward from (w_T, v_T) by undoing the steps in floating point, to step `first`. Returns w there as well."""
    T = programs.problem.steps
    norms = np.empty(T)
    w, v = jax.tree.map(jnp.asarray, (training.final, training.velocity))
    state = (w, v, *adjoint)
    for stop in range(T, first, -programs.chunk):
        start = max(stop - programs.chunk, first)
        begin = max(stop - programs.chunk, 0)  # where the tail ends inside a chunk, the whole chunk is handed over
        span = np.int32(start - begin), np.int32(stop - begin)
        xs = programs.steps(begin, begin + programs.chunk)
        state, some = programs.undo_chunk(state, values, programs.train_data, xs, span)
        norms[start:stop] = np.asarray(some)[start - begin : stop - begin]
        finite(norms, start, stop)
        if progress:
            progress(T - start, T - first)
    return state[0], state[2:], norms[first:]


def reverse_lines(
    programs: Compiled,
    adjoint: Tree,
    lines: list[tuple[Line, int]],
    values: Tree,
    how: LineStep,
    progress: Progress | None,
) -> tuple[Tree, np.ndarray]:
    """Backward along straight lines, the last one first. how: what a step does otherwise than the adjoint of a step."""
    norms = []
    first = sum(steps for _, steps in lines)
    for path, steps in reversed(lines):
        first -= steps
        adjoint, some = reverse_line(programs, adjoint, path, first, steps, values, how, progress)
        norms.insert(0, some)
    return adjoint, np.concatenate(norms)


def reverse_line(
    programs: Compiled,
    adjoint: Tree,
    path: Line,
    first: int,
    steps: int,
    values: Tree,
    how: LineStep,
    progress: Progress | None,
) -> tuple[Tree, np.ndarray]:
    """Backward along the straight line from w_T to w_0. first: the steps of the lines before it, to name a failure's."""
    norms = np.empty(steps)
    path = programs.put(path)
    for stop in range(steps, 0, -LINE_SPAN):
        start = max(stop - LINE_SPAN, 0)
        span = np.int32(start), np.int32(stop)
        adjoint, some = programs.reverse_line(how, adjoint, path, values, programs.train_data, span)
        norms[start:stop] = np.asarray(some)[start:stop]
        finite(norms, start, stop, first)
        if progress:
            progress(steps - start, steps)
    return adjoint, norms


def finite(norms: np.ndarray, start: int, stop: int, first: int = 0) -> None:
    """Raise at the first reverse step (the highest one) before which ‖dw‖ was not finite."""
    bad = np.flatnonzero(~np.isfinite(norms[start:stop]))
    if bad.size:
        raise NumericalFailure(ADJOINT, first + start + int(bad[-1]), DIVERGED)


@np.errstate(over="ignore")
def finite_end(dw: Tree, step: int) -> None:
    """The same for ‖dw‖ where the pass ended. dw: NumPy arrays."""
    if not np.isfinite(sum(np.sum(np.square(one, dtype=np.float64)) for one in dw.values())):
        raise NumericalFailure(ADJOINT, step, DIVERGED)
