"""The reverse pass: from ∇f(w_T) back to w_0, collecting the hypergradient. One kernel, any provider."""

from __future__ import annotations

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hypertrail.engines import Progress
from hypertrail.errors import NumericalFailure, UsageError, VerificationFailure
from hypertrail.hyperparameters import Hyper
from hypertrail.methods import DrMAD, Exact, FloatReversed, Forward, Implicit, Method, Truncated, tail_steps
from hypertrail.problem import Problem
from hypertrail.records import Checkpointed, Cost, Hypergradient, Training, Undoable, bytes_read
from hypertrail.refusals import refuse
from hypertrail_data import StoredTrajectory

from .compiled import Compiled, compiled
from .drmad import before_tail, line, pieces
from .forward import forward_mode
from .implicit import implicit
from .providers import Line, Recomputed, Stored
from .reversal import reverse_undone, with_effective_momentum

Tree = Any
LINE_SPAN = 250  # line steps between two looks at the adjoint


def hypergradient(
    problem: Problem, hyper: Hyper, training: Training, method: Method, progress: Progress | None = None
) -> Hypergradient:
    """Gradient of the hyper loss f(w_T) with respect to every unconstrained hyperparameter array (float64 arrays).

    Cost: N gradients with their Hessian-vector products (N = T for Exact), plus one gradient for each validation batch.
    Memory: one chunk of states and the adjoint. Source: Maclaurin et al. 2015, algorithm 2; Fu et al. 2016, algorithm 2;
    other methods: see hypertrail.methods.
    Raises UsageError for a combination that cannot work, NumericalFailure when the adjoint stops being finite.
    """
    refuse(problem, training, method)
    if isinstance(method, Forward):
        return forward_mode(problem, hyper, training, method, progress)
    if isinstance(method, Implicit):
        return implicit(problem, hyper, training, method)
    started = time.perf_counter()
    undone = isinstance(training.trajectory, Undoable) and isinstance(method, Exact | Truncated)
    with jax.enable_x64(undone or problem.precision == "float64"):
        programs = compiled(problem)
        hyper = jax.tree.map(lambda u: np.asarray(u, problem.dtype), hyper)
        values = programs.values(hyper)
        if isinstance(training.trajectory, Undoable):
            hyper, values = with_effective_momentum(problem, hyper, values, training.trajectory)
        wT = jax.tree.map(jnp.asarray, training.final)
        f, dw, dvalues = programs.hyper_gradient(wT, values, programs.valid_data)
        if not np.isfinite(f):
            raise NumericalFailure("hyper loss", problem.steps)
        adjoint = (dw, jax.tree.map(jnp.asarray, problem.initial_velocity()), dvalues)
        adjoint, norms = walk(programs, adjoint, training, method, values, progress)
        dw, dv, dvalues = adjoint
        if problem.declared("initial_scale"):
            dvalues = programs.pull_start(dvalues, values, problem.initial_weights(), dw)
        gradient = jax.tree.map(lambda a: np.asarray(a, np.float64), programs.pull_back(hyper, dvalues))
        dw, dv = jax.tree.map(np.asarray, (dw, dv))
    check(gradient)
    return Hypergradient(
        gradient=gradient,
        initial_weights=dw,
        initial_velocity=dv,
        hyper_loss=float(f),
        adjoint_norms=norms[::-1].astype(np.float64),
        method=method.name,
        cost=Cost(
            gradients=len(programs.valid_data[1]) + recomputed(training, method),
            hvps=len(norms),
            seconds=time.perf_counter() - started,
            trajectory_bytes=bytes_read(training, method),
        ),
        diagnostics={
            "N": len(norms),
            "zero": [kind for kind, one in gradient.items() if not any(map(np.any, one.values()))],
        },
    )


def recomputed(training: Training, method: Method) -> int:
    """How many gradients it takes to train the stretches between checkpoints again."""
    if not (isinstance(training.trajectory, Checkpointed) and isinstance(method, Exact | Truncated)):
        return 0
    first = max(training.steps - method.steps, 0) if isinstance(method, Truncated) else 0
    return training.steps - max(a for a in training.trajectory.at if a <= first)


