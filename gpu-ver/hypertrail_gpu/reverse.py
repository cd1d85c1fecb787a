"""The reverse pass: from ∇f(w_T) back to w_0, collecting the hypergradient. One kernel, any provider."""

from __future__ import annotations

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hypertrail.engines import Progress, refuse
from hypertrail.errors import NumericalFailure, UsageError, VerificationFailure
from hypertrail.hyperparameters import Hyper
from hypertrail.methods import DrMAD, Method
from hypertrail.problem import Problem
from hypertrail.records import Cost, Hypergradient, Training

from .compiled import Compiled, compiled, precision
from .drmad import line
from .functional import zeros
from .providers import Line, Stored

Tree = Any
LINE_SPAN = 250  # line steps between two looks at the adjoint


def hypergradient(
    problem: Problem, hyper: Hyper, training: Training, method: Method, progress: Progress | None = None
) -> Hypergradient:
    """Gradient of the hyper loss f(w_T) with respect to every unconstrained hyperparameter array (float64 arrays).

    Cost: N gradients with their Hessian-vector products (N = T for Exact), plus one gradient for each validation batch.
    Memory: one chunk of states and the adjoint. Source: Maclaurin et al. 2015, algorithm 2; Fu et al. 2016, algorithm 2.
    Raises UsageError for a combination that cannot work, NumericalFailure when the adjoint stops being finite.
    """
    refuse(problem, training, method)
    started = time.perf_counter()
    with precision(problem):
        programs = compiled(problem)
        hyper = jax.tree.map(lambda u: np.asarray(u, problem.dtype), hyper)
        values = programs.values(hyper)
        wT = jax.tree.map(jnp.asarray, training.final)
        f, dw, dvalues = programs.hyper_gradient(wT, values, programs.valid_data)
        if not np.isfinite(f):
            raise NumericalFailure("hyper loss", problem.steps)
        adjoint = (dw, zeros(dw), dvalues)
        if isinstance(method, DrMAD):
            path, steps = line(problem, training, method)
            adjoint, norms = reverse_line(programs, adjoint, path, steps, values, method.completion == "C0", progress)
        else:
            steps = problem.steps
            stored = Stored(training, programs.chunk, problem.dtype)
            adjoint, norms = reverse_stored(programs, adjoint, stored, values, progress)
        dw, dv, dvalues = adjoint
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
            gradients=len(programs.valid_data[1]),
            hvps=steps,
            seconds=time.perf_counter() - started,
            trajectory_bytes=kept_bytes(training, method),
        ),
        diagnostics={
            "N": steps,
            "zero": [kind for kind, one in gradient.items() if not any(map(np.any, one.values()))],
        },
    )


def reverse_stored(
    programs: Compiled, adjoint: Tree, stored: Stored, values: Tree, progress: Progress | None
) -> tuple[Tree, np.ndarray]:
    """Backward over the true states, chunk by chunk: the mirror image of the loop in training.train.

    Ends by asserting that it has arrived at the w_0 of this very run.
    """
    T = programs.problem.steps
    norms = np.empty(T)
    for start, stop, states in stored.backwards():
        if programs.keeps_velocity and not any(name.startswith("v/") for name in states):
            raise UsageError(
                "the trajectory holds no velocities, which learning rate and momentum need; "
                "train again with these hyperparameters declared"
            )
        xs = programs.steps(start, stop)
        adjoint, some = programs.reverse_chunk(adjoint, states, values, programs.train_data, xs)
        norms[start:stop] = some
        finite(norms, start, stop)
        if progress:
            progress(T - start, T)
    if start or any(np.any(states["w/" + name][0] != one) for name, one in stored.initial.items()):
        raise VerificationFailure(
            f"the trajectory leads back to step {start}, but not to the w_0 of this run; train again"
        )
    return adjoint, norms


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


def kept_bytes(training: Training, method: Method) -> int:
    """Bytes of the states that the method reads: the trajectory, or w_0 and w_T."""
    if isinstance(method, DrMAD):
        return 2 * sum(one.nbytes for one in training.final.values())
    assert training.trajectory is not None
    return training.trajectory.nbytes


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