def walk(
    programs: Compiled, adjoint: Tree, training: Training, method: Method, values: Tree, progress: Progress | None
) -> tuple[Tree, np.ndarray]:
    """From w_T back, by the provider that method and trajectory call for. (dw, dv, dvalues) and ‖dw‖ in the order of steps."""
    problem = programs.problem
    T = problem.steps
    if isinstance(method, DrMAD):
        if method.completion == "C5":
            return tail_then_line(programs, adjoint, training, method, values, progress)
        if method.completion == "C6":
            lines = pieces(problem, training, method)
        else:
            lines = [line(problem, training, method)]
        return reverse_lines(programs, adjoint, lines, values, method.completion == "C0", progress)
    if isinstance(method, FloatReversed):
        _, adjoint, norms = undo(programs, adjoint, training, values, 0, progress)
        return adjoint, norms
    first = max(T - method.steps, 0) if isinstance(method, Truncated) else 0
    if isinstance(training.trajectory, Undoable):
        return reverse_undone(programs, adjoint, training, values, first, progress)
    if isinstance(training.trajectory, Checkpointed):
        provider: Recomputed | Stored = Recomputed(training, programs, values)
    else:
        stored = isinstance(training.trajectory, StoredTrajectory)
        provider = Stored(training, programs.disk_chunk if stored else programs.chunk, problem.dtype)
    return reverse_states(programs, adjoint, provider, training, values, first, progress)


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
        state, some = programs.undo_chunk(state, values, programs.train_data, programs.steps(start, stop))
        norms[start:stop] = some
        finite(norms, start, stop)
        if progress:
            progress(T - start, T - first)
    return state[0], state[2:], norms[first:]


def tail_then_line(
    programs: Compiled, adjoint: Tree, training: Training, method: DrMAD, values: Tree, progress: Progress | None
) -> tuple[Tree, np.ndarray]:
    """Completion C5 (DrMAD2): the last K steps undone with the full dynamics, then C4 on the line from w_0 to w_{T−K}."""
    T = programs.problem.steps
    gammas = jax.tree.leaves(programs.complete(values)["momentum"])
    tail = tail_steps(max(float(jnp.max(one)) for one in gammas)) if method.tail is None else method.tail
    first = max(T - tail, 0)
    w, adjoint, tail_norms = undo(programs, adjoint, training, values, first, progress)
    if first == 0:
        return adjoint, tail_norms
    lines = [before_tail(programs.problem, training, method, jax.tree.map(np.asarray, w), T - first)]
    adjoint, line_norms = reverse_lines(programs, adjoint, lines, values, False, progress)
    return adjoint, np.concatenate([line_norms, tail_norms])


def reverse_lines(
    programs: Compiled,
    adjoint: Tree,
    lines: list[tuple[Line, int]],
    values: Tree,
    literal: bool,
    progress: Progress | None,
) -> tuple[Tree, np.ndarray]:
    """Backward along straight lines, the last one first."""
    norms = []
    for path, steps in reversed(lines):
        adjoint, some = reverse_line(programs, adjoint, path, steps, values, literal, progress)
        norms.insert(0, some)
    return adjoint, np.concatenate(norms)


def reverse_line(
    programs: Compiled, adjoint: Tree, path: Line, steps: int, values: Tree, literal: bool, progress: Progress | None
) -> tuple[Tree, np.ndarray]:
    """Backward along the straight line from w_T to w_0."""
    norms = np.empty(steps)
    for stop in range(steps, 0, -LINE_SPAN):
        start = max(stop - LINE_SPAN, 0)
        span = np.int32(start), np.int32(stop)
        adjoint, some = programs.reverse_line(literal, adjoint, path, values, programs.train_data, span)
        norms[start:stop] = np.asarray(some)[start:stop]
        finite(norms, start, stop)
        if progress:
            progress(steps - start, steps)
    return adjoint, norms


def finite(norms: np.ndarray, start: int, stop: int) -> None:
    """Raise at the first reverse step (the highest one) before which ‖dw‖ was not finite."""
    bad = np.flatnonzero(~np.isfinite(norms[start:stop]))
    if bad.size:
        raise NumericalFailure("adjoint of the weights ‖dw‖", start + int(bad[-1]), "the reverse pass diverged")


def check(gradient: Hyper) -> None:
    for kind, arrays in gradient.items():
        for name, one in arrays.items():
            if not np.all(np.isfinite(one)):
                raise NumericalFailure(f"hypergradient of {kind} {name}", 0, "the reverse pass diverged")
